"""Typed watches: the changes of a store, decoded, selected, and told as events."""

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar, cast

import anyio
import msgspec

from kvorum.errors import CorruptResourceError, HistoryLostError, KvorumError, UnavailableError
from kvorum.repository.events import Bookmark, Corrupt, WatchEvent
from kvorum.repository.known import Shown, newest_of
from kvorum.repository.query import Decode, Query
from kvorum.repository.transitions import (
    ChangeEvent,
    Judge,
    OnCorruptEvent,
    Transition,
    corrupt_error_of,
)
from kvorum.repository.unreadable import LastReadable, Unreadable
from kvorum.resources import AnyResource
from kvorum.storage import Change, Entry, HasBackend, StorageWatch, WatchStatistics

_log = logging.getLogger(__name__)

R = TypeVar("R", bound=AnyResource)
E = TypeVar("E", bound="WatchEvent[Any] | Corrupt")


class _WatchOf(Generic[R, E]):
    """What both sorts of watches do; see `Watch`. They differ in the events that they show."""

    def __init__(
        self,
        client: HasBackend,
        decode: Decode[R],
        query: Query[R],
        *,
        since: int | None,
        initial: bool,
        bookmarks: bool,
        on_corrupt: OnCorruptEvent,
    ) -> None:
        self.checkpoint: int = since or 0
        self._client = client
        self._decode = decode
        self._query = query
        self._judge = Judge(query, decode, on_corrupt)
        self._since = since
        self._on_corrupt: OnCorruptEvent = on_corrupt
        self._shown = Shown(decode, on_corrupt) if initial else None
        self._unreadable = Unreadable()
        self._last_readable = LastReadable(query)
        self._bookmarks = bookmarks
        self._stream: StorageWatch | None = None
        self._taken: tuple[Change, ...] = ()  # from the stream, and not judged to the end
        self._pending: deque[E] = deque()
        self._delivered = 0
        self._earlier = WatchStatistics(position=0)  # of the streams before this one
        self._relists = 0
        self._misses = 0  # lists and streams in a row that came to nothing
        self._is_open = False
        self._started = 0  # after which revision, if it has listed nothing
        self._is_closed = False
        self._error: KvorumError | None = None  # that was not raised yet

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._is_open else "not open"
        buffered = self.statistics().buffered
        return f"<{type(self).__name__} {self._query.prefix} [{state}, at {self.checkpoint}, {buffered} buffered]>"

    # --- iteration ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        while not self._pending:
            await self._advance()
        event = self._pending.popleft()
        self._delivered += 1
        if not self._pending:
            self.checkpoint = event.resource_version
        return event

    def statistics(self) -> WatchStatistics:
        """Return what it has done so far.

        Its `events` are those that were delivered, `buffered` those that wait.
        """
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

    def revisions(self) -> AsyncIterator[tuple[E, ...]]:
        """Iterate over tuples of all events of one revision, instead of over single events."""
        return _Revisions(self)

    async def next_revision(self) -> tuple[E, ...]:
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
        """Wait for a revision and judge it. Nothing is awaited between taking it and keeping it."""
        if self._error is not None:
            await self._end(self._error)
        if self._is_closed:
            raise StopAsyncIteration
        if not self._taken:
            await self._take()
        if self._taken:
            await self._tell(self._taken)

    async def _take(self) -> None:
        try:
            stream = await self._open()
            if self._pending:  # what was there initially
                return
            changes = await anext(stream)
        except (HistoryLostError, UnavailableError) as exc:
            await self._begin_again(exc)
            return
        self._misses = 0
        if changes:
            self._taken = changes
        elif self._bookmarks:
            self._keep([Bookmark(stream.revision)])
        else:
            self.checkpoint = stream.revision

    async def _tell(self, changes: tuple[Change, ...]) -> None:
        """Make events of the changes of a revision.

        If that is cancelled, or fails, they are still to be told.
        """
        try:
            transitions = [self._judge.judge(change) for change in changes]
            if self._on_corrupt == "raise" and (error := corrupt_error_of(transitions)) is not None:
                raise error
            covered = {
                gone.key: await self._shown_before(gone)
                for each in transitions
                if (gone := each.uncovers)
            }
            told = [
                self._judge.event_of(each, covered.get(each.change.key)) for each in transitions
            ]
        except KvorumError as exc:
            await self._end(exc)
        if self._is_closed:  # in the meantime
            return
        self._taken = ()
        self._last_readable.restart()
        for transition, event in zip(transitions, told, strict=True):
            self._note(transition, event)
        self._keep([event for event in told if event is not None])
        if not self._pending:
            self.checkpoint = changes[-1].revision

    def _keep(self, events: Sequence[ChangeEvent[R] | Bookmark]) -> None:
        # `Corrupt` is among them only if it was asked for: so says the class that
        # `Repository.watch` has made.
        self._pending.extend(cast("Sequence[E]", events))

    def _note(self, transition: Transition[R], event: ChangeEvent[R] | None) -> None:
        """Remember what may have to be taken back."""
        key = transition.change.key
        self._judge.note(transition)
        if self._shown is not None:
            self._shown.note(key, event)
        elif isinstance(transition.now, CorruptResourceError):
            self._unreadable.note(transition)
        else:
            self._unreadable.forget(key)

    async def _shown_before(self, gone: Entry) -> Entry | None:
        """Return what was shown before the unreadable value that has gone."""
        if self._shown is not None:
            return self._shown.get(gone.key)  # it has all that was shown
        if self._unreadable.knows(gone.key):
            return self._unreadable.shown(gone.key)
        while not self._is_closed:
            try:
                return await self._last_readable.before(self._client.backend, gone)
            except HistoryLostError:
                if self._may_have_shown(gone):
                    raise
                return None
            except UnavailableError:  # as the stream does, wait for the store
                self._misses += 1
                await self._pause()
        return None

    def _may_have_shown(self, gone: Entry) -> bool:
        """Tell whether this watch, or another one before it, may have shown what was there before this value."""
        if self._since is not None:
            return True
        # Else it was corrupt when this watch began, or has become so under its eyes, and there was
        # room to note that.
        return self._unreadable.has_turned_away and gone.mod_revision > self._started

    def _may_list_again(self, lost: KvorumError) -> bool:
        """Tell whether that is what `initial` asks for.

        Also if the store is away while it does so.
        """
        return self._shown is not None and (isinstance(lost, HistoryLostError) or self._relists > 0)

    async def _begin_again(self, lost: KvorumError) -> None:
        """Have the next step list again, with nothing left of what the stream has told.

        Or end, without `initial`.
        """
        if not self._may_list_again(lost):
            await self._end(lost)
        _log.warning("%r lists again: %s", self, lost)
        self._earlier = self._of_all_streams()
        self._stream = None
        # What it remembers of revisions is of this history: a store that was put back comes to the
        # same ones again.
        self._judge = Judge(self._query, self._decode, self._on_corrupt)
        self._relists += 1
        self._misses += 1

    # --- opening and closing ---

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:  # cancellation, too: what was begun on the server is not left there
            with anyio.move_on_after(1, shield=True):
                await self.aclose()
            raise
        return self

    async def _enter(self) -> None:
        """Open it.

        If history is lost after what is there was listed, the list is shown, and iterating opens
        it.
        """
        is_done = False
        while not is_done:
            try:
                await self._open()
                is_done = True
            except HistoryLostError as exc:
                await self._begin_again(exc)
                is_done = bool(self._pending)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch, here and on the server. Idempotent; iterating ends then."""
        self._error = None
        await self._close()

    async def _close(self) -> None:
        self._is_closed = True
        self._pending.clear()
        self._taken = ()
        if self._stream is not None:
            await self._stream.aclose()

    async def _end(self, error: KvorumError) -> NoReturn:
        """Close it, and raise an error.

        If whoever waits is cancelled meanwhile, the next one who does gets it.
        """
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
                self.checkpoint = self._started = stream.revision
        return stream

    async def _start(self) -> StorageWatch:
        """Make the stream.

        With `initial`, show what is there or is other now, and make one that goes on from it.
        """
        backend, since, newest = self._client.backend, self._since, None
        if self._shown is not None:
            await self._pause()
            there = await self._query.page(
                backend, on_corrupt="fail" if self._on_corrupt == "raise" else "collect"
            )
            since, newest = there.resource_version, newest_of(there)
            corrupt = {self._query.key_of(error): error for error in there.corrupt}
            self._keep(self._shown.difference(there, corrupt))
        self._stream = backend.watch(self._query.prefix, since=since, bookmarks=True)
        if newest is not None:
            self._stream.expect(newest)
        if self._is_closed:  # in the meantime
            await self.aclose()
        return self._stream

    async def _pause(self) -> None:
        """Give way to a store that is away, or compacts faster than it can be listed."""
        if self._misses > 1:
            await anyio.sleep(random.uniform(0, min(0.05 * 2 ** min(self._misses, 5), 1.0)))  # noqa: S311 - no secret


class Watch(_WatchOf[R, WatchEvent[R]]):
    """The events of a kind, in order, without duplicates, and whole by revision.

        async for event in workers.watch():
            ...

    A bare loop is enough: a watch that is left and dropped is cancelled on the server, too. Inside
    `async with` that happens on leaving the block at the latest. Iterate it in one task at a time.
    A wait that is cancelled, also by `asyncio.timeout`, loses no event.

    With a selector, a resource that comes to match is `Added`, one that ceases to is `Deleted`
    (with its previous content and the version of the change), and changes outside are not shown.

    What was shown is taken back. If a value that cannot be read is removed, or gives way to one
    that does not match, the resource that was there before is `Deleted`, with the last state that
    could be read; also if another watch has shown it, before `since`: then that state is looked up
    in the store's history. With `initial` only what this watch has shown is taken back.

    Once it is open it survives lost connections, restarted servers and failovers by itself, and
    goes on after what it has read. With `initial` it also survives the loss of history: it lists
    again, and shows the difference in one step, deletions first, at the revision of the list; for
    that it keeps the bytes of what it has shown.

    Attributes:
        checkpoint: the last revision that was delivered whole. Store this one to go on later, with
        `since`.

    Raises:
        HistoryLostError: what comes next has been compacted away. List, and watch on from there.
        (This, like the
            others, is raised by opening or by iterating, once; the watch has ended then.) Not with
            `initial`: then the watch lists by itself, and shows what is other than what it has
            shown.
        CorruptResourceError: a value is no resource of this kind; or what was shown is gone, and
        its type refuses by
            now what it was, which was found out at the error's `revision`. Nothing of its revision
            is shown. With `on_corrupt="event"` it is shown as `Corrupt`, and the watch goes on: see
            `TolerantWatch`.
        UnavailableError: the store could not be reached to open the watch. One that is open waits,
        and goes on. PermissionDeniedError, AuthenticationError: the user may not watch this.
        ClientClosedError: the client was closed.
    """


class TolerantWatch(_WatchOf[R, WatchEvent[R] | Corrupt]):
    """A watch with `on_corrupt="event"`: it shows a value that is no resource of the kind as `Corrupt`, and goes on.

    All else is as `Watch` has it. With `initial` it opens although there are such values, and shows
    them, too. What is `Corrupt` is there, but cannot be read. It is not taken back by that:
    `Deleted` follows if it goes, with the last state that was shown, and `Added` if it can be read
    again.

    For that it remembers the bytes that were shown before of up to 1000 values that cannot be read,
    and of no more than 16 MiB; of others it asks the store's history, for a few seconds at the
    most. With `initial` it has all that it has shown, and takes back nothing else.

    If the type refuses by now the last state that was shown of what is gone, `Corrupt` with
    `is_gone` stands for `Deleted`.

    Raises:
        HistoryLostError: also if a value that cannot be read is removed, and what was there before
            has been compacted, or is too large for a slow link: it cannot be told any more what has
            to be taken back. Not with `initial`, nor for what was unreadable when a watch without
            `since` began. Else as `Watch`, without `CorruptResourceError`.
    """


class _Revisions(Generic[E]):
    """An iterator over a watch by revision.

    An object, since an async generator would want closing of its own.
    """

    def __init__(self, watch: "_WatchOf[Any, E]") -> None:
        self._watch = watch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[E, ...]:
        return await self._watch.next_revision()
