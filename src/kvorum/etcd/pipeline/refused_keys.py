"""The keys of calls that were refused recently: calls about them go in no batch.

A caller that repeats what is refused would otherwise have one batch after the other refused.
"""

from collections.abc import Callable
from typing import Final

import msgspec


class RefusalLimits(msgspec.Struct, frozen=True):
    """How long, and for how many keys, a refusal counts.

    Attributes:
        duration: seconds.
        keys: of more, the oldest is forgotten.
    """

    duration: float = 5.0
    keys: int = 1_000


DEFAULT_LIMITS: Final = RefusalLimits()


class RefusedKeys:
    """Keys of refused calls.

    Args:
        clock: returns the time in seconds.
        limits: how long and for how many they count.

    Attributes:
        until: until when each of them counts. Empty mostly, which is cheap to ask.
    """

    def __init__(self, clock: Callable[[], float], limits: RefusalLimits = DEFAULT_LIMITS) -> None:
        self.until: dict[bytes, float] = {}
        self._clock = clock
        self._limits = limits

    def add(self, key: bytes) -> None:
        """Note that a call about a key was refused now."""
        until = self.until
        until.pop(key, None)
        if len(until) >= self._limits.keys:
            del until[next(iter(until))]
        until[key] = self._clock() + self._limits.duration

    def has(self, key: bytes) -> bool:
        """Tell whether a call about a key was refused recently."""
        until = self.until.get(key)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self.until[key]
        return False
