"""A lab instance: a request for a lab, and the lab that a worker hosts for it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

import msgspec
from typing_extensions import override

from kvorum import InvalidResourceError, Kind, Metadata, Resource
from kvorum.lab.capacity import ResourceQuantity
from kvorum.lab.fields import NAME, Format
from kvorum.lab.instance_phase import LEGAL_INSTANCE_MOVES, LabInstancePhase
from kvorum.lab.instance_status import LabInstanceStatus
from kvorum.lab.transitions import check_move, enter

DEFAULT_DURATION = timedelta(hours=4)
MAX_DURATION = timedelta(days=30)

OWNER = Format(
    r"[^\s\x00-\x1f\x7f](.{0,252}[^\s\x00-\x1f\x7f])?",
    "an owner (1 to 254 characters, on one line)",
)


class LabInstanceSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The desired state of a lab.

    Attributes:
        template: the name of the template that the lab is made from.
        owner: a user name or an e-mail address.
        duration: how long it may run, from its start; stored as an ISO 8601 duration, as
            `PT14400S`. It may be changed while the lab runs.
        resources: what it needs of a worker.
    """

    template: str
    owner: str
    duration: timedelta = msgspec.field(default_factory=lambda: DEFAULT_DURATION)
    resources: ResourceQuantity = msgspec.field(default_factory=ResourceQuantity)


class LabInstance(Resource[LabInstanceSpec, LabInstanceStatus]):
    """A requested lab. Its namespace is a team, a course, or any other scope of names.

    The placement of a lab is recorded twice: here, by the name of the worker, and in the worker, by
    the allocation (`LabWorker.host_lab`, under `lab_id`). Reserve first, then assign; release last.
    If a program is interrupted in between, it leaves an allocation that no lab refers to, and that
    can be released.
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
            owner: a user name or an e-mail address.
            duration: how long it may run.
            resources: what it needs of a worker; nothing if None.
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

    @override
    def validate(self) -> list[str]:
        """Return every problem of this lab, one sentence each, with its JSON path."""
        problems = NAME.problems_of("spec.template", self.spec.template)
        problems += OWNER.problems_of("spec.owner", self.spec.owner)
        duration = self.spec.duration
        if not timedelta(0) < duration <= MAX_DURATION:
            problems.append(
                f"spec.duration is {duration}; it must be above 0 and at most {MAX_DURATION}"
            )
        return [
            *problems,
            *self.spec.resources.problems("spec.resources"),
            *self.status.problems("status"),
        ]

    # --- phases ---

    def assign(self, worker: str, *, at: datetime | None = None) -> None:
        """Record the worker that has room reserved, and move to Scheduled. Sends nothing.

        Idempotent for the same worker, since `mutate` may call it twice.

        Args:
            worker: the name of a `LabWorker`.
            at: when, UTC; now if None.

        Raises:
            InvalidResourceError: it is on another worker, or cannot be scheduled from its phase.
                Nothing was changed.
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
        """Move this lab to a phase, and set times and the condition `Ready`. Sends nothing.

        Idempotent: moving to the current phase only updates the condition. Moving back to Pending,
        or to Terminated, removes it from its worker.

        Args:
            phase: the new phase. Use `assign` for Scheduled, since that takes a worker.
            reason: why, as one CamelCase word for programs; the phase if empty.
            message: why, for people.
            at: when, UTC; now if None.

        Raises:
            InvalidResourceError: the transition is not in `kvorum.lab.LEGAL_INSTANCE_MOVES`, or the
                phase requires a worker and the lab has none. Nothing was changed.
        """
        self._check_move(phase)
        if phase.has_owner and not self.status.worker:
            raise InvalidResourceError(
                self._subject, f"it is on no worker, so it cannot be {phase}; assign one"
            )
        enter(
            self.status,
            phase,
            is_ready=phase == LabInstancePhase.RUNNING,
            reason=reason,
            message=message,
            at=at,
            generation=self.metadata.generation,
        )

    def _check_move(self, phase: LabInstancePhase) -> None:
        check_move(self._subject, LEGAL_INSTANCE_MOVES, self.status.phase, phase)

    # --- time and place ---

    @property
    def lab_id(self) -> str:
        """Its id on workers: `<namespace>/<name>`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def expires_at(self) -> datetime | None:
        """When its duration has passed; None until it starts to run."""
        started = self.status.started_at
        return started + self.spec.duration if started is not None else None

    def is_expired(self, at: datetime | None = None) -> bool:
        """Return whether it still runs although it has expired at `at` (UTC; now if None)."""
        expires = self.expires_at
        is_running = self.status.phase == LabInstancePhase.RUNNING
        return is_running and expires is not None and expires <= (at or datetime.now(UTC))

    @property
    def _subject(self) -> str:
        return f"{self.kind.plural}/{self.lab_id}"
