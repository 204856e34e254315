"""What only the memory backend has: its clock, its bounds, and its end.

The rest is in the suite of the port.
"""

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import pytest

import kvorum
from kvorum import (
    Change,
    ClientClosedError,
    HistoryLostError,
    MemoryStorageBackend,
    Operation,
    StorageWatch,
)
from kvorum.lab import LabWorker

DEADLINE = 5.0


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(clock: Clock) -> MemoryStorageBackend:
    return MemoryStorageBackend(clock=clock)


async def take(watch: StorageWatch) -> tuple[Change, ...]:
    with anyio.fail_after(DEADLINE):
        return await anext(watch)


# --- leases by a clock ----------------------------------------------------------------------------


async def test_a_lease_lasts_by_the_injected_clock(
    backend: MemoryStorageBackend, clock: Clock
) -> None:
    await backend.set("a", b"1", lease=await backend.grant_lease(3600))
    clock.now += 3599.9
    assert await backend.exists("a")
    clock.now += 0.1
    assert not await backend.exists("a")


async def test_a_part_of_a_second_counts_as_a_whole_one(
    backend: MemoryStorageBackend, clock: Clock
) -> None:
    await backend.set("a", b"1", lease=await backend.grant_lease(0.1))
    clock.now += 0.9
    assert await backend.exists("a")
    clock.now += 0.1
    assert not await backend.exists("a")


async def test_a_watch_hears_of_an_expired_lease_when_the_clock_was_moved(
    backend: MemoryStorageBackend, clock: Clock
) -> None:
    await backend.set("a", b"1", lease=await backend.grant_lease(3600))
    async with backend.watch("") as watch:
        waiting = asyncio.create_task(take(watch))
        await asyncio.sleep(0)
        clock.now += 3600
        backend.expire_leases()

        (change,) = await waiting
        assert (change.key, change.entry) == ("a", None)


async def test_a_watch_that_waits_hears_of_a_lease_that_was_granted_meanwhile() -> None:
    """By the real clock: the lease expires without any call to the backend."""
    backend = MemoryStorageBackend()
    async with backend.watch("a") as watch:
        waiting = asyncio.create_task(take(watch))
        await asyncio.sleep(0)
        await backend.set("b", b"", lease=await backend.grant_lease(600))
        await backend.set("a", b"", lease=await backend.grant_lease(1))

        assert (await waiting)[0].entry is not None
        assert (await take(watch))[0].entry is None
    assert await backend.exists("b")


async def test_leases_expire_in_the_order_of_their_ends_each_at_a_revision(
    backend: MemoryStorageBackend, clock: Clock
) -> None:
    late, early = await backend.grant_lease(20), await backend.grant_lease(10)
    for key in ("l1", "l2"):
        await backend.set(key, b"", lease=late)
    await backend.set("e", b"", lease=early)
    async with backend.watch("") as watch:
        clock.now += 3600
        backend.expire_leases()

        assert [change.key for change in await take(watch)] == ["e"]
        assert [change.key for change in await take(watch)] == ["l1", "l2"]


async def test_a_lease_without_keys_ends_without_a_revision(
    backend: MemoryStorageBackend, clock: Clock
) -> None:
    revision = await backend.set("a", b"")
    await backend.revoke_lease(await backend.grant_lease(10))
    await backend.grant_lease(10)
    clock.now += 10

    assert (await backend.list("")).revision == revision


# --- bounds ---------------------------------------------------------------------------------------


async def test_history_is_kept_up_to_twice_its_limit() -> None:
    backend = MemoryStorageBackend(history=10)
    first = await backend.set("a", b"")
    for _ in range(18):
        last = await backend.set("a", b"")
    assert await backend.get("a", revision=first) is not None
    last = await backend.set("a", b"")

    with pytest.raises(HistoryLostError):
        await backend.get("a", revision=first)
    assert await backend.get("a", revision=last - 10) is not None
    with pytest.raises(HistoryLostError):
        await backend.get("a", revision=last - 11)


async def test_a_watch_keeps_what_it_has_not_read_of_what_is_compacted(
    backend: MemoryStorageBackend,
) -> None:
    """As a client of etcd keeps what it has read ahead."""
    async with backend.watch("a") as watch:
        revisions = []
        for number in range(4):
            await backend.set("other", b"")
            revisions.append(await backend.set("a", b"%d" % number))
            if number in {1, 2}:
                await backend.compact(revisions[-1])

        assert [(await take(watch))[0].revision for _ in range(4)] == revisions


async def test_a_watch_that_is_far_behind_a_compaction_loses_history_after_what_it_kept(
    backend: MemoryStorageBackend,
) -> None:
    async with backend.watch("") as watch:
        revisions = [
            await backend.commit([Operation.put(f"k{n}", b"") for n in range(100)])
            for _ in range(12)
        ]
        await backend.compact(revisions[-1])

        for revision in revisions[:10]:
            assert (await take(watch))[0].revision == revision
        with pytest.raises(HistoryLostError) as caught:
            await take(watch)
        assert caught.value.revision == revisions[10]
        assert caught.value.compact_revision == revisions[-1]
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    assert backend.open_watches == 0


async def test_what_was_compacted_and_removed_leaves_nothing_behind(
    backend: MemoryStorageBackend,
) -> None:
    for number in range(100):
        await backend.set(f"k{number}", bytes(1000))
        await backend.delete(f"k{number}")
    await backend.compact((await backend.list("")).revision)
    timeline = backend._store.timeline

    assert len(timeline) == 0
    assert not timeline._versions
    assert not timeline._keys


async def test_a_compaction_goes_forward_only(backend: MemoryStorageBackend) -> None:
    revision = await backend.set("a", b"")
    await backend.compact(revision)

    with pytest.raises(HistoryLostError):
        await backend.compact(revision)
    with pytest.raises(kvorum.FutureRevisionError):
        await backend.compact(revision + 1)
    assert await backend.get("a", revision=revision) is not None


# --- closing --------------------------------------------------------------------------------------

USES: dict[str, Callable[[MemoryStorageBackend], Awaitable[object]]] = {
    "get": lambda backend: backend.get("a"),
    "list": lambda backend: backend.list(""),
    "count": lambda backend: backend.count(""),
    "keys": lambda backend: backend.keys(),
    "set": lambda backend: backend.set("a", b""),
    "create": lambda backend: backend.create("a", b""),
    "swap": lambda backend: backend.compare_and_swap("a", b"", expected=0),
    "delete": lambda backend: backend.delete("a"),
    "commit": lambda backend: backend.commit([Operation.put("a", b"")]),
    "grant": lambda backend: backend.grant_lease(1),
    "revoke": lambda backend: backend.revoke_lease(1),
    "watch": lambda backend: backend.watch("").open(),
    "compact": lambda backend: backend.compact(1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_a_closed_backend_is_closed_to_every_use(
    backend: MemoryStorageBackend, use: Callable[[MemoryStorageBackend], Awaitable[object]]
) -> None:
    await backend.aclose()
    await backend.aclose()

    with pytest.raises(ClientClosedError, match="closed"):
        await use(backend)


async def test_a_watch_that_waits_learns_once_that_the_backend_was_closed(
    backend: MemoryStorageBackend,
) -> None:
    async with backend.watch("") as watch:
        waiting = asyncio.create_task(take(watch))
        await asyncio.sleep(0)
        await backend.aclose()

        with pytest.raises(ClientClosedError):
            await waiting
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_a_call_that_was_cancelled_has_done_nothing(backend: MemoryStorageBackend) -> None:
    for steps in range(3):
        task = asyncio.create_task(backend.create(f"k{steps}", b""))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        (done,), _ = await asyncio.wait([task])
        assert await backend.exists(f"k{steps}") == (not done.cancelled())


def test_its_state_shows() -> None:
    backend = MemoryStorageBackend()

    assert repr(backend) == "<MemoryStorageBackend [open, at 1, 0 watches]>"
    assert repr(backend.watch("a")) == "<MemoryStorageWatch /a [not open, at 0]>"
    assert backend.page_size == 1000


# --- behind a client ------------------------------------------------------------------------------


async def test_each_client_on_memory_has_a_store_of_its_own() -> None:
    async with kvorum.connect("memory://") as one, kvorum.connect("memory://") as other:
        await one.backend.set("a", b"")

        assert not await other.backend.exists("a")
        assert repr(one) == "<Client MemoryStorageBackend [open]>"


async def test_a_client_closes_the_backend_that_it_was_given(backend: MemoryStorageBackend) -> None:
    async with kvorum.connect(backend) as client:
        assert client.backend is backend
        await backend.set("a", b"")

    with pytest.raises(ClientClosedError):
        await backend.get("a")
    assert client.backend is backend
    with pytest.raises(ClientClosedError, match="closed"):
        await client.repository(LabWorker).get("a")


async def test_a_client_that_was_not_entered_gives_no_backend(
    backend: MemoryStorageBackend,
) -> None:
    client = kvorum.connect(backend)

    with pytest.raises(ClientClosedError, match="async with"):
        _ = client.backend
    await client.aclose()


async def test_a_client_on_memory_takes_limits_from_its_settings() -> None:
    settings = kvorum.EtcdSettings(max_value_size=10, page_size=7)
    async with kvorum.connect("memory://", settings=settings) as client:
        assert client.backend.page_size == 7
        with pytest.raises(kvorum.ResourceTooLargeError):
            await client.backend.set("a", bytes(11))


async def test_a_client_on_memory_has_no_connection_to_etcd() -> None:
    async with kvorum.connect("memory://") as client:
        with pytest.raises(kvorum.ConfigurationError, match="no connection"):
            _ = client.connection


def test_a_memory_url_takes_nothing_behind_it() -> None:
    with pytest.raises(kvorum.ConfigurationError, match="store of its own"):
        kvorum.connect("memory://lab")


def test_a_backend_brings_its_own_settings(backend: MemoryStorageBackend) -> None:
    with pytest.raises(kvorum.ConfigurationError, match="cannot take the settings"):
        kvorum.connect(backend, settings=kvorum.EtcdSettings())
