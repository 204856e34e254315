"""The repository of labs, with finders and counts."""

from collections import Counter
from datetime import UTC, datetime

from kvorum import Client, Repository, ResourceList
from kvorum.lab.instance import LabInstance
from kvorum.lab.instance_phase import LabInstancePhase
from kvorum.repository import OnCorrupt


class LabInstanceRepository(Repository[LabInstance]):
    """The labs. Cheap: make one per request, or keep one.

    Each finder and count reads one revision, of one namespace or all of them. Finders compare spec
    and status, not labels: an owner need not be a valid label value.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client, LabInstance)

    async def find_by_worker(
        self, worker: str, *, namespace: str | None = None, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabInstance]:
        """Return the labs that are on a worker."""
        return await self.list(
            fields={"status.worker": worker}, namespace=namespace, on_corrupt=on_corrupt
        )

    async def find_by_phase(
        self,
        phase: LabInstancePhase,
        *,
        namespace: str | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> ResourceList[LabInstance]:
        """Return the labs in a phase."""
        return await self.list(
            fields={"status.phase": phase}, namespace=namespace, on_corrupt=on_corrupt
        )

    async def find_by_owner(
        self, owner: str, *, namespace: str | None = None, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabInstance]:
        """Return the labs of an owner."""
        return await self.list(
            fields={"spec.owner": owner}, namespace=namespace, on_corrupt=on_corrupt
        )

    async def find_expired(
        self,
        at: datetime | None = None,
        *,
        namespace: str | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> ResourceList[LabInstance]:
        """Return the labs that still run although they have expired at `at` (UTC; now if None)."""
        at = at or datetime.now(UTC)
        running = await self.find_by_phase(
            LabInstancePhase.RUNNING, namespace=namespace, on_corrupt=on_corrupt
        )
        return ResourceList(
            (lab for lab in running if lab.is_expired(at)),
            running.resource_version,
            corrupt=running.corrupt,
        )

    async def count_by_phase(
        self, *, namespace: str | None = None, on_corrupt: OnCorrupt = "fail"
    ) -> dict[LabInstancePhase, int]:
        """Count the labs in each phase; a phase without labs has 0."""
        counts = Counter(
            lab.status.phase for lab in await self.list(namespace=namespace, on_corrupt=on_corrupt)
        )
        return {phase: counts[phase] for phase in LabInstancePhase}
