"""The state behind a backend in memory: a timeline, its leases, and the watches that follow it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from weakref import WeakSet

import anyio

from kvorum.errors import ClientClosedError
from kvorum.memory.leases import LeaseTable
from kvorum.memory.timeline import Timeline, Write
from kvorum.storage import Change


class Follower(Protocol):
    """A watch, as the store sees it."""

    def keep_before(self, revision: int) -> None:
        """Keep what is still unread up to a revision, which is about to be compacted."""
        ...

    def fail(self, error: Exception) -> None:
        """End with an error."""
        ...


class MemoryStore:
    """Changes the state, and wakes the watches that wait for that. Only `wait` waits.

    Args:
        clock: for leases; seconds from any start.
        history: how many revisions to keep at least; there are never twice as many.
    """

    def __init__(self, clock: Callable[[], float], history: int) -> None:
        self.timeline: Timeline = Timeline()
        self.leases: LeaseTable = LeaseTable(clock)
        self.followers: WeakSet[Follower] = WeakSet()
        self.is_closed: bool = False
        self._history = history
        self._news = anyio.Event()

    def check_open(self) -> None:
        """Make sure that the store is open, and end the expired leases.

        Raises:
            ClientClosedError: the store is closed.
        """
        if self.is_closed:
            raise ClientClosedError.closed()
        self.expire()

    def write(self, writes: Mapping[bytes, Write]) -> Sequence[Change]:
        """Apply writes at one new revision; return what they changed.

        Raises:
            LeaseNotFoundError: there is no such lease. Nothing was written.
        """
        for write in writes.values():
            if write.lease:
                self.leases.check(write.lease)
        changes = self.timeline.write(writes)
        for key, write in writes.items():
            self.leases.attach(key, write.lease)
        if len(self.timeline) >= 2 * self._history:
            self.compact(self.timeline.revision - self._history)
        self.notify()
        return changes

    def compact(self, revision: int) -> None:
        """Forget what was before a revision. Raises like `Timeline.compact`."""
        if self.timeline.compacted < revision <= self.timeline.revision:
            for follower in tuple(self.followers):
                follower.keep_before(revision)
        self.timeline.compact(revision)

    # --- leases ---

    def grant(self, ttl: float, key: bytes | None = None) -> int:
        """Grant a lease, for `key` alone if one is given; return its id."""
        lease = self.leases.grant(ttl, key)
        self.notify()  # a wait for the next expiry may have become shorter
        return lease

    def revoke(self, lease: int) -> None:
        """End a lease, and remove its keys at one revision.

        Raises:
            LeaseNotFoundError: it has ended already.
        """
        self.leases.check(lease)
        keys = sorted(self.leases.end(lease))
        entries = {key: self.timeline.entry(key, self.timeline.revision) for key in keys}
        self.write(
            {key: Write(entry.key, None) for key, entry in entries.items() if entry is not None}
        )

    def end_own_lease(self, lease: int, key: bytes) -> None:
        """End the lease of a removed key, if it is for this key alone and no key is on it."""
        if self.leases.is_idle(lease, key):
            self.leases.end(lease)

    def expire(self) -> None:
        """End the expired leases."""
        for lease in self.leases.due():
            self.revoke(lease)

    # --- waiting ---

    def notify(self) -> None:
        """Wake all tasks in `wait`."""
        self._news.set()
        self._news = anyio.Event()

    async def wait(self) -> None:
        """Wait until something may have changed: a write, the end of a lease or of a watch."""
        with anyio.move_on_after(max(self.leases.time_left(), 0)):
            await self._news.wait()
        self.expire()

    def close(self) -> None:
        """End all watches, and refuse further calls."""
        self.is_closed = True
        for follower in tuple(self.followers):
            follower.fail(ClientClosedError.closed())
        self.notify()
