"""A watch since revision 0: the whole history, on etcd and in memory alike.

Each test has its own server, because other tests may compact a shared one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import pytest

import kvorum
from kvorum.testing.conformance.probes import take

pytestmark = pytest.mark.anyio

Forget = Callable[[int], Awaitable[None]]


@pytest.fixture(params=["etcd", "memory"])
async def store(
    request: pytest.FixtureRequest, kvorum_etcd: kvorum.EmbeddedEtcd
) -> AsyncIterator[tuple[kvorum.StorageBackend, Forget]]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            memory = kvorum.MemoryStorageBackend()
            yield memory, memory.compact
            return
        etcd = await stack.enter_async_context(kvorum.EmbeddedEtcd(binary=kvorum_etcd.binary))
        client = await stack.enter_async_context(kvorum.connect(etcd.url))

        async def forget(revision: int) -> None:
            await client.admin.compact(revision)

        yield client.backend, forget


async def revisions_of(backend: kvorum.StorageBackend, since: int, revisions: int) -> list[int]:
    async with backend.watch("", since=since) as watch:
        return [changes[0].revision for changes in await take(watch, revisions)]


async def test_a_watch_since_0_or_1_delivers_the_whole_history_once(
    store: tuple[kvorum.StorageBackend, Forget],
) -> None:
    """A store begins at revision 1, at which nothing was written."""
    backend, _ = store
    for key in "abc":
        await backend.create(key, b"")
    assert [await revisions_of(backend, since, 3) for since in (0, 1)] == [[2, 3, 4], [2, 3, 4]]
    for key in "ab":
        await backend.set(key, b"1")
    assert [await revisions_of(backend, since, 5) for since in (0, 1)] == [
        [2, 3, 4, 5, 6],
        [2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize("since", [0, 1])
async def test_a_watch_from_the_beginning_of_an_empty_store_waits_for_the_first_write(
    store: tuple[kvorum.StorageBackend, Forget], since: int
) -> None:
    backend, _ = store
    async with backend.watch("", since=since) as watch:
        with anyio.move_on_after(0.05) as waited:
            await anext(watch)
        assert waited.cancelled_caught
        revision = await backend.set("a", b"")

        assert [changes[0].revision for changes in await take(watch, 1)] == [revision] == [2]


@pytest.mark.parametrize("since", [0, 1])
async def test_a_compaction_at_the_first_revision_loses_nothing(
    store: tuple[kvorum.StorageBackend, Forget], since: int
) -> None:
    backend, forget = store
    await backend.set("a", b"1")
    await backend.set("a", b"2")
    await forget(1)

    assert await revisions_of(backend, since, 2) == [2, 3]


@pytest.mark.parametrize("since", [0, 1])
async def test_what_was_compacted_is_lost_to_a_watch_from_the_beginning(
    store: tuple[kvorum.StorageBackend, Forget], since: int
) -> None:
    backend, forget = store
    await backend.set("a", b"1")
    await backend.set("a", b"2")
    await forget(2)

    with pytest.raises(kvorum.HistoryLostError):
        await backend.watch("", since=since).open()
