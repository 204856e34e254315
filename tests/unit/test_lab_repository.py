"""The questions about lab workers, and that each is answered at one revision."""

from typing import cast

import msgspec
import pytest

import kvorum
from kvorum.lab import LabWorker, LabWorkerPhase, LabWorkerRepository

P = LabWorkerPhase


class Shelf:
    """A store that stays as it is: what the finders need of one, with a count of how often they ask."""

    def __init__(self, entries: list[kvorum.Entry]) -> None:
        self.entries = entries
        self.lists = 0

    async def list(self, prefix: str, *, revision: int | None = None) -> kvorum.Page:
        self.lists += 1
        assert (prefix, revision) == ("lab-workers/", None)
        return kvorum.Page(self.entries, revision=42, remaining=0)


def entry(name: str, lab_track: str, status: dict[str, str] | None = None) -> kvorum.Entry:
    """One worker as somebody wrote it by hand: no label, and no more than there must be."""
    value: dict[str, object] = {
        "apiVersion": "lab.kvorum.dev/v1",
        "kind": "LabWorker",
        "metadata": {"name": name},
        "spec": {"labTrack": lab_track},
    }
    if status is not None:
        value["status"] = status
    return kvorum.Entry(f"lab-workers/{name}", msgspec.json.encode(value), mod_revision=7, create_revision=7, version=1)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(
        [
            entry("active", "nets", {"phase": "Active"}),
            entry("draining", "nets", {"phase": "Draining"}),
            entry("fresh", "nets"),
            entry("pending", "security", {"phase": "Pending"}),
            entry("ready-1", "security", {"phase": "Ready"}),
            entry("ready-2", "a, b = c", {"phase": "Ready"}),
            entry("unlicensed", "nets", {"phase": "ReadyUnlicensed"}),
        ]
    )


@pytest.fixture
def workers(shelf: Shelf) -> LabWorkerRepository:
    client = kvorum.connect("etcd://192.0.2.1:2379")  # never opened
    client.backend = cast("kvorum.StorageBackend", shelf)
    return LabWorkerRepository(client)


def names(found: kvorum.ResourceList[LabWorker]) -> list[str]:
    assert found.resource_version == 42
    return [worker.metadata.name for worker in found]


async def test_workers_are_found_by_their_track_whether_labelled_or_not(workers: LabWorkerRepository) -> None:
    """A label can be forgotten; a finder that goes by it would lose a worker without a word."""
    assert names(await workers.find_by_lab_track("security")) == ["pending", "ready-1"]


async def test_any_text_may_be_asked_for_as_a_track(workers: LabWorkerRepository) -> None:
    """It is compared, not parsed: no comma in it asks for something else."""
    assert names(await workers.find_by_lab_track("a, b = c")) == ["ready-2"]
    assert names(await workers.find_by_lab_track("security,status.phase=Ready")) == []


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (P.PENDING, ["fresh", "pending"]),
        (P.READY, ["ready-1", "ready-2"]),
        (P.READY_UNLICENSED, ["unlicensed"]),
        (P.FAILED, []),
    ],
)
async def test_workers_are_found_by_their_phase(
    workers: LabWorkerRepository, phase: LabWorkerPhase, expected: list[str]
) -> None:
    """Also those whose bytes say nothing about it yet: they are Pending."""
    assert names(await workers.find_by_phase(phase)) == expected


async def test_ready_draining_and_active_workers_have_finders_of_their_own(workers: LabWorkerRepository) -> None:
    assert names(await workers.find_ready_workers()) == ["ready-1", "ready-2"]
    assert names(await workers.find_draining_workers()) == ["draining"]
    assert names(await workers.find_active_workers()) == ["draining", "ready-1", "ready-2"]


async def test_active_workers_are_found_in_one_list(workers: LabWorkerRepository, shelf: Shelf) -> None:
    """In two, a worker that starts draining in between would be in both, or in neither."""
    await workers.find_active_workers()

    assert shelf.lists == 1


async def test_every_phase_is_counted(workers: LabWorkerRepository) -> None:
    """Also those that nobody is in: a dashboard shows a 0, not a gap."""
    counts = await workers.count_by_phase()

    assert list(counts) == list(P)
    assert {phase: count for phase, count in counts.items() if count} == {
        P.PENDING: 2,
        P.READY_UNLICENSED: 1,
        P.READY: 2,
        P.ACTIVE: 1,
        P.DRAINING: 1,
    }


async def test_tracks_are_counted_in_order(workers: LabWorkerRepository) -> None:
    counts = await workers.count_by_lab_track()

    assert list(counts.items()) == [("a, b = c", 1), ("nets", 4), ("security", 2)]
