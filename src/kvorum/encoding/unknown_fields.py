"""Preserve unknown fields: copy them from a resource's old bytes into its new ones.

A newer program may have stored fields that an older version of the type does not have. Decoding
ignores them; without this module the older program's next update would drop them. It works on JSON
text, so that unknown fields keep their exact spelling, to the last digit:

1. An object keeps each unknown field, unless the object itself was removed.
2. Known fields are never carried over: the new bytes have their value, or omit them.
3. The values of a mapping are matched by key.
4. The elements of a list are matched by content first (all known fields are equal; equal elements
   are matched in order). Then by identity: the first of the fields `name`, `type`, `id`, `uid`,
   `key` that their type has (in a union: that all its types have), if its value occurs once in the
   old list and once in the new one. Then, in lists of the same length, by index, unless their
   identities differ. An old element without a match was removed or replaced, and its unknown fields
   are dropped; a new element without a match has none.
5. An object that is stored as an array keeps the items after those that its type knows.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Raw, inspect

from kvorum.encoding.json_text import (
    arrays,
    encoder,
    is_array,
    is_object,
    objects,
)

_IDENTITIES = ("name", "type", "id", "uid", "key")


class Plan(Protocol):
    """Where values of one type may have unknown fields."""

    def carry(self, old: Raw, new: Raw) -> Raw:
        """Return `new` with the unknown fields of `old`; the same object if there are none."""
        ...

    def known_part(self, value: Raw) -> Raw:
        """Return a value without its unknown fields, as this type would encode it."""
        ...

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        """Yield the paths of the unknown fields in `value`, which itself is at `path`."""
        ...


def unknown_fields_of(kind: type) -> Plan | None:
    """Return the plan for a type; None if its values cannot have unknown fields."""
    return _plan(inspect.type_info(kind), {})


class _ObjectPlan:
    """A struct, dataclass or typed dict."""

    def __init__(self, kind: Any) -> None:
        self.kind: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self.known: frozenset[str] = frozenset()
        self.children: dict[str, Plan] = {}

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not is_object(old) or not is_object(new):
            return new
        olds = objects.decode(old)
        unknown = {name: value for name, value in olds.items() if name not in self.known}
        nested = self.children.keys() & olds.keys()
        if not unknown and not nested:
            return new
        return _merged(new, unknown, {name: (self.children[name], olds[name]) for name in nested})

    def known_part(self, value: Raw) -> Raw:
        return Raw(encoder.encode(self.kind.decode(value))) if is_object(value) else value

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        for name, child in objects.decode(value).items() if is_object(value) else ():
            if name not in self.known:
                yield f"{path}.{name}".lstrip(".")
            elif plan := self.children.get(name):
                yield from plan.unknown_paths(child, f"{path}.{name}".lstrip("."))


class _MapPlan:
    """A mapping whose values may have unknown fields."""

    def __init__(self, values: Plan) -> None:
        self.values = values

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not is_object(old) or not is_object(new):
            return new
        return _merged(
            new,
            {},
            {name: (self.values, value) for name, value in objects.decode(old).items()},
        )

    def known_part(self, value: Raw) -> Raw:
        if not is_object(value):
            return value
        return Raw(
            encoder.encode(
                {name: self.values.known_part(v) for name, v in objects.decode(value).items()}
            )
        )

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        for name, child in objects.decode(value).items() if is_object(value) else ():
            yield from self.values.unknown_paths(child, f"{path}.{name}")


class _ListPlan:
    """A list (or another array) whose elements may have unknown fields."""

    def __init__(self, element: Plan, identity: str | None) -> None:
        self.element = element
        self.identity = identity

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not is_array(old) or not is_array(new):
            return new
        olds, news = arrays.decode(old), arrays.decode(new)
        matches = self._matches(olds, news)
        return _replaced(
            new,
            news,
            [
                self.element.carry(olds[matches[i]], v) if i in matches else v
                for i, v in enumerate(news)
            ],
        )

    def _matches(self, olds: list[Raw], news: list[Raw]) -> dict[int, int]:
        """Map indexes in `news` to the indexes in `olds` that they match by rule 4."""
        # As this type would encode them, like `news`: another program may have written `olds`.
        olds = [self.element.known_part(value) for value in olds]
        matches = _pairs([bytes(value) for value in olds], [bytes(value) for value in news])
        before, after = (
            [self._identity_of(value) for value in olds],
            [self._identity_of(value) for value in news],
        )
        matches = _pairs(_single(before), _single(after)) | matches
        if len(olds) == len(news):
            free = set(range(len(olds))) - set(matches.values())
            matches |= {i: i for i in free if i not in matches and before[i] == after[i]}
        return matches

    def _identity_of(self, value: Raw) -> bytes | None:
        if self.identity is None or not is_object(value):
            return None
        return _field(value, self.identity) or b""  # omitted: the default, a value like any other

    def known_part(self, value: Raw) -> Raw:
        if not is_array(value):
            return value
        return Raw(encoder.encode([self.element.known_part(v) for v in arrays.decode(value)]))

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        for index, child in enumerate(arrays.decode(value) if is_array(value) else ()):
            yield from self.element.unknown_paths(child, f"{path}[{index}]")


class _TuplePlan:
    """An array with a type for each item: a tuple, or a struct that is stored as an array."""

    def __init__(self, items: list[Plan | None], kind: Any = None) -> None:
        self.items = items
        self.kind: msgspec.json.Decoder[Any] | None = (
            msgspec.json.Decoder(kind) if kind is not None else None
        )

    def carry(self, old: Raw, new: Raw) -> Raw:
        if not is_array(old) or not is_array(new):
            return new
        olds, news = arrays.decode(old), arrays.decode(new)
        # `olds` may be shorter: the other items have defaults.
        each = zip(self.items, olds, news, strict=False)
        carried = [
            after if plan is None else plan.carry(before, after) for plan, before, after in each
        ]
        return _replaced(new, news, carried + news[len(carried) :] + olds[len(self.items) :])

    def known_part(self, value: Raw) -> Raw:
        if not is_array(value):
            return value
        if self.kind is not None:
            return Raw(encoder.encode(self.kind.decode(value)))
        each = zip(self.items, arrays.decode(value), strict=True)
        return Raw(encoder.encode([v if plan is None else plan.known_part(v) for plan, v in each]))

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        for index, child in enumerate(arrays.decode(value) if is_array(value) else ()):
            if index >= len(self.items):
                yield f"{path}[{index}]"
            elif plan := self.items[index]:
                yield from plan.unknown_paths(child, f"{path}[{index}]")


class _TaggedPlan:
    """One of several structs, distinguished by the tag in the bytes."""

    def __init__(self, tag_field: str | None, members: dict[bytes, Plan]) -> None:
        self.tag_field = tag_field
        self.members = members

    def carry(self, old: Raw, new: Raw) -> Raw:
        tag = self._tag(old)
        if tag is None or tag != self._tag(new):
            return new  # another variant: the fields belong to another type
        return self.members[tag].carry(old, new)

    def known_part(self, value: Raw) -> Raw:
        tag = self._tag(value)
        return self.members[tag].known_part(value) if tag is not None else value

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        tag = self._tag(value)
        return self.members[tag].unknown_paths(value, path) if tag is not None else iter(())

    def _tag(self, value: Raw) -> bytes | None:
        if self.tag_field is not None:
            return _field(value, self.tag_field)
        return _text(arrays.decode(value)[0]) if is_array(value) else None


class _EitherPlan:
    """An object or an array (or a value without a plan), distinguished by the first byte."""

    def __init__(self, objects: Plan, arrays: Plan) -> None:
        self.objects = objects
        self.arrays = arrays

    def carry(self, old: Raw, new: Raw) -> Raw:
        return (self.arrays if is_array(new) else self.objects).carry(old, new)

    def known_part(self, value: Raw) -> Raw:
        return (self.arrays if is_array(value) else self.objects).known_part(value)

    def unknown_paths(self, value: Raw, path: str) -> Iterator[str]:
        return (self.arrays if is_array(value) else self.objects).unknown_paths(value, path)


# --- JSON text ------------------------------------------------------------------------------------


def _field(value: Raw, name: str) -> bytes | None:
    """Return a field of an object, or None. Text is normalized, however it was escaped."""
    found = objects.decode(value).get(name) if is_object(value) else None
    return _text(found) if found is not None else None


def _text(value: Raw) -> bytes:
    return encoder.encode(msgspec.json.decode(value)) if bytes(value)[:1] == b'"' else bytes(value)


def _merged(new: Raw, unknown: dict[str, Raw], nested: dict[str, tuple[Plan, Raw]]) -> Raw:
    """Return `new` with the unknown fields, and with those of nested values."""
    news = objects.decode(new)
    carried = {
        name: plan.carry(old, news[name]) for name, (plan, old) in nested.items() if name in news
    }
    if not unknown and all(value is news[name] for name, value in carried.items()):
        return new
    return Raw(encoder.encode(unknown | news | carried))


def _replaced(new: Raw, news: list[Raw], carried: list[Raw]) -> Raw:
    """Return an array of `carried`; the same object `new` if it has the same items."""
    same = all(after is before for after, before in zip(carried, news, strict=False))
    return new if same and len(carried) == len(news) else Raw(encoder.encode(carried))


def _pairs(olds: Sequence[bytes | None], news: Sequence[bytes | None]) -> dict[int, int]:
    """Map new indexes to old indexes of equal values, in order, each index at most once."""
    free: dict[bytes, deque[int]] = {}
    for index, value in enumerate(olds):
        if value is not None:
            free.setdefault(value, deque()).append(index)
    return {
        index: free[value].popleft()
        for index, value in enumerate(news)
        if value is not None and free.get(value)
    }


def _single(values: Sequence[bytes | None]) -> list[bytes | None]:
    """Replace values that occur more than once by None."""
    counts = Counter(values)
    return [value if counts[value] == 1 else None for value in values]


# --- from types to plans --------------------------------------------------------------------------

_Object = (
    inspect.StructType | inspect.DataclassType | inspect.TypedDictType | inspect.NamedTupleType
)
# By id(): a recursive type refers to the same description object, and Box[int] and Box[str] have
# two.
_Seen = dict[int, Plan]
_Array = inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType


def _plan(info: inspect.Type, seen: _Seen) -> Plan | None:
    members = _members(info)
    if len(members) > 1:
        return _union_plan(members, seen)
    info = members[0]
    if isinstance(info, _Object):
        return _row_plan(info, seen) if _is_array_type(info) else _object_plan(info, seen)
    if isinstance(info, inspect.DictType):
        values = _plan(info.value_type, seen)
        return _MapPlan(values) if values is not None else None
    if isinstance(info, inspect.TupleType):
        items = [_plan(item, seen) for item in info.item_types]
        return _TuplePlan(items) if any(items) else None
    if isinstance(info, _Array):
        return _list_plan(info.item_type, seen)
    return None


def _members(info: inspect.Type) -> list[inspect.Type]:
    """Return the types of a union, or the type itself, without the metadata of `Annotated`."""
    if isinstance(info, inspect.Metadata):
        return _members(info.type)
    if isinstance(info, inspect.UnionType):
        return [member for each in info.types for member in _members(each)]
    return [info]


def _object_plan(info: _Object, seen: _Seen) -> Plan:
    if id(info) in seen:
        return seen[id(info)]
    plan = seen[id(info)] = _ObjectPlan(info.cls)
    tag = {info.tag_field} if isinstance(info, inspect.StructType) and info.tag_field else set()
    plan.known = frozenset(field.encode_name for field in info.fields) | tag
    children = {field.encode_name: _plan(field.type, seen) for field in info.fields}
    plan.children = {name: child for name, child in children.items() if child is not None}
    return plan


def _row_plan(info: _Object, seen: _Seen) -> Plan:
    if id(info) in seen:
        return seen[id(info)]
    is_tagged = isinstance(info, inspect.StructType) and info.tag is not None
    plan = seen[id(info)] = _TuplePlan([None] * is_tagged, info.cls)  # the tag is the first item
    plan.items += [_plan(field.type, seen) for field in info.fields]
    return plan


def _union_plan(members: list[inspect.Type], seen: _Seen) -> Plan | None:
    """Return the plan of a union, which in msgspec has at most one array type and one object type.

    It may have several of either if they are tagged structs.
    """
    plans = [(member, plan) for member in members if (plan := _plan(member, seen)) is not None]
    arrays = _one_of([(member, plan) for member, plan in plans if _is_array_type(member)])
    objects = _one_of([(member, plan) for member, plan in plans if not _is_array_type(member)])
    if objects and arrays:
        return _EitherPlan(objects, arrays)
    return objects or arrays


def _one_of(plans: list[tuple[inspect.Type, Plan]]) -> Plan | None:
    tagged = {
        encoder.encode(m.tag): (m, plan) for m, plan in plans if isinstance(m, inspect.StructType)
    }
    if len(tagged) < 2:
        return plans[0][1] if plans else None
    first = next(iter(tagged.values()))[0]
    return _TaggedPlan(
        None if first.array_like else first.tag_field,
        {tag: plan for tag, (_, plan) in tagged.items()},
    )


def _is_array_type(info: inspect.Type) -> bool:
    if isinstance(info, inspect.StructType):
        return info.array_like
    return isinstance(info, _Array | inspect.TupleType | inspect.NamedTupleType)


def _list_plan(item: inspect.Type, seen: _Seen) -> Plan | None:
    element = _plan(item, seen)
    if element is None:
        return None
    objects = [
        member
        for member in _members(item)
        if isinstance(member, _Object) and not _is_array_type(member)
    ]
    # Without the tag: its name may be `type`, but all elements of one variant share its value.
    fields = [{field.encode_name for field in member.fields} for member in objects]
    shared = fields[0].intersection(*fields) if fields else set()
    return _ListPlan(element, next((name for name in _IDENTITIES if name in shared), None))
