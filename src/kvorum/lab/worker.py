"""A lab worker: an EC2 instance with Cisco Modeling Labs (CML), which hosts labs of one track."""

import copy
from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Self

import msgspec
from typing_extensions import override

from kvorum import InvalidResourceError, Kind, Metadata, Resource
from kvorum.lab.aws import AwsEc2Config
from kvorum.lab.capacity import Capacity, ResourceQuantity
from kvorum.lab.cml import CmlConfig
from kvorum.lab.fields import Format
from kvorum.lab.phase import LEGAL_MOVES, LabWorkerPhase
from kvorum.lab.status import LabWorkerStatus
from kvorum.lab.transitions import check_move, enter

LAB_TRACK_LABEL = "lab-track"

LAB_TRACK = Format(
    r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?",
    "a lab track (1 to 63 letters, digits, '-', '_' and '.', "
    "starting and ending with a letter or digit)",
)


class LabWorkerSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The desired state of a lab worker.

    Attributes:
        lab_track: which labs it hosts; also the value of the label `lab-track`.
        aws: the EC2 instance.
        cml: the configuration of CML.
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
            lab_track: which labs it hosts.
            aws: the EC2 instance; the default one if None.
            cml: the configuration of CML; without a licence if None.
            labels: more labels.
            annotations: annotations.
        """
        # Given labels come last: `validate` then rejects a label that contradicts the track, which
        # otherwise would be replaced silently.
        labels = {LAB_TRACK_LABEL: lab_track} | dict(labels or {})
        return cls(
            metadata=Metadata(name=name, labels=labels, annotations=dict(annotations or {})),
            # Copies: workers made from one configuration are changed independently later.
            spec=LabWorkerSpec(
                lab_track=lab_track,
                aws=copy.deepcopy(aws) if aws is not None else AwsEc2Config(),
                cml=copy.deepcopy(cml) if cml is not None else CmlConfig(),
            ),
            status=LabWorkerStatus(),
        )

    @override
    def validate(self) -> list[str]:
        """Return every problem of this worker, one sentence each, with its JSON path.

        Malformed values are problems, missing ones are not: an AMI may be chosen later, but must be
        valid if it is given.
        """
        return [
            *self._problems_of_track(),
            *self.spec.aws.problems("spec.aws"),
            *self.spec.cml.problems("spec.cml"),
            *self.status.problems("status"),
        ]

    def _problems_of_track(self) -> list[str]:
        track = self.spec.lab_track
        # A worker written by hand may lack the label.
        label = self.metadata.labels.get(LAB_TRACK_LABEL, track)
        problems = LAB_TRACK.problems_of("spec.labTrack", track)
        if label != track:
            path = f"metadata.labels.{LAB_TRACK_LABEL}"
            problems.append(f"{path} {label!r} is not spec.labTrack {track!r}; change both")
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
        """Move this worker to a phase, and set times and the condition `Ready`. Sends nothing.

        Idempotent: moving to the current phase only updates the condition.

        Args:
            phase: the new phase.
            reason: why, as one CamelCase word for programs; the phase if empty.
            message: why, for people.
            at: when, UTC; now if None.

        Raises:
            InvalidResourceError: the transition is not in `kvorum.lab.LEGAL_MOVES`. Nothing was
                changed.
        """
        check_move(self._subject, LEGAL_MOVES, self.status.phase, phase)
        enter(
            self.status,
            phase,
            is_ready=phase.is_ready,
            reason=reason,
            message=message,
            at=at,
            generation=self.metadata.generation,
        )

    # --- labs ---

    @property
    def capacity(self) -> Capacity:
        """The capacity of this worker for labs in its phase, and what is allocated to its labs.

        The licence, or the lack of one, also limits the nodes.
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
        """Allocate capacity to a lab. A Ready worker becomes Active. Sends nothing.

        Idempotent for the same request, since `mutate` may call it twice.

        Raises:
            InsufficientCapacityError: there is not enough room. Nothing was changed.
            InvalidResourceError: the worker accepts no labs in its phase, already hosts the lab
                with another request, or the request or id is malformed. Nothing was changed.
        """
        hosted = self.status.hosted_labs
        if hosted.get(lab_id) == request:
            return
        if problem := self._problem_of_hosting(lab_id):
            raise InvalidResourceError(self._subject, problem)
        self.capacity.allocate(request, subject=self._subject)  # only to raise its errors
        hosted[lab_id] = request
        if self.status.phase == LabWorkerPhase.READY:
            self.move_to(LabWorkerPhase.ACTIVE, reason="HostsLabs")

    def _problem_of_hosting(self, lab_id: str) -> str:
        if not lab_id.strip():
            return f"the id of a lab cannot be {lab_id!r}"
        if taken := self.status.hosted_labs.get(lab_id):
            return f"lab {lab_id!r} is already hosted, with {taken}; release it first"
        if not self.status.phase.may_host:
            return f"a worker that is {self.status.phase} accepts no labs"
        return ""

    def release_lab(self, lab_id: str) -> None:
        """Release the capacity of a lab, in any phase. An Active worker without labs becomes Ready.

        Idempotent: a lab that is not hosted (any more) is not an error. Sends nothing.
        """
        self.status.hosted_labs.pop(lab_id, None)
        if self.status.phase == LabWorkerPhase.ACTIVE and not self.status.hosted_labs:
            self.move_to(LabWorkerPhase.READY, reason="HostsNoLabs")

    @property
    def _subject(self) -> str:
        return f"{self.kind.plural}/{self.metadata.name}"
