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
from kvorum.repository.events import Added, Corrupt, Deleted, Modified
from kvorum.repository.query import Decode, Query
from kvorum.resources import AnyResource
from kvorum.storage import Change, Entry

R = TypeVar("R", bound=AnyResource)

MAX_SELECTED: Final = 10_000  # keys of which a watch remembers the revision

OnCorruptEvent: TypeAlias = Literal["raise", "event"]
"""What a watch does about a value that is no resource of its kind.

Raise and end, or show it as an event and go on.
"""

ChangeEvent: TypeAlias = Added[R] | Modified[R] | Deleted[R] | Corrupt


class Transition(msgspec.Struct, Generic[R], frozen=True):
    """A change, judged.

    Attributes:
        change: what has happened.
        now: the resource that is selected now; None if there is none; or why it cannot be read.
        before: the same of what was there before; its entry, if it is known to be a resource that
            is selected.
    """

    change: Change
    now: R | CorruptResourceError | None
    before: R | CorruptResourceError | Entry | None

    @property
    def uncovers(self) -> Entry | None:
        """The unreadable value that has gone, if what was shown before it has to be taken back."""
        return (
            self.change.previous
            if self.now is None and isinstance(self.before, CorruptResourceError)
            else None
        )


class Judge(Generic[R]):
    """Judges the changes that a watch is told of, one after the other.

    What was there before a change has mostly been judged as the change before it. So it is decoded
    again only for who asks for it.
    """

    def __init__(self, query: Query[R], decode: Decode[R], on_corrupt: OnCorruptEvent) -> None:
        self._query = query
        self._decode = decode
        self._on_corrupt: OnCorruptEvent = on_corrupt
        self._selected: dict[str, int] = {}  # the revisions of what was selected last, by key

    def judge(self, change: Change) -> Transition[R]:
        """Judge what a change has made of a key. It changes nothing here.

        A change may be judged again.
        """
        now, previous = self._judged(change.entry, None), change.previous
        is_known = previous is not None and previous.mod_revision == self._selected.get(change.key)
        if now is not None:
            return Transition(change, now, previous if is_known else self._judged(previous, None))
        before = self._judged(
            previous, change.revision
        )  # its last state is shown, at the revision of the deletion
        # It was shown. That its type refuses by now what it took then does not undo that.
        return Transition(
            change,
            now,
            previous if is_known and isinstance(before, CorruptResourceError) else before,
        )

    def note(self, transition: Transition[R]) -> None:
        """Take note of what is going to be shown."""
        key, now = transition.change.key, transition.now
        self._selected.pop(key, None)
        if (
            now is None
            or isinstance(now, CorruptResourceError)
            or len(self._selected) >= MAX_SELECTED
        ):
            return
        self._selected[key] = transition.change.revision

    def _judged(self, entry: Entry | None, revision: int | None) -> R | CorruptResourceError | None:
        if entry is None:
            return None
        try:
            return self._query.select(entry, revision=revision)
        except CorruptResourceError as exc:
            return exc

    def event_of(self, transition: Transition[R], covered: Entry | None) -> ChangeEvent[R] | None:
        """Return what a watch shows of a transition; None for nothing.

        Args:
            transition: which one.
            covered: what was shown before the unreadable value that it `uncovers`.

        Raises:
            CorruptResourceError: like `gone_event`.
        """
        now, before = transition.now, transition.before
        if isinstance(now, CorruptResourceError):
            return corrupt_event(now)
        if isinstance(before, CorruptResourceError):
            before = (
                covered if now is None else None
            )  # nobody could read it: what is there now is new to all
        if before is None:
            return Added(now) if now is not None else None
        if isinstance(before, Entry):
            if now is not None:
                return Modified(now, partial(self._decode, before))
            return gone_event(self._decode, before, transition.change.revision, self._on_corrupt)
        return Modified(now, before) if now is not None else Deleted(before)


def corrupt_error_of(transitions: Sequence[Transition[R]]) -> CorruptResourceError | None:
    """Return why the first of the values that are there now and cannot be read is so."""
    return next(
        (each.now for each in transitions if isinstance(each.now, CorruptResourceError)), None
    )


def corrupt_event(error: CorruptResourceError) -> Corrupt:
    """Return the event that tells of what cannot be read."""
    return Corrupt(error.key, error.name, error.revision, error.reason, error.namespace)


def gone_event(
    decode: Decode[R], entry: Entry, revision: int, on_corrupt: OnCorruptEvent
) -> Deleted[R] | Corrupt:
    """Return the event that takes back what was shown, of which these bytes were the last state.

    Raises:
        CorruptResourceError: the type refuses by now what it took when that was shown, and
            `on_corrupt` is "raise". Its revision is the one of the deletion, so that a watch since
            then goes on behind it.
    """
    try:
        return Deleted(decode(entry, revision=revision))
    except CorruptResourceError as exc:
        reason = f"it is gone, and its type refuses by now what it was: {exc.reason}"
        if on_corrupt == "event":
            return Corrupt(exc.key, exc.name, revision, reason, exc.namespace, is_gone=True)
        cause = exc.__cause__
        raise CorruptResourceError(
            exc.key, revision, reason, name=exc.name, namespace=exc.namespace
        ) from cause
