"""What a watch read last, by which it recognises its history when it resumes.

A store that was restored to an older state may have reached the same revisions again, with other
content. That is noticed if this change is not part of it: one that is older than the backup is.

1. Revisions and version of the key are compared by a read without values. Reading a large value
   over a slow link would never succeed within its deadline, however often it is retried.
2. The value is compared where it arrives anyway: a stream starts at the position, so etcd sends the
   last change again.
3. If the position has moved on since, it does not. Then a small value is read, once; without an
   answer nothing is proven.
"""

from typing import Final

from kvorum.deadlines import now
from kvorum.errors import HistoryLostError, UnavailableError
from kvorum.etcd.entries import DELETE, first_of
from kvorum.etcd.transport import Connection
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import Change, Entry, KeySpace

_SMALL: Final = 16 * 1024  # bytes; a larger value is not read
_LONGEST_READ: Final = 1.0  # seconds for reading it


class LastChange:
    """The last change that was read, or the newest entry of a list.

    Attributes:
        change: the change; None if nothing was read.
    """

    def __init__(self, keys: KeySpace, subject: str) -> None:
        self.change: Change | None = None
        self._keys = keys
        self._subject = subject
        self._is_sent_again = False

    async def check(self, connection: Connection, position: int, deadline: float) -> None:
        """Make sure that it is part of this history, if that is not compacted.

        Raises:
            HistoryLostError: it is not.
            UnavailableError: the store has not answered.
        """
        last = self.change
        if last is None:
            return
        self._is_sent_again = last.revision == position
        try:
            # At the position it must be unchanged, for nothing after it has been read.
            same = _is_same(await self._read(connection, last.key, position, deadline), last.entry)
            if same and last.entry is None and last.previous is not None:
                before = await self._read(connection, last.key, last.revision - 1, deadline)
                same = _is_same(before, last.previous)
            if same and last.entry is not None and not self._is_sent_again:
                same = await self._has_value(connection, last.entry, position, deadline)
        except HistoryLostError:
            return
        if not same:
            raise self._lost(position)

    def compare(self, response: rpc.WatchResponse, position: int) -> None:
        """Compare it with what a new stream sends again.

        Raises:
            HistoryLostError: it has another value.
        """
        last = self.change
        if last is None or not self._is_sent_again:
            return
        for event in response.events:
            if event.kv.mod_revision > last.revision:
                self._is_sent_again = False
                return
            if event.kv.key == self._keys.stored(last.key) and not _has_values_of(event, last):
                raise self._lost(position)

    async def _has_value(
        self, connection: Connection, entry: Entry, position: int, deadline: float
    ) -> bool:
        if len(entry.value) > _SMALL:
            return True
        try:
            deadline = min(deadline, now() + _LONGEST_READ)
            kv = await self._read(connection, entry.key, position, deadline, keys_only=False)
        except UnavailableError:  # the value that is there may be larger
            return True
        return kv is not None and kv.value == entry.value

    async def _read(
        self,
        connection: Connection,
        key: str,
        revision: int,
        deadline: float,
        *,
        keys_only: bool = True,
    ) -> rpc.KeyValue | None:
        request = rpc.RangeRequest(
            key=self._keys.stored(key), revision=revision, keys_only=keys_only
        )
        answer = await connection.range(
            request, self._subject, revision=revision, deadline=deadline
        )
        return first_of(answer)

    def _lost(self, position: int) -> HistoryLostError:
        assert self.change is not None, "it was compared"  # noqa: S101
        reason = (
            f"revision {self.change.revision} has other content: the store was restored to an older"
            " state"
        )
        return HistoryLostError(revision=position + 1, reason=reason)


def _is_same(found: rpc.KeyValue | None, known: Entry | None) -> bool:
    """Return whether a key is as known: of the newest entry of a list, only by its revision."""
    if found is None or known is None:
        return found is None and known is None
    if found.mod_revision != known.mod_revision:
        return False
    return not known.version or (found.create_revision, found.version) == (
        known.create_revision,
        known.version,
    )


def _has_values_of(event: rpc.Event, change: Change) -> bool:
    """Return whether an event has the values of a change of the same key and revision."""
    before, entry, previous = event.prev_kv, change.entry, change.previous
    if entry is None or event.type == DELETE:
        return entry is None and event.type == DELETE and _is_value(before, previous)
    return event.kv.value == entry.value and _is_value(before, previous)


def _is_value(kv: rpc.KeyValue, known: Entry | None) -> bool:
    """Return whether a previous value is the known one, if it is known and not compacted."""
    return known is None or not kv.mod_revision or kv.value == known.value
