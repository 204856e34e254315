"""Typed watches: a reflector and a queue of events, behind an iterator."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, get_args

import anyio
import msgspec

from kvorum.arguments import check_start, short_repr
from kvorum.errors import ClientClosedError, InvalidResourceError
from kvorum.repository.event_queue import DEFAULT_POLICY, EventQueue, Read, WatchPolicy
from kvorum.repository.events import Corrupt, WatchEvent
from kvorum.repository.query import Decode, Query
from kvorum.repository.reflector import Reflector
from kvorum.repository.transitions import OnCorruptEvent
from kvorum.resources import AnyResource
from kvorum.storage import HasBackend, WatchStatistics

R = TypeVar("R", bound=AnyResource)
E = TypeVar("E", bound="WatchEvent[Any] | Corrupt")


class _WatchOf(Generic[R, E]):
    """What both classes of watches do; see `Watch`. They differ in the events that they deliver."""

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
        policy: WatchPolicy = DEFAULT_POLICY,
    ) -> None:
        self._prefix = query.prefix
        self._is_entered = False
        self._queue: EventQueue[R, E] = EventQueue(
            client,
            decode,
            query,
            since=since,
            initial=initial,
            bookmarks=bookmarks,
            on_corrupt=on_corrupt,
            policy=policy,
        )
        self._reflector: Reflector[Read[R]] = Reflector(
            client, query.prefix, self._queue, lists=initial, since=since, backoff=policy.backoff
        )

    def __repr__(self) -> str:
        reflector = self._reflector
        state = "closed" if reflector.is_closed else "open" if reflector.is_open else "not open"
        details = f"{state}, at {self.checkpoint}, {self.statistics().buffered} buffered"
        return f"<{type(self).__name__} {self._prefix} [{details}]>"

    @property
    def checkpoint(self) -> int:
        """The last revision that was delivered whole: store it, to resume there with `since`."""
        return self._queue.checkpoint

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        while self._has_to_step():
            await self._reflector.step()
        return self._queue.take()

    def statistics(self) -> WatchStatistics:
        """Return what it has done so far.

        Its `events` are those that were delivered, `buffered` those that wait.
        """
        done = self._reflector.statistics()
        return msgspec.structs.replace(
            done,
            position=max(done.position, self.checkpoint),
            buffered=done.buffered + len(self._queue),
            events=self._queue.delivered,
        )

    def revisions(self) -> AsyncIterator[tuple[E, ...]]:
        """Iterate over tuples of all events of one revision, instead of over single events."""
        return _Revisions(self)

    async def next_revision(self) -> tuple[E, ...]:
        """Wait for the next revision with events, and return those that were not delivered yet.

        Raises:
            StopAsyncIteration: the watch has ended. And whatever iterating raises.
        """
        while self._has_to_step():
            await self._reflector.step()
        return self._queue.take_all()

    def _has_to_step(self) -> bool:
        """Return whether there is no event to deliver yet.

        Listed events are delivered once a stream is open after the list: however long the consumer
        takes, the watch then waits for a store that is away, as an open one does.
        """
        return not self._queue or self._reflector.is_listed

    async def __aenter__(self) -> Self:
        self._check_fresh()
        self._is_entered = True
        try:
            await self._reflector.open()
            if self._reflector.is_closed:  # by another task, meanwhile
                raise self._closed()
        except BaseException:  # also cancellation: leave nothing behind on the server
            with anyio.move_on_after(1, shield=True):
                await self.aclose()
            raise
        return self

    def _check_fresh(self) -> None:
        """Refuse a watch that has ended: entered again, it would deliver nothing, in silence.

        And one that is entered already: leaving the inner block would end the outer one's loop.
        """
        if self._reflector.is_closed:
            raise self._closed()
        if self._is_entered:
            raise ClientClosedError(
                f"the watch of {self._prefix} is entered already, and is entered once: iterate it,"
                " or make another with `watch`"
            )

    def _closed(self) -> ClientClosedError:
        where = f", with `since={self.checkpoint}` to go on there" if self.checkpoint else ""
        return ClientClosedError(
            f"the watch of {self._prefix} is closed: make another with `watch`{where}"
        )

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch, here and on the server. Idempotent; iterating ends then."""
        await self._reflector.aclose()


class Watch(_WatchOf[R, WatchEvent[R]]):
    """The events of a kind, in order, without duplicates, and whole by revision.

    ::

        async for event in workers.watch():
            ...

    A bare loop is enough: a watch that is dropped is cancelled on the server, too. Inside
    `async with` that happens on leaving the block at the latest. Iterate it in one task at a time.
    A wait that is cancelled, also by `asyncio.timeout`, loses no event.

    With a selector, a resource that starts to match is `Added`, and one that stops matching is
    `Deleted`, with its previous content and the version of the change. Changes to resources that do
    not match are not delivered.

    Every delivered resource gets a `Deleted` event when it is gone. If an unreadable value is
    removed, or replaced by one that does not match, the resource that was there before is
    `Deleted`, with its last readable state. This holds even if another watch has delivered it,
    before `since`: the state is read from the store's history then. With `initial`, it holds only
    for what this watch has delivered.

    An open watch survives lost connections, restarted servers and failovers, and resumes where it
    was. With `initial` it also survives the loss of history: it lists again, and delivers the
    difference in one step, deletions first, at the revision of the list. For that it keeps the
    bytes of what it has delivered.

    Raises:
        HistoryLostError: the next changes have been compacted. List, and watch from there. Not with
            `initial`: the watch lists by itself. (This and the other errors are raised by opening
            or by iterating, once; the watch has ended then.)
        CorruptResourceError: a value is not a resource of this kind, or a delivered resource is
            gone and its type no longer accepts the stored value (the error's `revision` is that of
            the deletion). Nothing of that revision is delivered. With `on_corrupt="event"`,
            `Corrupt` is delivered instead: see `TolerantWatch`.
        UnavailableError: the store could not be reached to open the watch. An open watch waits
            until it can be reached.
        PermissionDeniedError, AuthenticationError: the user may not watch this.
        ClientClosedError: the client was closed; or `async with` got a watch that is closed, or is
            entered already.
    """


class TolerantWatch(_WatchOf[R, WatchEvent[R] | Corrupt]):
    """A watch with `on_corrupt="event"`: an unreadable value is a `Corrupt` event, not an error.

    Otherwise it is like `Watch`. With `initial` it delivers the unreadable values of the list, too.
    `Corrupt` does not mean that the resource is gone: `Deleted` follows when the value is gone,
    with the last state that was delivered, and `Added` when it can be read again.

    For that it remembers the last readable bytes of up to 1000 unreadable values, at most 16 MiB.
    For others it reads the store's history, for a few seconds at most. With `initial` it has all
    that it has delivered, and reports no other deletions.

    If a resource is gone and its type no longer accepts the stored value, `Corrupt` with `is_gone`
    replaces `Deleted`.

    Raises:
        HistoryLostError: as for `Watch`; and if an unreadable value is removed, and what was there
            before has been compacted, or is too large for a slow link: then it is not known what
            was deleted. This does not happen with `initial`, nor for values that were
            unreadable already when a watch without `since` started.

        Otherwise as for `Watch`, without `CorruptResourceError`.
    """


def watch_of(
    client: HasBackend,
    decode: Decode[R],
    query: Query[R],
    *,
    since: int | None,
    initial: bool,
    bookmarks: bool,
    on_corrupt: OnCorruptEvent,
    policy: WatchPolicy,
) -> Watch[R] | TolerantWatch[R]:
    """Return a watch of what a query selects; see `Repository.watch`.

    Raises:
        InvalidResourceError: both `since` and `initial` are given, or an argument is invalid.
    """
    check_start(query.prefix, since)
    if initial and since is not None:
        raise InvalidResourceError(query.prefix, "a watch has either `initial` or `since`")
    if on_corrupt not in get_args(OnCorruptEvent):
        raise InvalidResourceError(
            query.prefix, f"on_corrupt is 'raise' or 'event', not {short_repr(on_corrupt)}"
        )
    watch_class = Watch if on_corrupt == "raise" else TolerantWatch
    watch: Watch[R] | TolerantWatch[R] = watch_class(
        client,
        decode,
        query,
        since=since,
        initial=initial,
        bookmarks=bookmarks,
        on_corrupt=on_corrupt,
        policy=policy,
    )
    return watch


class _Revisions(Generic[E]):
    """An iterator over a watch by revision.

    It is an object, because an async generator would have to be closed itself.
    """

    def __init__(self, watch: "_WatchOf[Any, E]") -> None:
        self._watch = watch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[E, ...]:
        return await self._watch.next_revision()
