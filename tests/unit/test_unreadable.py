"""How much a watch remembers of values that cannot be read, and how far it looks back for what was before."""

from typing import Any, cast

import pytest

from kvorum import CorruptResourceError, Entry, HistoryLostError
from kvorum.query import Query
from kvorum.storage import StorageBackend
from kvorum.unreadable import Unreadable, last_readable


class Store:
    """A key that has a value at each revision from 1 on, of which only those up to one can be read."""

    def __init__(self, *, readable: int) -> None:
        self.readable = readable
        self.reads = 0

    async def get(self, key: str, *, revision: int) -> Entry:
        self.reads += 1
        return Entry(key, b"", create_revision=1, mod_revision=revision, version=revision)

    def select(self, entry: Entry) -> Entry:
        if entry.mod_revision > self.readable:
            raise CorruptResourceError(entry.key, entry.mod_revision, "no JSON")
        return entry

    async def before(self, revision: int) -> Entry | None:
        now = Entry("a", b"", create_revision=1, mod_revision=revision, version=revision)
        return await last_readable(cast("Query[Any]", self), cast("StorageBackend", self), now)


async def test_the_last_of_a_thousand_values_that_cannot_be_read_is_looked_behind() -> None:
    found = await Store(readable=500).before(1500)

    assert found is not None
    assert found.mod_revision == 500


async def test_what_was_written_more_often_is_lost_and_says_so_without_talking_of_compaction() -> None:
    store = Store(readable=499)

    with pytest.raises(HistoryLostError, match="the last 1000 values of a cannot be read") as caught:
        await store.before(1500)
    assert "compacted" not in str(caught.value)
    assert (caught.value.revision, store.reads) == (499, 1000)


def test_a_thousand_keys_are_remembered() -> None:
    unreadable = Unreadable()
    errors = {f"k{number}": CorruptResourceError(f"k{number}", number, "no JSON") for number in range(1001)}
    unreadable.note_list(errors)

    assert sum(key in unreadable for key in errors) == 1000
    unreadable.forget("k0")
    unreadable.note_list(errors)
    assert sum(key in unreadable for key in errors) == 1000
