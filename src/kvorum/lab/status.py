"""The observed state of a lab worker."""

from datetime import datetime

import msgspec

from kvorum import Condition
from kvorum.lab.aws import Ec2Status
from kvorum.lab.capacity import ResourceQuantity
from kvorum.lab.cml import CmlStatus
from kvorum.lab.fields import FAILURES, written
from kvorum.lab.phase import LabWorkerPhase


class LabWorkerStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The observed state of a lab worker. All times are UTC.

    Attributes:
        phase: may be assigned; `LabWorker.move_to` also checks the transition and updates the
            other fields.
        conditions: observations; `Ready` follows from the phase.
        ec2: what EC2 reports about the instance.
        cml: what CML reports.
        total_capacity: the capacity of the host for labs; zero until it has been measured.
        hosted_labs: the allocation of each lab, by its id. The only record of allocations, so it
            cannot contradict another one.
        last_transition_time: when the phase last changed.
        provisioned_at: when the instance first ran, in this attempt.
        ready_at: when the worker first was Ready, in this attempt.
        terminated_at: when the instance was gone.
        last_heartbeat_time: when the worker last reported.
        error_message: why it last failed; cleared once it is Ready.
        error_count: how often it failed.
    """

    phase: LabWorkerPhase = written(LabWorkerPhase.PENDING)
    conditions: list[Condition] = msgspec.field(default_factory=list)
    ec2: Ec2Status = msgspec.field(default_factory=Ec2Status)
    cml: CmlStatus = msgspec.field(default_factory=CmlStatus)
    total_capacity: ResourceQuantity = msgspec.field(default_factory=ResourceQuantity)
    hosted_labs: dict[str, ResourceQuantity] = msgspec.field(default_factory=dict)
    last_transition_time: datetime | None = None
    provisioned_at: datetime | None = None
    ready_at: datetime | None = None
    terminated_at: datetime | None = None
    last_heartbeat_time: datetime | None = None
    error_message: str = ""
    error_count: int = 0

    @property
    def hosted_lab_ids(self) -> tuple[str, ...]:
        """The ids of the labs that run here, sorted."""
        return tuple(sorted(self.hosted_labs))

    def problems(self, path: str) -> list[str]:
        """Return what is wrong with it; `path` is its JSON path.

        Labs that take more than the total are not a problem: a status must be able to say so when a
        host shrinks.
        """
        problems = self.total_capacity.problems(f"{path}.totalCapacity")
        for lab_id, taken in self.hosted_labs.items():
            if not lab_id.strip():
                problems.append(f"{path}.hostedLabs has a lab without an id: {lab_id!r}")
            problems += taken.problems(f"{path}.hostedLabs.{lab_id}")
        return problems + FAILURES.problems_of(f"{path}.errorCount", self.error_count)

    def enter(self, phase: LabWorkerPhase, *, message: str, at: datetime) -> None:
        """Record, without checks, that the worker entered a phase: times and failures."""
        self.phase = phase
        self.last_transition_time = at
        match phase:
            case LabWorkerPhase.PENDING:
                self.provisioned_at = self.ready_at = self.terminated_at = None
            case LabWorkerPhase.EC2_READY:
                self.provisioned_at = at
            case LabWorkerPhase.READY:
                self.ready_at = self.ready_at or at
                self.error_message = ""
            case LabWorkerPhase.TERMINATED:
                self.terminated_at = at
            case LabWorkerPhase.FAILED:
                self.error_message = message
                self.error_count += 1
            case _:
                pass  # the other phases have no fields of their own
