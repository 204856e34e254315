r"""Field selectors: which resources a list or watch covers, by metadata, spec and status.

    status.phase=Ready, spec.labTrack!=comp-sci-101, metadata.labels.example.org/zone=

A path uses the names of the stored JSON (`spec.labTrack`) or of Python (`spec.lab_track`). It
leads through structs, dicts and optional values. If the values of a dict have no fields, the rest
of the path is the key, dots included; otherwise a key is one step. A path cannot lead through
lists, or through keys that contain `=`, `!` or `,`.

Values are compared as text: strings and enums directly, everything else by its JSON text (`true`,
`8`, `2026-01-31T12:00:00Z`). None, a missing key and the empty text are equal. `\,`, `\=` and `\\`
escape the second character. Source: k8s.io/apimachinery, `fields.ParseSelector`. Two differences:
white space around values is ignored, as in label selectors (`\ ` escapes it), and a comma must be
followed by a requirement.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Final, NamedTuple, Self, TypeAlias

import msgspec
from msgspec import inspect

from kvorum.errors import InvalidSelectorError
from kvorum.resources import AnyResource

FieldSelectorLike: TypeAlias = "str | Mapping[str, object] | FieldSelector | None"
"""Text, a mapping (`{"status.phase": "Ready"}`), a selector, or None for everything."""

_Getter: TypeAlias = Callable[[object], object]


class FieldRequirement(NamedTuple):
    """One requirement of a field selector.

    Attributes:
        path: the field, by its names in the stored JSON.
        value: the text that it is compared with.
        is_equal: whether the field must equal it (`=`) or differ from it (`!=`).
    """

    path: str
    value: str
    is_equal: bool

    def __str__(self) -> str:
        return f"{self.path}{'=' if self.is_equal else '!='}{_escaped(self.value)}"


class FieldSelector:
    """A predicate on fields: a resource is selected if its fields meet all the requirements.

    Immutable, and bound to a type from the start, so that a misspelt path is found at once. Two
    selectors are equal if their types and requirements are, in any order and spelling. `str()`
    gives the canonical text, which parses to an equal selector.

    Attributes:
        resource_type: the type whose fields the paths name.
        requirements: sorted and unique.
    """

    __slots__ = ("_tests", "requirements", "resource_type")

    resource_type: Final[type[AnyResource]]
    requirements: Final[tuple[FieldRequirement, ...]]

    def __init__(self, resource_type: type[AnyResource], text: str = "") -> None:
        getters: dict[FieldRequirement, _Getter] = {}
        for term in _terms(text):
            path, getter = _resolve(resource_type, term, text)
            getters[FieldRequirement(path, term.value, term.is_equal)] = getter
        self.resource_type = resource_type
        self.requirements = tuple(sorted(getters))
        self._tests = tuple(
            (getters[each], each.value, each.is_equal) for each in self.requirements
        )

    @classmethod
    def of(cls, value: FieldSelectorLike, resource_type: type[AnyResource]) -> "FieldSelector":
        """Make a selector of text, a mapping, a selector, or None.

        A mapping requires equality; its values may be Python values of the fields (`8`, `True`, an
        enum member, None). A selector of another type is bound to this one.

        Raises:
            InvalidSelectorError: it is none of these, breaks the grammar, or names a field that the
                type lacks. For a mapping the error's selector is the equivalent text.
        """
        match value:
            case None:
                return cls(resource_type)
            case str():
                return cls(resource_type, value)
            case FieldSelector():
                return (
                    value
                    if value.resource_type is resource_type
                    else cls(resource_type, str(value))
                )
            case Mapping():
                return cls(
                    resource_type, ",".join(_mapped(path, wanted) for path, wanted in value.items())
                )
            case _:
                raise InvalidSelectorError(
                    repr(value), 0, "expected text, a mapping or a FieldSelector"
                )

    @classmethod
    def parse(cls, text: str, resource_type: type[AnyResource]) -> Self:
        """Parse a selector; the empty text selects everything.

        Raises:
            InvalidSelectorError: the text breaks the grammar, or names a field that the type lacks.
        """
        return cls(resource_type, text)

    @property
    def is_everything(self) -> bool:
        """Whether it has no requirement, and so selects everything."""
        return not self.requirements

    def matches(self, resource: AnyResource) -> bool:
        """Return whether the fields of this resource meet all the requirements."""
        # Not all(): it takes longer, and one list may ask 20,000 times.
        for getter, value, is_equal in self._tests:
            if (_text_of(getter(resource)) == value) is not is_equal:
                return False
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FieldSelector):
            return NotImplemented
        type_ = other.resource_type
        return self.resource_type is type_ and self.requirements == other.requirements

    def __hash__(self) -> int:
        return hash((self.resource_type, self.requirements))

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))

    def __repr__(self) -> str:
        return f"<FieldSelector {str(self)!r} of {self.resource_type.__name__}>"


# --- values ---------------------------------------------------------------------------------------

_SPACE = " \t\r\n"
_ESCAPABLE = frozenset("\\,=" + _SPACE)


def _text_of(value: object) -> str:
    if type(value) is str:  # the usual case; msgspec would be slower
        return value
    if value is None or value is msgspec.UNSET:
        return ""
    plain = msgspec.to_builtins(value)
    return plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()


def _escaped(value: str) -> str:
    stripped = value.strip(_SPACE)
    start = value.find(stripped) if stripped else len(value)
    end = start + len(stripped)
    return "".join(
        f"\\{character}" if character in "\\,=" or not start <= index < end else character
        for index, character in enumerate(value)
    )


def _mapped(path: object, wanted: object) -> str:
    """Return one item of a mapping as text. Its path must not contain an operator."""
    item = repr({path: wanted})
    if not isinstance(path, str) or not path.strip(_SPACE) or _end_of_path(path, 0) < len(path):
        raise InvalidSelectorError(item, 0, "expected the path of a field")
    try:
        plain = msgspec.to_builtins(wanted)
    except TypeError as error:
        raise InvalidSelectorError(item, 0, f"expected one plain value: {error}") from error
    if isinstance(plain, Mapping | list | tuple | set):
        raise InvalidSelectorError(item, 0, "expected one plain value")
    return f"{path}={_escaped(_text_of(wanted))}"


# --- parsing --------------------------------------------------------------------------------------


class _Term(NamedTuple):
    """A requirement as it was written, and the position of its path."""

    path: str
    position: int
    is_equal: bool
    value: str


def _terms(text: str) -> Iterator[_Term]:
    position = _skip_space(text, 0)
    while position < len(text):
        term, position = _read_term(text, position)
        yield term
        if position < len(text):  # at a comma
            position = _skip_space(text, position + 1)
            if position == len(text):
                raise InvalidSelectorError(
                    text, position, "expected the path of a field, found the end"
                )


def _read_term(text: str, start: int) -> tuple[_Term, int]:
    """Parse the requirement at `start`; return it and its end: a comma, or the end of the text."""
    end = _end_of_path(text, start)
    path = text[start:end].rstrip(_SPACE)
    if not path:
        raise InvalidSelectorError(
            text, start, f"expected the path of a field, found {text[start]!r}"
        )
    operator = next(
        (operator for operator in ("!=", "==", "=") if text.startswith(operator, end)), ""
    )
    if not operator:
        found = repr(text[end]) if end < len(text) else "the end"
        raise InvalidSelectorError(text, end, f"expected '=', '==' or '!=', found {found}")
    value, after = _read_value(text, _skip_space(text, end + len(operator)))
    return _Term(path, start, operator != "!=", value), after


def _read_value(text: str, start: int) -> tuple[str, int]:
    """Parse the value at `start`; return it and its end: a comma, or the end of the text."""
    value: list[str] = []
    length = 0  # without trailing white space, unless that is escaped
    position = start
    while position < len(text) and text[position] != ",":
        is_escaped = text[position] == "\\"
        if is_escaped:
            position += 1
            if text[position : position + 1] not in _ESCAPABLE:
                raise InvalidSelectorError(
                    text, position, r"expected '\\', ',', '=' or white space after '\'"
                )
        elif text[position] == "=":
            raise InvalidSelectorError(
                text, position, r"expected ',' or the end, found '=' (in a value, write '\=')"
            )
        value.append(text[position])
        if is_escaped or text[position] not in _SPACE:
            length = len(value)
        position += 1
    return "".join(value[:length]), position


def _skip_space(text: str, start: int) -> int:
    return next(
        (position for position in range(start, len(text)) if text[position] not in _SPACE),
        len(text),
    )


def _end_of_path(text: str, start: int) -> int:
    return next(
        (position for position in range(start, len(text)) if text[position] in "=!,"), len(text)
    )


# --- finding fields -------------------------------------------------------------------------------


class _Step(NamedTuple):
    """One step of a path.

    Attributes:
        name: the field's name in the stored JSON, or the key.
        getter: takes the step; None leads to None.
        attribute: the Python name, if the step is always an attribute; otherwise empty.
        type: of the value found there.
    """

    name: str
    getter: _Getter
    attribute: str
    type: inspect.Type


_WALKED = (inspect.StructType, inspect.DataclassType, inspect.DictType)
_CLOSED = (  # neither walked nor compared
    inspect.CollectionType,
    inspect.CustomType,
    inspect.ExtType,
    inspect.NamedTupleType,
    inspect.RawType,
    inspect.TupleType,
    inspect.TypedDictType,
)


def _resolve(resource_type: type[AnyResource], term: _Term, text: str) -> tuple[str, _Getter]:
    """Follow a path, starting from the type. Returns its canonical form, and a getter."""
    here, position, rest, dot = _shape(resource_type), term.position, term.path, "."
    steps: list[_Step] = []
    while dot:
        segment, dot, rest = (
            (rest, "", "") if _is_dict_of_plain_values(here) else rest.partition(".")
        )
        step = _step(here, segment)
        if step is None:
            raise InvalidSelectorError(
                text, position, f"expected {_below(here)}, found {segment!r}"
            )
        if _is_closed(step.type):
            raise InvalidSelectorError(
                text, position, f"expected no list or the like, found {segment!r}"
            )
        steps.append(step)
        here = step.type
        position += len(segment) + len(dot)
    if not _is_plain(here):
        raise InvalidSelectorError(
            text, term.position + len(term.path), f"expected '.' and {_below(here)}"
        )
    return ".".join(step.name for step in steps), _chained(steps)


@lru_cache(maxsize=256)  # it takes a quarter of a millisecond, and a program has few types
def _shape(resource_type: type[AnyResource]) -> inspect.Type:
    return inspect.type_info(resource_type)


def _alternatives(type_: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the types that a value may have, apart from None."""
    if isinstance(type_, inspect.Metadata):
        return _alternatives(type_.type)
    if isinstance(type_, inspect.UnionType):
        return tuple(alternative for member in type_.types for alternative in _alternatives(member))
    return () if isinstance(type_, inspect.NoneType) else (type_,)


def _is_closed(type_: inspect.Type) -> bool:
    return all(isinstance(alternative, _CLOSED) for alternative in _alternatives(type_))


def _is_plain(type_: inspect.Type) -> bool:
    """Return whether a value of this type can be compared, because it may be a scalar."""
    return not all(
        isinstance(alternative, _CLOSED + _WALKED) for alternative in _alternatives(type_)
    )


def _is_dict_of_plain_values(type_: inspect.Type) -> bool:
    match _alternatives(type_):
        case [inspect.DictType(value_type=value_type)]:
            return not any(
                isinstance(each, (inspect.AnyType, *_WALKED)) for each in _alternatives(value_type)
            )
        case _:
            return False


def _fields_of(type_: inspect.Type) -> Iterator[tuple[type, inspect.Field]]:
    for alternative in _alternatives(type_):
        if isinstance(alternative, inspect.StructType | inspect.DataclassType):
            yield from ((alternative.cls, field) for field in alternative.fields)


def _step(type_: inspect.Type, segment: str) -> _Step | None:
    """Find the step from a type to a field or key, if there is one."""
    fields = list(_fields_of(type_))
    names = [field.encode_name for _, field in fields if field.encode_name == segment]
    names += [field.encode_name for _, field in fields if field.name == segment]
    if names:
        return _step_to_field(
            names[0],
            [(cls, field) for cls, field in fields if field.encode_name == names[0]],
            type_,
        )
    for alternative in _alternatives(type_):
        if segment and isinstance(alternative, inspect.DictType):
            return _Step(segment, _item_getter(segment), "", _or_none(alternative.value_type))
        if segment and isinstance(alternative, inspect.AnyType):
            return _Step(segment, _item_getter(segment), "", alternative)
    return None


def _step_to_field(
    name: str, owners: list[tuple[type, inspect.Field]], type_: inspect.Type
) -> _Step:
    """Make the step to a field that one or more alternatives of a type have."""
    attribute = owners[0][1].name
    if isinstance(type_, inspect.StructType | inspect.DataclassType):
        return _Step(name, attrgetter(attribute), attribute, owners[0][1].type)
    getter = _field_getter([(cls, field.name) for cls, field in owners])
    return _Step(name, getter, "", _or_none(*(field.type for _, field in owners)))


def _or_none(*types: inspect.Type) -> inspect.Type:
    """Make a type optional, so that later steps expect that it can be missing."""
    return inspect.UnionType((*types, inspect.NoneType()))


def _below(type_: inspect.Type) -> str:
    """Return what a path can name below a value of this type, for messages."""
    names = [field.encode_name for _, field in _fields_of(type_)]
    if names:
        return f"a field ({', '.join(dict.fromkeys(names))})"
    has_keys = any(
        isinstance(each, inspect.DictType | inspect.AnyType) for each in _alternatives(type_)
    )
    return "a key" if has_keys else "an operator instead of '.'"


# --- getting values -------------------------------------------------------------------------------


def _chained(steps: Iterable[_Step]) -> _Getter:
    if all(step.attribute for step in steps):
        # The usual case, in one call to C.
        return attrgetter(".".join(step.attribute for step in steps))
    getters = tuple(step.getter for step in steps)

    def get(value: object) -> object:
        for getter in getters:
            value = getter(value)
        return value

    return get


def _field_getter(owners: list[tuple[type, str]]) -> _Getter:
    def get(value: object) -> object:
        # By type, not by name: text has attributes, too (`title`, `index`), and structs have
        # methods.
        for owner, name in owners:
            if isinstance(value, owner):
                return getattr(value, name)
        return None

    return get


def _item_getter(key: str) -> _Getter:
    def get(value: object) -> object:
        if not isinstance(value, dict):
            return None
        if key in value:
            return value[key]
        # Keys that are not text in Python (numbers, enum members) are text in JSON.
        return next((found for other, found in value.items() if _text_of(other) == key), None)

    return get
