"""The phases of a lab, and the transitions between them.

    Pending → Scheduled → Starting → Running → Stopping → Terminated

1. `LEGAL_INSTANCE_MOVES` has all transitions. Staying in a phase is always legal, and not a
   transition.
2. Every phase except Terminated may go to Failed.
3. Terminated is final: the lab is gone, and a new request is a new lab.
4. From Scheduled to Stopping a worker has room reserved for the lab, and the lab names it. Once
   anything of the lab may be on the worker, it reaches Terminated only through Stopping.
"""

from collections.abc import Mapping
from enum import StrEnum

from kvorum.lab.transitions import legal_moves


class LabInstancePhase(StrEnum):
    """The phase of a lab. The values are stored.

    Attributes:
        PENDING: requested; no worker has room reserved for it yet.
        SCHEDULED: a worker has room reserved; nothing of the lab is there yet.
        STARTING: its nodes are being created and booted.
        RUNNING: its owner can work with it, and its time counts.
        STOPPING: its nodes are being stopped and removed.
        TERMINATED: nothing of it is left.
        FAILED: an operator or a controller must decide between cleaning up and retrying.
    """

    PENDING = "Pending"
    SCHEDULED = "Scheduled"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    TERMINATED = "Terminated"
    FAILED = "Failed"

    def may_become(self, other: "LabInstancePhase") -> bool:
        """Return whether a lab in this phase may go to `other`, or is already there."""
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
    # If cancelled, there is nothing to remove.
    _P.PENDING: {_P.SCHEDULED, _P.TERMINATED},
    # If the worker is removed before anything is there, the lab can be scheduled elsewhere.
    _P.SCHEDULED: {_P.STARTING, _P.PENDING, _P.TERMINATED},
    _P.STARTING: {_P.RUNNING, _P.STOPPING},
    _P.RUNNING: {_P.STOPPING},
    _P.STOPPING: {_P.TERMINATED},
    _P.TERMINATED: set(),
    # Clean up, or retry from the start; a retry must ensure that nothing is left of the first
    # attempt.
    _P.FAILED: {_P.STOPPING, _P.PENDING},
}

LEGAL_INSTANCE_MOVES: Mapping[LabInstancePhase, frozenset[LabInstancePhase]] = legal_moves(
    _MOVES, failed=_P.FAILED
)
"""The phases that a lab may go to from each phase, including Failed (rule 2)."""

PLACED_PHASES = frozenset({_P.SCHEDULED, _P.STARTING, _P.RUNNING, _P.STOPPING})
"""The phases in which a lab names the worker that it is on. A failed lab may name one, too."""
