"""What was delivered before a value that cannot be read, so that a watch can report its deletion.

A value that is not a resource of the kind hides what was there before. When it is removed, the
change carries the unreadable bytes only. A watch remembers the last readable state of the values
that it has seen become unreadable. For older ones it reads the store's history.
"""

from typing import Any, Generic, TypeVar

from kvorum.deadlines import now
from kvorum.errors import CorruptResourceError, HistoryLostError
from kvorum.repository.query import Query
from kvorum.repository.transitions import Transition
from kvorum.resources import AnyResource
from kvorum.runtime import Limits
from kvorum.storage import Entry, StorageBackend

R = TypeVar("R", bound=AnyResource)


class UnreadableLimits(Limits, frozen=True):
    """How much a watch remembers of unreadable values, and how far it looks back.

    Attributes:
        keys: how many keys are remembered.
        size: how many bytes are remembered for all of them.
        seconds: how long history is read for the keys of one revision, together. No read starts
            later. The default is less than the default timeout of a call, so that a value which
            does not arrive within that is not requested again.
        reads: how often history is read for one key. Each unreadable value of it costs one read.
    """

    keys: int = 1000
    size: int = 16 * 1024 * 1024
    seconds: float = 3.0
    reads: int = 1000


class Unreadable:
    """The keys that a watch has seen become unreadable, each with its last delivered state.

    Attributes:
        has_turned_away: whether there was no room for the state of some key.
    """

    def __init__(self, limits: UnreadableLimits) -> None:
        self.has_turned_away: bool = False
        self._limits = limits
        self._delivered: dict[str, Entry | None] = {}  # None: nothing was delivered
        self._size = 0

    def record(self, transition: Transition[Any]) -> None:
        """Record a value that cannot be read, and what was delivered before it."""
        change, before = transition.change, transition.before
        if isinstance(before, CorruptResourceError):
            return  # what was delivered before is known already, or is not known at all
        entry = change.previous if before is not None else None
        size = _size_of(entry)
        self.forget(change.key)
        if len(self._delivered) < self._limits.keys and self._size + size <= self._limits.size:
            self._delivered[change.key] = entry
            self._size += size
        elif entry is not None:
            self.has_turned_away = True

    def knows(self, key: str) -> bool:
        """Return whether it has seen the value become unreadable, and kept what was delivered."""
        return key in self._delivered

    def delivered(self, key: str) -> Entry | None:
        """Return the last state that was delivered for a key that it `knows`; None for none."""
        return self._delivered.get(key)

    def forget(self, key: str) -> None:
        """Record that the value of a key can be read, or is gone."""
        self._size -= _size_of(self._delivered.pop(key, None))


def _size_of(entry: Entry | None) -> int:
    return len(entry.value) if entry is not None else 0


class LastReadable(Generic[R]):
    """Reads from history what a key held before it became unreadable, within limits."""

    def __init__(self, query: Query[R], limits: UnreadableLimits) -> None:
        self._query = query
        self._limits = limits
        self._spent = 0.0  # seconds, including waits that were cancelled
        self._reached: dict[str, tuple[int, Entry]] = {}  # after how many reads it is where

    def restart(self) -> None:
        """Start with the keys of another revision."""
        self._spent = 0.0
        self._reached.clear()

    async def before(self, backend: StorageBackend, entry: Entry) -> Entry | None:
        """Return what was selected under this key before; None if nothing was since its creation.

        Until `restart`, a call goes on where the last one for this key was cancelled.

        Raises:
            HistoryLostError: that has been compacted, the key was written too often since, or
                reading takes too long, since the value is too large for the link. And whatever
                `get` raises.
        """
        if entry.mod_revision > entry.create_revision:
            # The answer is small, so even a slow link delivers it. If it does not arrive, the store
            # is away, and that time does not count.
            await backend.count(entry.key, revision=entry.mod_revision - 1)
        reads, entry = self._reached.get(entry.key, (0, entry))
        while reads < self._limits.reads:
            if entry.mod_revision == entry.create_revision:
                return None
            earlier = await self._read(backend, entry.key, entry.mod_revision - 1)
            if earlier is None:
                return None
            try:
                return earlier if self._query.select(earlier) is not None else None
            except CorruptResourceError:
                reads, entry = reads + 1, earlier
                self._reached[entry.key] = reads, entry
        raise HistoryLostError(
            revision=entry.mod_revision - 1,
            reason=(
                f"the last {self._limits.reads} values of {entry.key} cannot be read, "
                "and no more are examined"
            ),
        )

    async def _read(self, backend: StorageBackend, key: str, revision: int) -> Entry | None:
        seconds = self._limits.seconds
        if self._spent >= seconds:
            raise HistoryLostError(
                revision=revision, reason=f"reading it takes more than {seconds:.0f} s"
            )
        started = now()
        try:
            return await backend.get(key, revision=revision)
        finally:
            self._spent += now() - started
