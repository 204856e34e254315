"""What calls were refused for recently: similar calls go in no batch.

A caller that repeats what is refused would otherwise have one batch after the other refused. A
refusal says nothing about others: that of a write is none of reads of its key, and if a lease is
gone, calls about the same key on another lease are not concerned.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from kvorum.errors import KvorumError, LeaseNotFoundError
from kvorum.etcd.pipeline.calls import AnyCall
from kvorum.runtime import Limits

# A lease; or whether a key is written, and the key.
Subject: TypeAlias = int | tuple[bool, bytes]


class RefusalLimits(Limits, frozen=True):
    """How long, and for how many keys and leases, a refusal counts.

    Attributes:
        duration: seconds.
        subjects: of more keys and leases, the oldest is forgotten.
    """

    duration: float = 5.0
    subjects: int = 1_000


DEFAULT_LIMITS: Final = RefusalLimits()


class Refusals:
    """What calls were refused for.

    Args:
        clock: returns the time in seconds.
        limits: how long and for how many subjects they count.

    Attributes:
        until: until when each of them counts. Empty mostly, which is cheap to ask.
    """

    def __init__(self, clock: Callable[[], float], limits: RefusalLimits = DEFAULT_LIMITS) -> None:
        self.until: dict[Subject, float] = {}
        self._clock = clock
        self._limits = limits

    def add(self, call: AnyCall, error: KvorumError) -> None:
        """Record that a call was refused now, with that error."""
        subjects: Sequence[Subject] = ()
        if isinstance(error, LeaseNotFoundError):
            subjects = call.leases
        until = self.until
        for each in subjects or ((call.is_write, call.key),):
            until.pop(each, None)
            if len(until) >= self._limits.subjects:
                del until[next(iter(until))]
            until[each] = self._clock() + self._limits.duration

    def concern(self, call: AnyCall) -> bool:
        """Return whether a call is about what another one was refused for recently."""
        return self._has((call.is_write, call.key)) or any(map(self._has, call.leases))

    def _has(self, subject: Subject) -> bool:
        until = self.until.get(subject)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self.until[subject]
        return False
