"""A lab worker.

A host that runs Cisco Modeling Labs (CML) on an AWS EC2 instance, and on it the labs of one track.
"""

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar, Self

import msgspec

from kvorum import InvalidResourceError, Kind, Metadata, Resource
from kvorum.lab.aws import AwsEc2Config
from kvorum.lab.capacity import Capacity, ResourceQuantity
from kvorum.lab.cml import CmlConfig
from kvorum.lab.fields import Format
from kvorum.lab.phase import LEGAL_MOVES, LabWorkerPhase
from kvorum.lab.status import LabWorkerStatus
from kvorum.lab.transitions import problem_of_move, set_ready

LAB_TRACK_LABEL = "lab-track"

LAB_TRACK = Format(
    r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?",
    "a lab track (1 to 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit)",
)


class LabWorkerSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What somebody wants of a lab worker.

    Attributes:
        lab_track: which labs it is for; also the value of the label `lab-track`.
        aws: the EC2 instance.
        cml: CML on it.
    """

    lab_track: str
    aws: AwsEc2Config = msgspec.field(default_factory=AwsEc2Config)
    cml: CmlConfig = msgspec.field(default_factory=CmlConfig)


class LabWorker(Resource[LabWorkerSpec, LabWorkerStatus]):
    """A hypervisor host that runs lab instances for one lab track."""

    kind: ClassVar[Kind] = Kind("LabWorker", plural="lab-workers", api_version="lab.kvorum.dev/v1")

    @classmethod
    def new(
        cls,
        name: str,
        *,
        lab_track: str,
        aws: AwsEc2Config | None = None,
        cml: CmlConfig | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a Pending worker that is not stored yet, labelled `lab-track=<lab_track>`.

        Nothing is checked here: `add` checks everything, before anything is sent.

        Args:
            name: a DNS-1123 subdomain.
            lab_track: which labs it is for.
            aws: the EC2 instance; a default one if None.
            cml: how CML is set up; without a licence if None.
            labels: more labels.
            annotations: annotations.
        """
        # In this order a label that contradicts the track is refused by `validate`, not quietly
        # replaced.
        labels = {LAB_TRACK_LABEL: lab_track} | dict(labels or {})
        return cls(
            metadata=Metadata(name=name, labels=labels, annotations=dict(annotations or {})),
            # Copies: the workers of a fleet are made from one configuration, and then go their own
            # ways.
            spec=LabWorkerSpec(
                lab_track=lab_track,
                aws=copy.deepcopy(aws) if aws is not None else AwsEc2Config(),
                cml=copy.deepcopy(cml) if cml is not None else CmlConfig(),
            ),
            status=LabWorkerStatus(),
        )

    def validate(self) -> list[str]:
        """Return what is wrong with this worker; every problem, a sentence each, with its JSON path.

        Refuses what is malformed, not what is missing: an AMI may be chosen later, but must be one
        if it is given.
        """
        return [
            *self._problems_of_track(),
            *self.spec.aws.problems("spec.aws"),
            *self.spec.cml.problems("spec.cml"),
            *self.status.problems("status"),
        ]

    def _problems_of_track(self) -> list[str]:
        track = self.spec.lab_track
        label = self.metadata.labels.get(
            LAB_TRACK_LABEL, track
        )  # who writes by hand may do without it
        problems = LAB_TRACK.problems_of("spec.labTrack", track)
        if label != track:
            problems.append(
                f"metadata.labels.{LAB_TRACK_LABEL} {label!r} is not spec.labTrack {track!r}; change both"
            )
        return problems

    # --- phases ---

    def move_to(
        self,
        phase: LabWorkerPhase,
        *,
        reason: str = "",
        message: str = "",
        at: datetime | None = None,
    ) -> None:
        """Move this worker to another phase, with the times and the condition `Ready` that follow. Sends nothing.

        To move to the phase that it is in already is no move: it only brings the condition in line,
        so doing it twice is as good as once.

        Args:
            phase: where to.
            reason: why, as one CamelCase word for programs; the phase if empty.
            message: why, for people.
            at: when, UTC; now if None.

        Raises:
            InvalidResourceError: there is no such move; see `kvorum.lab.LEGAL_MOVES`. Nothing was
                changed.
        """
        status = self.status
        if problem := problem_of_move(LEGAL_MOVES, status.phase, phase):
            raise InvalidResourceError(self._subject, problem)
        at = at or datetime.now(UTC)
        if phase != status.phase:
            status.enter(phase, message=message or reason, at=at)
        set_ready(
            status.conditions,
            is_ready=phase.is_ready,
            reason=reason or phase.value,
            message=message,
            at=at,
            generation=self.metadata.generation,
        )

    # --- labs ---

    @property
    def capacity(self) -> Capacity:
        """What this worker has for labs in its phase, and how much of it those that it hosts take.

        Nodes are also limited by the licence, or by the lack of it.
        """
        total = self.status.total_capacity
        limit = self.spec.cml.node_limit(
            licensed=self.status.phase != LabWorkerPhase.READY_UNLICENSED
        )
        if limit is not None:
            total = msgspec.structs.replace(total, nodes=min(total.nodes, limit))
        return Capacity(
            total=total, allocated=sum(self.status.hosted_labs.values(), ResourceQuantity())
        )

    def host_lab(self, lab_id: str, request: ResourceQuantity) -> None:
        """Note that a lab runs here, and takes that much. A Ready worker becomes Active. Sends nothing.

        A lab that is hosted with the same request already stays so: `mutate` may call twice.

        Raises:
            InsufficientCapacityError: there is no room for it. Nothing was changed.
            InvalidResourceError: the worker takes no labs in its phase, the lab is hosted with
                another request, or the request or id is malformed. Nothing was changed.
        """
        hosted = self.status.hosted_labs
        if hosted.get(lab_id) == request:
            return
        if problem := self._problem_of_hosting(lab_id):
            raise InvalidResourceError(self._subject, problem)
        self.capacity.allocate(
            request, subject=self._subject
        )  # for its refusals only: the labs say what is allocated
        hosted[lab_id] = request
        if self.status.phase == LabWorkerPhase.READY:
            self.move_to(LabWorkerPhase.ACTIVE, reason="HostsLabs")

    def _problem_of_hosting(self, lab_id: str) -> str:
        if not lab_id.strip():
            return f"the id of a lab cannot be {lab_id!r}"
        if lab_id in self.status.hosted_labs:
            return f"lab {lab_id!r} is hosted already, with {self.status.hosted_labs[lab_id]}; release it first"
        if not self.status.phase.may_host:
            return f"a worker that is {self.status.phase} takes no labs"
        return ""

    def release_lab(self, lab_id: str) -> None:
        """Note that a lab is gone from here, in whatever phase. An Active worker without labs becomes Ready.

        A lab that is not hosted (any more) is no error: `mutate` may call twice. Sends nothing.
        """
        self.status.hosted_labs.pop(lab_id, None)
        if self.status.phase == LabWorkerPhase.ACTIVE and not self.status.hosted_labs:
            self.move_to(LabWorkerPhase.READY, reason="HostsNoLabs")

    @property
    def _subject(self) -> str:
        return f"{self.kind.plural}/{self.metadata.name}"
