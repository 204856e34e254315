"""The phases of a lab worker's life, and which may follow which.

    Pending → ProvisioningEC2 → EC2Ready → Starting → ReadyUnlicensed ⇄ Licensing → Ready ⇄ Active
                                                                                      ↓       ↓
              Terminated ← TerminatingEC2 ← Stopping ← Unlicensing ←———————————————— Draining

1. `LEGAL_MOVES` says which moves there are. Staying in a phase is always legal, and is no move.
2. Whatever is not over may fail: every phase but Terminated may go to Failed.
3. Terminated is final: the host is gone, and a new one is a new worker.
4. Active is a licensed worker that hosts labs. One without a licence that hosts a small lab stays
   ReadyUnlicensed, because what it may host and how it is taken down depend on the licence, not on
   the lab.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class LabWorkerPhase(StrEnum):
    """Where a lab worker is in its life. The values are what the bytes say.

    Attributes:
        PENDING: wanted; nothing of it exists yet.
        PROVISIONING_EC2: its EC2 instance is being made.
        EC2_READY: the instance runs.
        STARTING: CML is starting on it.
        READY_UNLICENSED: CML runs without a licence: for small labs only.
        LICENSING: the licence is being registered.
        READY: licensed, and waiting for labs.
        ACTIVE: licensed, and hosts labs.
        DRAINING: takes no more labs; those that it hosts end.
        UNLICENSING: the licence is being given back.
        STOPPING: CML is being stopped.
        TERMINATING_EC2: the instance is being removed.
        TERMINATED: the instance is gone.
        FAILED: something went wrong; somebody must decide between cleaning up and trying again.
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
        """Return whether a worker in this phase may go to `other`, or is there already."""
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
        """Whether the worker takes labs."""
        return self in HOSTING_PHASES


_P = LabWorkerPhase

_MOVES: dict[LabWorkerPhase, set[LabWorkerPhase]] = {
    _P.PENDING: {_P.PROVISIONING_EC2},
    # Called off: there is, or may be, an instance to remove, and no CML on it to stop.
    _P.PROVISIONING_EC2: {_P.EC2_READY, _P.TERMINATING_EC2},
    _P.EC2_READY: {_P.STARTING, _P.TERMINATING_EC2},
    # Called off: CML must stop before its disk goes.
    _P.STARTING: {_P.READY_UNLICENSED, _P.STOPPING},
    # There is no licence to give back, so it may stop at once, or drain first if it hosts a small
    # lab.
    _P.READY_UNLICENSED: {_P.LICENSING, _P.DRAINING, _P.STOPPING},
    # A licence that was refused leaves a worker that still does what it did before.
    _P.LICENSING: {_P.READY, _P.READY_UNLICENSED},
    # A licence can expire in service. Never straight to Unlicensing: only a draining worker takes
    # no new labs.
    _P.READY: {_P.ACTIVE, _P.DRAINING, _P.READY_UNLICENSED},
    _P.ACTIVE: {_P.READY, _P.DRAINING, _P.READY_UNLICENSED},
    # Called off, it goes back to where it came from; carried through, one without a licence has
    # none to give back.
    _P.DRAINING: {_P.READY, _P.ACTIVE, _P.READY_UNLICENSED, _P.UNLICENSING, _P.STOPPING},
    _P.UNLICENSING: {_P.STOPPING},
    _P.STOPPING: {_P.TERMINATING_EC2},
    _P.TERMINATING_EC2: {_P.TERMINATED},
    _P.TERMINATED: set(),
    # Clean up, or try again from the start: a failure leaves nothing in between to rely on.
    _P.FAILED: {_P.TERMINATING_EC2, _P.PENDING},
}

LEGAL_MOVES: Mapping[LabWorkerPhase, frozenset[LabWorkerPhase]] = MappingProxyType(
    {
        phase: frozenset(moves if phase in {_P.TERMINATED, _P.FAILED} else moves | {_P.FAILED})
        for phase, moves in _MOVES.items()
    }
)
"""Where a worker may go from each phase; rule 2 included, staying not."""

READY_PHASES = frozenset({_P.READY, _P.ACTIVE})
"""The phases of full service: licensed, hosting labs or waiting for them."""

HOSTING_PHASES = READY_PHASES | {_P.READY_UNLICENSED}
"""The phases in which a worker takes labs."""

ACTIVE_PHASES = frozenset({_P.READY, _P.DRAINING})
"""What `LabWorkerRepository.find_active_workers` looks for."""
