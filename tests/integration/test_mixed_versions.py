"""Two versions of one kind in a running system: neither drops what the other writes.

Each has a client of its own, as two processes would have. The rules are those of
`docs/stored-form.md`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
from tests.kinds import version_of
from tests.rigs import (
    RIG,
    Json,
    NewDisk,
    Newer,
    NewPort,
    NewRig,
    NewSpec,
    NewStatus,
    OldDisk,
    Older,
    OldPort,
    OldRig,
    OldSpec,
    OldStatus,
    Rig,
    changed,
    document,
    new_rig,
    write_by_hand,
)

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
    """The change returns a new resource, with the fields that its type knows."""

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


async def remove_a_finalizer(older: Older) -> None:
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
        remove_a_finalizer, {"metadata.finalizers": ["test.kvorum.dev/other"]}, id="finalizer"
    ),
]


@pytest.mark.parametrize(("write", "changes"), WRITES)
async def test_what_the_older_type_writes_changes_only_what_it_changed(
    older: Older,
    newer: Newer,
    newer_client: kvorum.Client,
    write: Callable[[Older], Awaitable[None]],
    changes: dict[str, Json],
) -> None:
    """Also at the top level and in the metadata, where a later release of Kvorum may add fields."""
    await newer.add(new_rig(finalizers=["test.kvorum.dev/one", "test.kvorum.dev/other"]))
    unknown = {"extra": {"a": [1]}, "metadata.managedBy": "ops", "status.later": [{}]}

    def add_unknown(value: Json) -> None:
        value |= changed(value, unknown)

    await write_by_hand(newer_client.backend, add_unknown)
    before, seen = await document(newer_client.backend), await newer.get("a")

    await write(older)

    after, read = await document(newer_client.backend), await newer.get("a")
    generation = 2 if any(path.startswith("spec") for path in changes) else 1
    assert after["metadata"].pop("generation") == generation
    assert before["metadata"].pop("generation") == 1
    assert ("deletionTimestamp" in after["metadata"]) == (write in (delete, remove_a_finalizer))
    after["metadata"].pop("deletionTimestamp", None)
    assert after == changed(before, changes)
    # So the newer type reads back what it wrote, except for the change.
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
    """As from an HTTP request: a resource that does not carry the stored bytes."""
    return msgspec.convert(msgspec.to_builtins(await older.get("a")), OldRig)


@pytest.mark.parametrize(
    "source", [from_get, from_list, from_an_earlier_write, from_a_watch, from_elsewhere]
)
async def test_nothing_is_dropped_wherever_the_older_type_got_its_resource(
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
    """Otherwise controllers of both versions would wake each other forever."""
    added = await newer.add(new_rig())

    updated = await older.update(await older.get("a"))
    mutated = await older.mutate("a", lambda _: None)
    patched = await older.patch("a", {"spec": {"counter": 1}})

    assert {version_of(rig) for rig in (updated, mutated, patched)} == {version_of(added)}
    assert await newer.get("a") == added


async def test_an_older_update_of_a_stale_resource_still_conflicts(
    older: Older, newer: Newer
) -> None:
    """Even if both states look the same to it: what it has not seen may matter."""
    added = await newer.add(new_rig())
    stale = await older.get("a")
    added.spec.priority = 8
    await newer.update(added)

    stale.spec.counter = 5
    with pytest.raises(kvorum.ConflictError):
        await older.update(stale)

    assert (await newer.get("a")).spec.priority == 8


async def test_unknown_fields_survive_a_chain_of_both_types(older: Older, newer: Newer) -> None:
    """The older one starts, so each has a field that the other does not know."""
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
    """An update that changes no field may still rewrite the bytes into the form of its type."""
    added = await older.add(OldRig(metadata=Metadata(name="a"), spec=OldSpec(), status=OldStatus()))

    once = await newer.update(await newer.get("a"))
    again = await newer.update(await newer.get("a"))

    assert version_of(added) < version_of(once) == version_of(again)
    assert once.metadata.generation == 1


# --- both at once ---------------------------------------------------------------------------------


async def test_no_concurrent_mutation_of_either_type_is_lost(older: Older, newer: Newer) -> None:
    """Neither an increment nor a field is lost, in whatever order they come."""
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
    """Even a change that it cannot see: the next update refers to the new version."""
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
    """With all fields that the older one does not know, in `previous`, too."""
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


# --- changes that need a new api_version --------------------------------------------------------


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
    """Nothing is guessed or overwritten: such a change needs a new `api_version`."""
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
    """Unknown fields are kept in the resource, and removed with it."""
    await newer.add(new_rig())
    rig = await older.delete("a")
    with pytest.raises(NotFoundError):
        await newer.get("a")

    await older.add(OldRig(metadata=Metadata(name="a"), spec=rig.spec, status=rig.status))

    assert (await newer.get("a")).spec.priority == 0
