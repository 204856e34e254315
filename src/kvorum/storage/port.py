"""The port to a store: bytes, revisions, leases and changes; no resource types.

`EtcdStorageBackend` and `MemoryStorageBackend` implement it. This module is the contract for other
backends; `kvorum.testing` has the test suite that checks it.

Keys are text, relative to the backend's prefix, without a leading slash: `lab-workers/worker-001`.
Revisions are the store's: one counter for all keys, which each write increments, as in etcd.
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
    """A snapshot of what a watch has done so far.

    Attributes:
        position: everything up to this revision has been read from the store.
        resumes: how often it resumed by itself after its connection broke.
        buffered: how many changes have been read but not been taken yet.
        events: how many changes have been read.
        relists: how often a watch with `initial` lost history and listed again.
    """

    position: int
    resumes: int = 0
    buffered: int = 0
    events: int = 0
    relists: int = 0


class StorageWatch(ABC):
    """A stream of changes under a prefix: ordered, without duplicates, and whole by revision.

    Each item is a tuple of all changes that one revision made under the prefix. Iterate it in one
    task at a time. It opens when it is first entered or iterated, and closes when it is exited,
    closed or garbage-collected.
    """

    @property
    @abstractmethod
    def revision(self) -> int:
        """Everything up to this revision has been delivered; 0 before the stream is open.

        It never decreases.
        """

    def statistics(self) -> WatchStatistics:
        """Return a snapshot of what it has done so far."""
        return WatchStatistics(position=self.revision)

    def expect(self, entry: Entry) -> None:  # noqa: B027 - most stores are never restored
        """Remember the newest entry of the list after whose revision the watch starts.

        When a connection is lost, the stream can then detect that the store was restored to a state
        without that entry in the meantime.
        """

    @abstractmethod
    async def open(self) -> None:
        """Open the stream. A watch without a start revision starts at this moment. Idempotent.

        Raises:
            HistoryLostError: the revision to start from has been compacted.
            FutureRevisionError: the revision to start from has not been reached.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End the stream, here and on the server. Idempotent."""

    @abstractmethod
    async def __anext__(self) -> tuple[Change, ...]:
        """Wait for the next revision with changes. A cancelled wait takes nothing.

        Raises:
            HistoryLostError: the next revision has been compacted. The stream ends.
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
        except BaseException:  # cancellation, too: leave nothing open on the server
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
    """A store of bytes under keys, with revisions.

    Every method is safe to cancel and to call concurrently. The type and range of arguments are
    checked before anything is sent, by the checks of `kvorum.arguments`.

    In addition to the errors listed for each, every method may raise:
        InvalidResourceError: an argument has the wrong type or range. Nothing was sent.
        UnavailableError: the store was not reached; nothing was changed.
        OutcomeUnknownError: a write was sent, and it is unknown whether it was applied.
        PermissionDeniedError, AuthenticationError: the store rejects the user.
        ClientClosedError: the client behind the backend is not open.
    """

    @property
    def page_size(self) -> int:
        """The largest number of keys to request at once."""
        return 1000

    def location(self, key: str) -> str:
        """Return the key with the backend's prefix, if any, as operators see it; for messages."""
        return key

    async def open(self) -> None:  # noqa: B027 - many stores are always ready
        """Make the store ready. Does nothing if it is open.

        A client calls it when it is entered, and calls `aclose` in the end, also if this failed or
        was cancelled.

        Raises:
            KvorumError: the store cannot be opened.
        """

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to release
        """End all watches and reject further calls with `ClientClosedError`. Idempotent.

        When a client is closed, it calls this for a backend that was passed to `connect`.
        """

    # --- read ---

    @abstractmethod
    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        """Read a key, linearizably or at an earlier `revision`; None if it does not exist.

        Raises:
            HistoryLostError: `revision` has been compacted.
            FutureRevisionError: `revision` has not been reached.
            InvalidResourceError: `revision` is not an int of 1 or more.
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
            limit: the maximum number of entries; None for all of them in one page.
            after: only keys after this one: the last one of the previous page.
            revision: the revision to read at: `Page.revision` of the first page.

        Raises:
            HistoryLostError: `revision` has been compacted.
            FutureRevisionError: `revision` has not been reached.
            InvalidResourceError: `limit` or `revision` is not an int of 1 or more.
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
        """Read the keys that start with `prefix` like `list`, mapped and filtered by `keep`.

        Entries for which it returns None are left out. This reads one page at a time, so other
        tasks run in between. A page is as large as the number of items still wanted, and grows
        while `keep` drops entries: finding one entry in a thousand takes ten requests.

        Args:
            prefix: text that the keys start with.
            keep: called with each entry, in order, until the limit is reached. Its exceptions
                propagate.
            limit: the maximum number of items; None for all.
            after: only keys after this one.
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
            for number, entry in enumerate(page.entries, start=1):
                after = entry.key
                looked_at += 1
                item = keep(entry)
                if item is not None:
                    items.append(item)
                    if len(items) == limit:
                        remaining = page.remaining + len(page.entries) - number
                        return Selection(items, revision, remaining, after)
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
        """Read the keys that start with `prefix` like `list`, if the labels of their values match.

        Only the labels of a value are decoded. A value whose labels cannot be read is kept, so that
        its decoder can report why: a filter must not hide corrupt values.

        Args:
            prefix: text that the keys start with.
            labels: a label selector: text, a mapping or a `LabelSelector`.
            limit: the maximum number of entries; `Page.remaining` then counts the keys that were
                not examined.
            after: only keys after this one.
            revision: the revision to read at; now by default.

        Raises:
            InvalidSelectorError: the selector cannot be parsed. Also raises like `list`.
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
        """Return the keys that match a shell pattern, sorted: `*` (crosses slashes), `?`, `[…]`.

        The store is asked for all keys that start with the part of the pattern before its first
        special character.
        """

    async def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        return await self.get(key) is not None

    # --- write ---

    @abstractmethod
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Write a key unconditionally and attach it to `lease` (0: none); return the revision.

        `unique` says that no other write has these bytes: see `Operation`.

        Raises:
            LeaseNotFoundError: the lease does not exist.
            ResourceTooLargeError: the value is too large for the store.
        """

    @abstractmethod
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Write a key that must not exist; return the revision. `unique`: like `set`.

        Raises:
            AlreadyExistsError: it exists; it was not changed.
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
        """Write a key if its mod_revision is `expected` (0: must not exist); return the revision.

        The key keeps its lease unless another is given (0: none). `unique`: like `set`. With
        `expected_value` the key must also have that value, which guards against a store that was
        restored to an older state: see `Operation`.

        Raises:
            ConflictError: it is at another revision, or has another value. `current` is its entry,
                read in the same transaction.
            LeaseNotFoundError, ResourceTooLargeError: like `set`.
        """

    def may_recur(self, revision: int) -> bool:
        """Return whether the store may have reached a revision a second time, with other values.

        That happens when a store is restored to an older state. A write that expects this revision
        should then also expect the value that was read. The answer uses only local knowledge, and
        does no I/O. A backend whose store is never restored need not implement it.
        """
        del revision
        return False

    @abstractmethod
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        """Remove a key, unconditionally or if its mod_revision is `expected`; return the change.

        `expected_value`: like `compare_and_swap`.

        Raises:
            NotFoundError: the key does not exist, and no revision was expected.
            ConflictError: it is at another revision than `expected`, has another value than
                `expected_value`, or does not exist.
        """

    @abstractmethod
    async def commit(self, operations: Sequence[Operation]) -> int:
        """Apply all operations atomically, or none; return the revision.

        Raises:
            ConflictError: an expectation does not hold; it names the first such key, with its
                current entry.
            InvalidResourceError: a key is in two operations, or there are none, or too many.
            LeaseNotFoundError, ResourceTooLargeError: like `set`.
        """

    async def settle(self, lost: OutcomeUnknownError) -> int:
        """Find out the outcome of a write of this backend that was unknown; return its revision.

        Writes that can be resent safely are resent, so this call may apply the write. It can be
        repeated. A backend that always knows the outcome need not implement it.

        Raises:
            ConflictError: the write was not applied, and never will be.
            OutcomeUnknownError: the outcome is still unknown.
        """
        check_lost(lost)
        try:
            raise lost
        finally:
            del lost  # its traceback holds this frame

    # --- leases ---

    @abstractmethod
    async def grant_lease(self, ttl: float) -> int:
        """Grant a lease of at least `ttl` seconds; return its id.

        The store rounds up, and may have a minimum.

        Raises:
            InvalidResourceError: `ttl` is not a number above 0, or exceeds the store's maximum.
        """

    async def grant_lease_for(self, key: str, ttl: float) -> int:  # noqa: ARG002 - backends use it
        """Grant a lease for one key alone; return its id. Attach no other key to it.

        When `delete` has removed the key, it also revokes the lease, unless another key is attached
        to it. If revoking fails, the deletion has still succeeded, and the lease expires on its
        own. It also expires on its own if anything but `delete` removes the key or detaches it.

        By default this grants an ordinary lease, which always expires on its own.

        Raises: like `grant_lease`.
        """
        return await self.grant_lease(ttl)

    @abstractmethod
    async def revoke_lease(self, lease: int) -> None:
        """Revoke a lease; the keys attached to it are removed.

        Raises:
            LeaseNotFoundError: it has already expired or been revoked.
        """

    # --- watch ---

    @abstractmethod
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        """Watch all keys that start with `prefix`, after revision `since` or from now on.

        Args:
            prefix: which keys.
            since: the last revision that is not delivered.
            bookmarks: whether to deliver an empty tuple now and then, which says that nothing else
                has changed up to `StorageWatch.revision`. The store decides how often.

        Raises:
            InvalidResourceError: `since` is not an int of 0 or more.
        """


class HasBackend(Protocol):
    """What a repository is made with: a client, or anything else with a backend."""

    @property
    def backend(self) -> StorageBackend:
        """The backend that stores the resources.

        Raises:
            ClientClosedError: the client has not been entered yet.
        """
        ...
