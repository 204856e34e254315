"""The phases of a lab's life, and which may follow which.

    Pending → Scheduled → Starting → Running → Stopping → Terminated

1. `LEGAL_INSTANCE_MOVES` says which moves there are. Staying in a phase is always legal, and is no
   move.
2. Whatever is not over may fail: every phase but Terminated may go to Failed.
3. Terminated is final: the lab is gone, and who wants it again asks for another.
4. From Scheduled to Stopping a worker has room reserved for the lab, and the lab names it. The way
   to Terminated leads through Stopping as soon as anything of the lab may be on the worker.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class LabInstancePhase(StrEnum):
    """Where a lab is in its life. The values are what the bytes say.

    Attributes:
        PENDING: asked for; no worker has room reserved for it yet.
        SCHEDULED: a worker has; nothing of it is there yet.
        STARTING: its nodes are being made and booted.
        RUNNING: its owner can work with it, and its time runs.
        STOPPING: its nodes are being stopped and removed.
        TERMINATED: nothing of it is left.
        FAILED: something went wrong; somebody must decide between cleaning up and trying again.
    """

    PENDING = "Pending"
    SCHEDULED = "Scheduled"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    TERMINATED = "Terminated"
    FAILED = "Failed"

    def may_become(self, other: "LabInstancePhase") -> bool:
        """Return whether a lab in this phase may go to `other`, or is there already."""
        return other == self or other in LEGAL_INSTANCE_MOVES[self]

    @property
    def is_terminal(self) -> bool:
        """Whether no other phase can follow."""
        return not LEGAL_INSTANCE_MOVES[self]

    @property
    def has_owner(self) -> bool:
        """Whether a worker has room reserved for a lab in this phase."""
        return self in PLACED_PHASES


_P = LabInstancePhase

_MOVES: dict[LabInstancePhase, set[LabInstancePhase]] = {
    # Called off: there is nothing to remove.
    _P.PENDING: {_P.SCHEDULED, _P.TERMINATED},
    # The worker went away before anything was there: back, to be placed elsewhere.
    _P.SCHEDULED: {_P.STARTING, _P.PENDING, _P.TERMINATED},
    _P.STARTING: {_P.RUNNING, _P.STOPPING},
    _P.RUNNING: {_P.STOPPING},
    _P.STOPPING: {_P.TERMINATED},
    _P.TERMINATED: set(),
    # Clean up, or try again from the start. Who tries again sees to it that nothing is left of the
    # first time.
    _P.FAILED: {_P.STOPPING, _P.PENDING},
}

LEGAL_INSTANCE_MOVES: Mapping[LabInstancePhase, frozenset[LabInstancePhase]] = MappingProxyType(
    {
        phase: frozenset(moves if phase in {_P.TERMINATED, _P.FAILED} else moves | {_P.FAILED})
        for phase, moves in _MOVES.items()
    }
)
"""Where a lab may go from each phase; rule 2 included, staying not."""

PLACED_PHASES = frozenset({_P.SCHEDULED, _P.STARTING, _P.RUNNING, _P.STOPPING})
"""The phases in which a lab names the worker that it is on. One that failed may name one, too."""
