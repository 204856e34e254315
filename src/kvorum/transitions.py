"""The changes of a store as events: what a key held before and holds now, each judged by the query, says which.

| before, now   | absent, or not selected | selected   | corrupt   |
|---------------|-------------------------|------------|-----------|
| absent        | -                       | `Added`    | `Corrupt` |
| not selected  | -                       | `Added`    | `Corrupt` |
| selected      | `Deleted`               | `Modified` | `Corrupt` |
| corrupt       | `Deleted` *             | `Added`    | `Corrupt` |

*) If something was selected there before it became corrupt: with that state.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

from kvorum.errors import CorruptResourceError
from kvorum.events import Added, Corrupt, Deleted, Modified
from kvorum.query import Decode, Query
from kvorum.resources import AnyResource
from kvorum.storage import Change, Entry

R = TypeVar("R", bound=AnyResource)

MAX_SELECTED: Final = 10_000  # keys of which a watch remembers the revision

ChangeEvent: TypeAlias = Added[R] | Modified[R] | Deleted[R] | Corrupt


class Transition(msgspec.Struct, Generic[R], frozen=True):
    """A change, judged.

    Attributes:
        change: what has happened.
        now: the resource that is selected now; None if there is none; or why it cannot be read.
        before: the same of what was there before; its entry, if it is known to be a resource that is selected.
    """

    change: Change
    now: R | CorruptResourceError | None
    before: R | CorruptResourceError | Entry | None

    @property
    def uncovers(self) -> Entry | None:
        """The unreadable value that has gone, if what was shown before it has to be taken back."""
        return self.change.previous if self.now is None and isinstance(self.before, CorruptResourceError) else None


class Judge(Generic[R]):
    """Judges the changes that a watch is told of, one after the other.

    What was there before a change has mostly been judged as the change before it. So it is decoded again only for who
    asks for it.
    """

    def __init__(self, query: Query[R], decode: Decode[R]) -> None:
        self._query = query
        self._decode = decode
        self._selected: dict[str, int] = {}  # the revisions of what was selected last, by key

    def judge(self, change: Change) -> Transition[R]:
        """Judge what a change has made of a key."""
        key, previous = change.key, change.previous
        now = self._judged(change.entry, None)
        selected = self._selected.pop(key, None)
        if now is not None and not isinstance(now, CorruptResourceError):
            if len(self._selected) < MAX_SELECTED:
                self._selected[key] = change.revision
            if previous is not None and previous.mod_revision == selected:
                return Transition(change, now, previous)
        # Of a deletion the last state is shown, at the revision of the deletion.
        return Transition(change, now, self._judged(previous, change.revision if now is None else None))

    def _judged(self, entry: Entry | None, revision: int | None) -> R | CorruptResourceError | None:
        if entry is None:
            return None
        try:
            return self._query.select(entry, revision=revision)
        except CorruptResourceError as exc:
            return exc

    def event_of(self, transition: Transition[R], covered: R | None) -> ChangeEvent[R] | None:
        """Return what a watch shows of a transition; None for nothing.

        Args:
            transition: which one.
            covered: what was shown before the unreadable value that it `uncovers`, at the revision of the change.
        """
        now, before = transition.now, transition.before
        if isinstance(now, CorruptResourceError):
            return corrupt_event(now)
        if isinstance(before, CorruptResourceError):
            before = covered if now is None else None  # nobody could read it: what is there now is new to all
        if isinstance(before, Entry):
            return Modified(now, partial(self._decode, before)) if now is not None else None
        if now is not None:
            return Added(now) if before is None else Modified(now, before)
        return Deleted(before) if before is not None else None


def corrupt_error_of(transitions: Sequence[Transition[R]]) -> CorruptResourceError | None:
    """Return why the first of the values that are there now and cannot be read is so."""
    return next((each.now for each in transitions if isinstance(each.now, CorruptResourceError)), None)


def corrupt_event(error: CorruptResourceError) -> Corrupt:
    """Return the event that tells of what cannot be read."""
    return Corrupt(error.key, error.name, error.revision, error.reason, error.namespace)


OnCorruptEvent: TypeAlias = Literal["raise", "event"]
"""What a watch does about a value that is no resource of its kind: raise and end, or show it as an event and go on."""
