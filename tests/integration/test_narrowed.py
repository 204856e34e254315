"""Selectors by name and namespace read no other keys; finders and counts skip corrupt values."""

from typing import Any

import anyio
import pytest
from tests.kinds import Box, Crate, box, crate

import kvorum
from kvorum import CorruptResourceError, Repository
from kvorum.lab import LabInstanceRepository, LabWorker, LabWorkerPhase, LabWorkerRepository


def names(found: Any) -> list[str]:
    return [each.metadata.name for each in found]


@pytest.fixture
async def boxes(client: kvorum.Client) -> Repository[Box]:
    boxes = client.repository(Box)
    for name in ("a", "a-1", "b"):
        await boxes.add(box(name))
    for key in ("a-bad", "bad", "ab"):
        await client.backend.set(f"boxes/{key}", b"?")
    return boxes


@pytest.fixture
async def crates(client: kvorum.Client) -> Repository[Crate]:
    crates = client.repository(Crate)
    for namespace in ("x", "y"):
        await crates.add(crate(namespace, "a"))
    await client.backend.set("crates/x/bad", b"?")
    await client.backend.set("crates/xx/a", b"?")
    return crates


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ("metadata.name=a", ["a"]),
        ("metadata.name=a,spec.size=0", ["a"]),
        ("metadata.name=a,spec.size=1", []),
        ("metadata.name=a,metadata.name=b", []),
        ("metadata.name=nowhere", []),
        ("metadata.name=Not A Name", []),
    ],
)
async def test_a_selector_by_name_reads_no_other_key(
    boxes: Repository[Box], fields: str, found: list[str]
) -> None:
    assert names(await boxes.list(fields=fields)) == found
    assert names([each async for each in boxes.scan(fields=fields, limit=1)]) == found
    assert await boxes.count(fields=fields) == len(found)
    async with boxes.watch(fields=fields, initial=True) as watch:
        assert [type(await anext(watch)) for _ in [*found, None]] == [kvorum.Added] * len(found) + [
            kvorum.Bookmark
        ]


async def test_a_selector_by_name_still_finds_a_corrupt_value_there(boxes: Repository[Box]) -> None:
    with pytest.raises(CorruptResourceError):
        await boxes.list(fields="metadata.name=bad")


@pytest.mark.parametrize("fields", ["metadata.name!=a-bad", ""])
async def test_a_negation_narrows_nothing(boxes: Repository[Box], fields: str) -> None:
    with pytest.raises(CorruptResourceError):
        await boxes.list(fields=fields)


async def test_a_watch_by_name_continues_while_another_key_is_corrupt(
    boxes: Repository[Box], client: kvorum.Client
) -> None:
    async with boxes.watch(fields="metadata.name=a") as watch:
        await client.backend.set("boxes/a-bad", b"??")
        await client.backend.set("boxes/bad", b"??")
        deleted = await boxes.delete("a")

        with anyio.fail_after(10):
            assert await anext(watch) == kvorum.Deleted(deleted)


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ({"fields": "metadata.namespace=y"}, ["y"]),
        ({"fields": "metadata.namespace=x,metadata.name=a"}, ["x"]),
        ({"fields": "metadata.name=a", "namespace": "x"}, ["x"]),
        ({"fields": "metadata.namespace=y", "namespace": "x"}, []),
    ],
)
async def test_a_namespace_narrows_too(
    crates: Repository[Crate], selector: dict[str, Any], found: list[str]
) -> None:
    listed = await crates.list(**selector)

    assert [each.metadata.namespace for each in listed] == found
    assert await crates.count(**selector) == len(found)


async def test_a_name_in_all_namespaces_finds_corrupt_values_under_that_name_only(
    crates: Repository[Crate],
) -> None:
    found = await crates.list(fields="metadata.name=a", on_corrupt="collect")

    assert [each.metadata.namespace for each in found] == ["x", "y"]
    assert [error.namespace for error in found.corrupt] == ["xx"]


async def test_a_count_can_leave_out_what_is_corrupt(boxes: Repository[Box]) -> None:
    assert await boxes.count() == 6  # of keys, since it reads none
    assert await boxes.count(on_corrupt="collect") == 3
    assert await boxes.count(fields="spec.size=0", on_corrupt="collect") == 3
    with pytest.raises(CorruptResourceError):
        await boxes.count(fields="spec.size=0")
    with pytest.raises(kvorum.InvalidResourceError, match="on_corrupt"):
        await boxes.count(on_corrupt="event")  # type: ignore[arg-type]  # mypy rejects it, too


async def test_finders_skip_a_value_that_is_no_worker(client: kvorum.Client) -> None:
    workers = LabWorkerRepository(client)
    good = LabWorker.new("good", lab_track="x")
    good.status.phase = LabWorkerPhase.READY
    await workers.add(good)
    await client.backend.set("lab-workers/bad", b"{}")

    found = [
        await workers.find_by_lab_track("x", on_corrupt="collect"),
        await workers.find_by_phase(LabWorkerPhase.READY, on_corrupt="collect"),
        await workers.find_ready_workers(on_corrupt="collect"),
        await workers.find_active_workers(on_corrupt="collect"),
    ]
    assert [names(each) for each in found] == [["good"]] * 4
    assert [[error.name for error in each.corrupt] for each in found] == [["bad"]] * 4
    assert (await workers.count_by_phase(on_corrupt="collect"))[LabWorkerPhase.READY] == 1
    assert await workers.count_by_lab_track(on_corrupt="collect") == {"x": 1}
    assert names(await workers.find_draining_workers(on_corrupt="collect")) == []
    with pytest.raises(CorruptResourceError):
        await workers.find_active_workers()


async def test_finders_skip_a_value_that_is_no_lab(client: kvorum.Client) -> None:
    labs = LabInstanceRepository(client)
    await client.backend.set("lab-instances/x/bad", b"{}")

    found = [
        await labs.find_by_owner("ann", on_corrupt="collect"),
        await labs.find_by_worker("w", on_corrupt="collect"),
        await labs.find_expired(on_corrupt="collect"),
    ]
    assert [[error.name for error in each.corrupt] for each in found] == [["bad"]] * 3
    assert sum((await labs.count_by_phase(on_corrupt="collect")).values()) == 0
