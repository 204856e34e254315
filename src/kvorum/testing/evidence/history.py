"""The recorded calls of clients: what they requested and what they were told.

One process records a `History` and numbers the start and end of every call. If a call ended before
another started, its end has the smaller number. The checkers rely on that order alone; wall-clock
seconds serve only for display and for leases, which expire by the clock.
"""

import re
import time
from enum import StrEnum
from itertools import count

import msgspec
from msgspec import UNSET, UnsetType

from kvorum.storage import Change, Entry


class Outcome(StrEnum):
    """What a client knows about a call that is over. Jepsen's ok, fail and info."""

    DONE = "done"  # it returned a result
    REFUSED = "refused"  # it failed and changed nothing
    UNKNOWN = "unknown"  # it may have taken effect, or still may


class Write(msgspec.Struct, frozen=True, gc=False):
    """A write, deletion or check of one key, as requested.

    Attributes:
        key: the key.
        value: the value to write; None to delete the key.
        expected: the mod_revision that the key must have (0: it must be absent); None for any.
        writes: False for a check only.
        lease: the lease to attach (0: none); None keeps the current one; UNSET if not recorded.
    """

    key: str
    value: bytes | None = None
    expected: int | None = None
    writes: bool = True
    lease: int | UnsetType | None = UNSET


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What a call observed of one key at one moment.

    Attributes:
        key: the key.
        exists: whether it was present.
        revision: its mod_revision; 0 if absent or not reported.
        value: its value; None if absent or not reported.
        entry: the complete entry, if it was reported.
        at: the requested revision; None for the current state.
        unlike: the expected revision that it did not have, for the current state in a conflict.
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
        """Return the observation of an entry; None means that the key is absent."""
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
    """What a call observed of a range of keys at one revision.

    Attributes:
        prefix: the prefix of the range.
        after: only keys after this one.
        limit: the limit of the request; None for no limit.
        entries: the entries returned.
        remaining: the number of further keys that was reported.
        revision: the revision of the state.
        at: the requested revision; None for the current state.
    """

    prefix: str
    after: str | None
    limit: int | None
    entries: tuple[Entry, ...]
    remaining: int
    revision: int
    at: int | None = None


class Count(msgspec.Struct, frozen=True, gc=False):
    """The number of keys under a prefix that a call was told.

    `at` is the requested revision; None for the current state.
    """

    prefix: str
    number: int
    at: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of a call.

    Attributes:
        revision: the revision that its write made.
        observation: what it observed of one key.
        snapshot: what it observed of a range.
        count: the number of keys that it was told.
        change: the change that it was told it made.
        lease: the lease that it granted, revoked, or reported missing.
        error: the message of the error that it raised.
        is_given_up: it raised an error that says nothing about the call that it was to settle.
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
    """One call of one client, with its result.

    Attributes:
        client: the name of the client.
        name: the method.
        started: the number of its start.
        ended: the number of its end; None if it was cut off and never returned.
        seconds: start and end by `time.monotonic`.
        outcome: what the client knows about it.
        requested: its writes and checks.
        subject: the key, prefix or resource that it concerned, if it requested no writes or checks.
        ttl: the requested time to live of a lease, in seconds.
        settles: the start of the call whose outcome this call asked for.
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
        """Whether it requested a change."""
        return any(write.writes for write in self.requested)

    def __str__(self) -> str:
        keys = ", ".join(repr(write.key) for write in self.requested) or repr(self.subject)
        return (
            f"{self.client}'s {self.name}({keys}) [{self.started} to {self.ended}, {self.outcome}]"
        )


_FUTURE = re.compile(r"revision (\d+) has not been reached")


def future_revision(error: str) -> int:
    """Return the revision named by the message of a `FutureRevisionError`; 0 for any other text."""
    found = _FUTURE.match(error)
    return int(found[1]) if found is not None else 0


class Fault(msgspec.Struct, frozen=True, gc=False):
    """A fault that was injected.

    Attributes:
        name: the kind of fault.
        at: its number in the order of the history.
        in_flight: the calls in flight, by the numbers of their starts.
    """

    name: str
    at: int
    in_flight: tuple[int, ...]


class OpenCall(msgspec.Struct, frozen=True, gc=False):
    """A call that has started and not ended."""

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
        calls: the calls that have ended.
        faults: the faults injected meanwhile.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self._numbers = count(1)
        self._open: dict[int, OpenCall] = {}

    def __repr__(self) -> str:
        calls, open_calls, faults = len(self.calls), len(self._open), len(self.faults)
        return f"<History of {calls} calls, {open_calls} open, {faults} faults>"

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
        """Record the start of a call."""
        call = OpenCall(
            client, name, next(self._numbers), time.monotonic(), requested, subject, ttl, settles
        )
        self._open[call.started] = call
        return call

    def end(
        self, call: OpenCall, outcome: Outcome, answer: Answer, *, is_cut_off: bool = False
    ) -> None:
        """Record the end of a call, and its result.

        A call that was cut off gets no end: it may still take effect.
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
        """Record that a fault is injected now."""
        fault = Fault(name, next(self._numbers), tuple(self._open))
        self.faults.append(fault)
        return fault

    @property
    def writes_in_flight(self) -> int:
        """The number of calls in flight that request a change."""
        return sum(any(write.writes for write in call.requested) for call in self._open.values())

    @property
    def idle_faults(self) -> list[Fault]:
        """The faults that hit no call in flight; a run with such faults proves less."""
        return [fault for fault in self.faults if not fault.in_flight]
