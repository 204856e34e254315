"""Carry the fields that this version of a type does not know from a resource's old bytes into its new ones.

A newer program may have stored fields that an older one has no names for. Decoding passes over them; without this
module the older program's next update would drop them. It works on JSON text, so that what is carried stays as it was
written, digit for digit:

1. An object keeps each field that its type does not know, unless the object itself went away.
2. Known fields are never carried: the new bytes say what they are, or that they are gone.
3. The values of a mapping are matched by their key.
4. The elements of a list are matched by content (all known fields equal), else by the first of the fields `name`,
   `type`, `id`, `uid`, `key` that their type has, else, in lists of the same length, by place. An element that finds
   no match was removed or replaced, and its unknown fields go with it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Union

import msgspec
from msgspec import Raw, inspect

_IDENTITIES = ("name", "type", "id", "uid", "key")

_objects = msgspec.json.Decoder(dict[str, Raw])
_arrays = msgspec.json.Decoder(list[Raw])
_encoder = msgspec.json.Encoder(order="sorted")


class Plan(Protocol):
    """Where one type may hold fields that it does not know."""

    def carry(self, old: Raw, new: Raw) -> Raw:
        """Return `new` with what it lacks of `old`; the very same object if it lacks nothing."""
        ...

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        """Yield the paths of the fields in `value` that the type does not know."""
        ...


def plan_for(kind: type) -> Plan | None:
    """Return the plan for a type; None if it has no place for unknown fields."""
    return _plan(inspect.type_info(kind), {})


class _ObjectPlan:
    """A struct, dataclass or typed dict."""

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        self.children: dict[str, Plan] = {}

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not _is_object(old) or not _is_object(new):
            return new
        olds = _objects.decode(old)
        unknown = {name: value for name, value in olds.items() if name not in self.known}
        nested = self.children.keys() & olds.keys()
        if not unknown and not nested:
            return new
        return _merged(new, unknown, {name: (self.children[name], olds[name]) for name in nested})

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        for name, child in _objects.decode(value).items() if _is_object(value) else ():
            if name not in self.known:
                yield f"{path}.{name}".lstrip(".")
            elif plan := self.children.get(name):
                yield from plan.strangers(child, f"{path}.{name}".lstrip("."))


class _MapPlan:
    """A mapping whose values may hold unknown fields."""

    def __init__(self, values: Plan) -> None:
        self.values = values

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not _is_object(old) or not _is_object(new):
            return new
        return _merged(new, {}, {name: (self.values, value) for name, value in _objects.decode(old).items()})

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        for name, child in _objects.decode(value).items() if _is_object(value) else ():
            yield from self.values.strangers(child, f"{path}.{name}")


class _ListPlan:
    """A list (or another array) whose elements may hold unknown fields."""

    def __init__(self, element: Plan, objects: tuple[type, ...], identity: str | None) -> None:
        self.element = element
        self.identity = identity
        # What is known of an element, to compare it by; None if the elements are no objects.
        self.known: msgspec.json.Decoder[Any] | None = None
        if objects:
            self.known = msgspec.json.Decoder(Union[objects])  # noqa: UP007 - a tuple's union has no other spelling

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not _is_array(old) or not _is_array(new):
            return new
        olds, news = _arrays.decode(old), _arrays.decode(new)
        matches = self._matches(olds, news)
        return _replaced(
            new, news, [self.element.carry(olds[matches[i]], v) if i in matches else v for i, v in enumerate(news)]
        )

    def _matches(self, olds: list[Raw], news: list[Raw]) -> dict[int, int]:
        """Return the place in `olds` for each place in `news` that continues it, by rule 4."""
        matches: dict[int, int] = {}
        if self.known is not None:
            known = [_encoder.encode(self.known.decode(value)) if _is_object(value) else None for value in olds]
            matches = _pairs(known, [bytes(value) for value in news], matches)
        if self.identity is not None:
            matches = _pairs(
                [_field(v, self.identity) for v in olds], [_field(v, self.identity) for v in news], matches
            )
        elif len(olds) == len(news):
            free = set(range(len(olds))) - set(matches.values())
            matches |= {place: place for place in free if place not in matches}
        return matches

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        for place, child in enumerate(_arrays.decode(value) if _is_array(value) else ()):
            yield from self.element.strangers(child, f"{path}[{place}]")


class _TuplePlan:
    """An array of fixed length, each place with a type of its own."""

    def __init__(self, places: list[Plan | None]) -> None:
        self.places = places

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not _is_array(old) or not _is_array(new):
            return new
        news = _arrays.decode(new)
        each = zip(self.places, _arrays.decode(old), news, strict=True)
        return _replaced(
            new, news, [after if plan is None else plan.carry(before, after) for plan, before, after in each]
        )

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        for place, child in enumerate(_arrays.decode(value) if _is_array(value) else ()):
            if plan := self.places[place]:
                yield from plan.strangers(child, f"{path}[{place}]")


class _TaggedPlan:
    """One of several structs, told apart by the tag in the bytes."""

    def __init__(self, tag_field: str, members: dict[bytes, Plan]) -> None:
        self.tag_field = tag_field
        self.members = members

    def carry(self, old: Raw, new: Raw) -> Raw:
        tag = _field(old, self.tag_field)
        if tag is None or tag != _field(new, self.tag_field):
            return new  # another variant: its fields are another type's
        return self.members[tag].carry(old, new)

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        tag = _field(value, self.tag_field)
        return self.members[tag].strangers(value, path) if tag is not None else iter(())


class _EitherPlan:
    """An object or an array (or something without a plan), told apart by how the bytes begin."""

    def __init__(self, objects: Plan, arrays: Plan) -> None:
        self.objects = objects
        self.arrays = arrays

    def carry(self, old: Raw, new: Raw) -> Raw:
        return (self.arrays if _is_array(new) else self.objects).carry(old, new)

    def strangers(self, value: Raw, path: str) -> Iterator[str]:
        return (self.arrays if _is_array(value) else self.objects).strangers(value, path)


# --- JSON text -------------------------------------------------------------------------------------------------------


def _is_object(value: Raw) -> bool:
    return bytes(value).lstrip()[:1] == b"{"


def _is_array(value: Raw) -> bool:
    return bytes(value).lstrip()[:1] == b"["


def _field(value: Raw, name: str) -> bytes | None:
    """Return a field of an object, text in one spelling however it was escaped; None if it has none."""
    found = _objects.decode(value).get(name) if _is_object(value) else None
    if found is None:
        return None
    return _encoder.encode(msgspec.json.decode(found)) if bytes(found)[:1] == b'"' else bytes(found)


def _merged(new: Raw, unknown: dict[str, Raw], nested: dict[str, tuple[Plan, Raw]]) -> Raw:
    """Return `new` with the unknown fields, and with what its nested values lack."""
    news = _objects.decode(new)
    carried = {name: plan.carry(old, news[name]) for name, (plan, old) in nested.items() if name in news}
    if not unknown and all(value is news[name] for name, value in carried.items()):
        return new
    return Raw(_encoder.encode(unknown | news | carried))


def _replaced(new: Raw, news: list[Raw], carried: list[Raw]) -> Raw:
    """Return an array of `carried`; the very same `new` if that is what it holds already."""
    same = all(after is before for after, before in zip(carried, news, strict=True))
    return new if same else Raw(_encoder.encode(carried))


def _pairs(olds: Sequence[bytes | None], news: Sequence[bytes | None], matches: Mapping[int, int]) -> dict[int, int]:
    """Add to `matches` (new place to old place) those of equal value that are still free, in order."""
    taken = set(matches.values())
    free: dict[bytes, deque[int]] = {}
    for place, value in enumerate(olds):
        if value is not None and place not in taken:
            free.setdefault(value, deque()).append(place)
    added = dict(matches)
    for place, value in enumerate(news):
        if value is not None and place not in added and free.get(value):
            added[place] = free[value].popleft()
    return added


# --- from types to plans ---------------------------------------------------------------------------------------------

_Object = inspect.StructType | inspect.DataclassType | inspect.TypedDictType
# By identity: a recursive type describes itself with the same object again, and Box[int] and Box[str] are two.
_Seen = dict[int, "_ObjectPlan"]
_Array = inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType


def _plan(info: inspect.Type, seen: _Seen) -> Plan | None:
    if isinstance(info, _Object):
        return _object_plan(info, seen)
    if isinstance(info, inspect.UnionType):
        return _union_plan(info, seen)
    if isinstance(info, inspect.DictType):
        values = _plan(info.value_type, seen)
        return _MapPlan(values) if values is not None else None
    if isinstance(info, inspect.TupleType):
        places = [_plan(item, seen) for item in info.item_types]
        return _TuplePlan(places) if any(places) else None
    if isinstance(info, _Array):
        return _list_plan(info.item_type, seen)
    return None


def _object_plan(info: inspect.StructType | inspect.DataclassType | inspect.TypedDictType, seen: _Seen) -> Plan | None:
    if isinstance(info, inspect.StructType) and info.array_like:
        return None  # fields by place: there are no names to know or not to know
    if id(info) in seen:
        return seen[id(info)]
    plan = seen[id(info)] = _ObjectPlan()
    tag = {info.tag_field} if isinstance(info, inspect.StructType) and info.tag_field else set()
    plan.known = frozenset(field.encode_name for field in info.fields) | tag
    children = {field.encode_name: _plan(field.type, seen) for field in info.fields}
    plan.children = {name: child for name, child in children.items() if child is not None}
    return plan


def _union_plan(info: inspect.UnionType, seen: _Seen) -> Plan | None:
    """A union in msgspec has at most one array, and one mapping or untagged struct, or several tagged structs."""
    plans = [(member, plan) for member in info.types if (plan := _plan(member, seen)) is not None]
    arrays = [plan for member, plan in plans if isinstance(member, (*_Array.__args__, inspect.TupleType))]
    structs = [(member, plan) for member, plan in plans if isinstance(member, inspect.StructType)]
    objects = [plan for _, plan in plans if plan not in arrays]
    if len(structs) > 1:
        tagged = {_encoder.encode(member.tag): plan for member, plan in structs}
        objects = [_TaggedPlan(str(structs[0][0].tag_field), tagged)]
    if objects and arrays:
        return _EitherPlan(objects[0], arrays[0])
    return next(iter(objects or arrays), None)


def _list_plan(item: inspect.Type, seen: _Seen) -> Plan | None:
    element = _plan(item, seen)
    members = item.types if isinstance(item, inspect.UnionType) else (item,)
    if element is None:
        return None
    objects = tuple(member.cls for member in members if isinstance(member, _Object))
    named = [name for name in _IDENTITIES if isinstance(element, _ObjectPlan) and name in element.known]
    return _ListPlan(element, objects, named[0] if named else None)
