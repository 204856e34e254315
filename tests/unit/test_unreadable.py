"""How much a watch remembers of unreadable values, and how far it looks back."""

from collections.abc import Callable
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from kvorum import CorruptResourceError, Entry, HistoryLostError
from kvorum.repository.query import Query
from kvorum.repository.transitions import Transition
from kvorum.repository.unreadable import LastReadable, Unreadable, UnreadableLimits
from kvorum.storage.port import StorageBackend
from kvorum.storage.values import Change


class Store:
    """A key with a value at each revision, of which only those up to `readable` can be read."""

    def __init__(self, *, readable: int) -> None:
        self.readable = readable
        self.reads = 0
        self.before_read: Callable[[], None] = lambda: None
        self.last_readable = LastReadable(cast("Query[Any]", self), UnreadableLimits())

    async def count(self, key: str, *, revision: int) -> int:
        del key, revision
        return 1

    async def get(self, key: str, *, revision: int) -> Entry:
        self.reads += 1
        self.before_read()
        await anyio.lowlevel.checkpoint()
        return Entry(key, b"", create_revision=1, mod_revision=revision, version=revision)

    def select(self, entry: Entry) -> Entry:
        if entry.mod_revision > self.readable:
            raise CorruptResourceError(entry.key, entry.mod_revision, "no JSON")
        return entry

    async def before(self, revision: int) -> Entry | None:
        now = Entry("a", b"", create_revision=1, mod_revision=revision, version=revision)
        return await self.last_readable.before(cast("StorageBackend", self), now)


async def test_the_last_of_a_thousand_values_that_cannot_be_read_is_looked_behind() -> None:
    found = await Store(readable=500).before(1500)

    assert found is not None
    assert found.mod_revision == 500


async def test_what_was_written_more_often_is_lost_and_says_so_without_talking_of_compaction() -> (
    None
):
    store = Store(readable=499)

    with pytest.raises(
        HistoryLostError, match="the last 1000 values of a cannot be read"
    ) as caught:
        await store.before(1500)
    assert "compacted" not in str(caught.value)
    assert (caught.value.revision, store.reads) == (499, 1000)


async def test_a_search_that_is_cancelled_goes_on_where_it_was() -> None:
    store = Store(readable=10)
    with anyio.CancelScope() as scope:
        store.before_read = lambda: scope.cancel() if store.reads == 15 else None
        await store.before(30)
    assert scope.cancelled_caught

    found = await store.before(30)

    assert found is not None
    assert (found.mod_revision, store.reads) == (10, 21)


def becoming_unreadable(key: str, size: int = 0) -> Transition[Any]:
    was = Entry(key, b"x" * size, create_revision=1, mod_revision=1, version=1)
    now = Entry(key, b"?", create_revision=1, mod_revision=2, version=2)
    return Transition(Change(key, 2, now, was), CorruptResourceError(key, 2, "no JSON"), was)


@pytest.mark.parametrize(("size", "most"), [(0, 1000), (1024 * 1024, 16)])
def test_a_thousand_keys_are_remembered_but_no_more_than_16_mib(size: int, most: int) -> None:
    unreadable = Unreadable(UnreadableLimits())
    keys = [f"k{number}" for number in range(most + 1)]
    for key in keys[:-1]:
        unreadable.record(becoming_unreadable(key, size))
    turned_away = [unreadable.has_turned_away]
    unreadable.record(becoming_unreadable(keys[-1], size))

    assert [*turned_away, unreadable.has_turned_away] == [False, True]
    assert [unreadable.knows(key) for key in keys] == [True] * most + [False]
    unreadable.forget("k0")
    unreadable.record(becoming_unreadable(keys[-1], size))
    assert [unreadable.knows(key) for key in keys] == [False] + [True] * most
