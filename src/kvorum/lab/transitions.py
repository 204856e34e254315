"""What moving from one phase to another has in common, whatever is moved."""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from kvorum import Condition, set_condition

Phase = TypeVar("Phase", bound=StrEnum)


def problem_of_move(moves: Mapping[Phase, Collection[Phase]], old: Phase, new: Phase) -> str:
    """Say why a move is not legal; nothing if it is, or if it is none."""
    if new == old or new in moves[old]:
        return ""
    allowed = ", ".join(phase for phase in moves if phase in moves[old])
    return f"it cannot go from {old} to {new}; from {old} it may go {f'to {allowed}' if allowed else 'nowhere'}"


def set_ready(
    conditions: list[Condition],
    *,
    is_ready: bool,
    reason: str,
    message: str,
    at: datetime,
    generation: int,
) -> None:
    """Bring the condition `Ready` in line with a phase."""
    ready = Condition(
        type="Ready",
        status="True" if is_ready else "False",
        reason=reason,
        message=message,
        last_transition_time=at,
        observed_generation=generation,
    )
    set_condition(conditions, ready)
