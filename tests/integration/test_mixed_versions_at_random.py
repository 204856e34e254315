"""Random writes by two versions of a kind leave what a model of the rules in the docs says."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kinds import version_of
from tests.rigs import (
    Json,
    NewRig,
    OldRig,
    OldSpec,
    OldStatus,
    Rig,
    changed,
    document,
    write_by_hand,
)

import kvorum
from kvorum import (
    Metadata,
    Repository,
)


@dataclass(frozen=True)
class MapShape:
    """The shape of a mapping. An object's shape is a dict of its fields, a list's a list of one."""

    values: "Shape"


# Any other shape is a default.
Shape: TypeAlias = MapShape | dict[str, Any] | list[Any] | int | float | str | None

OPTIONAL = "not written unless it is set"

LINE: dict[str, Shape] = {"text": "", "width": 0}
DISK: dict[str, Shape] = {"name": "", "size": 0}
OLD_SHAPE: dict[str, Shape] = {
    "spec": {
        "counter": 0,
        "legacy": OPTIONAL,
        "box": {"height": 0},
        "disks": [DISK],
        "lines": [LINE],
        "ports": MapShape({"number": 0, "lines": [LINE]}),
    },
    "status": {"phase": "", "ticks": 0, "disks": [DISK]},
}
NEW_LINE, NEW_DISK = LINE | {"color": ""}, DISK | {"topSpeed": 0.0}
NEW_SHAPE: dict[str, Shape] = {
    "spec": {
        "counter": 0,
        "priority": 0,
        "box": {"height": 0, "vents": [0]},
        "disks": [NEW_DISK],
        "lines": [NEW_LINE],
        "ports": MapShape({"number": 0, "lines": [NEW_LINE], "protocol": ""}),
        "tags": MapShape(""),
    },
    "status": {"phase": "", "ticks": 0, "disks": [NEW_DISK], "message": None},
}
SHAPES: dict[str, dict[str, Shape]] = {"older": OLD_SHAPE, "newer": NEW_SHAPE}


def known(shape: Shape, value: Json) -> Json:
    """What a type reads from a value: the fields it knows, with defaults for absent ones."""
    match shape:
        case dict():
            there = {name: of for name, of in shape.items() if of != OPTIONAL or name in value}
            return {name: known(of, value.get(name, absent(of))) for name, of in there.items()}
        case [of]:
            return [known(of, element) for element in value]
        case MapShape(of):
            return {name: known(of, element) for name, element in value.items()}
        case _:
            return value


def absent(shape: Shape) -> Json:
    """What a type reads where a value is absent."""
    return {} if isinstance(shape, dict | MapShape) else [] if isinstance(shape, list) else shape


def written(shape: Shape, old: Json, new: Json) -> Json:
    """What is stored after `new` (known fields only) replaces `old`; see `docs/stored-form.md`."""
    match shape:
        case dict():
            unknown = {name: value for name, value in old.items() if name not in shape}
            return unknown | {
                n: written(shape[n], old.get(n, absent(shape[n])), value)
                for n, value in new.items()
            }
        case MapShape(of):
            return {
                name: written(of, old[name], value) if name in old else value
                for name, value in new.items()
            }
        case [dict() as of]:
            pairs = zip(new, matched(of, old, new), strict=True)
            return [
                value if match is None else written(of, old[match], value) for value, match in pairs
            ]
        case _:
            return new


def matched(shape: dict[str, Any], old: list[Json], new: list[Json]) -> list[int | None]:
    """For each element of `new`, the index of the one in `old` that it continues."""
    matches: list[int | None] = [None] * len(new)
    contents = [known(shape, element) for element in old]
    for index, element in enumerate(new):
        equal = (i for i, content in enumerate(contents) if content == element and i not in matches)
        matches[index] = next(equal, None)
    before, after = ([element.get("name") for element in elements] for elements in (contents, new))
    for index, name in enumerate(after):
        if (
            matches[index] is None
            and name is not None
            and before.count(name) == after.count(name) == 1
        ):
            matches[index] = before.index(name)
    for index in range(len(new)):
        free = len(old) == len(new) and matches[index] is None and index not in matches
        if free and before[index] == after[index]:
            matches[index] = index
    return matches


class Model:
    """The document in the store."""

    def __init__(self) -> None:
        self.value: Json = {
            "spec": known(OLD_SHAPE["spec"], {}),
            "status": known(OLD_SHAPE["status"], {}),
        }
        self.generation = 1

    def write(
        self, version: str, change: Callable[[Json], None], *, status_only: bool = False
    ) -> bool:
        """Apply a change; return whether anything changed."""
        shape = SHAPES[version]
        before = known(shape, self.value)
        after = copy.deepcopy(before)
        change(after)
        if status_only:
            after["spec"] = before["spec"]
        self.generation += before["spec"] != after["spec"]
        now = written(shape, self.value, after)
        is_changed = bool(now != self.value)
        self.value = now
        return is_changed


Change: TypeAlias = Callable[[Json], None]
_numbers = count(1)  # every value of a field that only the newer type knows is unique


def unique_value(name: str) -> Json:
    """A value for a field of the newer type."""
    number = next(_numbers)
    return {"topSpeed": number + 0.5, "color": str(number), "protocol": str(number)}[name]


def element_of(version: str, path: tuple[str, ...], values: tuple[str, int]) -> Json:
    """A new element, with the newer type's fields if the newer version makes it."""
    word, number = values
    common, new = {
        "disks": ({"name": word, "size": number}, "topSpeed"),
        "lines": ({"text": word, "width": number}, "color"),
        "ports": ({"number": number, "lines": []}, "protocol"),
    }[path[-1]]
    return common | ({new: unique_value(new)} if version == "newer" else {})


LISTS = [("spec", "disks"), ("spec", "lines"), ("status", "disks")]
COUNTS = [("spec", "counter"), ("spec", "box", "height"), ("status", "ticks")]


def overwrite(elements: list[Json], at: slice, new: Json, *names: str) -> None:
    """Change some fields of an element."""
    for element in elements[at]:
        element |= {name: value for name, value in new.items() if name in names}


LIST_EDITS: dict[str, Callable[[list[Json], slice, Json], None]] = {
    "insert": lambda elements, at, new: elements.insert(at.start, new),
    "append": lambda elements, _, new: elements.append(new),
    "remove": lambda elements, at, _: elements.__delitem__(at),
    "replace": lambda elements, at, new: elements.__setitem__(at, [new] * len(elements[at])),
    "edit": lambda elements, at, new: overwrite(elements, at, new, "size", "width"),
    "rename": lambda elements, at, new: overwrite(elements, at, new, "name", "text"),
    "edit what is new": lambda elements, at, new: overwrite(elements, at, new, "topSpeed", "color"),
    "reverse": lambda elements, *_: elements.reverse(),
    "sort": lambda elements, *_: elements.sort(key=str),
}


def change_list(
    how: str, version: str, path: tuple[str, ...], at: int, values: tuple[str, int]
) -> Change:
    """Edit a list; an index beyond its end wraps around."""
    element = element_of(version, path, values)

    def change(value: Json) -> None:
        elements = value[path[0]][path[1]]
        index = at % (len(elements) or 1)
        LIST_EDITS[how](elements, slice(index, index + 1), dict(element))

    return change


def change_mapping(how: str, version: str, key: str, other: str, values: tuple[str, int]) -> Change:
    element, line = element_of(version, ("ports",), values), element_of(version, ("lines",), values)

    def change(value: Json) -> None:
        ports = value["spec"]["ports"]
        if how == "set":
            ports[key] = copy.deepcopy(
                element
            )  # the change is applied twice: to the model and to a resource
        elif key in ports:
            match how:
                case "remove":
                    del ports[key]
                case "rename":
                    ports[other] = ports.pop(key)
                case "edit":
                    ports[key]["number"] = values[1]
                case "append":
                    ports[key]["lines"].append(dict(line))

    return change


def change_count(path: tuple[str, ...], number: int) -> Change:
    def change(value: Json) -> None:
        for name in path[:-1]:
            value = value[name]
        value[path[-1]] = number

    return change


def change_own(version: str, number: int) -> Change:
    """Change a field that only this type has."""

    def change(value: Json) -> None:
        if version == "older":
            value["spec"]["legacy"] = str(number)
        else:
            value["spec"]["priority"] = number

    return change


_versions = st.sampled_from(["older", "older", "newer"])
_values = st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 2))
_list_edits = st.sampled_from([*LIST_EDITS, "append", "append"])
_keys = st.sampled_from(["x", "y"])
_ways = st.sampled_from(["update", "mutate", "update_status"])


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, str, list[Change]]:
    """Which version writes, with which method, and the changes of that write (maybe none)."""
    version = draw(_versions)
    changes = st.one_of(
        st.builds(
            change_list,
            _list_edits,
            st.just(version),
            st.sampled_from(LISTS),
            st.integers(0, 5),
            _values,
        ),
        st.builds(
            change_mapping,
            st.sampled_from(["set", "set", "remove", "rename", "edit", "append"]),
            st.just(version),
            _keys,
            _keys,
            _values,
        ),
        st.builds(change_count, st.sampled_from(COUNTS), st.integers(0, 2)),
        st.builds(change_own, st.just(version), st.integers(0, 2)),
    )
    return version, draw(_ways), draw(st.lists(changes, max_size=3))


async def write(repository: Repository[Rig], name: str, way: str, change: Change) -> Rig:
    """Apply a change of plain data to a stored resource."""

    def apply(rig: Rig) -> None:
        value = {"spec": msgspec.to_builtins(rig.spec), "status": msgspec.to_builtins(rig.status)}
        change(value)
        rig.spec = msgspec.convert(value["spec"], type(rig.spec))
        rig.status = msgspec.convert(value["status"], type(rig.status))

    if way == "mutate":
        return await repository.mutate(name, apply)
    rig = await repository.get(name)
    apply(rig)
    return await (repository.update(rig) if way == "update" else repository.update_status(rig))


UNKNOWN = {"extra": {"a": [1]}, "metadata.managedBy": "ops", "status.later": [{"b": 2}]}


async def run(
    rigs: dict[str, Any], backend: kvorum.StorageBackend, name: str, sequence: list[Any]
) -> None:
    rig = await rigs["older"].add(
        OldRig(metadata=Metadata(name=name), spec=OldSpec(), status=OldStatus())
    )
    await write_by_hand(backend, lambda value: value.update(changed(value, UNKNOWN)), name)
    model = Model()
    model.value = changed(model.value | {"metadata": {}}, UNKNOWN)
    rig = await rigs["older"].get(name)

    for version, way, changes in sequence:

        def change(value: Json, changes: list[Change] = changes) -> None:
            for each in changes:
                each(value)

        last, is_changed = (
            version_of(rig),
            model.write(version, change, status_only=way == "update_status"),
        )
        rig = await write(rigs[version], name, way, change)

        found = await document(backend, name)
        assert {"spec": found["spec"], "status": found["status"]} == {
            n: model.value[n] for n in ("spec", "status")
        }
        assert (found["extra"], found["metadata"]["managedBy"]) == ({"a": [1]}, "ops")
        assert found["metadata"]["generation"] == model.generation
        assert (version_of(rig) > last) == is_changed

    for version, repository in rigs.items():
        read = await repository.get(name)
        shape = SHAPES[version]
        assert msgspec.to_builtins(read.spec) == known(shape["spec"], model.value["spec"])
        assert msgspec.to_builtins(read.status) == known(shape["status"], model.value["status"])


def test_a_random_sequence_of_writes_by_both_types_leaves_what_the_rules_say(
    kvorum_url: str,
) -> None:
    """In stored bytes, generation, whether anything was written, and what each type reads."""
    names = count()

    async def open_client() -> kvorum.Client:
        return await kvorum.connect(kvorum_url).__aenter__()

    with asyncio.Runner() as runner:
        clients = [runner.run(open_client()) for _ in range(2)]
        rigs = {"older": clients[0].repository(OldRig), "newer": clients[1].repository(NewRig)}

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(steps(), min_size=1, max_size=20))
        def check(sequence: list[Any]) -> None:
            runner.run(run(rigs, clients[0].backend, f"rig-{next(names)}", sequence))

        try:
            check()
        finally:
            for client in clients:
                runner.run(client.aclose())
