"""The changes of a store as events, by what a key held before and what it holds now.

| before       | now absent or not selected | now selected | now corrupt |
|--------------|----------------------------|--------------|-------------|
| absent       | -                          | `Added`      | `Corrupt`   |
| not selected | -                          | `Added`      | `Corrupt`   |
| selected     | `Deleted`                  | `Modified`   | `Corrupt`   |
| corrupt      | `Deleted` *                | `Added`      | `Corrupt`   |

*) If something was selected there before it became corrupt: with that state.
"""

from collections.abc import Sequence
from functools import partial
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

from kvorum.errors import CorruptResourceError, without_frames
from kvorum.repository.events import Added, Corrupt, Deleted, Modified
from kvorum.repository.query import Decode, Query
from kvorum.resources import AnyResource
from kvorum.storage import Change, Entry

R = TypeVar("R", bound=AnyResource)

OnCorruptEvent: TypeAlias = Literal["raise", "event"]
"""What a watch does about a value that is not a resource of its kind.

Raise and end, or deliver it as an event and continue.
"""

ChangeEvent: TypeAlias = Added[R] | Modified[R] | Deleted[R] | Corrupt


class Transition(msgspec.Struct, Generic[R], frozen=True):
    """A change, judged.

    Attributes:
        change: the change.
        now: the resource that is selected now; None if there is none; or why it cannot be read.
        before: the same of the previous value; only its entry if it is known to have been selected.
    """

    change: Change
    now: R | CorruptResourceError | None
    before: R | CorruptResourceError | Entry | None

    @property
    def uncovers(self) -> Entry | None:
        """The unreadable value that is gone, if what it covered may have to be `Deleted`."""
        if self.now is None and isinstance(self.before, CorruptResourceError):
            return self.change.previous
        return None


class Judge(Generic[R]):
    """Judges the changes of a watch, one after the other.

    The previous value of a change has mostly been judged as the new value of an earlier one. Then
    it is decoded again only if the event is asked for it.

    Args:
        query: which resources are selected.
        decode: decodes an entry that is known to be selected.
        on_corrupt: what to do about a value that cannot be read.
        most: of how many keys the last selected revision is remembered.
    """

    def __init__(
        self, query: Query[R], decode: Decode[R], on_corrupt: OnCorruptEvent, most: int
    ) -> None:
        self._query = query
        self._decode = decode
        self._on_corrupt: OnCorruptEvent = on_corrupt
        self._most = most
        self._selected: dict[str, int] = {}  # the last selected revision, by key

    def judge(self, change: Change) -> Transition[R]:
        """Judge what a change has made of a key. It changes nothing here, and may be repeated."""
        now, previous = self._judged(change.entry, None), change.previous
        is_known = previous is not None and previous.mod_revision == self._selected.get(change.key)
        if now is not None:
            return Transition(change, now, previous if is_known else self._judged(previous, None))
        # `Deleted` has the last state, at the revision of the deletion.
        before = self._judged(previous, change.revision)
        if is_known and isinstance(before, CorruptResourceError):
            # It was delivered, although its type no longer accepts the stored value.
            return Transition(change, now, previous)
        return Transition(change, now, before)

    def record(self, transition: Transition[R]) -> None:
        """Record what is going to be delivered."""
        key, now = transition.change.key, transition.now
        self._selected.pop(key, None)
        if now is None or isinstance(now, CorruptResourceError):
            return
        if len(self._selected) < self._most:
            self._selected[key] = transition.change.revision

    def _judged(self, entry: Entry | None, revision: int | None) -> R | CorruptResourceError | None:
        if entry is None:
            return None
        try:
            return self._query.select(entry, revision=revision)
        except CorruptResourceError as exc:
            return without_frames(exc)

    def event_of(self, transition: Transition[R], covered: Entry | None) -> ChangeEvent[R] | None:
        """Return the event of a transition; None for none.

        Args:
            transition: the judged change.
            covered: what was delivered before the unreadable value that it `uncovers`.

        Raises:
            CorruptResourceError: like `gone_event`.
        """
        now, before = transition.now, transition.before
        if isinstance(now, CorruptResourceError):
            return corrupt_event(now)
        if isinstance(before, CorruptResourceError):
            # A resource after an unreadable value is new.
            before = covered if now is None else None
        if before is None:
            return Added(now) if now is not None else None
        if isinstance(before, Entry):
            if now is not None:
                return Modified(now, partial(self._decode, before))
            return gone_event(self._decode, before, transition.change.revision, self._on_corrupt)
        return Modified(now, before) if now is not None else Deleted(before)


def corrupt_error_of(transitions: Sequence[Transition[R]]) -> CorruptResourceError | None:
    """Return the error of the first current value that cannot be read."""
    return next(
        (each.now for each in transitions if isinstance(each.now, CorruptResourceError)), None
    )


def corrupt_event(error: CorruptResourceError) -> Corrupt:
    """Return the event for a value that cannot be read."""
    return Corrupt(error.key, error.name, error.revision, error.reason, error.namespace)


def gone_event(
    decode: Decode[R], entry: Entry, revision: int, on_corrupt: OnCorruptEvent
) -> Deleted[R] | Corrupt:
    """Return the event of a resource that is gone, given its last delivered state in bytes.

    Raises:
        CorruptResourceError: the type no longer accepts the stored value, and `on_corrupt` is
            "raise". The error's revision is that of the deletion, so that a watch since then
            resumes behind it.
    """
    try:
        return Deleted(decode(entry, revision=revision))
    except CorruptResourceError as exc:
        reason = f"it is gone, and its type no longer accepts the stored value: {exc.reason}"
        if on_corrupt == "event":
            return Corrupt(exc.key, exc.name, revision, reason, exc.namespace, is_gone=True)
        cause = exc.__cause__
        raise CorruptResourceError(
            exc.key, revision, reason, name=exc.name, namespace=exc.namespace
        ) from cause
