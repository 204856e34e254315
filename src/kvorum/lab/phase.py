"""The phases of a lab worker, and the transitions between them.

    Pending → ProvisioningEC2 → EC2Ready → Starting → ReadyUnlicensed ⇄ Licensing → Ready ⇄ Active
                                                                                      ↓       ↓
              Terminated ← TerminatingEC2 ← Stopping ← Unlicensing ←———————————————— Draining

1. `LEGAL_MOVES` has all transitions. Staying in a phase is always legal, and not a transition.
2. Every phase except Terminated may go to Failed.
3. Terminated is final: the host is gone, and a new host is a new worker.
4. Active is a licensed worker that hosts labs. An unlicensed worker that hosts a small lab stays
   ReadyUnlicensed, because the licence, not the lab, decides what it may host and how it is shut
   down.
"""

from collections.abc import Mapping
from enum import StrEnum

from kvorum.lab.transitions import legal_moves


class LabWorkerPhase(StrEnum):
    """The phase of a lab worker. The values are stored.

    Attributes:
        PENDING: requested; nothing of it exists yet.
        PROVISIONING_EC2: its EC2 instance is being created.
        EC2_READY: the instance runs.
        STARTING: CML is starting on it.
        READY_UNLICENSED: CML runs without a licence: for small labs only.
        LICENSING: the licence is being registered.
        READY: licensed, and waiting for labs.
        ACTIVE: licensed, and hosts labs.
        DRAINING: accepts no new labs; those that it hosts end.
        UNLICENSING: the licence is being released.
        STOPPING: CML is being stopped.
        TERMINATING_EC2: the instance is being removed.
        TERMINATED: the instance is gone.
        FAILED: an operator or a controller must decide between cleaning up and retrying.
    """

    PENDING = "Pending"
    PROVISIONING_EC2 = "ProvisioningEC2"
    EC2_READY = "EC2Ready"
    STARTING = "Starting"
    READY_UNLICENSED = "ReadyUnlicensed"
    LICENSING = "Licensing"
    READY = "Ready"
    ACTIVE = "Active"
    DRAINING = "Draining"
    UNLICENSING = "Unlicensing"
    STOPPING = "Stopping"
    TERMINATING_EC2 = "TerminatingEC2"
    TERMINATED = "Terminated"
    FAILED = "Failed"

    def may_become(self, other: "LabWorkerPhase") -> bool:
        """Return whether a worker in this phase may go to `other`, or is already there."""
        return other == self or other in LEGAL_MOVES[self]

    @property
    def is_terminal(self) -> bool:
        """Whether no other phase can follow."""
        return not LEGAL_MOVES[self]

    @property
    def is_ready(self) -> bool:
        """Whether the worker is in full service; its condition `Ready` says the same."""
        return self in READY_PHASES

    @property
    def may_host(self) -> bool:
        """Whether the worker accepts labs."""
        return self in HOSTING_PHASES


_P = LabWorkerPhase

_MOVES: dict[LabWorkerPhase, set[LabWorkerPhase]] = {
    _P.PENDING: {_P.PROVISIONING_EC2},
    # If cancelled, there may be an instance to remove, but no CML to stop.
    _P.PROVISIONING_EC2: {_P.EC2_READY, _P.TERMINATING_EC2},
    _P.EC2_READY: {_P.STARTING, _P.TERMINATING_EC2},
    # If cancelled, CML must stop before its disk is removed.
    _P.STARTING: {_P.READY_UNLICENSED, _P.STOPPING},
    # There is no licence to release, so it may stop at once, or drain first if it hosts a small
    # lab.
    _P.READY_UNLICENSED: {_P.LICENSING, _P.DRAINING, _P.STOPPING},
    # If the licence is rejected, the worker still does what it did before.
    _P.LICENSING: {_P.READY, _P.READY_UNLICENSED},
    # A licence can expire in service. Never directly to Unlicensing: only a draining worker accepts
    # no new labs.
    _P.READY: {_P.ACTIVE, _P.DRAINING, _P.READY_UNLICENSED},
    _P.ACTIVE: {_P.READY, _P.DRAINING, _P.READY_UNLICENSED},
    # If cancelled, it returns to the phase it came from. When done, an unlicensed worker has no
    # licence to release.
    _P.DRAINING: {_P.READY, _P.ACTIVE, _P.READY_UNLICENSED, _P.UNLICENSING, _P.STOPPING},
    _P.UNLICENSING: {_P.STOPPING},
    _P.STOPPING: {_P.TERMINATING_EC2},
    _P.TERMINATING_EC2: {_P.TERMINATED},
    _P.TERMINATED: set(),
    # Clean up, or retry from the start: after a failure no intermediate state is reliable.
    _P.FAILED: {_P.TERMINATING_EC2, _P.PENDING},
}

LEGAL_MOVES: Mapping[LabWorkerPhase, frozenset[LabWorkerPhase]] = legal_moves(
    _MOVES, failed=_P.FAILED
)
"""The phases that a worker may go to from each phase, including Failed (rule 2)."""

READY_PHASES = frozenset({_P.READY, _P.ACTIVE})
"""The phases of full service: licensed, hosting labs or waiting for them."""

HOSTING_PHASES = READY_PHASES | {_P.READY_UNLICENSED}
"""The phases in which a worker accepts labs."""

ACTIVE_PHASES = frozenset({_P.READY, _P.DRAINING})
"""The phases that `LabWorkerRepository.find_active_workers` finds."""
