"""Two versions of one kind in one running system: nothing that one writes is dropped by the other.

`OldRig` is what a program of last year knows of a rig, `NewRig` what one of this year does; each
has a client of its own, as two processes would. The newer type has more fields at every level, and
has given up one (`legacy`), which is to it what the new ones are to the older type: a field it does
not know. The rules are those of `docs/stored-form.md`.
"""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Any, ClassVar, TypeAlias, TypeVar

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvorum
from kvorum import (
    Added,
    CorruptResourceError,
    Deleted,
    InvalidSelectorError,
    Kind,
    Metadata,
    Modified,
    NotFoundError,
    Repository,
    Resource,
)

DEADLINE = 20.0
RIG = Kind("Rig", plural="rigs", api_version="test.kvorum.dev/v1")

Json: TypeAlias = Any


class OldDisk(msgspec.Struct, rename="camel"):
    """Has a name to be known by."""

    name: str
    size: int = 0


class OldLine(msgspec.Struct, rename="camel"):
    """Has none."""

    text: str = ""
    width: int = 0


class OldPort(msgspec.Struct, rename="camel"):
    number: int = 0
    lines: list[OldLine] = []


class OldBox(msgspec.Struct, rename="camel"):
    height: int = 0


class OldSpec(msgspec.Struct, rename="camel"):
    counter: int = 0
    legacy: str | msgspec.UnsetType = msgspec.UNSET
    box: OldBox = msgspec.field(default_factory=OldBox)
    disks: list[OldDisk] = []
    lines: list[OldLine] = []
    ports: dict[str, OldPort] = {}


class OldStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    ticks: int = 0
    disks: list[OldDisk] = []


class OldRig(Resource[OldSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


class NewDisk(OldDisk, rename="camel"):
    top_speed: float = 0.0


class NewLine(OldLine, rename="camel"):
    color: str = ""


class NewPort(msgspec.Struct, rename="camel"):
    number: int = 0
    lines: list[NewLine] = []
    protocol: str = ""


class NewBox(OldBox, rename="camel"):
    vents: list[int] = []


class NewSpec(msgspec.Struct, rename="camel"):
    counter: int = 0
    priority: int = 0
    box: NewBox = msgspec.field(default_factory=NewBox)
    disks: list[NewDisk] = []
    lines: list[NewLine] = []
    ports: dict[str, NewPort] = {}
    tags: dict[str, str] = {}


class NewStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    ticks: int = 0
    disks: list[NewDisk] = []
    message: str | None = None


class NewRig(Resource[NewSpec, NewStatus]):
    kind: ClassVar[Kind] = RIG


Rig = TypeVar("Rig", OldRig, NewRig)
Older: TypeAlias = Repository[OldRig]
Newer: TypeAlias = Repository[NewRig]


def new_rig(name: str = "a", **metadata: Any) -> NewRig:
    """A rig that makes use of everything that is new."""
    return NewRig(
        metadata=Metadata(name=name, **metadata),
        spec=NewSpec(
            counter=1,
            priority=7,
            box=NewBox(height=2, vents=[1, 2]),
            disks=[NewDisk("root", 10, 1.5), NewDisk("data", 20, 2.5)],
            lines=[
                NewLine("first", 1, "red"),
                NewLine("second", 2, "blue"),
                NewLine("third", 3, "green"),
            ],
            ports={
                "http": NewPort(80, [NewLine("in", 1, "pink")], "tcp"),
                "dns": NewPort(53, [], "udp"),
            },
            tags={"rack": "4"},
        ),
        status=NewStatus(phase="Ready", disks=[NewDisk("root", 10, 1.25)], message="all is well"),
    )


def version_of(resource: Resource[Any, Any]) -> int:
    return resource.metadata.resource_version


@pytest.fixture
async def older(kvorum_url: str) -> AsyncIterator[Older]:
    async with kvorum.connect(kvorum_url) as client:
        yield client.repository(OldRig)


@pytest.fixture
async def newer_client(kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(kvorum_url) as client:
        yield client


@pytest.fixture
def newer(newer_client: kvorum.Client) -> Newer:
    return newer_client.repository(NewRig)


async def document(backend: kvorum.StorageBackend, name: str = "a") -> Json:
    """What lies in the store, without what is another with each write."""
    entry = await backend.get(f"rigs/{name}")
    assert entry is not None
    value = json.loads(entry.value)
    del value["metadata"]["writeToken"]
    return value


async def write_by_hand(
    backend: kvorum.StorageBackend, change: Callable[[Json], None], name: str = "a"
) -> None:
    """Change what is stored as another program would, in the form that Kvorum gives it."""
    entry = await backend.get(f"rigs/{name}")
    assert entry is not None
    value = json.loads(entry.value)
    change(value)
    await backend.compare_and_swap(
        entry.key, msgspec.json.encode(value, order="sorted"), expected=entry.mod_revision
    )


# --- the older type writes what the newer one wrote -----------------------------------------------


async def update(older: Older) -> None:
    rig = await older.get("a")
    rig.spec.counter, rig.metadata.labels = 5, {"by": "older"}
    await older.update(rig)


async def update_status(older: Older) -> None:
    rig = await older.get("a")
    rig.status.phase = "Busy"
    await older.update_status(rig)


async def mutate(older: Older) -> None:
    def change(rig: OldRig) -> None:
        rig.spec.box.height, rig.spec.ports["dns"].number = 9, 54

    await older.mutate("a", change)


async def mutate_into_another(older: Older) -> None:
    """The change makes a resource of its own, from what it knows."""

    def change(rig: OldRig) -> OldRig:
        return OldRig(
            metadata=rig.metadata,
            spec=msgspec.structs.replace(rig.spec, counter=5),
            status=rig.status,
        )

    await older.mutate("a", change)


async def patch(older: Older) -> None:
    await older.patch(
        "a", {"spec": {"counter": 5, "ports": {"dns": {"number": 54}}}, "status": {"ticks": 3}}
    )


async def delete(older: Older) -> None:
    await older.delete("a")


async def take_a_finalizer_off(older: Older) -> None:
    await older.delete("a")
    await older.patch("a", {"metadata": {"finalizers": ["test.kvorum.dev/other"]}})


WRITES = [
    pytest.param(update, {"spec.counter": 5, "metadata.labels": {"by": "older"}}, id="update"),
    pytest.param(update_status, {"status.phase": "Busy"}, id="update_status"),
    pytest.param(mutate, {"spec.box.height": 9, "spec.ports.dns.number": 54}, id="mutate"),
    pytest.param(mutate_into_another, {"spec.counter": 5}, id="mutate-into-another"),
    pytest.param(
        patch, {"spec.counter": 5, "spec.ports.dns.number": 54, "status.ticks": 3}, id="patch"
    ),
    pytest.param(delete, {}, id="delete-with-finalizer"),
    pytest.param(
        take_a_finalizer_off, {"metadata.finalizers": ["test.kvorum.dev/other"]}, id="finalizer"
    ),
]


def changed(value: Json, changes: dict[str, Json]) -> Json:
    """Return a copy with the fields at these paths set."""
    value = copy.deepcopy(value)
    for path, new in changes.items():
        *way, last = path.split(".")
        place = value
        for name in way:
            place = place[name]
        place[last] = new
    return value


@pytest.mark.parametrize(("write", "changes"), WRITES)
async def test_what_the_older_type_writes_changes_only_what_it_changed(
    older: Older,
    newer: Newer,
    newer_client: kvorum.Client,
    write: Callable[[Older], Awaitable[None]],
    changes: dict[str, Json],
) -> None:
    """Also at the top level and in the metadata, where a later release of Kvorum may add something."""
    await newer.add(new_rig(finalizers=["test.kvorum.dev/one", "test.kvorum.dev/other"]))
    strangers = {"extra": {"a": [1]}, "metadata.managedBy": "somebody", "status.later": [{}]}

    def strew(value: Json) -> None:
        value |= changed(value, strangers)

    await write_by_hand(newer_client.backend, strew)
    before, seen = await document(newer_client.backend), await newer.get("a")

    await write(older)

    after, read = await document(newer_client.backend), await newer.get("a")
    generation = 2 if any(path.startswith("spec") for path in changes) else 1
    assert after["metadata"].pop("generation") == generation
    assert before["metadata"].pop("generation") == 1
    assert ("deletionTimestamp" in after["metadata"]) == (write in (delete, take_a_finalizer_off))
    after["metadata"].pop("deletionTimestamp", None)
    assert after == changed(before, changes)
    # ... and so the newer type reads back what it wrote, but for the change.
    expected = changed(
        msgspec.to_builtins(seen),
        {p: v for p, v in changes.items() if not p.startswith("metadata")},
    )
    assert (read.spec, read.status) == (
        msgspec.convert(expected["spec"], NewSpec),
        msgspec.convert(expected["status"], NewStatus),
    )


async def from_get(older: Older) -> OldRig:
    return await older.get("a")


async def from_list(older: Older) -> OldRig:
    return (await older.list())[0]


async def from_an_earlier_write(older: Older) -> OldRig:
    return await older.patch("a", {"spec": {"legacy": "x"}})


async def from_a_watch(older: Older) -> OldRig:
    async with older.watch(initial=True) as watch:
        event = await anext(watch)
    assert isinstance(event, Added)
    return event.resource


async def from_elsewhere(older: Older) -> OldRig:
    """As out of an HTTP request: a resource that never saw the stored bytes."""
    return msgspec.convert(msgspec.to_builtins(await older.get("a")), OldRig)


@pytest.mark.parametrize(
    "source", [from_get, from_list, from_an_earlier_write, from_a_watch, from_elsewhere]
)
async def test_nothing_is_dropped_however_the_older_type_came_by_its_resource(
    older: Older, newer: Newer, source: Callable[[Older], Awaitable[OldRig]]
) -> None:
    added = await newer.add(new_rig())
    rig = await source(older)
    rig.spec.counter = 5
    await older.update(rig)

    added.spec.counter = 5
    assert (await newer.get("a")).spec == added.spec


async def test_an_update_of_the_older_type_that_changes_nothing_writes_nothing(
    older: Older, newer: Newer
) -> None:
    """Else a controller of either version would wake the other for nothing, for ever."""
    added = await newer.add(new_rig())

    updated = await older.update(await older.get("a"))
    mutated = await older.mutate("a", lambda _: None)
    patched = await older.patch("a", {"spec": {"counter": 1}})

    assert {version_of(rig) for rig in (updated, mutated, patched)} == {version_of(added)}
    assert await newer.get("a") == added


async def test_an_older_update_of_a_stale_resource_still_conflicts(
    older: Older, newer: Newer
) -> None:
    """Even one to which both states look the same.

    What it has not seen may matter to what it writes.
    """
    added = await newer.add(new_rig())
    stale = await older.get("a")
    added.spec.priority = 8
    await newer.update(added)

    stale.spec.counter = 5
    with pytest.raises(kvorum.ConflictError):
        await older.update(stale)

    assert (await newer.get("a")).spec.priority == 8


async def test_unknown_fields_survive_a_chain_of_both_types(older: Older, newer: Newer) -> None:
    """The older one starts it, so each has something that the other does not know."""
    await older.add(
        OldRig(
            metadata=Metadata(name="a"), spec=OldSpec(legacy="kept", counter=1), status=OldStatus()
        )
    )

    def count_up(rig: OldRig | NewRig) -> None:
        rig.spec.counter += 1

    def prioritize(rig: NewRig) -> None:
        rig.spec.priority, rig.spec.disks = 7, [NewDisk("root", 10, 1.5)]

    def grow(rig: OldRig) -> None:
        rig.spec.disks[0].size += 1

    for _ in range(3):
        await older.mutate("a", count_up)
        await newer.mutate("a", count_up)
    await newer.mutate("a", prioritize)
    for _ in range(3):
        await older.mutate("a", grow)
        await newer.mutate("a", count_up)

    assert (await older.get("a")).spec == OldSpec(
        counter=10, legacy="kept", disks=[OldDisk("root", 13)]
    )
    assert (await newer.get("a")).spec == NewSpec(
        counter=10, priority=7, disks=[NewDisk("root", 13, 1.5)]
    )


# --- the newer type writes what the older one wrote -----------------------------------------------


async def test_the_newer_type_reads_defaults_where_the_older_one_wrote_nothing(
    older: Older, newer: Newer, newer_client: kvorum.Client
) -> None:
    disks = [OldDisk("root", 10)]
    spec = OldSpec(counter=1, legacy="kept", disks=disks, ports={"http": OldPort(80)})
    added = await older.add(
        OldRig(metadata=Metadata(name="a"), spec=spec, status=OldStatus(phase="Ready"))
    )

    rig = await newer.get("a")
    assert rig.spec == NewSpec(counter=1, disks=[NewDisk("root", 10)], ports={"http": NewPort(80)})
    rig.spec.counter = 2
    await newer.update(rig)

    stored = (await document(newer_client.backend))["spec"]
    assert stored["legacy"] == "kept"
    assert stored["priority"] == 0
    assert stored["disks"] == [{"name": "root", "size": 10, "topSpeed": 0.0}]
    added.spec.counter = 2
    assert (await older.get("a")).spec == added.spec


async def test_the_newer_type_adds_its_defaults_once_and_that_is_no_change_of_the_spec(
    older: Older, newer: Newer
) -> None:
    """An update that changes nothing for the one who makes it may still bring the bytes into its form."""
    added = await older.add(OldRig(metadata=Metadata(name="a"), spec=OldSpec(), status=OldStatus()))

    once = await newer.update(await newer.get("a"))
    again = await newer.update(await newer.get("a"))

    assert version_of(added) < version_of(once) == version_of(again)
    assert once.metadata.generation == 1


# --- lists ----------------------------------------------------------------------------------------


async def disks_after(
    older: Older, newer: Newer, change: Callable[[list[OldDisk]], None]
) -> list[NewDisk]:
    """Change a list whose elements have names: root (10, 1.5), data (20, 2.5)."""
    await newer.add(new_rig())
    await older.mutate("a", lambda rig: change(rig.spec.disks))
    return (await newer.get("a")).spec.disks


async def lines_after(
    older: Older, newer: Newer, change: Callable[[list[OldLine]], None]
) -> list[NewLine]:
    """Change a list whose elements have none.

    First (1, red), second (2, blue), third (3, green).
    """
    await newer.add(new_rig())
    await older.mutate("a", lambda rig: change(rig.spec.lines))
    return (await newer.get("a")).spec.lines


async def test_an_element_is_matched_by_content_wherever_it_went(
    older: Older, newer: Newer
) -> None:
    lines = await lines_after(older, newer, lambda lines: lines.reverse())

    assert lines == [
        NewLine("third", 3, "green"),
        NewLine("second", 2, "blue"),
        NewLine("first", 1, "red"),
    ]


async def test_a_removed_element_takes_its_unknown_fields_with_it(
    older: Older, newer: Newer
) -> None:
    lines = await lines_after(older, newer, lambda lines: lines.__delitem__(0))

    assert lines == [NewLine("second", 2, "blue"), NewLine("third", 3, "green")]


async def test_an_element_that_is_put_in_has_no_unknown_fields_and_moves_none(
    older: Older, newer: Newer
) -> None:
    lines = await lines_after(older, newer, lambda lines: lines.insert(1, OldLine("new", 9)))

    assert [line.color for line in lines] == ["red", "", "blue", "green"]


async def test_elements_of_equal_content_are_matched_in_their_order(
    older: Older, newer: Newer
) -> None:
    rig = new_rig()
    rig.spec.lines = [
        NewLine("same", 1, "red"),
        NewLine("same", 1, "blue"),
        NewLine("same", 1, "green"),
    ]
    await newer.add(rig)
    await older.mutate("a", lambda rig: rig.spec.lines.__delitem__(0))

    assert [line.color for line in (await newer.get("a")).spec.lines] == ["red", "blue"]


async def test_a_changed_element_is_matched_by_its_name_whatever_else_changed(
    older: Older, newer: Newer
) -> None:
    def change(disks: list[OldDisk]) -> None:
        disks[0].size, disks[1].size = 11, 21
        disks.reverse()
        disks.insert(0, OldDisk("swap", 4))

    disks = await disks_after(older, newer, change)

    assert disks == [NewDisk("swap", 4), NewDisk("data", 21, 2.5), NewDisk("root", 11, 1.5)]


async def test_a_renamed_element_is_a_new_one(older: Older, newer: Newer) -> None:
    """Its place says nothing: it has a name, and that is another."""

    def change(disks: list[OldDisk]) -> None:
        disks[0].name = "boot"

    disks = await disks_after(older, newer, change)

    assert disks == [NewDisk("boot", 10), NewDisk("data", 20, 2.5)]


async def test_a_name_that_several_elements_have_matches_none_of_them(
    older: Older, newer: Newer
) -> None:
    """It does not tell which one it was; fields at the wrong element are worse than fields lost."""
    rig = new_rig()
    rig.spec.disks = [NewDisk("data", 1, 1.5), NewDisk("data", 2, 2.5), NewDisk("data", 3, 3.5)]
    await newer.add(rig)

    def turn(rig: OldRig) -> None:
        rig.spec.disks = [*rig.spec.disks[1:], OldDisk("data", 4)]

    await older.mutate("a", turn)

    assert (await newer.get("a")).spec.disks == [
        NewDisk("data", 2, 2.5),
        NewDisk("data", 3, 3.5),
        NewDisk("data", 4),
    ]


async def test_a_changed_element_without_a_name_is_matched_by_place_in_a_list_of_the_same_length(
    older: Older, newer: Newer
) -> None:
    def change(lines: list[OldLine]) -> None:
        lines[1].text = "changed"

    lines = await lines_after(older, newer, change)

    assert lines[1] == NewLine("changed", 2, "blue")


async def test_a_changed_element_without_a_name_is_a_new_one_in_a_list_of_another_length(
    older: Older, newer: Newer
) -> None:
    def change(lines: list[OldLine]) -> None:
        lines[2].text = "changed"
        del lines[0]

    lines = await lines_after(older, newer, change)

    assert lines == [NewLine("second", 2, "blue"), NewLine("changed", 3)]


async def test_a_list_that_a_patch_sets_is_as_the_patch_says(older: Older, newer: Newer) -> None:
    """RFC 7396 replaces arrays whole. Where that is not meant, there is `mutate`."""
    await newer.add(new_rig())

    await older.patch("a", {"spec": {"disks": [{"name": "root", "size": 11}]}})

    rig = await newer.get("a")
    assert rig.spec.disks == [NewDisk("root", 11)]
    assert rig.spec.lines == new_rig().spec.lines


# --- mappings -------------------------------------------------------------------------------------


async def test_a_value_of_a_mapping_is_matched_by_its_key_whatever_it_became(
    older: Older, newer: Newer
) -> None:
    """Lists in it follow the rules for lists."""

    def change(rig: OldRig) -> None:
        rig.spec.ports = {"http": OldPort(8080, [OldLine("in", 1), OldLine("out", 2)])}

    await newer.add(new_rig())
    await older.mutate("a", change)

    assert (await newer.get("a")).spec.ports == {
        "http": NewPort(8080, [NewLine("in", 1, "pink"), NewLine("out", 2)], "tcp")
    }


async def test_a_renamed_key_is_a_removal_and_an_addition(older: Older, newer: Newer) -> None:
    def rename(rig: OldRig) -> None:
        rig.spec.ports["web"] = rig.spec.ports.pop("http")

    await newer.add(new_rig())
    await older.mutate("a", rename)

    assert (await newer.get("a")).spec.ports == {
        "web": NewPort(80, [NewLine("in", 1)]),
        "dns": NewPort(53, [], "udp"),
    }


async def test_a_key_that_was_removed_and_comes_back_later_has_no_unknown_fields(
    older: Older, newer: Newer
) -> None:
    await newer.add(new_rig())
    await older.mutate("a", lambda rig: rig.spec.ports.__delitem__("dns"))
    await older.mutate("a", lambda rig: rig.spec.ports.__setitem__("dns", OldPort(53)))

    assert (await newer.get("a")).spec.ports["dns"] == NewPort(53)


# --- both at once ---------------------------------------------------------------------------------


async def test_concurrent_mutations_of_both_types_are_all_there(older: Older, newer: Newer) -> None:
    """Neither an increment nor a field is lost, whoever comes second."""
    rounds = 25
    await newer.add(new_rig())

    def change_old(rig: OldRig) -> None:
        rig.spec.counter += 1
        rig.spec.disks[0].size += 1
        rig.spec.legacy = f"{rig.spec.legacy or ''}."

    def change_new(rig: NewRig) -> None:
        rig.spec.counter += 1
        rig.spec.priority += 1
        rig.spec.disks[0].top_speed += 1
        rig.status.ticks += 1

    async def work(repository: Repository[Rig], change: Callable[[Rig], None]) -> None:
        for _ in range(rounds):
            await repository.mutate("a", change)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, older, change_old)
        tasks.start_soon(work, newer, change_new)

    expected = new_rig()
    expected.spec.counter += 2 * rounds
    expected.spec.priority += rounds
    expected.spec.disks[0] = NewDisk("root", 10 + rounds, 1.5 + rounds)
    expected.status.ticks = rounds
    rig = await newer.get("a")
    assert (rig.spec, rig.status) == (expected.spec, expected.status)
    assert (await older.get("a")).spec.legacy == "." * rounds


async def test_a_watch_of_the_older_type_shows_what_the_newer_one_writes(
    older: Older, newer: Newer
) -> None:
    """Also a change of which it sees nothing.

    The resource has another version, to which its next update refers.
    """
    async with older.watch() as watch:
        added = await newer.add(new_rig())
        first = await older.get("a")
        added.spec.priority += 1  # the older type does not know it
        updated = await newer.update(added)
        second = await older.get("a")
        updated.spec.disks[0].size, updated.spec.disks[0].top_speed = 11, 9.5
        await newer.update(updated)
        third = await older.get("a")
        await newer.delete("a")
        async with asyncio.timeout(DEADLINE):
            events = [await anext(watch) for _ in range(4)]

    assert events[:3] == [Added(first), Modified(second, first), Modified(third, second)]
    assert isinstance(events[2], Modified)
    assert events[2].previous.spec.disks[0] == OldDisk("root", 10)
    assert isinstance(events[3], Deleted)
    assert events[3].resource.spec == third.spec
    assert second.spec == first.spec
    assert version_of(second) > version_of(first)


async def test_a_watch_of_the_newer_type_shows_what_the_older_one_writes(
    older: Older, newer: Newer
) -> None:
    """With all that the older one does not know; `previous` too."""
    added = await newer.add(new_rig())

    async with newer.watch() as watch:
        await older.patch("a", {"spec": {"counter": 2}})
        async with asyncio.timeout(DEADLINE):
            event = await anext(watch)

    assert isinstance(event, Modified)
    assert event.previous == added
    assert event.resource.spec == msgspec.structs.replace(added.spec, counter=2)


async def test_both_types_select_by_labels_and_by_the_fields_they_know(
    older: Older, newer: Newer
) -> None:
    await newer.add(new_rig("by-newer", labels={"team": "x"}))
    spec, status = OldSpec(counter=1), OldStatus(phase="Ready")
    await older.add(
        OldRig(metadata=Metadata(name="by-older", labels={"team": "x"}), spec=spec, status=status)
    )
    await older.add(
        OldRig(metadata=Metadata(name="other", labels={"team": "y"}), spec=spec, status=OldStatus())
    )

    for repository in (older, newer):
        for selected in (
            await repository.list(labels="team=x"),
            await repository.list(fields="status.phase=Ready"),
            await repository.list(labels="team=x", fields="spec.counter=1"),
        ):
            assert [rig.metadata.name for rig in selected] == ["by-newer", "by-older"]
    assert [rig.metadata.name for rig in await newer.list(fields="spec.priority=0")] == [
        "by-older",
        "other",
    ]
    with pytest.raises(InvalidSelectorError):
        await older.list(fields="spec.priority=0")


# --- what does not go with one api_version --------------------------------------------------------


class Color(Enum):
    RED = "red"


class ColoredSpec(msgspec.Struct):
    color: Color = Color.RED


class StrictSpec(msgspec.Struct, forbid_unknown_fields=True):
    counter: int = 0


class DemandingSpec(msgspec.Struct):
    counter: int
    wanted: int


class NarrowSpec(msgspec.Struct):
    counter: str = ""


class ColoredRig(Resource[ColoredSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


class StrictRig(Resource[StrictSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


class DemandingRig(Resource[DemandingSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


class NarrowRig(Resource[NarrowSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


@pytest.mark.parametrize(
    ("rig_type", "path"),
    [
        pytest.param(ColoredRig, "$.spec.color", id="a member that its enum does not have"),
        pytest.param(StrictRig, "unknown field", id="a new field where it forbids them"),
        pytest.param(
            DemandingRig, "wanted", id="a field without a default that the other does not write"
        ),
        pytest.param(NarrowRig, "$.spec.counter", id="a field of another type"),
    ],
)
async def test_what_a_type_cannot_take_is_an_error_to_it_and_stays_as_it_is(
    newer: Newer, newer_client: kvorum.Client, rig_type: type[Resource[Any, Any]], path: str
) -> None:
    """Nothing is guessed, and nothing is overwritten with a guess.

    Such a change needs a new `api_version`.
    """
    await newer.add(new_rig())
    await write_by_hand(newer_client.backend, lambda value: value["spec"].update(color="blue"))
    before = await document(newer_client.backend)
    other: Repository[Resource[Any, Any]] = newer_client.repository(rig_type)

    with pytest.raises(CorruptResourceError) as caught:
        await other.mutate("a", lambda rig: rig.metadata.labels.update(by="other"))

    assert path in caught.value.reason
    assert await document(newer_client.backend) == before


class RenamedSpec(msgspec.Struct):
    """`counter` is called `total` now."""

    total: int = 0


class RenamedRig(Resource[RenamedSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


async def test_a_field_that_a_type_has_renamed_is_two_fields(
    older: Older, newer: Newer, newer_client: kvorum.Client
) -> None:
    """Nothing is dropped, but neither type sees what the other counts."""
    await newer.add(new_rig())

    await newer_client.repository(RenamedRig).mutate("a", lambda rig: setattr(rig.spec, "total", 5))

    stored = (await document(newer_client.backend))["spec"]
    assert (stored["counter"], stored["total"]) == (1, 5)
    assert (await older.get("a")).spec.counter == 1


async def test_a_resource_that_the_older_type_removed_and_adds_again_is_another(
    older: Older, newer: Newer
) -> None:
    """What is kept is kept in the resource; with it, it goes."""
    await newer.add(new_rig())
    rig = await older.delete("a")
    with pytest.raises(NotFoundError):
        await newer.get("a")

    await older.add(OldRig(metadata=Metadata(name="a"), spec=rig.spec, status=rig.status))

    assert (await newer.get("a")).spec.priority == 0


# --- at random ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapping:
    """The shape of a mapping. That of an object is the dict of its fields, of a list a list of one.

    Else a default.
    """

    values: "Shape"


Shape: TypeAlias = Mapping | dict[str, Any] | list[Any] | int | float | str | None

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
        "ports": Mapping({"number": 0, "lines": [LINE]}),
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
        "ports": Mapping({"number": 0, "lines": [NEW_LINE], "protocol": ""}),
        "tags": Mapping(""),
    },
    "status": {"phase": "", "ticks": 0, "disks": [NEW_DISK], "message": None},
}
SHAPES: dict[str, dict[str, Shape]] = {"older": OLD_SHAPE, "newer": NEW_SHAPE}


def known(shape: Shape, value: Json) -> Json:
    """What a type reads of a value.

    The fields it knows, with defaults for those that are not there.
    """
    match shape:
        case dict():
            there = {name: of for name, of in shape.items() if of != OPTIONAL or name in value}
            return {name: known(of, value.get(name, absent(of))) for name, of in there.items()}
        case [of]:
            return [known(of, element) for element in value]
        case Mapping(of):
            return {name: known(of, element) for name, element in value.items()}
        case _:
            return value


def absent(shape: Shape) -> Json:
    """What a type reads where nothing is."""
    return {} if isinstance(shape, dict | Mapping) else [] if isinstance(shape, list) else shape


def written(shape: Shape, old: Json, new: Json) -> Json:
    """What is stored when `new` (known fields only) is written over `old`, as `docs/stored-form.md` has it."""
    match shape:
        case dict():
            unknown = {name: value for name, value in old.items() if name not in shape}
            return unknown | {
                n: written(shape[n], old.get(n, absent(shape[n])), value)
                for n, value in new.items()
            }
        case Mapping(of):
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
    """Which element of `old` each of `new` continues."""
    matches: list[int | None] = [None] * len(new)
    contents = [known(shape, element) for element in old]
    for place, element in enumerate(new):
        equal = (i for i, content in enumerate(contents) if content == element and i not in matches)
        matches[place] = next(equal, None)
    before, after = ([element.get("name") for element in elements] for elements in (contents, new))
    for place, name in enumerate(after):
        if (
            matches[place] is None
            and name is not None
            and before.count(name) == after.count(name) == 1
        ):
            matches[place] = before.index(name)
    for place in range(len(new)):
        free = len(old) == len(new) and matches[place] is None and place not in matches
        if free and before[place] == after[place]:
            matches[place] = place
    return matches


class Model:
    """The document in the store."""

    def __init__(self) -> None:
        self.value: Json = {
            "spec": known(OLD_SHAPE["spec"], {}),
            "status": known(OLD_SHAPE["status"], {}),
        }
        self.generation = 1

    def write(self, who: str, change: Callable[[Json], None], *, status_only: bool = False) -> bool:
        """Tell whether that changes anything."""
        shape = SHAPES[who]
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
_numbers = count(1)  # so that each value which only the newer type knows is told from all others


def strange(name: str) -> Json:
    """A value for a field of the newer type."""
    number = next(_numbers)
    return {"topSpeed": number + 0.5, "color": str(number), "protocol": str(number)}[name]


def element_of(who: str, path: tuple[str, ...], values: tuple[str, int]) -> Json:
    """A new element, with the newer type's fields if it is the newer one that makes it."""
    word, number = values
    common, new = {
        "disks": ({"name": word, "size": number}, "topSpeed"),
        "lines": ({"text": word, "width": number}, "color"),
        "ports": ({"number": number, "lines": []}, "protocol"),
    }[path[-1]]
    return common | ({new: strange(new)} if who == "newer" else {})


LISTS = [("spec", "disks"), ("spec", "lines"), ("status", "disks")]
COUNTS = [("spec", "counter"), ("spec", "box", "height"), ("status", "ticks")]


def overwrite(elements: list[Json], place: slice, new: Json, *names: str) -> None:
    """Change some fields of an element, which stays what it is otherwise."""
    for element in elements[place]:
        element |= {name: value for name, value in new.items() if name in names}


LIST_EDITS: dict[str, Callable[[list[Json], slice, Json], None]] = {
    "insert": lambda elements, place, new: elements.insert(place.start, new),
    "append": lambda elements, _, new: elements.append(new),
    "remove": lambda elements, place, _: elements.__delitem__(place),
    "replace": lambda elements, place, new: elements.__setitem__(
        place, [new] * len(elements[place])
    ),
    "edit": lambda elements, place, new: overwrite(elements, place, new, "size", "width"),
    "rename": lambda elements, place, new: overwrite(elements, place, new, "name", "text"),
    "edit what is new": lambda elements, place, new: overwrite(
        elements, place, new, "topSpeed", "color"
    ),
    "reverse": lambda elements, *_: elements.reverse(),
    "sort": lambda elements, *_: elements.sort(key=str),
}


def change_list(
    how: str, who: str, path: tuple[str, ...], at: int, values: tuple[str, int]
) -> Change:
    """Make an edit of a list; a place beyond its end is counted on from its start."""
    element = element_of(who, path, values)

    def change(value: Json) -> None:
        elements = value[path[0]][path[1]]
        place = at % (len(elements) or 1)
        LIST_EDITS[how](elements, slice(place, place + 1), dict(element))

    return change


def change_mapping(how: str, who: str, key: str, other: str, values: tuple[str, int]) -> Change:
    element, line = element_of(who, ("ports",), values), element_of(who, ("lines",), values)

    def change(value: Json) -> None:
        ports = value["spec"]["ports"]
        if how == "set":
            ports[key] = copy.deepcopy(
                element
            )  # the change is made twice: in the model, and in a resource
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


def change_own(who: str, number: int) -> Change:
    """Change a field that only this type has."""

    def change(value: Json) -> None:
        if who == "older":
            value["spec"]["legacy"] = str(number)
        else:
            value["spec"]["priority"] = number

    return change


_whos = st.sampled_from(["older", "older", "newer"])
_values = st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 2))
_list_edits = st.sampled_from([*LIST_EDITS, "append", "append"])
_keys = st.sampled_from(["x", "y"])
_ways = st.sampled_from(["update", "mutate", "update_status"])


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, str, list[Change]]:
    """Who writes, how, and which changes it makes with one write (none, at times)."""
    who = draw(_whos)
    changes = st.one_of(
        st.builds(
            change_list,
            _list_edits,
            st.just(who),
            st.sampled_from(LISTS),
            st.integers(0, 5),
            _values,
        ),
        st.builds(
            change_mapping,
            st.sampled_from(["set", "set", "remove", "rename", "edit", "append"]),
            st.just(who),
            _keys,
            _keys,
            _values,
        ),
        st.builds(change_count, st.sampled_from(COUNTS), st.integers(0, 2)),
        st.builds(change_own, st.just(who), st.integers(0, 2)),
    )
    return who, draw(_ways), draw(st.lists(changes, max_size=3))


async def write(repository: Repository[Rig], name: str, way: str, change: Change) -> Rig:
    """Make a change that is told on plain data."""

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


STRANGERS = {"extra": {"a": [1]}, "metadata.managedBy": "somebody", "status.later": [{"b": 2}]}


async def run(
    rigs: dict[str, Any], backend: kvorum.StorageBackend, name: str, sequence: list[Any]
) -> None:
    rig = await rigs["older"].add(
        OldRig(metadata=Metadata(name=name), spec=OldSpec(), status=OldStatus())
    )
    await write_by_hand(backend, lambda value: value.update(changed(value, STRANGERS)), name)
    model = Model()
    model.value = changed(model.value | {"metadata": {}}, STRANGERS)
    rig = await rigs["older"].get(name)

    for who, way, changes in sequence:

        def change(value: Json, changes: list[Change] = changes) -> None:
            for each in changes:
                each(value)

        last, is_changed = (
            version_of(rig),
            model.write(who, change, status_only=way == "update_status"),
        )
        rig = await write(rigs[who], name, way, change)

        found = await document(backend, name)
        assert {"spec": found["spec"], "status": found["status"]} == {
            n: model.value[n] for n in ("spec", "status")
        }
        assert (found["extra"], found["metadata"]["managedBy"]) == ({"a": [1]}, "somebody")
        assert found["metadata"]["generation"] == model.generation
        assert (version_of(rig) > last) == is_changed

    for who, repository in rigs.items():
        read = await repository.get(name)
        shape = SHAPES[who]
        assert msgspec.to_builtins(read.spec) == known(shape["spec"], model.value["spec"])
        assert msgspec.to_builtins(read.status) == known(shape["status"], model.value["status"])


def test_a_random_sequence_of_writes_by_both_types_leaves_what_the_rules_say(
    kvorum_url: str,
) -> None:
    """Stored bytes, generation, whether anything was written at all, and what each type reads in the end."""
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
