"""What a watch knows of values that cannot be read: what was shown under their keys before, which has to be taken back.

A value that is no resource of the kind hides what was there. When it goes, the change tells of the
unreadable bytes alone. What a watch has seen become unreadable it remembers; for what was so before
it began, it asks the store's history.
"""

from typing import Any, Final, Generic, TypeVar

from kvorum.deadlines import now
from kvorum.errors import CorruptResourceError, HistoryLostError
from kvorum.repository.query import Query
from kvorum.repository.transitions import Transition
from kvorum.resources import AnyResource
from kvorum.storage import Entry, StorageBackend

R = TypeVar("R", bound=AnyResource)

MAX_KEYS: Final = 1000  # that are remembered; of the others history is asked
MAX_BYTES: Final = 16 * 1024 * 1024  # of what was shown at these
# For the reads of one revision's keys, together: then no further one begins. It is less than the
# default timeout of a call, so that a value that does not arrive within that is not asked for
# again.
MAX_SECONDS: Final = 3.0
MAX_READS: Final = 1000  # of history, for one key: each write of an unreadable value costs one


class Unreadable:
    """The keys whose values a watch has seen become unreadable, with what was shown of each (None: nothing was).

    Attributes:
        has_turned_away: whether there was no room for what was shown of a key.
    """

    def __init__(self) -> None:
        self.has_turned_away: bool = False
        self._shown: dict[str, Entry | None] = {}
        self._size = 0

    def note(self, transition: Transition[Any]) -> None:
        """Take note of a value that cannot be read now, and of what was shown before it."""
        change, before = transition.change, transition.before
        if isinstance(before, CorruptResourceError):
            return  # it is known what was shown already, or is not
        entry = change.previous if before is not None else None
        size = _size_of(entry)
        self.forget(change.key)
        if len(self._shown) < MAX_KEYS and self._size + size <= MAX_BYTES:
            self._shown[change.key] = entry
            self._size += size
        elif entry is not None:
            self.has_turned_away = True

    def knows(self, key: str) -> bool:
        """Tell whether it saw the value become unreadable, and has kept what was shown."""
        return key in self._shown

    def shown(self, key: str) -> Entry | None:
        """Return what was shown at a key before, if it `knows`."""
        return self._shown.get(key)

    def forget(self, key: str) -> None:
        """Take note that the value at a key can be read, or is gone."""
        self._size -= _size_of(self._shown.pop(key, None))


def _size_of(entry: Entry | None) -> int:
    return len(entry.value) if entry is not None else 0


class LastReadable(Generic[R]):
    """Reads in history what a key held before it became unreadable, for a limited time."""

    def __init__(self, query: Query[R]) -> None:
        self._query = query
        self._spent = 0.0  # seconds, also in waits that were cancelled

    def restart(self) -> None:
        """Begin with the keys of another revision."""
        self._spent = 0.0

    async def before(self, backend: StorageBackend, entry: Entry) -> Entry | None:
        """Return what was selected at this key before; None if nothing was since the key was created.

        Raises:
            HistoryLostError: that has been compacted, the key was written too often since, or it
                takes too long: the value is too large for the link. And what `get` raises.
        """
        if entry.mod_revision > entry.create_revision:
            # A small answer, which a slow link brings, too. Without it the store is away, and no
            # time is counted.
            await backend.count(entry.key, revision=entry.mod_revision - 1)
        for _ in range(MAX_READS):
            if entry.mod_revision == entry.create_revision:
                return None
            earlier = await self._read(backend, entry.key, entry.mod_revision - 1)
            if earlier is None:
                return None
            try:
                return earlier if self._query.select(earlier) is not None else None
            except CorruptResourceError:
                entry = earlier
        raise HistoryLostError(
            revision=entry.mod_revision - 1,
            reason=f"the last {MAX_READS} values of {entry.key} cannot be read, and no more of them are looked at",
        )

    async def _read(self, backend: StorageBackend, key: str, revision: int) -> Entry | None:
        if self._spent >= MAX_SECONDS:
            raise HistoryLostError(
                revision=revision, reason=f"to read it takes more than {MAX_SECONDS:.0f} s"
            )
        started = now()
        try:
            return await backend.get(key, revision=revision)
        finally:
            self._spent += now() - started
