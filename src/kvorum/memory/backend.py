"""The storage port in memory.

The same revisions, conflicts, leases, watches, limits and errors as on etcd.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import anyio.lowlevel

from kvorum.arguments import (
    check_given_revision,
    check_lease,
    check_limit,
    check_options,
    check_revision,
    check_start,
    check_ttl,
    problem_of_count,
)
from kvorum.errors import AlreadyExistsError, ConflictError, NotFoundError, ResourceTooLargeError
from kvorum.memory.store import MemoryStore
from kvorum.memory.timeline import Write
from kvorum.memory.watch import MemoryStorageWatch
from kvorum.storage import (
    Change,
    Entry,
    KeyPattern,
    KeySpace,
    Operation,
    Page,
    StorageBackend,
    StorageWatch,
    check_operations,
    has_expected_value,
)

MAX_REQUEST_SIZE: Final = (
    1_572_864  # of a commit, in bytes: etcd's own default, --max-request-bytes
)


class MemoryStorageBackend(StorageBackend):
    """A store of its own, in memory. It passes the same suite as the one on etcd; what ends with the process, ends.

    A call lets other tasks run before it does its work, never after, so a call that was cancelled
    has done nothing. Use it from one event loop at a time.

    Args:
        clock: tells the time for leases, in seconds from any start. Leases expire by it as soon as
            anything is asked of the backend. Watches wait by the real clock: after moving one of
            your own, call `expire_leases`.
        max_value_size: the largest value that is taken, in bytes.
        page_size: how many keys to ask for at once.
        history: how many revisions to keep at least. Never more than twice as many are kept: older
            ones are compacted.

    Raises:
        ConfigurationError: one of these cannot be used.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_value_size: int = 1_000_000,
        page_size: int = 1000,
        history: int = 100_000,
    ) -> None:
        counts = {"max_value_size": max_value_size, "page_size": page_size, "history": history}
        check_options([problem_of_count(name, value) for name, value in counts.items()])
        self._store = MemoryStore(clock, history)
        self._keys = KeySpace("")
        self._max_value_size = max_value_size
        self._page_size = page_size

    def __repr__(self) -> str:
        state = "closed" if self._store.is_closed else "open"
        return f"<MemoryStorageBackend [{state}, at {self._store.timeline.revision}, {self.open_watches} watches]>"

    @property
    def page_size(self) -> int:
        """As it was given."""
        return self._page_size

    @property
    def open_watches(self) -> int:
        """How many watches are open now."""
        return len(self._store.followers)

    def location(self, key: str) -> str:
        """Return the key as it would be in etcd, without a prefix."""
        return f"{self._keys.prefix}{key}"

    async def aclose(self) -> None:
        """End all watches and refuse further calls, with `ClientClosedError`. Idempotent."""
        self._store.close()
        await anyio.lowlevel.checkpoint()  # last, so that it is closed also if this is cancelled

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision, as an operator of etcd does from time to time.

        Raises:
            HistoryLostError: it has been compacted already.
            FutureRevisionError: it has not been reached.
            InvalidResourceError: it is no revision.
        """
        check_given_revision("a compaction", revision, "revision", least=1)
        await self._turn()
        self._store.compact(revision)

    def expire_leases(self) -> None:
        """End the leases whose time has come by the clock, now.

        Only after moving a clock of your own.
        """
        self._store.expire()

    async def _turn(self) -> None:
        """Wait as if for a server.

        Then, in the same step of the event loop, it is this call's turn.
        """
        await anyio.lowlevel.checkpoint()
        self._store.check_open()

    # --- read ---

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        """Look it up."""
        check_revision(self.location(key), revision)
        full = self._keys.stored(key, revision)
        await self._turn()
        return self._store.timeline.entry(full, self._readable(revision))

    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        """Look them up, all in one step."""
        check_limit(self.location(prefix), limit)
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        if after is not None:
            start = max(start, self._keys.stored(after) + b"\0")
        await self._turn()
        revision = self._readable(revision)
        entries = list(self._store.timeline.entries(start, end, revision))
        return Page(entries[:limit], revision, len(entries[limit:]) if limit else 0)

    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        """Count them, all in one step."""
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        await self._turn()
        return sum(1 for _ in self._store.timeline.entries(start, end, self._readable(revision)))

    async def keys(self, pattern: str = "*") -> Sequence[str]:
        """Look at the keys that start like the pattern."""
        wanted = KeyPattern(pattern)
        page = await self.list(wanted.prefix)
        return [entry.key for entry in page.entries if wanted.matches(entry.key)]

    def _readable(self, revision: int | None) -> int:
        if revision is None:
            return self._store.timeline.revision
        self._store.timeline.check(revision)
        return revision

    # --- write ---

    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Write it. No answer gets lost here, so `unique` makes no difference."""
        return await self._commit([Operation.put(key, value, lease=lease, unique=unique)])

    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Write it, unless it is there."""
        try:
            return await self._commit([Operation.create(key, value, lease=lease, unique=unique)])
        except ConflictError:
            raise AlreadyExistsError(key) from None

    async def compare_and_swap(
        self,
        key: str,
        value: bytes,
        *,
        expected: int,
        lease: int | None = None,
        unique: bool = False,
        expected_value: bytes | None = None,
    ) -> int:
        """Write it, if it is as expected."""
        if lease is None and expected == 0:
            lease = 0  # a key that does not exist has no lease to keep
        swap = Operation.swap(
            key, value, expected=expected, lease=lease, unique=unique, expected_value=expected_value
        )
        return await self._commit([swap])

    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        """Remove it, if it is as expected."""
        operation = Operation.delete(key, expected=expected, expected_value=expected_value)
        full = self._full(operation)
        await self._turn()
        self._check_expected([operation])
        changes = self._store.write({full: Write(key, None)})
        if not changes:
            raise NotFoundError(key)
        (change,) = changes
        if change.previous is not None:
            self._store.end_own_lease(change.previous.lease, full)
        return change

    async def commit(self, operations: Sequence[Operation]) -> int:
        """Apply them all in one step."""
        check_operations(operations)
        return await self._commit(operations)

    async def _commit(self, operations: Sequence[Operation]) -> int:
        self._check_sizes(operations)
        await self._turn()
        self._check_expected(operations)
        self._store.write(
            {self._keys.stored(each.key): self._write(each) for each in operations if each.writes}
        )
        return self._store.timeline.revision

    def _check_sizes(self, operations: Sequence[Operation]) -> None:
        request = 0
        for each in operations:
            request += len(self._full(each)) + len(each.value or b"")
            if each.value is not None and len(each.value) > self._max_value_size:
                raise ResourceTooLargeError(
                    each.key, size=len(each.value), limit=self._max_value_size
                )
        if request > MAX_REQUEST_SIZE:
            subject = ", ".join(self.location(each.key) for each in operations)
            raise ResourceTooLargeError(
                subject, size=request, limit=MAX_REQUEST_SIZE, detail="of all keys and values"
            )

    def _check_expected(self, operations: Sequence[Operation]) -> None:
        for each in operations:
            current = self._current(each.key)
            found = current.mod_revision if current else 0
            if each.expected not in {None, found} or not has_expected_value(each, current):
                raise ConflictError(
                    each.key, expected=each.expected or 0, current=current, found=found or ""
                )

    def _write(self, operation: Operation) -> Write:
        lease = operation.lease
        if lease is None:  # it keeps the one that it has
            current = self._current(operation.key)
            lease = current.lease if current is not None else 0
        return Write(operation.key, operation.value, lease)

    def _full(self, operation: Operation) -> bytes:
        return self._keys.stored(
            operation.key, operation.expected if operation.value is None else None
        )

    def _current(self, key: str) -> Entry | None:
        return self._store.timeline.entry(self._keys.stored(key), self._store.timeline.revision)

    # --- leases ---

    async def grant_lease(self, ttl: float) -> int:
        """Begin a lease of whole seconds, by the clock; unlike etcd, without a minimum."""
        check_ttl(ttl)
        await self._turn()
        return self._store.grant(math.ceil(ttl))

    async def grant_lease_for(self, key: str, ttl: float) -> int:
        """Do the same, for one key alone."""
        full = self._keys.full(key)
        check_ttl(ttl)
        await self._turn()
        return self._store.grant(math.ceil(ttl), full)

    async def revoke_lease(self, lease: int) -> None:
        """End it, and remove its keys at one revision."""
        check_lease("a lease", lease, least=1)
        await self._turn()
        self._store.revoke(lease)

    # --- watch ---

    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        """Make a watch; it begins when it is entered.

        There is a bookmark after every 100 revisions without changes.
        """
        check_start(self.location(prefix), since)
        return MemoryStorageWatch(self._store, self._keys, prefix, since, bookmarks=bookmarks)
