"""The port to a store: bytes, revisions, leases and changes; no resource types.

`EtcdStorageBackend` and `MemoryStorageBackend` implement it. Whoever writes another backend finds
the contract here, and in `kvorum.testing` the suite that checks it.

Keys are text, relative to the backend's own prefix, without a slash in front:
`lab-workers/worker-001`. A revision is the store's: one counter for all keys, moved by each write,
as in etcd.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

import anyio
import msgspec

from kvorum.arguments import (
    check_function,
    check_limit,
)
from kvorum.errors import OutcomeUnknownError
from kvorum.selectors import LabelSelector, LabelSelectorLike
from kvorum.storage.checks import check_lost, may_match
from kvorum.storage.values import Change, Entry, Operation, Page, Selection

T = TypeVar("T")


class WatchStatistics(msgspec.Struct, frozen=True):
    """What a watch has done so far.

    Attributes:
        position: everything up to this revision has been read from the store.
        resumes: how often its connection broke, and it went on by itself.
        buffered: how many changes have been read, and not been taken yet.
        events: how many changes were read.
        relists: how often a watch with `initial` lost history, and listed again.
    """

    position: int
    resumes: int = 0
    buffered: int = 0
    events: int = 0
    relists: int = 0


class StorageWatch(ABC):
    """A stream of changes under a prefix: ordered, without duplicates, and whole by revision.

    Each item is a tuple of all changes that one revision made under the prefix. Iterate it in one
    task at a time. It opens when it is first entered or iterated, and closes when it is left,
    closed or dropped.
    """

    @property
    @abstractmethod
    def revision(self) -> int:
        """Everything up to this revision has been delivered; 0 before the stream is open.

        It never goes back.
        """

    def statistics(self) -> WatchStatistics:
        """Return what it has done so far."""
        return WatchStatistics(position=self.revision)

    def expect(self, entry: Entry) -> None:  # noqa: B027 - most stores are never put back
        """Take note of an entry that was there at the revision after which the watch starts: the newest of a list.

        By it, a stream over a lost connection can tell a store that was put back to an older state.
        """

    @abstractmethod
    async def open(self) -> None:
        """Open the stream, and thereby fix what "now" is for a watch that starts now. Again: does nothing.

        Raises:
            HistoryLostError: the revision to start from has been compacted.
            FutureRevisionError: the revision to start from has not been reached.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End the stream, here and on the server. Idempotent."""

    @abstractmethod
    async def __anext__(self) -> tuple[Change, ...]:
        """Wait for the next revision that changed something. A wait that is cancelled takes nothing.

        Raises:
            HistoryLostError: what comes next has been compacted. The stream ends.
            UnavailableError: the store cannot be reached, and the stream does not wait for it. The
                stream ends.
            ClientClosedError: the client was closed while the stream was open.
            StopAsyncIteration: the stream has ended: it was closed, or has raised its error.
        """

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:  # cancellation, too: what was begun on the server is not left there
            with anyio.move_on_after(1, shield=True):
                await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class StorageBackend(ABC):
    """A store of bytes under keys, with revisions. Every method is safe to cancel and to call concurrently.

    Arguments are checked by type and range before anything is sent, by the checks of
    `kvorum.arguments`.

    Errors common to all, beside those that each names:
        InvalidResourceError: an argument is not what it must be. Nothing was sent.
        UnavailableError: the store was not reached; nothing was changed.
        OutcomeUnknownError: a write was sent, and whether it was applied is not known.
        PermissionDeniedError, AuthenticationError: the store refuses the user.
        ClientClosedError: the client behind the backend is not open.
    """

    @property
    def page_size(self) -> int:
        """How many keys to ask for at once when there are many."""
        return 1000

    def location(self, key: str) -> str:
        """Return what an operator calls this key, for messages.

        Without a prefix, the key itself.
        """
        return key

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to release
        """End all watches and refuse further calls, with `ClientClosedError`. Idempotent.

        A client calls it when it is closed, for a backend that was handed to `connect`.
        """

    # --- read ---

    @abstractmethod
    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        """Read a key, linearizably, or as it was at `revision`; None if it does not exist.

        Raises:
            HistoryLostError: `revision` has been compacted.
            FutureRevisionError: `revision` has not been reached.
            InvalidResourceError: `revision` is no int of 1 or more.
        """

    @abstractmethod
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        """Read the keys that start with `prefix`, at one revision (now, or `revision`).

        Args:
            prefix: text that the keys start with; empty for all.
            limit: how many entries at the most; None for all of them in one page.
            after: only keys behind this one: the last one of the page before.
            revision: the revision to read at: `Page.revision` of the first page.

        Raises:
            HistoryLostError: `revision` has been compacted.
            FutureRevisionError: `revision` has not been reached.
            InvalidResourceError: `limit` or `revision` is no int of 1 or more.
        """

    async def select(
        self,
        prefix: str,
        keep: Callable[[Entry], T | None],
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Selection[T]:
        """Read the keys that start with `prefix` like `list`, but keep what `keep` makes of them, without its Nones.

        It reads a page at a time, so other tasks run in between. Pages are as large as what is
        still wanted, and grow while `keep` drops entries: to find one in a thousand takes ten
        requests.

        Args:
            prefix: text that the keys start with.
            keep: called with each entry, in order, until there is enough. What it raises comes out.
            limit: how many items at the most; None for all.
            after: only keys behind this one.
            revision: the revision to read at; now by default.

        Raises: like `list`.
        """
        check_limit(self.location(prefix), limit)
        check_function(self.location(prefix), keep, "keep")
        items: list[T] = []
        looked_at = size = 0
        while True:
            size = self._next_size(
                size,
                wanted=None if limit is None else limit - len(items),
                grow=looked_at > len(items),
            )
            page = await self.list(prefix, limit=size, after=after, revision=revision)
            revision = page.revision
            for place, entry in enumerate(page.entries, start=1):
                after = entry.key
                looked_at += 1
                item = keep(entry)
                if item is not None:
                    items.append(item)
                    if len(items) == limit:
                        return Selection(
                            items, revision, page.remaining + len(page.entries) - place, after
                        )
            if not page.remaining:
                return Selection(items, revision, 0, after)

    def _next_size(self, size: int, *, wanted: int | None, grow: bool) -> int:
        if wanted is None:
            return self.page_size
        return min(max(wanted, 2 * size if grow else 0), self.page_size)

    async def list_with_labels(
        self,
        prefix: str,
        labels: LabelSelectorLike,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        """Read the keys that start with `prefix` and whose values have such labels, as `list` reads all of them.

        Of a value that is filtered out only the labels are decoded. One whose labels cannot be read
        is kept, so that whoever decodes it finds out why: it is not for a filter to hide it.

        Args:
            prefix: text that the keys start with.
            labels: a label selector: text, a mapping or a `LabelSelector`.
            limit: how many entries at the most; `Page.remaining` then counts the keys that were not
                looked at.
            after: only keys behind this one.
            revision: the revision to read at; now by default.

        Raises:
            InvalidSelectorError: the selector cannot be read. Beside it, what `list` raises.
        """
        selector = LabelSelector.of(labels)

        def keep(entry: Entry) -> Entry | None:
            return entry if may_match(selector, entry) else None

        found = await self.select(prefix, keep, limit=limit, after=after, revision=revision)
        return Page(found.items, found.revision, found.remaining)

    @abstractmethod
    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        """Count the keys that start with `prefix`, without reading them. Raises like `list`."""

    @abstractmethod
    async def keys(self, pattern: str = "*") -> Sequence[str]:
        """Return the keys that match a pattern of the shell (`*`, `?`, `[…]`; `*` crosses slashes), sorted.

        Only the part of the pattern before its first special character narrows what the store is
        asked for.
        """

    async def exists(self, key: str) -> bool:
        """Tell whether there is such a key."""
        return await self.get(key) is not None

    # --- write ---

    @abstractmethod
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Write a key, whatever it was before; return the revision. It leaves any lease that it was on for `lease`.

        `unique` says that no other write has these bytes: see `Operation`.

        Raises:
            LeaseNotFoundError: there is no such lease.
            ResourceTooLargeError: the store does not take so large a value.
        """

    @abstractmethod
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Write a key that must not exist; return the revision. `unique`: like `set`.

        Raises:
            AlreadyExistsError: it exists; it was left as it is.
            LeaseNotFoundError, ResourceTooLargeError: like `set`.
        """

    @abstractmethod
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
        """Write a key if its mod_revision is `expected` (0: if it does not exist); return the revision.

        It keeps its lease unless it is given another (0: none). `unique`: like `set`. With
        `expected_value` it must have that value, too, which guards against a store that was put
        back to an older state: see `Operation`.

        Raises:
            ConflictError: it is at another revision, or has another value. `current` is the entry
                as it is, read in the same transaction.
            LeaseNotFoundError, ResourceTooLargeError: like `set`.
        """

    def may_recur(self, revision: int) -> bool:
        """Tell whether the store may have come to a revision again, with other values than were read there.

        That is what happens when a store is put back to an older state. Then a write that expects
        this revision should expect the value that was read, too. It is answered at once, by what is
        known here; a backend whose store is never put back need not implement it.
        """
        del revision
        return False

    @abstractmethod
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        """Remove a key, whatever it is, or if its mod_revision is `expected`; return what that changed.

        `expected_value`: like `compare_and_swap`.

        Raises:
            NotFoundError: there is no such key (and none was expected by revision).
            ConflictError: it is at another revision than `expected`, has another value than
                `expected_value`, or is gone.
        """

    @abstractmethod
    async def commit(self, operations: Sequence[Operation]) -> int:
        """Apply all operations in one atomic step, or none; return the revision.

        Raises:
            ConflictError: an expectation does not hold; it names the first key, with its current
                entry.
            InvalidResourceError: a key stands in two operations, or there are none, or too many.
            LeaseNotFoundError, ResourceTooLargeError: like `set`.
        """

    async def settle(self, lost: OutcomeUnknownError) -> int:
        """Find out what became of a write of this backend's whose outcome was unknown; return its revision.

        What can be sent again without harm is sent again, so the write may be applied by this. Call
        it as often as you like. A backend that always knows need not implement it.

        Raises:
            ConflictError: it was not applied, and never will be.
            OutcomeUnknownError: that still cannot be told.
        """
        check_lost(lost)
        raise lost

    # --- leases ---

    @abstractmethod
    async def grant_lease(self, ttl: float) -> int:
        """Grant a lease that lasts `ttl` seconds at least (rounded up; the store may have a minimum); return its id.

        Raises:
            InvalidResourceError: `ttl` is no number, not above 0, or more than the store takes.
        """

    async def grant_lease_for(self, key: str, ttl: float) -> int:  # noqa: ARG002 - others tell by it
        """Grant a lease that is for one key alone; return its id. Put no other key on it.

        When `delete` has removed the key, it ends the lease, too, unless a key is on it. If that
        fails, the deletion is done all the same, and the lease lasts until its time is over. It
        also does when anything but `delete` removes the key, or takes it off the lease.

        By default this grants an ordinary lease, which always lasts until its time is over.

        Raises: like `grant_lease`.
        """
        return await self.grant_lease(ttl)

    @abstractmethod
    async def revoke_lease(self, lease: int) -> None:
        """End a lease; the keys on it are removed.

        Raises:
            LeaseNotFoundError: it has ended already.
        """

    # --- watch ---

    @abstractmethod
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        """Follow all keys that start with `prefix`: everything after revision `since`, or after now.

        Args:
            prefix: which keys.
            since: the last revision that is not shown.
            bookmarks: whether to show an empty tuple now and then, which says that nothing has
                happened up to `StorageWatch.revision`. How often is up to the store.

        Raises:
            InvalidResourceError: `since` is no int of 0 or more.
        """


class HasBackend(Protocol):
    """What repositories are made on: a client."""

    @property
    def backend(self) -> StorageBackend:
        """Where the resources are.

        Raises:
            ClientClosedError: the client was not entered yet.
        """
        ...
