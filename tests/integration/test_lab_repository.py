"""The finders and counts of lab workers, each at one revision."""

from collections.abc import Callable

import msgspec
import pytest

import kvorum
from kvorum.lab import LabWorker, LabWorkerPhase, LabWorkerRepository

P = LabWorkerPhase


def by_hand(name: str, lab_track: str, status: dict[str, str] | None = None) -> kvorum.Operation:
    """A worker written by hand, with the required fields only, and without its label."""
    value: dict[str, object] = {
        "apiVersion": "lab.kvorum.dev/v1",
        "kind": "LabWorker",
        "metadata": {"name": name},
        "spec": {"labTrack": lab_track},
    }
    if status is not None:
        value["status"] = status
    return kvorum.Operation.create(f"lab-workers/{name}", msgspec.json.encode(value))


@pytest.fixture
async def workers(client: kvorum.Client) -> LabWorkerRepository:
    await client.backend.commit(
        [
            by_hand("active", "nets", {"phase": "Active"}),
            by_hand("draining", "nets", {"phase": "Draining"}),
            by_hand("fresh", "nets"),
            by_hand("pending", "security", {"phase": "Pending"}),
            by_hand("ready-1", "security", {"phase": "Ready"}),
            by_hand("ready-2", "a, b = c", {"phase": "Ready"}),
            by_hand("unlicensed", "nets", {"phase": "ReadyUnlicensed"}),
        ]
    )
    return LabWorkerRepository(client)


def move_to(phase: LabWorkerPhase) -> Callable[[LabWorker], None]:
    return lambda worker: worker.move_to(phase)


def names(found: kvorum.ResourceList[LabWorker]) -> list[str]:
    return [worker.metadata.name for worker in found]


async def test_workers_are_found_by_their_track_whether_labelled_or_not(
    workers: LabWorkerRepository,
) -> None:
    """A label can be missing; a finder that used it would silently miss the worker."""
    assert names(await workers.find_by_lab_track("security")) == ["pending", "ready-1"]


async def test_any_text_may_be_asked_for_as_a_track(workers: LabWorkerRepository) -> None:
    """It is compared, not parsed: a comma in it is no operator."""
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
    """Including those whose bytes have no phase: they are Pending."""
    assert names(await workers.find_by_phase(phase)) == expected


async def test_ready_draining_and_active_workers_have_finders_of_their_own(
    workers: LabWorkerRepository,
) -> None:
    assert names(await workers.find_ready_workers()) == ["ready-1", "ready-2"]
    assert names(await workers.find_draining_workers()) == ["draining"]
    assert names(await workers.find_active_workers()) == ["draining", "ready-1", "ready-2"]


async def test_active_workers_are_found_at_one_revision(workers: LabWorkerRepository) -> None:
    """In two lists, a worker that starts draining in between would be in both, or in neither."""
    found = await workers.find_active_workers()

    assert found.resource_version == (await workers.list()).resource_version


async def test_a_worker_goes_through_its_life_by_mutations(workers: LabWorkerRepository) -> None:
    """The table of moves and the compare-and-swap together: an illegal move writes nothing."""
    worker = await workers.add(LabWorker.new("w", lab_track="nets"))
    for phase in (
        P.PROVISIONING_EC2,
        P.EC2_READY,
        P.STARTING,
        P.READY_UNLICENSED,
        P.LICENSING,
        P.READY,
    ):
        worker = await workers.mutate("w", move_to(phase))

    with pytest.raises(kvorum.InvalidResourceError, match="it cannot go from Ready to Terminated"):
        await workers.mutate("w", move_to(P.TERMINATED))

    assert await workers.get("w") == worker
    assert [
        condition.status for condition in worker.status.conditions if condition.type == "Ready"
    ] == ["True"]


async def test_a_worker_that_breaks_rules_is_refused_with_all_of_them(
    workers: LabWorkerRepository,
) -> None:
    wrong = LabWorker.new("w", lab_track="no track!")
    wrong.spec.aws.ami_id = "foo"

    with pytest.raises(kvorum.InvalidResourceError) as caught:
        await workers.add(wrong)

    assert len(caught.value.problems) >= 2
    assert not await workers.exists("w")


async def test_every_phase_is_counted(workers: LabWorkerRepository) -> None:
    """Including phases without workers: a dashboard shows a 0, not a gap."""
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
