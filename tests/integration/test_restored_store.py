"""Writes that are based on reads from before the store was put back to a backup."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.backups import back_up, put_back
from tests.kinds import Task, task
from typing_extensions import override

import kvorum
from kvorum import Observer
from kvorum.etcd.transport import _rpc as rpc
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.observer import Call


def note(text: str) -> Callable[[LabWorker], None]:
    return lambda worker: worker.metadata.annotations.update(by=text)


@pytest.fixture
async def workers(etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[LabWorkerRepository]:
    async with kvorum.connect(etcd.url) as client:
        yield LabWorkerRepository(client)


@pytest.fixture
async def restore(
    etcd: kvorum.EmbeddedEtcd, workers: LabWorkerRepository, tmp_path: Path
) -> Callable[[], Awaitable[None]]:
    """Back up a store with one worker; return what puts it back and lets another client write."""
    await workers.add(LabWorker.new("w", lab_track="t"))
    await back_up(etcd, tmp_path / "backup")

    async def run() -> None:
        await put_back(etcd, tmp_path / "backup")
        async with kvorum.connect(etcd.url) as other:
            await LabWorkerRepository(other).mutate("w", note("another"))

    return run


async def test_an_update_of_what_was_read_before_conflicts_although_its_revision_is_there_again(
    workers: LabWorkerRepository, restore: Callable[[], Awaitable[None]]
) -> None:
    held = await workers.mutate("w", note("me"))
    await restore()
    held.metadata.labels["mine"] = "1"

    with pytest.raises(kvorum.ConflictError, match="restored to an older state") as caught:
        await workers.update(held)
    assert caught.value.current.metadata.resource_version == held.metadata.resource_version
    assert (await workers.get("w")).metadata.annotations == {"by": "another"}


async def test_an_update_that_changes_nothing_conflicts_then_too(
    workers: LabWorkerRepository, restore: Callable[[], Awaitable[None]]
) -> None:
    held = await workers.mutate("w", note("me"))
    await restore()

    with pytest.raises(kvorum.ConflictError):
        await workers.update(held)


async def test_an_update_by_a_client_that_connects_after_the_store_was_put_back_conflicts(
    etcd: kvorum.EmbeddedEtcd, workers: LabWorkerRepository, restore: Callable[[], Awaitable[None]]
) -> None:
    """The resource was read by an earlier client."""
    held = await workers.mutate("w", note("me"))
    await restore()
    held.metadata.labels["mine"] = "1"

    async with kvorum.connect(etcd.url) as client:
        with pytest.raises(kvorum.ConflictError):
            await LabWorkerRepository(client).update(held)


async def test_what_is_read_after_the_store_was_put_back_can_be_updated(
    workers: LabWorkerRepository, restore: Callable[[], Awaitable[None]]
) -> None:
    await workers.mutate("w", note("me"))
    await restore()

    worker = await workers.mutate("w", note("me again"))
    worker.metadata.labels["mine"] = "1"
    await workers.update(worker)


async def test_values_are_compared_only_at_revisions_from_before_the_connection(
    etcd: kvorum.EmbeddedEtcd,
) -> None:
    """The connection itself rules out the rest, so most updates cost nothing more."""
    async with kvorum.connect(etcd.url) as client:
        before = await client.backend.set("a", b"1")
    async with kvorum.connect(etcd.url) as client:
        assert client.backend.may_recur(before)
        now = await client.backend.set("a", b"2")
        assert not client.backend.may_recur(now)
        await etcd.kill()
        await etcd.restart()
        await client.ping()
        assert client.backend.may_recur(now)


class RestoredBeforeAWrite(Observer):
    """Has a store restored between what a client reads and the write that is based on it."""

    def __init__(self, restore: Callable[[], Awaitable[None]]) -> None:
        self._restore = restore
        self._is_done = False

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if call.writes and not self._is_done:
            self._is_done = True
            await self._restore()


@pytest.mark.parametrize("is_versioned", [False, True])
async def test_what_is_good_in_a_restored_store_is_not_deleted_as_corrupt(
    etcd: kvorum.EmbeddedEtcd, tmp_path: Path, *, is_versioned: bool
) -> None:
    """Although it has the revision at which the corrupt value was read before."""
    async with kvorum.connect(etcd.url) as other:
        await other.backend.set("elsewhere", b"")
    await back_up(etcd, tmp_path / "backup")
    async with kvorum.connect(etcd.url) as other:
        corrupt = await other.backend.set("tasks/a", b"?")
    good: list[int] = []

    async def restore() -> None:
        await put_back(etcd, tmp_path / "backup")
        async with kvorum.connect(etcd.url) as other:
            good.append((await other.repository(Task).add(task())).metadata.resource_version)

    async with kvorum.connect(etcd.url, observer=RestoredBeforeAWrite(restore)) as client:
        tasks = client.repository(Task)
        with pytest.raises(kvorum.ConflictError):
            await tasks.delete(
                "a", corrupt=True, resource_version=corrupt if is_versioned else None
            )
        assert good == [corrupt]
        assert (await tasks.get("a")).metadata.resource_version == corrupt


class ComparedValues(Observer):
    """Keeps the values that transactions compare."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if isinstance(message, rpc.TxnRequest):
            self.values += [each.value for each in message.compare if each.value]


@pytest.mark.parametrize(("size", "is_compared"), [(65_536, True), (65_537, False)])
async def test_values_are_compared_up_to_64_kib(
    kvorum_url: str, size: int, *, is_compared: bool
) -> None:
    """The value is sent with each update, so a larger one is not worth it."""
    async with kvorum.connect(kvorum_url) as client:
        workers = LabWorkerRepository(client)
        await workers.add(LabWorker.new("w", lab_track="t"))
        await workers.mutate("w", note("me"))
        (entry,) = (await client.backend.list("")).entries
        await workers.mutate("w", note("m" * (size - len(entry.value) + 2)))
        (entry,) = (await client.backend.list("")).entries
        assert len(entry.value) == size
    compared = ComparedValues()
    async with kvorum.connect(kvorum_url, observer=compared) as client:
        await LabWorkerRepository(client).mutate("w", note("you"))

    assert compared.values == ([entry.value] if is_compared else [])
