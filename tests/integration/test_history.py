"""The first change of a key after a revision is read from etcd's history, or reported as lost."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

import kvorum
from kvorum import EmbeddedEtcd, HistoryLostError
from kvorum.etcd.entries import DELETE
from kvorum.etcd.watch.history import (
    check_readable,
    first_change,
    revision_now,
    with_oldest,
)


@pytest.fixture
async def client(kvorum_etcd: EmbeddedEtcd) -> kvorum.Client:
    return kvorum.connect(f"{kvorum_etcd.url}/history")


async def first(client: kvorum.Client, after: int) -> tuple[int, int]:
    """Return the type of the first change of key `a`, and its revision."""
    with anyio.fail_after(10):
        event = await first_change(
            client.connection, b"/history/a", after, "a", anyio.current_time() + 5
        )
    return event.type, event.kv.mod_revision


async def test_the_first_change_is_found_although_others_follow(client: kvorum.Client) -> None:
    async with client:
        written = [await client.backend.set("a", b"%d" % number) for number in range(4)]

        assert await first(client, written[1]) == (0, written[2])


async def test_a_deletion_is_found_although_the_key_exists_again(client: kvorum.Client) -> None:
    async with client:
        before = await client.backend.set("a", b"1")
        deleted = (await client.backend.delete("a")).revision
        await client.backend.create("a", b"2")

        assert await first(client, before) == (DELETE, deleted)


async def test_a_deletion_that_a_compaction_has_hidden_is_lost_history_and_not_skipped(
    client: kvorum.Client, compact_etcd: Callable[[int], Awaitable[None]]
) -> None:
    """Old servers drop a deletion at the compacted revision, but accept a watch from there."""
    async with client:
        before = await client.backend.set("a", b"1")
        deleted = (await client.backend.delete("a")).revision
        await client.backend.create("a", b"2")
        await compact_etcd(deleted)

        with pytest.raises(HistoryLostError):
            await first(client, before)


async def test_the_oldest_revision_is_found_where_a_read_does_not_tell_it(
    client: kvorum.Client, compact_etcd: Callable[[int], Awaitable[None]]
) -> None:
    async with client:
        written = [await client.backend.set("a", b"") for _ in range(3)]
        await compact_etcd(written[1])

        with pytest.raises(HistoryLostError) as caught:
            await check_readable(client.connection, b"/history/a", written[0], "a")
        assert caught.value.compact_revision == 0
        told = await with_oldest(caught.value, client.connection, b"/history/a", "a")
        assert (told.revision, told.compact_revision) == (written[0] + 1, written[1])
        assert await revision_now(client.connection, b"/history/a", "a") >= written[2]
