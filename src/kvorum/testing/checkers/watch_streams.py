"""Check that a watch showed every change: in order, once, and complete for each revision."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

import msgspec

from kvorum.repository import Added, Bookmark, Deleted, Modified, WatchEvent
from kvorum.resources import AnyResource
from kvorum.storage import Change, Entry
from kvorum.testing.evidence import Rule, ServerHistory, Violation

R = TypeVar("R", bound=AnyResource)

Matches: TypeAlias = Callable[[Entry], bool]
Kind: TypeAlias = Literal["added", "modified", "deleted"]


class ShownChange(msgspec.Struct, frozen=True, gc=False):
    """One event that a watch showed.

    Attributes:
        kind: the reported kind of change.
        revision: the reported revision.
        key: the key.
        value: the value after it; the last value, for a deletion.
        previous: the value before it; None if there was none, or none was shown.
        change: the complete change, if a storage watch showed it.
    """

    kind: Kind
    revision: int
    key: str
    value: bytes
    previous: bytes | None = None
    change: Change | None = None


class BookmarkSeen(msgspec.Struct, frozen=True, gc=False):
    """A bookmark that a watch showed: everything up to `revision` was delivered."""

    revision: int


class Relist(msgspec.Struct, frozen=True, gc=False):
    """The difference that a watch with `initial` showed after it lost history and relisted.

    `revision` is the revision of the list.
    """

    revision: int
    events: tuple[ShownChange, ...]


class WatchedStream(msgspec.Struct, kw_only=True):
    """Everything one watch showed, from start to end.

    Attributes:
        prefix: the prefix of the keys.
        since: the watch starts after this revision; None if it started with a list and a bookmark.
        shown: for each revision a tuple of events; bookmarks; relists.
        matches: whether the selector of the watch matches an entry.
        bookmarks: whether bookmarks were requested. If not, every bookmark but the first ends a
            relist.
        complete_to: everything up to this revision must have been shown.
    """

    prefix: str
    since: int | None
    shown: list[tuple[ShownChange, ...] | BookmarkSeen | Relist] = msgspec.field(
        default_factory=list
    )
    matches: Matches = lambda _: True
    bookmarks: bool = True
    complete_to: int = 0

    def add_changes(self, changes: Iterable[Change], *, revision: int = 0) -> None:
        """Record the changes of one revision from a storage watch, or a bookmark: no changes.

        A bookmark counts only with `revision`, the watch's `revision` when it arrived.
        """
        shown = tuple(_shown_of(change) for change in changes)
        if shown:
            self.shown.append(shown)
        elif revision:
            self.shown.append(BookmarkSeen(revision))

    def add_events(self, events: Iterable[WatchEvent[R]]) -> None:
        """Record what a typed watch delivered together: a revision, a bookmark, or a relist."""
        *events, last = events
        if not isinstance(last, Bookmark):
            self.shown.append(tuple(_shown_of_event(event) for event in (*events, last)))
            return
        shown = tuple(_shown_of_event(event) for event in events)
        is_first = self.since is None and not any(
            isinstance(each, BookmarkSeen) for each in self.shown
        )
        if not is_first and (shown or not self.bookmarks):
            self.shown.append(Relist(last.resource_version, shown))
            return
        if shown:
            self.shown.append(shown)
        self.shown.append(BookmarkSeen(last.resource_version))


def _shown_of(change: Change) -> ShownChange:
    previous = change.previous.value if change.previous is not None else None
    if change.entry is None:
        return ShownChange(
            "deleted", change.revision, change.key, previous or b"", previous, change
        )
    kind: Kind = "added" if change.previous is None else "modified"
    return ShownChange(kind, change.revision, change.key, change.entry.value, previous, change)


def _shown_of_event(event: WatchEvent[R]) -> ShownChange:
    match event:
        case Added(resource=resource):
            return ShownChange("added", event.resource_version, *_stored(resource))
        case Modified(resource=resource, previous=previous):
            return ShownChange(
                "modified", event.resource_version, *_stored(resource), _stored(previous)[1]
            )
        case Deleted(resource=resource):
            key, value = _stored(resource)
            return ShownChange("deleted", event.resource_version, key, value, value)
        case Bookmark():
            raise TypeError("a bookmark belongs to no revision")


def _stored(resource: AnyResource) -> tuple[str, bytes]:
    stored = resource.metadata.stored
    assert stored is not None
    return stored.key, stored.value


def check_watch(stream: WatchedStream, server_history: ServerHistory) -> list[Violation]:
    """Return all findings about one watch; none if it is correct."""
    check = _StreamCheck(stream, server_history)
    check.run()
    return check.violations


def check_resumed(
    streams: Sequence[WatchedStream], server_history: ServerHistory
) -> list[Violation]:
    """Return all findings about watches that each resume where the previous one ended."""
    violations = [
        violation for stream in streams for violation in check_watch(stream, server_history)
    ]
    for before, after in pairwise(streams):
        reached = max((_revision(each) for each in before.shown), default=before.since)
        if after.since is not None and (
            reached is None or not _resumes_at(before, reached, after.since, server_history)
        ):
            what = f"a watch that had reached {reached} resumed from {after.since}"
            violations.append(Violation(Rule.WRONG_RESUMPTION, what))
    return violations


def _resumes_at(
    stream: WatchedStream, reached: int, since: int, server_history: ServerHistory
) -> bool:
    """Return whether a watch that resumes from `since` misses nothing.

    Its checkpoint may be ahead of the last event that it showed.
    """
    check = _StreamCheck(stream, server_history)
    between = (
        change
        for revision, changes in server_history.revisions.items()
        if reached < revision <= since
        for change in changes
    )
    return reached <= since <= server_history.end and all(
        check.event(change) is None for change in between
    )


def _revision(shown: tuple[ShownChange, ...] | BookmarkSeen | Relist) -> int:
    return shown[0].revision if isinstance(shown, tuple) else shown.revision


class _StreamCheck:
    def __init__(self, stream: WatchedStream, server_history: ServerHistory) -> None:
        self.violations: list[Violation] = []
        self._stream = stream
        self._server_history = server_history
        self._reached = stream.since or 0
        self._expected: dict[int, list[ShownChange]] = {}
        self._left: list[int] = []
        self._last_keys: frozenset[str] = frozenset()
        self._there: dict[str, bytes] = {}  # what a watch with `initial` currently shows as present

    def _found(self, rule: Rule, what: str) -> None:
        self.violations.append(Violation(rule, f"watch of {self._stream.prefix!r}: {what}"))

    def run(self) -> None:
        """Compare what was shown with the server's history, revision by revision."""
        shown = list(self._stream.shown)
        if self._stream.since is None:
            shown = self._check_initial(shown)
        self._expect()
        for each in shown:
            if isinstance(each, BookmarkSeen):
                self._check_mark(each)
            elif isinstance(each, Relist):
                self._check_relist(each)
            else:
                self._check_revision(each)
                self._keep(each)
        self._check_complete(max(self._stream.complete_to, self._reached))

    # --- expected events ---

    def _expect(self) -> None:
        for revision, changes in self._server_history.revisions.items():
            if revision > self._reached:
                events = [event for change in changes if (event := self.event(change)) is not None]
                if events:
                    self._expected[revision] = events
        self._left = list(reversed(self._expected))

    def event(self, change: Change) -> ShownChange | None:
        """Return the event to show for a change; None if there is none."""
        if not change.key.startswith(self._stream.prefix):
            return None
        matches, entry, previous = self._stream.matches, change.entry, change.previous
        is_in = entry is not None and matches(entry)
        was_in = previous is not None and matches(previous)
        before = previous.value if previous is not None and was_in else None
        if is_in and entry is not None:
            kind: Kind = "modified" if was_in else "added"
            return ShownChange(kind, change.revision, change.key, entry.value, before, change)
        return (
            ShownChange("deleted", change.revision, change.key, before or b"", before, change)
            if was_in
            else None
        )

    # --- shown events ---

    def _check_initial(
        self, shown: list[tuple[ShownChange, ...] | BookmarkSeen | Relist]
    ) -> list[tuple[ShownChange, ...] | BookmarkSeen | Relist]:
        """Compare everything up to the first bookmark with the state at it; return the rest."""
        end = next((at for at, each in enumerate(shown) if isinstance(each, BookmarkSeen)), None)
        if end is None:
            self._found(Rule.WRONG_BOOKMARK, "it never ended its initial list with a bookmark")
            return []
        self._reached = _revision(shown[end])
        there = {
            ShownChange("added", entry.mod_revision, key, entry.value)
            for key, entry in self._state(self._reached).items()
        }
        events = [event for each in shown[:end] if isinstance(each, tuple) for event in each]
        listed = [msgspec.structs.replace(event, change=None) for event in events]
        self._keep(listed)
        for event in {*listed} - there:
            self._found(Rule.INVENTED_EVENT, f"{event} did not exist at {self._reached}")
        for event in there - {*listed}:
            self._found(Rule.LOST_EVENT, f"{event} existed at {self._reached}")
        if len(listed) != len({*listed}):
            self._found(Rule.DUPLICATE_EVENT, "its initial list showed something twice")
        return shown[end + 1 :]

    def _state(self, revision: int) -> dict[str, Entry]:
        """Return the matching entries at a revision."""
        keys = [
            key for key in self._server_history.all_keys() if key.startswith(self._stream.prefix)
        ]
        state = {
            key: entry
            for key in keys
            if (entry := self._server_history.entry(key, revision)) is not None
        }
        return {key: entry for key, entry in state.items() if self._stream.matches(entry)}

    def _keep(self, events: Iterable[ShownChange]) -> None:
        for event in events:
            if event.kind == "deleted":
                self._there.pop(event.key, None)
            else:
                self._there[event.key] = event.value

    def _check_relist(self, relist: Relist) -> None:
        """Compare the shown state, changed by the difference, with the state at the list."""
        if relist.revision < self._reached:
            self._found(
                Rule.WRONG_BOOKMARK,
                f"a list of {relist.revision} goes back: it had shown {self._reached}",
            )
        state = self._state(relist.revision)
        reached = 0
        for event in relist.events:
            self._check_difference(event, relist.revision, state)
            if event.kind != "deleted" and event.revision < reached:
                self._found(Rule.EVENT_ORDER, f"{event} was shown after {reached}")
            if event.kind == "deleted" and reached:
                self._found(Rule.EVENT_ORDER, f"{event} was shown after what is there")
            reached = event.revision if event.kind != "deleted" else reached
            self._keep([event])
        self._compare_states(relist.revision, state)
        self._reached = max(self._reached, relist.revision)
        while self._left and self._left[-1] <= self._reached:
            self._left.pop()  # covered by the difference

    def _compare_states(self, revision: int, state: dict[str, Entry]) -> None:
        """Compare the state that the watch shows with the actual one."""
        for key in state.keys() - self._there.keys():
            self._found(Rule.LOST_EVENT, f"{key!r} existed at {revision}, but was not shown")
        for key in self._there.keys() - state.keys():
            self._found(
                Rule.LOST_EVENT,
                f"{key!r} was absent at {revision}, but no deletion was shown",
            )
        for key in self._there.keys() & state.keys():
            if self._there[key] != state[key].value:
                self._found(
                    Rule.LOST_EVENT,
                    f"{key!r} had another value at {revision}, which was not shown",
                )

    def _check_difference(self, event: ShownChange, revision: int, state: dict[str, Entry]) -> None:
        before = self._there.get(event.key)
        if event.kind == "deleted":
            if event.revision != revision or before is None:
                self._found(
                    Rule.INVENTED_EVENT,
                    f"{event} is in the difference to {revision}, but did not exist",
                )
            elif event.value != before:
                self._found(Rule.WRONG_PREVIOUS, f"{event} should have had {before!r} before it")
            return
        entry = state.get(event.key)
        if entry is None or (entry.mod_revision, entry.value) != (event.revision, event.value):
            self._found(Rule.INVENTED_EVENT, f"{event} did not exist at {revision}")
        elif (event.kind == "added") != (before is None):
            self._found(
                Rule.WRONG_EVENT,
                f"{event} is called {event.kind}, but what was shown before is {before!r}",
            )
        elif event.previous != before:
            self._found(Rule.WRONG_PREVIOUS, f"{event} should have had {before!r} before it")

    def _check_mark(self, mark: BookmarkSeen) -> None:
        if mark.revision < self._reached:
            self._found(
                Rule.WRONG_BOOKMARK,
                f"bookmark {mark.revision} goes back: it had shown {self._reached}",
            )
        self._check_complete(mark.revision)
        self._reached = max(self._reached, mark.revision)

    def _check_revision(self, events: tuple[ShownChange, ...]) -> None:
        revision = events[0].revision if events else 0
        if any(event.revision != revision for event in events):
            self._found(
                Rule.SPLIT_REVISION,
                f"{events} came together, but belong to several revisions",
            )
            return
        if revision <= self._reached:
            self._check_late(revision, events)
            return
        self._check_complete(revision - 1)
        self._reached = revision
        expected = self._expected.get(revision)
        if expected is None:
            self._found(
                Rule.INVENTED_EVENT,
                f"revision {revision} has no matching change, but {events} was shown",
            )
            return
        self._left.pop()
        self._compare(revision, {e.key: e for e in expected}, events)

    def _check_late(self, revision: int, events: tuple[ShownChange, ...]) -> None:
        known = {event.key for event in self._expected.get(revision, ())}
        keys = {event.key for event in events}
        if revision == self._reached and self._last_keys and not keys <= self._last_keys:
            self._found(Rule.SPLIT_REVISION, f"revision {revision} came in parts")
        elif revision == self._reached or not known:
            self._found(
                Rule.DUPLICATE_EVENT,
                f"revision {revision} was shown again, or precedes its start",
            )
        else:
            self._found(Rule.EVENT_ORDER, f"revision {revision} was shown after {self._reached}")

    def _compare(
        self, revision: int, expected: dict[str, ShownChange], events: tuple[ShownChange, ...]
    ) -> None:
        shown = {event.key: event for event in events}
        self._last_keys = frozenset(shown)
        if len(shown) != len(events):
            self._found(Rule.DUPLICATE_EVENT, f"revision {revision} shows a key twice")
        for key in expected.keys() - shown.keys():
            self._found(Rule.SPLIT_REVISION, f"revision {revision} was shown without {key!r}")
        for key in shown.keys() - expected.keys():
            self._found(Rule.INVENTED_EVENT, f"revision {revision} has no match for {key!r}")
        for key in shown.keys() & expected.keys():
            self._compare_event(expected[key], shown[key])

    def _compare_event(self, expected: ShownChange, event: ShownChange) -> None:
        if (event.kind, event.value) != (expected.kind, expected.value):
            self._found(Rule.WRONG_EVENT, f"{event} should have been {expected}")
        elif event.previous != expected.previous:
            self._found(
                Rule.WRONG_PREVIOUS, f"{event} should have had {expected.previous!r} before it"
            )
        elif event.change is not None and event.change != expected.change:
            rule = (
                Rule.WRONG_EVENT
                if event.change.entry != _entry_of(expected)
                else Rule.WRONG_PREVIOUS
            )
            self._found(rule, f"{event} should have been {expected.change}")

    def _check_complete(self, revision: int) -> None:
        """Report what should have been shown by now."""
        while self._left and self._left[-1] <= revision:
            lost = self._left.pop()
            self._found(
                Rule.LOST_EVENT, f"revision {lost} was never shown, but {revision} was reached"
            )


def _entry_of(shown: ShownChange) -> Entry | None:
    return shown.change.entry if shown.change is not None else None
