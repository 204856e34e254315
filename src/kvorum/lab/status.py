"""What a lab worker is, as far as anybody has seen."""

from datetime import datetime

import msgspec

from kvorum import Condition
from kvorum.lab.aws import Ec2Status
from kvorum.lab.capacity import ResourceQuantity
from kvorum.lab.cml import CmlStatus
from kvorum.lab.fields import FAILURES, written
from kvorum.lab.phase import LabWorkerPhase


class LabWorkerStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What a lab worker is. All times are UTC.

    Attributes:
        phase: where it is in its life. May be assigned; `LabWorker.move_to` also checks the move
            and keeps the rest.
        conditions: what was observed; `Ready` follows from the phase.
        ec2: what EC2 says about the instance.
        cml: what CML says about itself.
        total_capacity: what the host can offer to labs; nothing as long as nobody has measured it.
        hosted_labs: what each lab takes, by the id of the lab. Says all about allocation: there is
            no second record of it that could say something else.
        last_transition_time: when the phase changed last.
        provisioned_at: when the instance first ran, in this attempt.
        ready_at: when the worker first was Ready, in this attempt.
        terminated_at: when the instance was gone.
        last_heartbeat_time: when the worker was last heard of.
        error_message: why it failed last; empty again once it is Ready.
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

        That labs take more than there is, is none: it is what a status has to tell when a host
        shrinks.
        """
        problems = self.total_capacity.problems(f"{path}.totalCapacity")
        for lab_id, taken in self.hosted_labs.items():
            if not lab_id.strip():
                problems.append(f"{path}.hostedLabs has a lab without an id: {lab_id!r}")
            problems += taken.problems(f"{path}.hostedLabs.{lab_id}")
        return problems + FAILURES.problems_of(f"{path}.errorCount", self.error_count)

    def enter(self, phase: LabWorkerPhase, *, message: str, at: datetime) -> None:
        """Record that the worker entered a phase: the phase itself, when, and its failures.

        Checks nothing.
        """
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
                pass  # nothing else has a record of its own
