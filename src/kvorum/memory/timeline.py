"""The history of all keys: every value of each key, by revision, until it is compacted.

Plain data, without waits and clocks. Keys are bytes here, since ranges are in the order of bytes.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from kvorum.errors import FutureRevisionError, HistoryLostError
from kvorum.storage import Change, Entry


class Write(msgspec.Struct, frozen=True):
    """A write to one key.

    Attributes:
        key: the key as its entry names it.
        value: the new value; None removes the key.
        lease: the lease to attach the key to; 0 for none.
    """

    key: str
    value: bytes | None
    lease: int = 0


class _Version(NamedTuple):
    revision: int
    entry: Entry | None


class Timeline:
    """The revisions of a store, one after the other.

    Attributes:
        revision: of the last write; 1 in a new store, as in etcd.
        compacted: the oldest revision that can be read; 0 if all can.
    """

    def __init__(self) -> None:
        self.revision: int = 1
        self.compacted: int = 0
        self._versions: dict[bytes, list[_Version]] = {}
        self._keys: list[bytes] = []  # of `_versions`, sorted
        # The changes of each revision, from `_log_start` on.
        self._log: list[tuple[tuple[bytes, Change], ...]] = []
        self._log_start = 2

    def __len__(self) -> int:
        """Return how many revisions the log holds."""
        return len(self._log)

    # --- read ---

    def check(self, revision: int) -> None:
        """Make sure that a revision can be read.

        Raises:
            HistoryLostError: it has been compacted.
            FutureRevisionError: it has not been reached.
        """
        if revision > self.revision:
            raise FutureRevisionError(revision=revision)
        if revision < self.compacted:
            raise HistoryLostError(revision=revision)

    def entry(self, key: bytes, revision: int) -> Entry | None:
        """Return a key as it was at a revision."""
        versions = self._versions.get(key, ())
        if versions and versions[-1].revision <= revision:
            return versions[-1].entry
        index = bisect_right(versions, revision, key=lambda version: version.revision)
        return versions[index - 1].entry if index else None

    def entries(self, start: bytes, end: bytes, revision: int) -> Iterator[Entry]:
        """Return the keys from `start` to before `end` as they were at a revision, in order."""
        keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        return (entry for key in keys if (entry := self.entry(key, revision)) is not None)

    def changes(self, start: bytes, end: bytes, revision: int) -> tuple[Change, ...]:
        """Return what a revision changed from `start` to before `end`.

        The revision must be above `compacted`, and reached.
        """
        if revision < self._log_start:
            # The first revision of a store is not in the log; a negative index would be another's.
            return ()
        return tuple(
            change for key, change in self._log[revision - self._log_start] if start <= key < end
        )

    # --- write ---

    def write(self, writes: Mapping[bytes, Write]) -> Sequence[Change]:
        """Apply writes at one new revision, in their order.

        Returns:
            The changes. Without any, as when an absent key is removed, there is no new revision.
        """
        changed = [
            (key, change) for key, write in writes.items() if (change := self._change(key, write))
        ]
        if changed:
            self.revision += 1
            self._log.append(tuple(changed))
        for key, change in changed:
            if key not in self._versions:
                self._versions[key] = []
                insort(self._keys, key)
            self._versions[key].append(_Version(change.revision, change.entry))
        return [change for _, change in changed]

    def _change(self, key: bytes, write: Write) -> Change | None:
        revision, previous = self.revision + 1, self.entry(key, self.revision)
        if write.value is None:
            return Change(write.key, revision, None, previous) if previous is not None else None
        created, version = (
            (previous.create_revision, previous.version + 1) if previous else (revision, 1)
        )
        entry = Entry(write.key, write.value, revision, created, version, write.lease)
        return Change(write.key, revision, entry, previous)

    # --- forget ---

    def compact(self, revision: int) -> None:
        """Forget what was before a revision; the state at it can still be read.

        Raises:
            HistoryLostError: it has been compacted already.
            FutureRevisionError: it has not been reached.
        """
        if revision <= self.compacted:
            raise HistoryLostError(revision=revision)
        self.check(revision)
        self.compacted = revision
        forgotten = revision + 1 - self._log_start
        for key in {key for changed in self._log[:forgotten] for key, _ in changed}:
            self._compact_key(key)
        del self._log[:forgotten]
        self._log_start += forgotten

    def _compact_key(self, key: bytes) -> None:
        versions = self._versions[key]
        first = bisect_right(versions, self.compacted, key=lambda version: version.revision) - 1
        if first >= 0 and versions[first].entry is None:
            first += 1  # a deletion can be forgotten, too: reads find nothing either way
        del versions[: max(first, 0)]
        if not versions:
            del self._versions[key]
            del self._keys[bisect_left(self._keys, key)]
