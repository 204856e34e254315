"""What a reflector delivers, as typed events that wait to be taken.

This is the store that the reflector of a `Watch` feeds.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import anyio
from typing_extensions import override

from kvorum.errors import (
    CorruptResourceError,
    HistoryLostError,
    UnavailableError,
    without_frames,
)
from kvorum.repository.events import Added, Bookmark, Corrupt, Deleted, Modified, WatchEvent
from kvorum.repository.known import Known
from kvorum.repository.query import Decode, Query
from kvorum.repository.reflector import Backoff, Item, ReflectorStore
from kvorum.repository.transitions import (
    ChangeEvent,
    Judge,
    OnCorruptEvent,
    Transition,
    corrupt_error_of,
    corrupt_event,
    gone_event,
)
from kvorum.repository.unreadable import LastReadable, Unreadable, UnreadableLimits
from kvorum.resources import AnyResource
from kvorum.runtime import Limits
from kvorum.storage import Change, Entry, HasBackend

R = TypeVar("R", bound=AnyResource)
E = TypeVar("E", bound="WatchEvent[Any] | Corrupt")


Read: TypeAlias = R | CorruptResourceError | None
"""What a listed entry was decoded to.

The resource, or why it cannot be read; None if it was delivered as it is, and so was not decoded.
"""


class WatchPolicy(Limits, frozen=True):
    """The limits and waits of a watch.

    Attributes:
        unreadable: how much is remembered of unreadable values, and how far it looks back.
        selected: of how many keys the last selected revision is remembered, so that what was there
            before a change need not be decoded again.
        backoff: the waits between lists while the store is away or history keeps being lost.
    """

    unreadable: UnreadableLimits = UnreadableLimits()
    selected: int = 10_000
    backoff: Backoff = Backoff()


DEFAULT_POLICY: Final = WatchPolicy()


class EventQueue(ReflectorStore[Read[R]], Generic[R, E]):
    """The events of a watch, decoded and selected, in order and whole by revision.

    A relist decodes only what has changed since it was delivered.

    Attributes:
        checkpoint: the last revision of which everything was taken.
        delivered: how many events were taken.
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
        on_corrupt: OnCorruptEvent,
        policy: WatchPolicy,
    ) -> None:
        self.checkpoint: int = since or 0
        self.delivered: int = 0
        self._client = client
        self._decode = decode
        self._query = query
        self._since = since
        self._bookmarks = bookmarks
        self._on_corrupt: OnCorruptEvent = on_corrupt
        self._policy = policy
        self._judge = self._new_judge()
        self._known = Known() if initial else None
        self._unreadable = Unreadable(policy.unreadable)
        self._last_readable = LastReadable(query, policy.unreadable)
        self._events: deque[E] = deque()
        self._started = 0  # the revision at which it started without a list
        self._is_closed = False
        # Of the revision that is being applied: what was there before the unreadable values.
        self._covered: dict[str, Entry | None] = {}
        self._lookup: anyio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self._events)

    def take(self) -> E:
        """Take the next event."""
        event = self._events.popleft()
        self.delivered += 1
        if not self._events:
            self.checkpoint = event.resource_version
        return event

    def take_all(self) -> tuple[E, ...]:
        """Take all events: what is left of one revision, or of one list."""
        events = tuple(self._events)
        self.delivered += len(events)
        self._events.clear()
        self.checkpoint = events[-1].resource_version
        return events

    @override
    def select(self, entry: Entry) -> Item[Read[R]] | None:
        if self._known is not None and (known := self._known.unchanged(entry)) is not None:
            return Item(known, None)
        try:
            resource = self._query.select(entry)
        except CorruptResourceError as exc:
            if self._on_corrupt == "raise":
                raise
            return Item(entry, without_frames(exc))
        return None if resource is None else Item(entry, resource)

    @override
    def start(self, revision: int) -> None:
        self.checkpoint = self._started = revision

    @override
    def replace(self, items: Sequence[Item[Read[R]]], revision: int) -> None:
        assert self._known is not None, "only a watch with `initial` lists"  # noqa: S101
        # Its revisions are those of the history that was lost. A store that was restored from a
        # backup reaches them again.
        self._judge = self._new_judge()
        values = {item.entry.key: item.value for item in items}
        unreadable = {key for key, value in values.items() if _is_corrupt(value)}
        changes = self._known.replace(
            [item.entry for item in items], revision, unreadable=unreadable
        )
        events = [self._event_of_listed(each, values.get(each.key)) for each in changes]
        self._add([*events, Bookmark(revision)])

    @override
    async def apply(self, changes: tuple[Change, ...]) -> None:
        transitions = [self._judge.judge(change) for change in changes]
        if self._on_corrupt == "raise" and (error := corrupt_error_of(transitions)) is not None:
            try:
                raise error
            finally:
                del error, transitions  # its traceback holds this frame
        for each in transitions:
            if (gone := each.uncovers) and gone.key not in self._covered:
                self._covered[gone.key] = await self._delivered_before(gone)
        if self._is_closed:  # during the await
            return
        covered, self._covered = self._covered, {}
        events = [self._judge.event_of(each, covered.get(each.change.key)) for each in transitions]
        self._last_readable.restart()
        for transition, event in zip(transitions, events, strict=True):
            self._remember(transition, event)
        self._add([event for event in events if event is not None])
        if not self._events:
            self.checkpoint = changes[-1].revision

    @override
    def advance(self, revision: int) -> None:
        if self._bookmarks:
            self._add([Bookmark(revision)])
        else:
            self.checkpoint = revision

    @override
    def close(self) -> None:
        self._is_closed = True
        self._events.clear()
        if self._lookup is not None:
            self._lookup.cancel()

    def _new_judge(self) -> Judge[R]:
        return Judge(self._query, self._decode, self._on_corrupt, self._policy.selected)

    def _add(self, events: Sequence[ChangeEvent[R] | Bookmark]) -> None:
        # `Corrupt` is among them only with `on_corrupt="event"`: `Repository.watch` makes the class
        # that has it in its `E` then.
        self._events.extend(cast("Sequence[E]", events))

    def _event_of_listed(self, change: Change, now: Read[R]) -> ChangeEvent[R]:
        if change.entry is None:
            assert change.previous is not None, "it was known"  # noqa: S101
            return gone_event(self._decode, change.previous, change.revision, self._on_corrupt)
        assert now is not None, "what has changed was decoded"  # noqa: S101
        if isinstance(now, CorruptResourceError):
            return corrupt_event(now)
        if change.previous is None:
            return Added(now)
        try:
            return Modified(now, self._decode(change.previous))
        except CorruptResourceError:  # its type no longer accepts the stored value
            return Added(now)

    def _remember(self, transition: Transition[R], event: ChangeEvent[R] | None) -> None:
        """Remember what may have to be `Deleted` later."""
        change = transition.change
        self._judge.record(transition)
        if self._known is not None:
            _record_in(self._known, change, event)
        elif _is_corrupt(transition.now):
            self._unreadable.record(transition)
        else:
            self._unreadable.forget(change.key)

    async def _delivered_before(self, gone: Entry) -> Entry | None:
        """Return the state that was delivered before an unreadable value that is gone."""
        if self._known is not None:
            return self._known.get(gone.key)  # it has all that was delivered
        if self._unreadable.knows(gone.key):
            return self._unreadable.delivered(gone.key)
        try:
            with anyio.CancelScope() as self._lookup:
                return await self._look_back(gone)
        finally:
            self._lookup = None
        return None  # closed meanwhile

    async def _look_back(self, gone: Entry) -> Entry | None:
        """Return what the store's history tells, waiting for a store that is away."""
        failures = 0
        while not self._is_closed:
            try:
                return await self._last_readable.before(self._client.backend, gone)
            except HistoryLostError:
                if self._may_be_delivered(gone):
                    raise
                return None
            except UnavailableError:  # wait for the store, as the stream does
                failures += 1
                await self._policy.backoff.wait(failures)
        return None

    def _may_be_delivered(self, gone: Entry) -> bool:
        """Return whether this watch, or one before `since`, may have delivered what was there."""
        if self._since is not None:
            return True
        # Else the value was unreadable when this watch started, so nothing was delivered; or it
        # became unreadable later, and there was no room to remember that.
        return self._unreadable.has_turned_away and gone.mod_revision > self._started


def _is_corrupt(value: Read[AnyResource]) -> bool:
    return isinstance(value, CorruptResourceError)


def _record_in(known: Known, change: Change, event: ChangeEvent[Any] | None) -> None:
    match event:
        case Added() | Modified():
            assert change.entry is not None, "it is there"  # noqa: S101
            known.put(change.entry)
        case Corrupt(is_gone=False):
            assert change.entry is not None, "it is there"  # noqa: S101
            known.mark_unreadable(change.entry)
        case Deleted() | Corrupt() | None:
            known.remove(change.key)
