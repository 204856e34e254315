"""What a repository promises about updates, on both stores."""

import asyncio
import copy
from collections.abc import Callable
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import msgspec
import pytest
from tests.kinds import (
    Task,
    TeamTask,
    task,
    task_by_hand,
    team_task,
    version_of,
)

import kvorum
from kvorum import (
    AlreadyExistsError,
    ConflictError,
    InvalidResourceError,
    NotFoundError,
    Operation,
    Repository,
)


async def revision_of(store: kvorum.StorageBackend) -> int:
    return (await store.list("", limit=1)).revision


# --- update ---------------------------------------------------------------------------------------


async def test_update_stores_the_change_and_returns_it_as_a_read_would_give_it(
    tasks: Repository[Task],
) -> None:
    added = await tasks.add(task())
    added.spec.owner = "ann"
    updated = await tasks.update(added)

    assert updated == await tasks.get("a")
    assert updated.spec.owner == "ann"
    assert version_of(updated) > version_of(added)
    assert updated.metadata.uid == added.metadata.uid
    assert updated.metadata.creation_timestamp == added.metadata.creation_timestamp


async def test_generation_counts_the_changes_of_the_spec_alone(tasks: Repository[Task]) -> None:
    current = await tasks.add(task())
    current.metadata.labels["x"] = "y"
    current.status.phase = "Done"
    current = await tasks.update(current)
    assert current.metadata.generation == 1
    current.spec.owner = "ann"
    current = await tasks.update(current)
    assert current.metadata.generation == 2
    current = await tasks.patch("a", {"spec": {"owner": "bob"}})
    assert current.metadata.generation == 3


async def test_an_update_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    added = await tasks.add(task())
    revision = await revision_of(store)
    requests.clear()
    updated = await tasks.update(added)

    assert updated == added
    assert requests == ["read"]
    assert await revision_of(store) == revision


async def test_an_update_that_changes_only_what_the_store_owns_changes_nothing(
    tasks: Repository[Task],
) -> None:
    added = await tasks.add(task())
    changed = copy.deepcopy(added)
    changed.metadata.uid = "other"
    changed.metadata.generation = 77
    changed.metadata.creation_timestamp = None
    changed.metadata.deletion_timestamp = datetime.now(UTC)

    assert await tasks.update(changed) == added
    assert await tasks.get("a") == added


@pytest.mark.parametrize("owner", ["", "bob"], ids=["equal", "changed"])
async def test_a_stale_update_conflicts_whether_it_changes_anything_or_not(
    tasks: Repository[Task], requests: list[str], owner: str
) -> None:
    stale = await tasks.add(task())
    current = await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    stale.spec.owner = owner
    requests.clear()

    with pytest.raises(ConflictError) as caught:
        await tasks.update(stale)

    assert caught.value.subject == "tasks/a"
    assert caught.value.expected == version_of(stale)
    assert caught.value.current == current
    assert len(requests) == 1  # what is there now came with the refusal
    assert await tasks.get("a") == current


async def test_the_resource_that_a_conflict_carries_can_be_updated_at_once(
    tasks: Repository[Task],
) -> None:
    stale = await tasks.add(task())
    await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    stale.spec.owner = "ann"
    with pytest.raises(ConflictError) as caught:
        await tasks.update(stale)

    current: Task = caught.value.current
    current.spec.owner = "ann"
    updated = await tasks.update(current)

    assert updated.metadata.labels == {"x": "y"}
    assert updated.spec.owner == "ann"


@pytest.mark.parametrize("owner", ["", "bob"], ids=["equal", "changed"])
async def test_a_resource_that_is_gone_cannot_be_updated(
    tasks: Repository[Task], owner: str
) -> None:
    added = await tasks.add(task())
    await tasks.delete("a")
    added.spec.owner = owner

    with pytest.raises(NotFoundError) as caught:
        await tasks.update(added)

    assert caught.value.subject == "tasks/a"
    assert not await tasks.exists("a")


async def test_a_resource_that_was_deleted_and_added_again_is_not_the_one_that_was_read(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task())
    await tasks.delete("a")
    second = await tasks.add(task())
    first.spec.owner = "ann"

    with pytest.raises(ConflictError) as caught:
        await tasks.update(first)

    assert caught.value.current == second
    assert caught.value.current.metadata.uid != first.metadata.uid


async def test_a_resource_that_was_never_read_cannot_be_updated(
    tasks: Repository[Task], requests: list[str]
) -> None:
    with pytest.raises(InvalidResourceError, match="add it"):
        await tasks.update(task())

    assert requests == []


async def test_a_resource_that_was_renamed_never_overwrites_another(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """Two resources written in one transaction share a version: it does not tell them apart."""
    await store.commit(
        [
            Operation.create("tasks/a", task_by_hand("a", spec={"owner": "ann"})),
            Operation.create("tasks/b", task_by_hand("b", spec={"owner": "bob"})),
        ]
    )
    renamed = await tasks.get("a")
    renamed.metadata.name = "b"
    renamed.spec.owner = "eve"

    with pytest.raises(kvorum.KvorumError):
        await tasks.update(renamed)

    assert (await tasks.get("b")).spec.owner == "bob"


async def test_one_of_two_updates_of_the_same_version_conflicts(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    one, two = await tasks.get("a"), await tasks.get("a")
    one.spec.owner, two.spec.owner = "one", "two"
    results = await asyncio.gather(tasks.update(one), tasks.update(two), return_exceptions=True)

    (winner,) = [result for result in results if isinstance(result, Task)]
    (loser,) = [result for result in results if isinstance(result, ConflictError)]
    assert loser.current == winner == await tasks.get("a")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
async def test_a_copy_is_updated_like_the_original(
    tasks: Repository[Task], requests: list[str], copied: Callable[[Task], Task]
) -> None:
    other = copied(await tasks.add(task()))
    other.spec.owner = "ann"
    requests.clear()
    updated = await tasks.update(other)

    assert requests == ["transaction"]
    assert updated == await tasks.get("a")


# --- many at once ---------------------------------------------------------------------------------


async def test_of_many_that_are_added_each_has_a_result_of_its_own(tasks: Repository[Task]) -> None:
    there = await tasks.add(task("there"))

    results = await tasks.add_many([task("a"), task("there"), task("No Name"), task("b")])

    assert [type(result) for result in results] == [
        Task,
        AlreadyExistsError,
        InvalidResourceError,
        Task,
    ]
    assert [result for result in results if isinstance(result, Task)] == [
        await tasks.get("a"),
        await tasks.get("b"),
    ]
    assert await tasks.get("there") == there


async def test_of_many_that_are_read_each_has_a_result_of_its_own(tasks: Repository[Task]) -> None:
    added = await tasks.add_many(task(f"t{number}") for number in range(500))

    results = await tasks.get_many([*(f"t{number}" for number in range(500)), "absent", "t0"])

    assert results[:500] == added
    assert isinstance(results[500], NotFoundError)
    assert results[501] == added[0]
    assert await tasks.get_many([]) == []


async def test_of_many_that_are_updated_each_has_a_result_of_its_own(
    tasks: Repository[Task],
) -> None:
    await tasks.add_many(task(f"t{number}") for number in range(100))
    mine = list(await tasks.list())
    for each in mine:
        each.status.phase = "Done"
    faster = await tasks.patch("t7", {"status": {"phase": "Faster"}})

    results = await tasks.update_many(mine)

    conflicts = [result for result in results if isinstance(result, ConflictError)]
    assert [conflict.current for conflict in conflicts] == [faster]
    assert (
        len(
            [
                result
                for result in results
                if isinstance(result, Task) and result.status.phase == "Done"
            ]
        )
        == 99
    )


async def test_an_error_that_is_not_kvorums_is_no_result(
    tasks: Repository[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a bug of the program: it cancels the other calls and must not go unnoticed."""

    async def get(name: str, *, namespace: str | None) -> Task:
        if name == "b":
            raise ZeroDivisionError
        await anyio.sleep_forever()
        raise AssertionError(namespace)

    monkeypatch.setattr(tasks, "get", get)
    with pytest.raises(ExceptionGroup) as caught:
        await tasks.get_many(["a", "b"])
    assert caught.group_contains(ZeroDivisionError)


async def test_many_in_a_namespace_are_found_there(client: kvorum.Client) -> None:
    tasks = client.repository(TeamTask)
    await tasks.add_many([team_task("x", "a"), team_task("y", "a")])

    (found,) = await tasks.get_many(["a"], namespace="y")

    assert isinstance(found, TeamTask)
    assert found.metadata.namespace == "y"


# --- update of what came from elsewhere -----------------------------------------------------------


async def test_a_resource_that_came_from_elsewhere_is_updated_by_its_version(
    tasks: Repository[Task],
) -> None:
    """From an HTTP request, say: it carries its version, but not its stored bytes."""
    added = await tasks.add(task(owner="ann", labels={"x": "y"}))
    sent = msgspec.json.decode(msgspec.json.encode(added), type=Task)
    assert sent == added
    sent.spec.owner = "bob"
    updated = await tasks.update(sent)

    assert updated == await tasks.get("a")
    assert updated.spec.owner == "bob"
    assert updated.metadata.uid == added.metadata.uid
    assert updated.metadata.generation == 2


async def test_a_stale_resource_from_elsewhere_conflicts(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    current = await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))

    with pytest.raises(ConflictError) as caught:
        await tasks.update(task(resource_version=version_of(added)))

    assert caught.value.current == current
    with pytest.raises(NotFoundError):
        await tasks.update(task("missing", resource_version=version_of(added)))


async def test_fields_that_the_sender_of_a_resource_does_not_know_survive(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    revision = await store.set(
        "tasks/a", task_by_hand("a", spec={"owner": "ann", "colour": "blue"})
    )
    await tasks.update(task(owner="bob", resource_version=revision))

    entry = await store.get("tasks/a")
    assert entry is not None
    assert msgspec.json.decode(entry.value)["spec"] == {"owner": "bob", "colour": "blue"}


# --- update_status --------------------------------------------------------------------------------


async def test_update_status_stores_the_status_alone(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task(owner="ann"))
    added.status.phase = "Done"
    added.spec.owner = "bob"
    added.metadata.labels["x"] = "y"
    requests.clear()
    updated = await tasks.update_status(added)

    assert requests == ["transaction"]
    assert updated == await tasks.get("a")
    assert updated.status.phase == "Done"
    assert updated.spec.owner == "ann"
    assert updated.metadata.labels == {}
    assert updated.metadata.generation == 1


async def test_a_stale_update_of_the_status_conflicts(tasks: Repository[Task]) -> None:
    stale = await tasks.add(task())
    current = await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    stale.status.phase = "Done"

    with pytest.raises(ConflictError) as caught:
        await tasks.update_status(stale)

    assert caught.value.current == current


async def test_an_update_of_the_status_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    added = await tasks.add(task())
    added.spec.owner = "bob"
    revision = await revision_of(store)

    assert version_of(await tasks.update_status(added)) == version_of(added)
    assert await revision_of(store) == revision
