"""Unknown fields survive an update, by the numbered rules of `kvorum.encoding.unknown_fields`.

The older type is declared here. Documents of a "newer" type are its documents with unknown fields
inserted everywhere. What an update must keep of them is computed a second time, naively, on plain
data, from a description of the shape (`Object`, `Mapped`, `Listed`, …) that does not use msgspec.
"""

# ruff: noqa: PLR0911 - a `match` over shapes returns from each case

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.older_types import (
    Disk,
    Json,
    Local,
    Named,
    Net,
    Node,
    Numbered,
    Plain,
    Remote,
    Typed,
)

from kvorum.encoding.stored import codec_for
from kvorum.errors import InvalidResourceError
from kvorum.resources.model import Kind, Resource, Stored
from kvorum.storage.values import Entry


class OldSpec(msgspec.Struct, rename="camel"):
    size: int = 0
    nested: Plain = msgspec.field(default_factory=Plain)
    maybe_plain: Plain | None = None
    by_name: dict[str, Plain] = {}
    plain: list[Plain] = []
    named: list[Named] = []
    typed: list[Typed] = []
    numbered: list[Numbered] = []
    tupled: tuple[Named, ...] = ()
    pair: tuple[Plain, Named] | None = None
    with_gaps: list[Plain | None] = []
    named_by_name: dict[str, list[Named]] = {}
    device: Disk | Net = msgspec.field(default_factory=Disk)
    devices: list[Disk | Net] = []
    locals: list[Local] = []
    volumes: list[Local | Remote] = []
    lists: list[list[Plain]] = []
    mappings: list[dict[str, Plain | None]] = []
    described: Annotated[
        list[Annotated[Plain, msgspec.Meta(title="t")]], msgspec.Meta(description="d")
    ] = []
    tree: Node = msgspec.field(default_factory=Node)


class OldStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    plain: Plain = msgspec.field(default_factory=Plain)


class Old(Resource[OldSpec, OldStatus]):
    kind: ClassVar[Kind] = Kind("Thing", plural="things", api_version="example.org/v1")


CODEC = codec_for(Old)


# --- the shape of that, once more and by hand -----------------------------------------------------


@dataclass
class Leaf:
    """Holds no fields."""

    values: st.SearchStrategy[Json]


@dataclass
class Object:
    fields: "dict[str, Shape]"


@dataclass
class Maybe:
    value: "Shape"


@dataclass
class Mapped:
    values: "Shape"


@dataclass
class Listed:
    elements: "Shape"
    identity: str | None = None


@dataclass
class Fixed:
    places: "list[Shape]"


@dataclass
class Tagged:
    members: dict[str, Object]


Shape: TypeAlias = Leaf | Object | Maybe | Mapped | Listed | Fixed | Tagged

INT = Leaf(st.integers(0, 2))
WORD = Leaf(st.sampled_from(["a", "b", "é"]))

PLAIN = Object({"size": INT, "note": Leaf(st.sampled_from([None, "x"]))})
NAMED = Object({"name": WORD, "size": INT})
TYPED = Object({"type": WORD, "id": INT})
NUMBERED = Object({"id": INT, "inner": PLAIN})
DEVICE = Tagged(
    {
        "disk": Object({"type": Leaf(st.just("disk")), "size": INT}),
        "net": Object({"type": Leaf(st.just("net")), "inner": Maybe(PLAIN)}),
    }
)
LOCAL = Object({"type": Leaf(st.just("local")), "id": INT})
REMOTE = Object({"type": Leaf(st.just("remote")), "id": INT, "inner": PLAIN})
NODE = Object({"size": INT})
NODE.fields |= {"left": Maybe(NODE), "children": Listed(NODE)}

SPEC = Object(
    {
        "size": INT,
        "nested": PLAIN,
        "maybePlain": Maybe(PLAIN),
        "byName": Mapped(PLAIN),
        "plain": Listed(PLAIN),
        "named": Listed(NAMED, "name"),
        "typed": Listed(TYPED, "type"),
        "numbered": Listed(NUMBERED, "id"),
        "tupled": Listed(NAMED, "name"),
        "pair": Maybe(Fixed([PLAIN, NAMED])),
        "withGaps": Listed(Maybe(PLAIN)),
        "namedByName": Mapped(Listed(NAMED, "name")),
        "device": DEVICE,
        "devices": Listed(DEVICE),
        "locals": Listed(LOCAL, "id"),
        "volumes": Listed(Tagged({"local": LOCAL, "remote": REMOTE}), "id"),
        "lists": Listed(Listed(PLAIN)),
        "mappings": Listed(Mapped(Maybe(PLAIN))),
        "described": Listed(PLAIN),
        "tree": NODE,
    }
)
STATUS = Object({"phase": WORD, "plain": PLAIN})


# --- documents ------------------------------------------------------------------------------------


class Text(str):
    """JSON text that a document contains verbatim. Numbers are read as such, to compare digits."""

    __slots__ = ()


def dumped(value: Json) -> str:
    """Canonical JSON, in which `Text` stands as it is."""
    match value:
        case Text():
            return value
        case dict():
            return (
                "{"
                + ",".join(f"{dumped(name)}:{dumped(value[name])}" for name in sorted(value))
                + "}"
            )
        case list():
            return "[" + ",".join(map(dumped, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def loaded(text: bytes | str) -> Json:
    """Plain data in which 1.10 is not 1.1."""
    return json.loads(text, parse_int=Text, parse_float=Text, parse_constant=Text)


UNKNOWN_NAMES = st.sampled_from(["x", "y", "nameOfANewerField", "Ж", "sizes"])
UNKNOWN_VALUES = st.sampled_from(
    [
        "1.10",
        "1e400",
        "-0.0",
        "1E5",
        "123456789012345678901234567890",
        '"é / \\u0001"',
        "null",
        "[]",
        '{"size":1.0,"b":{"a":[1,2.50,{}]}}',
        '[ {"name" : 1} ]',
        "false",
    ]
).map(Text)
UNKNOWN: st.SearchStrategy[dict[str, Json]] = st.just({}) | st.dictionaries(
    UNKNOWN_NAMES, UNKNOWN_VALUES, max_size=2
)


@st.composite
def documents(draw: st.DrawFn, shape: Shape, *, depth: int = 0, unknown: bool = True) -> Json:
    """A document of a newer type (or, without unknown fields, of the older one)."""

    def inner(of: Shape) -> Json:
        return draw(documents(of, depth=depth + 1, unknown=unknown))

    few = 3 if depth < 3 else 0  # a tree ends somewhere
    match shape:
        case Leaf(values):
            return draw(values)
        case Object(fields):
            known = {name: inner(of) for name, of in fields.items()}
            return (draw(UNKNOWN) if unknown else {}) | known
        case Maybe(value):
            return inner(value) if few and draw(st.booleans()) else None
        case Mapped(values):
            return {
                name: inner(values) for name in draw(st.sets(st.sampled_from("abé"), max_size=few))
            }
        case Listed(elements):
            return [inner(elements) for _ in range(draw(st.integers(0, few)))]
        case Fixed(places):
            return [inner(of) for of in places]
        case Tagged(members):
            return inner(draw(st.sampled_from(list(members.values()))))


def known(shape: Shape, value: Json) -> Json:
    """What the older type reads of a document."""
    match shape, value:
        case Object(fields), dict():
            return {name: known(of, value[name]) for name, of in fields.items()}
        case Maybe(of), _:
            return None if value is None else known(of, value)
        case Mapped(of), dict():
            return {name: known(of, inner) for name, inner in value.items()}
        case Listed(of), list():
            return [known(of, inner) for inner in value]
        case Fixed(places), list():
            return [known(of, inner) for of, inner in zip(places, value, strict=True)]
        case Tagged(members), dict():
            return known(members[value["type"]], value)
        case _:
            return value


@st.composite
def edited(draw: st.DrawFn, shape: Shape, value: Json) -> Json:
    """What a program of the older type may make of what it read: often a small change."""
    if draw(st.integers(0, 3)) == 0:
        return value
    match shape, value:
        case Object(fields), dict():
            return {name: draw(edited(of, value[name])) for name, of in fields.items()}
        case Maybe(of), dict():
            return draw(st.one_of(st.none(), edited(of, value)))
        case Mapped(of), dict():
            kept = draw(st.sets(st.sampled_from(sorted(value)))) if value else set()
            added = draw(st.sets(st.sampled_from("abéz"), max_size=1))
            return {n: draw(documents(of, depth=3, unknown=False)) for n in added} | {
                n: draw(edited(of, value[n])) for n in kept
            }
        case Listed(of), list():
            kept_values = draw(st.permutations(value))[: draw(st.integers(0, len(value)))]
            changed = [draw(edited(of, inner)) for inner in kept_values]
            return changed + [
                draw(documents(of, depth=3, unknown=False)) for _ in range(draw(st.integers(0, 1)))
            ]
        case Fixed(places), list():
            return [draw(edited(of, inner)) for of, inner in zip(places, value, strict=True)]
        case Tagged(members), dict() if draw(st.booleans()):
            return draw(edited(members[value["type"]], value))
        case _:
            return draw(documents(shape, depth=3, unknown=False))


# --- the expected result --------------------------------------------------------------------------


def carried(shape: Shape, old: Json, new: Json) -> Json:
    """Rules 1 to 4 on plain data, in their own words."""
    match shape, old, new:
        case Object(fields), dict(), dict():
            unknown = {name: value for name, value in old.items() if name not in fields}  # rule 1
            return unknown | {
                name: carried(of, old[name], new[name]) for name, of in fields.items()
            }  # rule 2
        case Maybe(of), _, _:
            return carried(of, old, new)
        case Mapped(of), dict(), dict():  # rule 3
            return {
                name: carried(of, old[name], value) if name in old else value
                for name, value in new.items()
            }
        case Listed(of, identity), list(), list():  # rule 4
            matches = matched(of, identity, old, new)
            return [
                value if match is None else carried(of, old[match], value)
                for value, match in zip(new, matches, strict=True)
            ]
        case Fixed(places), list(), list():  # rule 1: each place is an object of its own
            return [
                carried(of, before, after)
                for of, before, after in zip(places, old, new, strict=True)
            ]
        case Tagged(members), dict(), dict() if old["type"] == new["type"]:
            return carried(members[new["type"]], old, new)
        case _:
            return new


def matched(of: Shape, identity: str | None, old: list[Json], new: list[Json]) -> list[int | None]:
    """Return for each new element the index of the old one that it matches."""
    matches: list[int | None] = [None] * len(new)

    def match_where(is_same: Callable[[int, int], bool]) -> None:
        for place in range(len(new)):
            free = [candidate for candidate in range(len(old)) if candidate not in matches]
            if matches[place] is None:
                matches[place] = next(
                    (candidate for candidate in free if is_same(candidate, place)), None
                )

    def named(value: Json) -> Json:
        return value[identity] if identity is not None else None

    def is_only_one(value: Json) -> bool:
        return (
            [named(other) for other in old].count(value)
            == 1
            == [named(other) for other in new].count(value)
        )

    match_where(lambda before, after: bool(known(of, old[before]) == new[after]))
    match_where(
        lambda before, after: bool(
            named(old[before]) == named(new[after]) is not None and is_only_one(named(new[after]))
        )
    )
    if len(old) == len(new):
        match_where(
            lambda before, after: before == after and bool(named(old[before]) == named(new[after]))
        )
    return matches


# --- the codec ------------------------------------------------------------------------------------


def envelope(
    spec: Json, status: Json, metadata: dict[str, Json], unknown: dict[str, Json]
) -> dict[str, Json]:
    """What a newer writer stored."""
    own = {"formVersion": 1, "generation": 3, "name": "a", "uid": "u", "writeToken": "t"}
    return unknown | {
        "apiVersion": "example.org/v1",
        "kind": "Thing",
        "metadata": metadata | own,
        "spec": spec,
        "status": status,
    }


def stored_of(value: str) -> Stored:
    stored = CODEC.decode(Entry("things/a", value.encode(), 7, 7, 1)).metadata.stored
    assert stored is not None
    return stored


def with_known(old: Old, spec: Json, status: Json) -> Old:
    """Return the resource as an older program hands it to `update`: made of known fields only."""
    return Old(
        metadata=old.metadata,
        spec=msgspec.convert(spec, OldSpec),
        status=msgspec.convert(status, OldStatus),
    )


@given(st.data(), documents(SPEC), documents(STATUS), UNKNOWN, UNKNOWN)
def test_an_update_by_an_older_type_keeps_what_it_does_not_know(
    data: st.DataObject,
    spec: Json,
    status: Json,
    metadata: dict[str, Json],
    unknown: dict[str, Json],
) -> None:
    """However it changes known fields. And nothing is added."""
    stored = stored_of(dumped(envelope(spec, status, metadata, unknown)))
    new_spec = data.draw(edited(SPEC, known(SPEC, spec)))
    new_status = data.draw(edited(STATUS, known(STATUS, status)))

    draft = CODEC.draft_update(with_known(CODEC.restore(stored), new_spec, new_status), stored)

    written = loaded(draft.stored.value)
    assert written["spec"] == loaded(dumped(carried(SPEC, spec, new_spec)))
    assert written["status"] == loaded(dumped(carried(STATUS, status, new_status)))
    assert {n: v for n, v in written["metadata"].items() if n in metadata} == loaded(
        dumped(metadata)
    )
    assert written.keys() - unknown.keys() == {"apiVersion", "kind", "metadata", "spec", "status"}
    assert {n: v for n, v in written.items() if n in unknown} == loaded(dumped(unknown))


@given(documents(SPEC), documents(STATUS), UNKNOWN, UNKNOWN)
def test_an_update_that_changes_nothing_gives_the_very_same_bytes(
    spec: Json, status: Json, metadata: dict[str, Json], unknown: dict[str, Json]
) -> None:
    stored = stored_of(dumped(envelope(spec, status, metadata, unknown)))

    draft = CODEC.draft_update(CODEC.restore(stored), stored)

    assert draft.stored.value == stored.value
    assert draft.changed is False


@given(st.data(), documents(SPEC), documents(STATUS))
def test_an_update_after_an_update_changes_nothing_more(
    data: st.DataObject, spec: Json, status: Json
) -> None:
    """After one update the bytes are in our form, and are not written again."""
    stored = stored_of(dumped(envelope(spec, status, {"x": Text("1.10")}, {})))
    resource = with_known(
        CODEC.restore(stored), data.draw(edited(SPEC, known(SPEC, spec))), known(STATUS, status)
    )
    once = CODEC.draft_update(resource, stored)

    again = CODEC.draft_update(once.resource, once.stored)

    assert again.changed is False
    assert again.stored.value == once.stored.value


@given(documents(SPEC), documents(STATUS), UNKNOWN)
def test_a_patch_keeps_what_it_does_not_touch(
    spec: Json, status: Json, unknown: dict[str, Json]
) -> None:
    """Including numbers that Python cannot represent: a patch must not have to parse them."""
    stored = stored_of(dumped(envelope(spec, status, unknown, unknown)))

    draft = CODEC.patch(stored, {"status": {"phase": "patched"}})

    written, before = loaded(draft.stored.value), loaded(stored.value)
    assert written["spec"] == before["spec"]
    assert written["status"] == before["status"] | {"phase": "patched"}
    assert {n: v for n, v in written.items() if n in unknown} == loaded(dumped(unknown))


@pytest.mark.parametrize(
    "patch",
    [
        {"device": 5},
        {"device": {"type": "floppy"}},
        {"device": {"type": ["disk"]}},
        {"device": {"type": None}},
        {"devices": [{"type": None}]},
        {"devices": [{}]},
        {"pair": []},
        {"pair": [{}, {"name": "a"}, {"x": 1}]},
        {"pair": {"x": 1}},
        {"plain": {"x": 1}},
        {"nested": [{"x": 1}]},
        {"byName": "x"},
        {"withGaps": [[]]},
    ],
)
def test_a_patch_that_makes_something_else_of_a_document_is_refused_like_any_other(
    patch: Json,
) -> None:
    """Unknown fields are looked for only in documents of the type; others fail before that."""
    stored = stored_of('{"apiVersion":"example.org/v1","kind":"Thing","metadata":{"name":"a"}}')

    with pytest.raises(
        InvalidResourceError, match=r"things/a: it cannot be patched: .* - at `\$\.spec\."
    ):
        CODEC.patch(stored, {"spec": patch})
