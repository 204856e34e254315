"""What a repository promises about lists, counts and namespaces, on both stores."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
from tests.kinds import (
    Task,
    TaskSpec,
    TaskStatus,
    TeamTask,
    task,
    task_by_hand,
    team_task,
    version_of,
)

import kvorum
from kvorum import (
    FutureRevisionError,
    InvalidResourceError,
    InvalidSelectorError,
    Kind,
    Metadata,
    Operation,
    Repository,
    Resource,
)
from kvorum.lab import LabWorker, LabWorkerPhase, LabWorkerRepository

DEADLINE = 10.0


class OldTask(Resource[TaskSpec, TaskStatus]):
    """Its plural starts with that of `Task`."""

    kind: ClassVar[Kind] = Kind("Task", plural="tasks-old", api_version="test.kvorum.dev/v1")


async def revision_of(store: kvorum.StorageBackend) -> int:
    return (await store.list("", limit=1)).revision


# --- list and count -------------------------------------------------------------------------------


async def test_a_list_is_a_sequence_in_the_order_of_names_at_one_revision(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    added = [await tasks.add(task(name)) for name in ("c", "a", "b")]
    revision = await revision_of(store)
    requests.clear()
    listed = await tasks.list()

    assert requests == ["read"]
    assert list(listed) == sorted(added, key=lambda each: each.metadata.name)
    assert len(listed) == 3
    assert listed[0] in listed
    assert listed.resource_version == revision


async def test_an_empty_list_has_a_version_to_watch_from(tasks: Repository[Task]) -> None:
    listed = await tasks.list()

    assert list(listed) == []
    assert await tasks.count() == 0
    assert listed.resource_version > 0


@pytest.mark.parametrize(("number", "pages"), [(9, 1), (10, 1), (11, 2), (35, 4)])
async def test_a_list_takes_a_request_for_each_page(
    small_pages: Repository[Task],
    store: kvorum.StorageBackend,
    requests: list[str],
    number: int,
    pages: int,
) -> None:
    names = [f"t{n:03}" for n in range(number)]
    await store.commit([Operation.create(f"tasks/{name}", task_by_hand(name)) for name in names])
    requests.clear()
    listed = await small_pages.list()

    assert requests == ["read"] * pages
    assert [each.metadata.name for each in listed] == names


async def test_a_list_of_many_pages_is_of_one_revision_while_others_write(
    small_pages: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """The first and the last are always written together, so they never differ."""
    names = [f"t{n:03}" for n in range(45)]
    await store.commit(
        [
            Operation.create(f"tasks/{name}", task_by_hand(name, spec={"owner": "0"}))
            for name in names
        ]
    )
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            both = (names[0], names[-1])
            await store.commit(
                [
                    Operation.put(f"tasks/{n}", task_by_hand(n, spec={"owner": str(number)}))
                    for n in both
                ]
            )
            await store.set("tasks/t000-between", task_by_hand("t000-between"))
            await store.delete("tasks/t000-between")

    writing = asyncio.create_task(write())
    owners = set()
    for _ in range(30):
        listed = await small_pages.list()
        assert listed[0].spec.owner == listed[-1].spec.owner
        assert max(version_of(each) for each in listed) <= listed.resource_version
        assert [
            each.metadata.name for each in listed if each.metadata.name != "t000-between"
        ] == names
        assert list(await small_pages.list(at=listed.resource_version)) == list(listed)
        owners.add(listed[0].spec.owner)
    stop = True
    await writing

    assert len(owners) > 1  # the writer did write in between


async def test_a_list_at_a_version_is_the_state_then(tasks: Repository[Task]) -> None:
    first = await tasks.add(task("a"))
    second = await tasks.add(task("b"))
    third = await tasks.delete("a")

    assert list(await tasks.list(at=version_of(first))) == [first]
    assert list(await tasks.list(at=version_of(second))) == [first, second]
    assert list(await tasks.list(at=version_of(third))) == [second]
    with pytest.raises(FutureRevisionError):
        await tasks.list(at=version_of(third) + 1_000_000)


async def test_selectors_narrow_a_list_and_a_count(client: kvorum.Client) -> None:
    workers = LabWorkerRepository(client)
    for name, track, phase in (
        ("w1", "nets", LabWorkerPhase.READY),
        ("w2", "nets", LabWorkerPhase.PENDING),
        ("w3", "security", LabWorkerPhase.READY),
    ):
        worker = LabWorker.new(name, lab_track=track)
        worker.status.phase = phase
        await workers.add(worker)

    async def names(**selectors: Any) -> list[str]:
        found = [worker.metadata.name for worker in await workers.list(**selectors)]
        assert await workers.count(**selectors) == len(found)
        return found

    assert await names(labels="lab-track=nets") == ["w1", "w2"]
    assert await names(labels={"lab-track": "nets"}) == ["w1", "w2"]
    assert await names(labels="lab-track!=nets") == ["w3"]
    assert await names(fields="status.phase=Ready") == ["w1", "w3"]
    assert await names(labels="lab-track=nets", fields="status.phase=Ready") == ["w1"]
    assert await names(labels="other") == []
    assert await names() == ["w1", "w2", "w3"]
    with pytest.raises(InvalidSelectorError):
        await workers.list(labels="a=b=c")
    with pytest.raises(InvalidSelectorError):
        await workers.count(fields="spec.nonsense=1")


async def test_a_count_without_selectors_reads_no_values(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    await tasks.add(task("a"))
    await store.set("tasks/b", b"not even JSON")
    requests.clear()

    assert await tasks.count() == 2
    assert requests == ["read"]


async def test_kinds_whose_plurals_share_a_prefix_are_separate(
    client: kvorum.Client,
) -> None:
    tasks, olds = client.repository(Task), client.repository(OldTask)
    mine = await tasks.add(task("a"))
    old = await olds.add(
        OldTask(metadata=Metadata(name="a"), spec=TaskSpec(owner="old"), status=TaskStatus())
    )
    async with tasks.watch(since=version_of(mine)) as watch:
        assert list(await tasks.list()) == [mine]
        assert list(await olds.list()) == [old]
        assert (await tasks.count(), await olds.count()) == (1, 1)
        await tasks.delete("a")
        assert list(await olds.list()) == [old]
        await olds.delete("a")
        again = await tasks.add(task("a"))

        with anyio.fail_after(DEADLINE):
            shown = [await anext(watch), await anext(watch)]
        assert [type(event) for event in shown] == [kvorum.Deleted, kvorum.Added]
        assert shown[1].resource_version == version_of(again)


# --- namespaces -----------------------------------------------------------------------------------


async def test_each_namespace_can_have_a_resource_with_the_same_name(client: kvorum.Client) -> None:
    tasks = client.repository(TeamTask)
    ann = await tasks.add(team_task("team-a", "x", owner="ann"))
    bob = await tasks.add(team_task("team-ab", "x", owner="bob"))

    assert await tasks.get("x", namespace="team-a") == ann
    assert await tasks.get("x", namespace="team-ab") == bob
    assert await tasks.get("x", None, namespace="team-c") is None
    assert list(await tasks.list()) == [ann, bob]
    assert list(await tasks.list(namespace="team-a")) == [ann]
    assert await tasks.count(namespace="team-ab") == 1
    assert await tasks.count() == 2


async def test_every_verb_works_in_a_namespace(
    client: kvorum.Client, store: kvorum.StorageBackend
) -> None:
    tasks = client.repository(TeamTask)
    current = await tasks.add(team_task("team-a", "x"))
    other = await tasks.add(team_task("team-b", "x"))
    assert await store.exists("team-tasks/team-a/x")
    assert await tasks.exists("x", namespace="team-a")

    current.spec.owner = "ann"
    current = await tasks.update(current)
    current.status.phase = "Done"
    current = await tasks.update_status(current)
    current = await tasks.mutate("x", lambda c: c.metadata.labels.update(a="b"), namespace="team-a")
    current = await tasks.patch("x", {"spec": {"wantedCopies": 3}}, namespace="team-a")
    assert current == await tasks.get("x", namespace="team-a")
    assert current.spec == TaskSpec(owner="ann", wanted_copies=3)
    deleted = await tasks.delete("x", namespace="team-a")

    assert deleted.metadata.namespace == "team-a"
    assert list(await tasks.list()) == [other]


async def test_a_namespace_is_needed_where_there_are_some_and_refused_where_there_are_none(
    client: kvorum.Client, tasks: Repository[Task], requests: list[str]
) -> None:
    team_tasks = client.repository(TeamTask)
    requests.clear()
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: team_tasks.add(team_task(None, "x")),
        lambda: team_tasks.get("x"),
        lambda: team_tasks.get("x", namespace=""),
        lambda: team_tasks.get("x", namespace="a/b"),
        lambda: team_tasks.get("x", namespace="A"),
        lambda: team_tasks.delete("x"),
        lambda: team_tasks.list(namespace="a/"),
        lambda: team_tasks.list(namespace=""),
        lambda: tasks.add(task("x", namespace="a")),
        lambda: tasks.get("x", namespace="a"),
        lambda: tasks.list(namespace="a"),
        lambda: tasks.count(namespace="a"),
    ]

    for verb in verbs:
        with pytest.raises(InvalidResourceError):
            await verb()
    assert requests == []
