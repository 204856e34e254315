"""Transitions between phases, for workers and labs alike."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, TypeVar

from kvorum import Condition, InvalidResourceError, set_condition

Phase = TypeVar("Phase", bound=StrEnum)


class HasPhase(Protocol[Phase]):
    """A status with a phase, and with conditions that follow from it."""

    phase: Phase
    conditions: list[Condition]

    def enter(self, phase: Phase, *, message: str, at: datetime) -> None:
        """Record, without checks, that a phase was entered."""
        ...


def legal_moves(
    moves: Mapping[Phase, Collection[Phase]], *, failed: Phase
) -> Mapping[Phase, frozenset[Phase]]:
    """Complete a table of transitions: every phase that is not final may also go to `failed`."""
    return MappingProxyType(
        {
            phase: frozenset(others if phase == failed or not others else {*others, failed})
            for phase, others in moves.items()
        }
    )


def check_move(
    subject: str, moves: Mapping[Phase, Collection[Phase]], old: Phase, new: Phase
) -> None:
    """Reject an illegal transition; staying in a phase is legal.

    Raises:
        InvalidResourceError: `moves` does not have it.
    """
    if new == old or new in moves[old]:
        return
    allowed = ", ".join(phase for phase in moves if phase in moves[old])
    where = f"to {allowed}" if allowed else "nowhere"
    raise InvalidResourceError(
        subject, f"it cannot go from {old} to {new}; from {old} it may go {where}"
    )


def enter(
    status: HasPhase[Phase],
    phase: Phase,
    *,
    is_ready: bool,
    reason: str,
    message: str,
    at: datetime | None,
    generation: int,
) -> None:
    """Enter a phase at a time (now if None), and set the condition `Ready` accordingly."""
    at = at or datetime.now(UTC)
    if phase != status.phase:
        status.enter(phase, message=message or reason, at=at)
    ready = Condition(
        type="Ready",
        status="True" if is_ready else "False",
        reason=reason or phase.value,
        message=message,
        last_transition_time=at,
        observed_generation=generation,
    )
    set_condition(status.conditions, ready)
