"""The storage port in memory.

The same revisions, conflicts, leases, watches, limits and errors as on etcd.
"""

import math
import time
from collections.abc import Callable, Sequence

import anyio.lowlevel
from typing_extensions import override

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
    MAX_REQUEST_SIZE,
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


class MemoryStorageBackend(StorageBackend):
    """A store in memory. It passes the same suite as the backend on etcd.

    Its data are lost when the process exits. A call yields to other tasks before it does its work,
    never after, so a cancelled call has done nothing. Use it from one event loop at a time.

    Args:
        clock: tells the time for leases, in seconds from any start. Leases expire by it at the next
            call. Watches wait by the real clock: after moving a clock of your own, call
            `expire_leases`.
        max_value_size: the largest accepted value, in bytes.
        page_size: how many keys to read at once.
        history: how many revisions to keep at least. Never more than twice as many are kept: older
            ones are compacted.

    Raises:
        ConfigurationError: an argument is invalid.
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
        revision = self._store.timeline.revision
        return f"<MemoryStorageBackend [{state}, at {revision}, {self.open_watches} watches]>"

    @property
    @override
    def page_size(self) -> int:
        return self._page_size

    @property
    def open_watches(self) -> int:
        """How many watches are open now."""
        return len(self._store.followers)

    @override
    def location(self, key: str) -> str:
        """Return the key as it would be in etcd without a prefix."""
        return f"{self._keys.prefix}{key}"

    @override
    async def aclose(self) -> None:
        self._store.close()
        await anyio.lowlevel.checkpoint()  # last, so that it is closed also if this is cancelled

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision, as operators of etcd do.

        Raises:
            HistoryLostError: the revision has been compacted already.
            FutureRevisionError: the revision has not been reached.
            InvalidResourceError: it is not a revision.
        """
        check_given_revision("a compaction", revision, "revision", least=1)
        await self._turn()
        self._store.compact(revision)

    def expire_leases(self) -> None:
        """End the leases that have expired by the clock. Needed only after moving the clock."""
        self._store.expire()

    async def _turn(self) -> None:
        """Yield to other tasks, as a call to a server does. The caller must not yield again."""
        await anyio.lowlevel.checkpoint()
        self._store.check_open()

    # --- read ---

    @override
    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        check_revision(self.location(key), revision)
        full = self._keys.stored(key, revision)
        await self._turn()
        return self._store.timeline.entry(full, self._readable(revision))

    @override
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        check_limit(self.location(prefix), limit)
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        if after is not None:
            start = max(start, self._keys.stored(after) + b"\0")
        await self._turn()
        revision = self._readable(revision)
        entries = list(self._store.timeline.entries(start, end, revision))
        return Page(entries[:limit], revision, len(entries[limit:]) if limit else 0)

    @override
    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        await self._turn()
        return sum(1 for _ in self._store.timeline.entries(start, end, self._readable(revision)))

    @override
    async def keys(self, pattern: str = "*") -> Sequence[str]:
        wanted = KeyPattern(pattern)
        page = await self.list(wanted.prefix)
        return [entry.key for entry in page.entries if wanted.matches(entry.key)]

    def _readable(self, revision: int | None) -> int:
        if revision is None:
            return self._store.timeline.revision
        self._store.timeline.check(revision)
        return revision

    # --- write ---

    @override
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        # No answer is ever lost here, so `unique` makes no difference.
        return await self._commit([Operation.put(key, value, lease=lease, unique=unique)])

    @override
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        try:
            return await self._commit([Operation.create(key, value, lease=lease, unique=unique)])
        except ConflictError:
            raise AlreadyExistsError(key) from None

    @override
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
        if lease is None and expected == 0:
            lease = 0  # a key that does not exist has no lease to keep
        swap = Operation.swap(
            key, value, expected=expected, lease=lease, unique=unique, expected_value=expected_value
        )
        return await self._commit([swap])

    @override
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
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

    @override
    async def commit(self, operations: Sequence[Operation]) -> int:
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
        if lease is None:  # the key keeps its lease
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

    @override
    async def grant_lease(self, ttl: float) -> int:
        """Grant a lease that lasts `ttl` seconds by the clock, rounded up. There is no minimum.

        Raises:
            InvalidResourceError: `ttl` is not a number, not above 0, or more than etcd allows.
        """
        check_ttl(ttl)
        await self._turn()
        return self._store.grant(math.ceil(ttl))

    @override
    async def grant_lease_for(self, key: str, ttl: float) -> int:
        full = self._keys.full(key)
        check_ttl(ttl)
        await self._turn()
        return self._store.grant(math.ceil(ttl), full)

    @override
    async def revoke_lease(self, lease: int) -> None:
        check_lease("a lease", lease, least=1)
        await self._turn()
        self._store.revoke(lease)

    # --- watch ---

    @override
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        # A bookmark follows every 100 revisions without changes.
        check_start(self.location(prefix), since)
        return MemoryStorageWatch(self._store, self._keys, prefix, since, bookmarks=bookmarks)
