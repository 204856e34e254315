"""A lab instance: somebody's request for a lab, and the lab that a worker hosts for it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

import msgspec

from kvorum import InvalidResourceError, Kind, Metadata, Resource
from kvorum.lab.capacity import ResourceQuantity
from kvorum.lab.fields import NAME, Format
from kvorum.lab.instance_phase import LEGAL_INSTANCE_MOVES, LabInstancePhase
from kvorum.lab.instance_status import LabInstanceStatus
from kvorum.lab.transitions import problem_of_move, set_ready

DEFAULT_DURATION = timedelta(hours=4)
MAX_DURATION = timedelta(days=30)

OWNER = Format(
    r"[^\s\x00-\x1f\x7f](.{0,252}[^\s\x00-\x1f\x7f])?",
    "an owner (1 to 254 characters, on one line)",
)


class LabInstanceSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What somebody wants of a lab.

    Attributes:
        template: the name of the lab's template: what it is made of.
        owner: for whom it is: a user name, or an e-mail address.
        duration: for how long it runs, once it does; an ISO 8601 duration in the bytes, as
            `PT14400S`. It may be changed while the lab runs.
        resources: what it takes of a worker.
    """

    template: str
    owner: str
    duration: timedelta = msgspec.field(default_factory=lambda: DEFAULT_DURATION)
    resources: ResourceQuantity = msgspec.field(default_factory=ResourceQuantity)


class LabInstance(Resource[LabInstanceSpec, LabInstanceStatus]):
    """A lab that somebody has asked for. Its namespace stands for a team, a course, or whatever names are unique in.

    Where room is reserved for a lab is said twice: here, by the name of the worker, and there, by
    what the lab takes (`LabWorker.host_lab`, under `lab_id`). Reserve first, then assign; release
    last. Whoever is interrupted in between finds a reservation that no lab names, and may release
    it.
    """

    kind: ClassVar[Kind] = Kind(
        "LabInstance", plural="lab-instances", api_version="lab.kvorum.dev/v1", namespaced=True
    )

    @classmethod
    def new(
        cls,
        name: str,
        *,
        namespace: str,
        template: str,
        owner: str,
        duration: timedelta = DEFAULT_DURATION,
        resources: ResourceQuantity | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a Pending lab that is not stored yet.

        Nothing is checked here: `add` checks everything, before anything is sent.

        Args:
            name: a DNS-1123 subdomain.
            namespace: a DNS-1123 label.
            template: the name of the lab's template.
            owner: for whom it is.
            duration: for how long it runs.
            resources: what it takes of a worker; nothing if None.
            labels: labels.
            annotations: annotations.
        """
        return cls(
            metadata=Metadata(
                name=name,
                namespace=namespace,
                labels=dict(labels or {}),
                annotations=dict(annotations or {}),
            ),
            spec=LabInstanceSpec(
                template=template,
                owner=owner,
                duration=duration,
                resources=resources or ResourceQuantity(),
            ),
            status=LabInstanceStatus(),
        )

    def validate(self) -> list[str]:
        """Return what is wrong with this lab; every problem, a sentence each, with its JSON path."""
        problems = NAME.problems_of("spec.template", self.spec.template)
        problems += OWNER.problems_of("spec.owner", self.spec.owner)
        if not timedelta(0) < self.spec.duration <= MAX_DURATION:
            problems.append(
                f"spec.duration is {self.spec.duration}; it must be above 0 and at most {MAX_DURATION}"
            )
        return [
            *problems,
            *self.spec.resources.problems("spec.resources"),
            *self.status.problems("status"),
        ]

    # --- phases ---

    def assign(self, worker: str, *, at: datetime | None = None) -> None:
        """Note the worker that has room reserved, and move to Scheduled. Sends nothing.

        A lab that is on this worker already stays as it is: `mutate` may call twice.

        Args:
            worker: the name of a `LabWorker`.
            at: when, UTC; now if None.

        Raises:
            InvalidResourceError: it is on another worker, or in a phase from which it cannot be
                placed. Nothing was changed.
        """
        status = self.status
        if status.phase.has_owner and status.worker == worker:
            return
        if status.worker:
            raise InvalidResourceError(
                self._subject, f"it is on {status.worker!r} already, and cannot go to {worker!r}"
            )
        self._check_move(LabInstancePhase.SCHEDULED)
        status.worker = worker
        self.move_to(LabInstancePhase.SCHEDULED, at=at)

    def move_to(
        self,
        phase: LabInstancePhase,
        *,
        reason: str = "",
        message: str = "",
        at: datetime | None = None,
    ) -> None:
        """Move this lab to another phase, with the times and the condition `Ready` that follow. Sends nothing.

        To move to the phase that it is in already is no move: it only brings the condition in line,
        so doing it twice is as good as once. Going back to Pending, or to Terminated, takes it off
        its worker.

        Args:
            phase: where to. To Scheduled only `assign` leads, which says where.
            reason: why, as one CamelCase word for programs; the phase if empty.
            message: why, for people.
            at: when, UTC; now if None.

        Raises:
            InvalidResourceError: there is no such move; see `kvorum.lab.LEGAL_INSTANCE_MOVES`. Or
                the lab is on no worker, and would have to be. Nothing was changed.
        """
        status = self.status
        self._check_move(phase)
        if phase.has_owner and not status.worker:
            raise InvalidResourceError(
                self._subject, f"it is on no worker, so it cannot be {phase}; assign one"
            )
        at = at or datetime.now(UTC)
        if phase != status.phase:
            status.enter(phase, message=message or reason, at=at)
        set_ready(
            status.conditions,
            is_ready=phase == LabInstancePhase.RUNNING,
            reason=reason or phase.value,
            message=message,
            at=at,
            generation=self.metadata.generation,
        )

    def _check_move(self, phase: LabInstancePhase) -> None:
        if problem := problem_of_move(LEGAL_INSTANCE_MOVES, self.status.phase, phase):
            raise InvalidResourceError(self._subject, problem)

    # --- time and place ---

    @property
    def lab_id(self) -> str:
        """What a worker calls it: `<namespace>/<name>`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def expires_at(self) -> datetime | None:
        """When its time is up; None as long as it has not begun to run."""
        started = self.status.started_at
        return started + self.spec.duration if started is not None else None

    def is_expired(self, at: datetime | None = None) -> bool:
        """Return whether it runs although its time is up at `at` (UTC; now if None).

        Somebody has to stop it.
        """
        expires = self.expires_at
        is_running = self.status.phase == LabInstancePhase.RUNNING
        return is_running and expires is not None and expires <= (at or datetime.now(UTC))

    @property
    def _subject(self) -> str:
        return f"{self.kind.plural}/{self.lab_id}"
