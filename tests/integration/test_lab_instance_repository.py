"""The finders of labs, and the phases of a lab on a worker, on both stores."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

import kvorum
from kvorum.lab import (
    InsufficientCapacityError,
    LabInstance,
    LabInstancePhase,
    LabInstanceRepository,
    LabWorker,
    LabWorkerPhase,
    LabWorkerRepository,
    ResourceQuantity,
)

P = LabInstancePhase
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def by_hand(namespace: str, name: str, owner: str, **status: object) -> kvorum.Operation:
    """A lab written by hand, with the required fields only."""
    value: dict[str, object] = {
        "apiVersion": "lab.kvorum.dev/v1",
        "kind": "LabInstance",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": "t", "owner": owner, "duration": "PT1H"},
    }
    if status:
        value["status"] = status
    return kvorum.Operation.create(f"lab-instances/{namespace}/{name}", msgspec.json.encode(value))


@pytest.fixture
async def labs(client: kvorum.Client) -> LabInstanceRepository:
    await client.backend.commit(
        [
            by_hand("ccna", "fresh", "ada@example.org"),
            by_hand(
                "ccna",
                "long",
                "bob",
                phase="Running",
                worker="w1",
                startedAt="2026-01-02T11:00:01Z",
            ),
            by_hand(
                "ccna",
                "over",
                "ada@example.org",
                phase="Running",
                worker="w1",
                startedAt="2026-01-02T11:00:00Z",
            ),
            by_hand(
                "ccnp",
                "over",
                "bob",
                phase="Running",
                worker="w2",
                startedAt="2026-01-01T00:00:00Z",
            ),
            by_hand(
                "ccnp",
                "stopping",
                "a, b = c",
                phase="Stopping",
                worker="w1",
                startedAt="2026-01-01T00:00:00Z",
            ),
        ]
    )
    return LabInstanceRepository(client)


def ids(found: kvorum.ResourceList[LabInstance]) -> list[str]:
    return [lab.lab_id for lab in found]


async def test_labs_are_found_by_their_worker(labs: LabInstanceRepository) -> None:
    assert ids(await labs.find_by_worker("w1")) == ["ccna/long", "ccna/over", "ccnp/stopping"]
    assert ids(await labs.find_by_worker("w1", namespace="ccnp")) == ["ccnp/stopping"]
    assert ids(await labs.find_by_worker("w3")) == []


async def test_labs_are_found_by_their_phase_also_if_it_is_not_stored(
    labs: LabInstanceRepository,
) -> None:
    assert ids(await labs.find_by_phase(P.PENDING)) == ["ccna/fresh"]
    assert ids(await labs.find_by_phase(P.RUNNING, namespace="ccna")) == ["ccna/long", "ccna/over"]


async def test_any_text_may_be_asked_for_as_an_owner(labs: LabInstanceRepository) -> None:
    """It is compared, not parsed: a comma in it is no operator."""
    assert ids(await labs.find_by_owner("ada@example.org")) == ["ccna/fresh", "ccna/over"]
    assert ids(await labs.find_by_owner("a, b = c")) == ["ccnp/stopping"]
    assert ids(await labs.find_by_owner("bob", namespace="ccna")) == ["ccna/long"]
    assert ids(await labs.find_by_owner("bob,status.phase=Running")) == []


async def test_labs_whose_time_is_up_are_found_as_long_as_they_run(
    labs: LabInstanceRepository,
) -> None:
    assert ids(await labs.find_expired(NOON)) == ["ccna/over", "ccnp/over"]
    assert ids(await labs.find_expired(NOON, namespace="ccnp")) == ["ccnp/over"]
    assert ids(await labs.find_expired(NOON + timedelta(seconds=1))) == [
        "ccna/long",
        "ccna/over",
        "ccnp/over",
    ]
    assert ids(await labs.find_expired()) == ["ccna/long", "ccna/over", "ccnp/over"]


async def test_labs_are_counted_by_phase(labs: LabInstanceRepository) -> None:
    counts = await labs.count_by_phase()

    assert {phase: count for phase, count in counts.items() if count} == {
        P.PENDING: 1,
        P.RUNNING: 3,
        P.STOPPING: 1,
    }
    assert set(counts) == set(P)
    assert (await labs.count_by_phase(namespace="ccnp"))[P.RUNNING] == 1


async def test_every_finder_shows_one_revision(
    labs: LabInstanceRepository, client: kvorum.Client
) -> None:
    now = (await client.backend.list("", limit=1)).revision

    for found in (
        await labs.find_by_worker("w1"),
        await labs.find_by_phase(P.RUNNING),
        await labs.find_by_owner("bob"),
        await labs.find_expired(NOON),
    ):
        assert found.resource_version == now


async def test_a_name_is_of_its_namespace(labs: LabInstanceRepository) -> None:
    assert (await labs.get("over", namespace="ccna")).spec.owner == "ada@example.org"
    assert (await labs.get("over", namespace="ccnp")).spec.owner == "bob"
    async with labs.watch(namespace="ccnp") as watch:
        await labs.delete("over", namespace="ccna")
        deleted = await labs.delete("over", namespace="ccnp")

        assert await anext(watch) == kvorum.Deleted(deleted)


async def test_a_lab_is_placed_runs_out_of_time_and_is_gone_from_its_worker(
    client: kvorum.Client,
) -> None:
    workers, labs = LabWorkerRepository(client), LabInstanceRepository(client)
    worker = LabWorker.new("w1", lab_track="ccna")
    worker.status.phase = LabWorkerPhase.READY
    worker.status.total_capacity = ResourceQuantity(
        cpu_cores=8, memory_mb=8000, storage_gb=100, nodes=5
    )
    await workers.add(worker)
    wanted = ResourceQuantity(cpu_cores=6, nodes=4)
    first, second = [
        await labs.add(
            LabInstance.new(name, namespace="ccna", template="t", owner="ada", resources=wanted)
        )
        for name in ("first", "second")
    ]

    async def place(lab: LabInstance) -> LabInstance:
        await workers.mutate("w1", lambda worker: worker.host_lab(lab.lab_id, lab.spec.resources))
        return await labs.mutate(lab.metadata.name, lambda lab: lab.assign("w1"), namespace="ccna")

    first = await place(first)
    with pytest.raises(InsufficientCapacityError):
        await place(second)
    assert (await workers.get("w1")).status.hosted_lab_ids == ("ccna/first",)

    for phase in (P.STARTING, P.RUNNING):
        first.move_to(phase, at=NOON)
        first = await labs.update_status(first)
    (expired,) = await labs.find_expired(NOON + timedelta(hours=4))
    for phase in (P.STOPPING, P.TERMINATED):
        expired.move_to(phase, reason="Expired")
        expired = await labs.update_status(expired)
    await workers.mutate("w1", lambda worker: worker.release_lab(expired.lab_id))

    assert ids(await labs.find_by_worker("w1")) == []
    second = await place(second)
    assert second.status.worker == "w1"
    assert (await workers.get("w1")).status.phase == LabWorkerPhase.ACTIVE
