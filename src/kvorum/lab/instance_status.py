"""The observed state of a lab."""

from datetime import datetime

import msgspec

from kvorum import Condition
from kvorum.lab.fields import FAILURES, NAME, written
from kvorum.lab.instance_phase import LabInstancePhase


class LabInstanceStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The observed state of a lab. All times are UTC.

    Attributes:
        phase: may be assigned; `LabInstance.move_to` also checks the transition and updates the
            other fields.
        conditions: observations; `Ready` follows from the phase.
        worker: the name of the `LabWorker` that has room reserved for it; empty if none has.
        last_transition_time: when the phase last changed.
        started_at: when it started to run, in this attempt: its duration counts from here.
        terminated_at: when it was completely removed.
        error_message: why it last failed; cleared once it runs.
        error_count: how often it failed.
    """

    phase: LabInstancePhase = written(LabInstancePhase.PENDING)
    conditions: list[Condition] = msgspec.field(default_factory=list)
    worker: str = ""
    last_transition_time: datetime | None = None
    started_at: datetime | None = None
    terminated_at: datetime | None = None
    error_message: str = ""
    error_count: int = 0

    def problems(self, path: str) -> list[str]:
        """Return what is wrong with it; `path` is its JSON path."""
        problems = NAME.problems_of(f"{path}.worker", self.worker or None)
        if self.phase.has_owner and not self.worker:
            problems.append(f"{path}.worker is missing; a lab that is {self.phase} is on one")
        if self.worker and self.phase in {LabInstancePhase.PENDING, LabInstancePhase.TERMINATED}:
            problems.append(
                f"{path}.worker is {self.worker!r}; a lab that is {self.phase} is on none"
            )
        if self.phase == LabInstancePhase.RUNNING and self.started_at is None:
            problems.append(
                f"{path}.startedAt is missing; a lab that is Running would never expire"
            )
        return problems + FAILURES.problems_of(f"{path}.errorCount", self.error_count)

    def enter(self, phase: LabInstancePhase, *, message: str, at: datetime) -> None:
        """Record, without checks, that the lab entered a phase: times, worker and failures."""
        self.phase = phase
        self.last_transition_time = at
        match phase:
            case LabInstancePhase.PENDING:
                self.worker = ""
                self.started_at = self.terminated_at = None
            case LabInstancePhase.RUNNING:
                self.started_at = at
                self.error_message = ""
            case LabInstancePhase.TERMINATED:
                self.worker = ""
                self.terminated_at = at
            case LabInstancePhase.FAILED:
                self.error_message = message
                self.error_count += 1
            case _:
                pass  # the other phases have no fields of their own
