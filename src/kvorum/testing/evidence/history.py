"""What clients asked for and what they were told: the evidence that the checkers judge.

A `History` is made by one process, which counts what happens: a call that ended before another one
started has a smaller number. Only that order is evidence; seconds are for people, and for leases,
which end by the clock.
"""

import re
import time
from enum import StrEnum
from itertools import count

import msgspec
from msgspec import UNSET, UnsetType

from kvorum.storage import Change, Entry


class Outcome(StrEnum):
    """What a client knows about a call when it is over."""

    DONE = "done"  # it has an answer
    REFUSED = "refused"  # nothing was changed
    UNKNOWN = "unknown"  # something may have been changed, or may still be


class Write(msgspec.Struct, frozen=True, gc=False):
    """What a call wanted to do to a key.

    Attributes:
        key: which one.
        value: what to write; None to remove it.
        expected: the mod_revision that it had to be at (0: it had to be absent); None: any.
        writes: False for a mere check.
        lease: the lease that the key was to be on (0: none); None: the one that it had; UNSET: not
            noted.
    """

    key: str
    value: bytes | None = None
    expected: int | None = None
    writes: bool = True
    lease: int | UnsetType | None = UNSET


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What a call saw of one key, at one moment.

    Attributes:
        key: which one.
        exists: whether it was there.
        revision: its mod_revision; 0 if it was absent, or not told.
        value: its value; None if it was absent, or not told.
        entry: all of it, if that was told.
        at: the revision that was asked for; None for "now".
        unlike: it was seen because it was not at this revision, as was expected.
    """

    key: str
    exists: bool
    revision: int = 0
    value: bytes | None = None
    entry: Entry | None = None
    at: int | None = None
    unlike: int | None = None

    @classmethod
    def of(
        cls, key: str, entry: Entry | None, *, at: int | None = None, unlike: int | None = None
    ) -> "Observation":
        """Make the observation of an entry, or of its absence."""
        if entry is None:
            return cls(key, exists=False, at=at, unlike=unlike)
        return cls(
            key,
            exists=True,
            revision=entry.mod_revision,
            value=entry.value,
            entry=entry,
            at=at,
            unlike=unlike,
        )


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """What a call saw of a range of keys, at one revision.

    Attributes:
        prefix: what the keys start with.
        after: only keys behind this one.
        limit: how many were asked for; None for all.
        entries: what there was.
        remaining: how many more there were.
        revision: of the state.
        at: the revision that was asked for; None for "now".
    """

    prefix: str
    after: str | None
    limit: int | None
    entries: tuple[Entry, ...]
    remaining: int
    revision: int
    at: int | None = None


class Count(msgspec.Struct, frozen=True, gc=False):
    """How many keys a call was told there are.

    `at` is the revision that was asked for, None for "now".
    """

    prefix: str
    number: int
    at: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a call was told.

    Attributes:
        revision: what it was told that its write had made.
        observation: what it saw of a key.
        snapshot: what it saw of a range.
        count: what it was told about a number of keys.
        change: what it was told that it had changed.
        lease: the lease that it was about: the one that it was granted, has revoked, or was told is
            not there.
        error: what it raised.
        is_given_up: it raised an error that says nothing about what it was about.
    """

    revision: int = 0
    observation: Observation | None = None
    snapshot: Snapshot | None = None
    count: Count | None = None
    change: Change | None = None
    lease: int = 0
    error: str = ""
    is_given_up: bool = False


class Call(Answer, frozen=True, kw_only=True, gc=False):
    """One call of one client, and its answer.

    Attributes:
        client: whose.
        name: of the method.
        started: the number of its start.
        ended: the number of its end; None if it never came back.
        seconds: when it started and when it ended, by the clock of `time.monotonic`.
        outcome: what the client knows.
        requested: what it wanted to write, or to check.
        subject: the key, prefix or resource that it was about, if nothing was to be written or checked.
        ttl: how many seconds a lease was to last that it asked for.
        settles: it asked what had become of the call that started with this number.
    """

    client: str
    name: str
    started: int
    ended: int | None
    seconds: tuple[float, float] = (0.0, 0.0)
    outcome: Outcome = Outcome.DONE
    requested: tuple[Write, ...] = ()
    subject: str = ""
    ttl: float = 0.0
    settles: int | None = None

    @property
    def writes(self) -> bool:
        """Whether it wanted to change something."""
        return any(write.writes for write in self.requested)

    def __str__(self) -> str:
        keys = ", ".join(repr(write.key) for write in self.requested) or repr(self.subject)
        return (
            f"{self.client}'s {self.name}({keys}) [{self.started} to {self.ended}, {self.outcome}]"
        )


_FUTURE = re.compile(r"revision (\d+) has not been reached")


def future_revision(error: str) -> int:
    """Return the revision that a `FutureRevisionError` said has not been reached.

    0 if the text is not one's.
    """
    found = _FUTURE.match(error)
    return int(found[1]) if found is not None else 0


class Fault(msgspec.Struct, frozen=True, gc=False):
    """That something was done to the system.

    Attributes:
        name: what.
        at: its number in the order of the history.
        in_flight: which calls were under way, by the numbers of their starts.
    """

    name: str
    at: int
    in_flight: tuple[int, ...]


class OpenCall(msgspec.Struct, frozen=True, gc=False):
    """A call that has started."""

    client: str
    name: str
    started: int
    second: float
    requested: tuple[Write, ...]
    subject: str
    ttl: float = 0.0
    settles: int | None = None


class History:
    """All calls of a run, in the order in which they ended.

    Attributes:
        calls: those that have ended.
        faults: what was done to the system meanwhile.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self._numbers = count(1)
        self._open: dict[int, OpenCall] = {}

    def __repr__(self) -> str:
        return f"<History of {len(self.calls)} calls, {len(self._open)} open, {len(self.faults)} faults>"

    def start(
        self,
        client: str,
        name: str,
        requested: tuple[Write, ...] = (),
        subject: str = "",
        *,
        ttl: float = 0.0,
        settles: int | None = None,
    ) -> OpenCall:
        """Note that a call starts."""
        call = OpenCall(
            client, name, next(self._numbers), time.monotonic(), requested, subject, ttl, settles
        )
        self._open[call.started] = call
        return call

    def end(
        self, call: OpenCall, outcome: Outcome, answer: Answer, *, is_cut_off: bool = False
    ) -> None:
        """Note that a call is over, and what it was told. One that was cut off has no end.

        It may go on without it.
        """
        del self._open[call.started]
        self.calls.append(
            Call(
                client=call.client,
                name=call.name,
                started=call.started,
                ended=None if is_cut_off else next(self._numbers),
                seconds=(call.second, time.monotonic()),
                outcome=outcome,
                requested=call.requested,
                subject=call.subject,
                ttl=call.ttl,
                settles=call.settles,
                **msgspec.structs.asdict(answer),
            )
        )

    def mark(self, name: str) -> Fault:
        """Note that something is done to the system, now."""
        fault = Fault(name, next(self._numbers), tuple(self._open))
        self.faults.append(fault)
        return fault

    @property
    def writes_in_flight(self) -> int:
        """How many calls that want to change something are under way."""
        return sum(any(write.writes for write in call.requested) for call in self._open.values())

    @property
    def idle_faults(self) -> list[Fault]:
        """The faults that hit nothing: no call was under way. A run of those has shown nothing."""
        return [fault for fault in self.faults if not fault.in_flight]
