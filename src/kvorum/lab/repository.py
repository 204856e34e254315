"""Where lab workers are kept, and the questions that are asked about them."""

from collections import Counter

from kvorum import Client, Repository, ResourceList
from kvorum.lab.phase import ACTIVE_PHASES, LabWorkerPhase
from kvorum.lab.worker import LabWorker
from kvorum.repository import OnCorrupt


class LabWorkerRepository(Repository[LabWorker]):
    """The lab workers. Cheap: make one per request, or keep one.

    Each finder and count is about one revision. Finders go by what the spec and status say, not by
    labels: that reads every worker, but it also finds one that was written by hand without its
    label. A value that is no worker makes them fail, or is left out with `on_corrupt="collect"`;
    `ResourceList.corrupt` names it.
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
        """Return the workers in phase Draining: they take no more labs."""
        return await self.find_by_phase(LabWorkerPhase.DRAINING, on_corrupt=on_corrupt)

    async def find_active_workers(
        self, *, on_corrupt: OnCorrupt = "fail"
    ) -> ResourceList[LabWorker]:
        """Return the workers that are Ready or Draining.

        The Lab Resource Manager calls these active. Those in the phase Active are not among them:
        ask `find_by_phase`.
        """
        # One list: two of them could show a worker that starts draining twice, or not at all.
        workers = await self.list(on_corrupt=on_corrupt)
        active = (worker for worker in workers if worker.status.phase in ACTIVE_PHASES)
        return ResourceList(active, workers.resource_version, corrupt=workers.corrupt)

    async def count_by_phase(self, *, on_corrupt: OnCorrupt = "fail") -> dict[LabWorkerPhase, int]:
        """Count the workers in each phase; a phase without workers has 0."""
        counts = Counter(worker.status.phase for worker in await self.list(on_corrupt=on_corrupt))
        return {phase: counts[phase] for phase in LabWorkerPhase}

    async def count_by_lab_track(self, *, on_corrupt: OnCorrupt = "fail") -> dict[str, int]:
        """Count the workers for each lab track that has any, in the order of the tracks."""
        counts = Counter(worker.spec.lab_track for worker in await self.list(on_corrupt=on_corrupt))
        return dict(sorted(counts.items()))
