"""Typed watches: the changes of a store, decoded, selected, and told as events."""

import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeVar

import anyio
import msgspec

from kvorum.errors import CorruptResourceError, HistoryLostError, KvorumError, UnavailableError
from kvorum.events import Added, Bookmark, Deleted, Modified, WatchEvent
from kvorum.query import Decode, Query
from kvorum.resources import AnyResource
from kvorum.shown import Shown
from kvorum.storage import Change, Entry, HasBackend, StorageWatch, WatchStatistics

_log = logging.getLogger(__name__)

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

    Once it is open it survives lost connections, restarted servers and failovers by itself, and goes on after what it
    has read. With `initial` it also survives the loss of history: it lists again, and shows the difference in one step,
    deletions first, at the revision of the list; for that it keeps the bytes of what it has shown.

    Attributes:
        checkpoint: the last revision that was delivered whole. Store this one to go on later, with `since`.

    Raises:
        HistoryLostError: what comes next has been compacted away. List, and watch on from there. (This, like the
            others, is raised by opening or by iterating, once; the watch has ended then.) Not with `initial`: then the
            watch lists by itself, and shows what is other than what it has shown.
        CorruptResourceError: a value is no resource of this kind. Nothing of its revision is shown. (That one is
            deleted is not shown: nobody can have seen it.)
        UnavailableError: the store could not be reached to open the watch. One that is open waits, and goes on.
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
        bookmarks: bool,
    ) -> None:
        self.checkpoint: int = since or 0
        self._client = client
        self._decode = decode
        self._query = query
        self._selector = query.selector
        self._since = since
        self._shown = Shown(decode) if initial else None
        self._bookmarks = bookmarks
        self._stream: StorageWatch | None = None
        self._pending: deque[WatchEvent[R]] = deque()
        self._delivered = 0
        self._earlier = WatchStatistics(position=0)  # of the streams before this one
        self._relists = 0
        self._misses = 0  # lists and streams in a row that came to nothing
        self._is_open = False
        self._is_closed = False
        self._error: KvorumError | None = None  # that was not raised yet

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._is_open else "not open"
        buffered = self.statistics().buffered
        return f"<Watch {self._query.prefix} [{state}, at {self.checkpoint}, {buffered} buffered]>"

    # --- iteration ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent[R]:
        while not self._pending:
            await self._advance()
        event = self._pending.popleft()
        self._delivered += 1
        if not self._pending:
            self.checkpoint = event.resource_version
        return event

    def statistics(self) -> WatchStatistics:
        """Return what it has done so far. Its `events` are those that were delivered, `buffered` those that wait."""
        done = self._of_all_streams()
        return msgspec.structs.replace(
            done,
            position=max(done.position, self.checkpoint),
            buffered=done.buffered + len(self._pending),
            events=self._delivered,
            relists=self._relists,
        )

    def _of_all_streams(self) -> WatchStatistics:
        now = self._earlier if self._stream is None else self._stream.statistics()
        resumes = self._earlier.resumes + (0 if self._stream is None else now.resumes)
        return msgspec.structs.replace(now, resumes=resumes)

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
        self._delivered += len(events)
        self._pending.clear()
        self.checkpoint = events[-1].resource_version
        return events

    async def _advance(self) -> None:
        """Wait for a revision and decode it. Nothing is awaited between taking it and keeping it."""
        if self._error is not None:
            await self._end(self._error)
        if self._is_closed:
            raise StopAsyncIteration
        try:
            stream = await self._open()
            if self._pending:  # what was there initially
                return
            changes = await anext(stream)
        except (HistoryLostError, UnavailableError) as exc:
            if not self._may_list_again(exc):
                await self._end(exc)
            self._begin_again(exc)
            return
        self._misses = 0
        if changes:
            await self._take(changes)
        elif self._bookmarks:
            self._pending.append(Bookmark(stream.revision))
        else:
            self.checkpoint = stream.revision

    async def _take(self, changes: tuple[Change, ...]) -> None:
        try:
            events = [event for change in changes if (event := self._event(change)) is not None]
        except CorruptResourceError as exc:
            await self._end(exc)
        if not events:
            self.checkpoint = changes[-1].revision
        self._pending.extend(events)
        if self._shown is not None:
            for event in events:
                self._shown.note(event)

    def _may_list_again(self, lost: KvorumError) -> bool:
        """Tell whether that is what `initial` asks for; also if the store is away while it does so."""
        return self._shown is not None and (isinstance(lost, HistoryLostError) or self._relists > 0)

    def _begin_again(self, lost: KvorumError) -> None:
        _log.warning("%r lists again: %s", self, lost)
        self._earlier = self._of_all_streams()
        self._stream = None
        self._relists += 1
        self._misses += 1

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
        self._error = None
        await self._close()

    async def _close(self) -> None:
        self._is_closed = True
        self._pending.clear()
        if self._stream is not None:
            await self._stream.aclose()

    async def _end(self, error: KvorumError) -> NoReturn:
        """Close it, and raise an error. If whoever waits is cancelled meanwhile, the next one who does gets it."""
        self._error = error
        await self._close()
        self._error = None
        raise error

    async def _open(self) -> StorageWatch:
        try:
            stream = self._stream or await self._start()
            await stream.open()
        except (HistoryLostError, UnavailableError):
            raise  # it may list again
        except KvorumError as exc:
            await self._end(exc)
        if not self._is_open:
            self._is_open = True
            if self._shown is None:
                self.checkpoint = stream.revision
        return stream

    async def _start(self) -> StorageWatch:
        """Make the stream; with `initial`, show what is there or is other now, and make one that goes on from it."""
        backend, since = self._client.backend, self._since
        if self._shown is not None:
            await self._pause()
            there = await self._query.page(backend)
            since = there.resource_version
            self._pending.extend(self._shown.difference(there))
        self._stream = backend.watch(self._query.prefix, since=since, bookmarks=True)
        if self._is_closed:  # in the meantime
            await self.aclose()
        return self._stream

    async def _pause(self) -> None:
        """Give way to a store that is away, or compacts faster than it can be listed."""
        if self._misses > 1:
            await anyio.sleep(random.uniform(0, min(0.05 * 2 ** min(self._misses, 5), 1.0)))  # noqa: S311 - no secret

    # --- changes to events ---

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
