"""Typed watches: the changes of a store, decoded, selected, and told as events."""

from collections import deque
from collections.abc import AsyncIterator, Iterable
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeVar

from kvorum.errors import CorruptResourceError, KvorumError
from kvorum.events import Added, Bookmark, Deleted, Modified, WatchEvent
from kvorum.query import Decode, Query
from kvorum.resources import AnyResource
from kvorum.storage import Change, Entry, HasBackend, StorageWatch

R = TypeVar("R", bound=AnyResource)


class Watch(Generic[R]):
    """The events of a kind, in order, without duplicates, and whole by revision.

        async for event in workers.watch():
            ...

    A bare loop is enough: a watch that is left and dropped is cancelled on the server, too. Inside `async with` that
    happens on leaving the block at the latest. Iterate it in one task at a time. A wait that is cancelled, also by
    `asyncio.timeout`, loses no event.

    With a selector, a resource that comes to match is `Added`, one that ceases to is `Deleted` (with its previous
    content and the version of the change), and changes outside are not shown.

    Attributes:
        checkpoint: the last revision that was delivered whole. Store this one to go on later, with `since`.

    Raises:
        HistoryLostError: what comes next has been compacted away. List, and watch on from there. (This, like the
            others, is raised by opening or by iterating, once; the watch has ended then.)
        CorruptResourceError: a value is no resource of this kind. Nothing of its revision is shown. (That one is
            deleted is not shown: nobody can have seen it.)
        UnavailableError: the connection was lost; go on with `since=watch.checkpoint`.
        PermissionDeniedError, AuthenticationError: the user may not watch this.
        ClientClosedError: the client was closed.
    """

    def __init__(
        self,
        client: HasBackend,
        decode: Decode[R],
        query: Query[R],
        *,
        since: int | None,
        initial: bool,
    ) -> None:
        self.checkpoint: int = since or 0
        self._client = client
        self._decode = decode
        self._query = query
        self._selector = query.selector
        self._since = since
        self._initial = initial
        self._stream: StorageWatch | None = None
        self._pending: deque[WatchEvent[R]] = deque()
        self._is_open = False
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._is_open else "not open"
        return f"<Watch {self._query.prefix} [{state}, at {self.checkpoint}, {len(self._pending)} pending]>"

    # --- iteration ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent[R]:
        while not self._pending:
            await self._advance()
        event = self._pending.popleft()
        if not self._pending:
            self.checkpoint = event.resource_version
        return event

    def revisions(self) -> AsyncIterator[tuple[WatchEvent[R], ...]]:
        """Iterate over tuples of all events of one revision, instead of over single events."""
        return _Revisions(self)

    async def next_revision(self) -> tuple[WatchEvent[R], ...]:
        """Wait for the next revision that has events; return all of them that were not delivered yet.

        Raises:
            StopAsyncIteration: the watch has ended. Beside it, what iterating raises.
        """
        while not self._pending:
            await self._advance()
        events = tuple(self._pending)
        self._pending.clear()
        self.checkpoint = events[-1].resource_version
        return events

    async def _advance(self) -> None:
        """Wait for a revision and decode it. Nothing is awaited between taking it and keeping it."""
        if self._is_closed:
            raise StopAsyncIteration
        stream = await self._open()
        if self._pending:  # what was there initially
            return
        changes = await anext(stream)
        try:
            self._pending.extend(self._events(changes))
        except CorruptResourceError:
            await self.aclose()
            raise
        if not self._pending:
            self.checkpoint = changes[-1].revision

    # --- opening and closing ---

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch, here and on the server. Idempotent; iterating ends then."""
        self._is_closed = True
        self._pending.clear()
        if self._stream is not None:
            await self._stream.aclose()

    async def _open(self) -> StorageWatch:
        try:
            stream = self._stream or await self._start()
            await stream.open()
        except KvorumError:
            await self.aclose()
            raise
        if not self._is_open:
            self._is_open = True
            if not self._initial:
                self.checkpoint = stream.revision
        return stream

    async def _start(self) -> StorageWatch:
        """Make the stream; with `initial`, show what is there, and make the one that goes on from it."""
        backend, since = self._client.backend, self._since
        if self._initial:
            there = await self._query.page(backend)
            since = there.resource_version
            self._pending.extend(map(Added, there))
            self._pending.append(Bookmark(since))
        self._stream = backend.watch(self._query.prefix, since=since)
        if self._is_closed:  # in the meantime
            await self.aclose()
        return self._stream

    # --- changes to events ---

    def _events(self, changes: Iterable[Change]) -> list[WatchEvent[R]]:
        events = [self._event(change) for change in changes]
        return [event for event in events if event is not None]

    def _event(self, change: Change) -> WatchEvent[R] | None:
        entry, previous = change.entry, change.previous
        resource = self._decode(entry) if entry is not None else None
        if resource is not None and self._selector.matches(resource):
            if previous is None or not (self._selector.is_everything or self._last_state(previous)):
                return Added(resource)
            return Modified(resource, partial(self._decode, previous))
        before = self._last_state(previous, change.revision) if previous is not None else None
        return Deleted(before) if before is not None else None

    def _last_state(self, previous: Entry, revision: int | None = None) -> R | None:
        """Return what was shown of an entry; None if nothing was: it was not selected, or no resource."""
        try:
            resource = self._decode(previous, revision=revision)
        except CorruptResourceError:
            return None
        return resource if self._selector.matches(resource) else None


class _Revisions(Generic[R]):
    """An iterator over a watch by revision: an object, since an async generator would want closing of its own."""

    def __init__(self, watch: Watch[R]) -> None:
        self._watch = watch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[WatchEvent[R], ...]:
        return await self._watch.next_revision()
