"""The repository of lab workers, with finders and counts."""

from collections import Counter

from kvorum import Client, Repository, ResourceList
from kvorum.lab.phase import ACTIVE_PHASES, LabWorkerPhase
from kvorum.lab.worker import LabWorker
from kvorum.repository import OnCorrupt


class LabWorkerRepository(Repository[LabWorker]):
    """The lab workers. Cheap: make one per request, or keep one.

    Each finder and count reads one revision. Finders compare spec and status, not labels: they read
    every worker, but also find one that was written by hand without its label. They fail if a value
    is not a worker; with `on_corrupt="collect"` they skip it, and `ResourceList.corrupt` names it.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client, LabWorker)

    async def find_by_lab_track(
        self, lab_track: str, *, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabWorker]:
        """Return the workers for a lab track, by `spec.labTrack`."""
        return await self.list(fields={"spec.labTrack": lab_track}, on_corrupt=on_corrupt)

    async def find_by_phase(
        self, phase: LabWorkerPhase, *, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabWorker]:
        """Return the workers in a phase."""
        return await self.list(fields={"status.phase": phase}, on_corrupt=on_corrupt)

    async def find_ready_workers(
        self, *, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabWorker]:
        """Return the workers in phase Ready: licensed, and waiting for labs."""
        return await self.find_by_phase(LabWorkerPhase.READY, on_corrupt=on_corrupt)

    async def find_draining_workers(
        self, *, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabWorker]:
        """Return the workers in phase Draining: they accept no new labs."""
        return await self.find_by_phase(LabWorkerPhase.DRAINING, on_corrupt=on_corrupt)

    async def find_active_workers(
        self, *, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabWorker]:
        """Return the workers that are Ready or Draining.

        The Lab Resource Manager calls these active. Workers in the phase Active are not included:
        use `find_by_phase`.
        """
        # One list: of two, both or neither could contain a worker that starts draining.
        workers = await self.list(on_corrupt=on_corrupt)
        active = (worker for worker in workers if worker.status.phase in ACTIVE_PHASES)
        return ResourceList(active, workers.resource_version, corrupt=workers.corrupt)

    async def count_by_phase(self, *, on_corrupt: OnCorrupt = "fail") -> dict[LabWorkerPhase, int]:
        """Count the workers in each phase; a phase without workers has 0."""
        counts = Counter(worker.status.phase for worker in await self.list(on_corrupt=on_corrupt))
        return {phase: counts[phase] for phase in LabWorkerPhase}

    async def count_by_lab_track(self, *, on_corrupt: OnCorrupt = "fail") -> dict[str, int]:
        """Count the workers of each lab track that has any, sorted by track."""
        counts = Counter(worker.spec.lab_track for worker in await self.list(on_corrupt=on_corrupt))
        return dict(sorted(counts.items()))
