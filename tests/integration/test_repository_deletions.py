"""What a repository promises about deletions and finalizers, on both stores."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.kinds import (
    Task,
    task,
    version_of,
)

import kvorum
from kvorum import (
    AlreadyExistsError,
    ConflictError,
    InvalidResourceError,
    NotFoundError,
    Repository,
)

DEADLINE = 10.0


async def revision_of(store: kvorum.StorageBackend) -> int:
    return (await store.list("", limit=1)).revision


# --- delete ---------------------------------------------------------------------------------------


async def test_delete_returns_the_last_state_at_the_version_of_the_deletion(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    added = await tasks.add(task(owner="ann"))
    deleted = await tasks.delete("a")

    assert version_of(deleted) == await revision_of(store)
    assert version_of(deleted) > version_of(added)
    deleted.metadata.resource_version = version_of(added)
    assert deleted == added
    with pytest.raises(NotFoundError):
        await tasks.delete("a")


@pytest.mark.parametrize("precondition", ["uid", "resource_version"])
async def test_a_deletion_whose_precondition_does_not_hold_is_a_conflict(
    tasks: Repository[Task], requests: list[str], precondition: str
) -> None:
    first = await tasks.add(task())
    await tasks.delete("a")
    second = await tasks.add(task())
    old: Any = first.metadata.uid if precondition == "uid" else version_of(first)
    requests.clear()

    with pytest.raises(ConflictError) as caught:
        await tasks.delete("a", **{precondition: old})

    assert caught.value.expected == old
    assert caught.value.current == second
    assert requests == ["read"]
    assert await tasks.get("a") == second


@pytest.mark.parametrize("precondition", ["uid", "resource_version"])
async def test_a_mutation_or_patch_whose_precondition_does_not_hold_is_a_conflict(
    tasks: Repository[Task], precondition: str
) -> None:
    first = await tasks.add(task("a"))
    await tasks.delete("a")
    second = await tasks.add(task("a"))
    called: list[Task] = []

    def value_of(resource: Task) -> Any:
        return resource.metadata.uid if precondition == "uid" else version_of(resource)

    writes: list[Callable[..., Awaitable[Task]]] = [
        lambda **given: tasks.mutate("a", called.append, **given),
        lambda **given: tasks.patch("a", {"spec": {"owner": "ann"}}, **given),
    ]

    for write in writes:
        with pytest.raises(ConflictError) as caught:
            await write(**{precondition: value_of(first)})
        assert caught.value.expected == value_of(first)
        assert caught.value.current == second
        assert called == []
    assert await tasks.get("a") == second

    patched = await tasks.patch("a", {"spec": {"owner": "ann"}}, **{precondition: value_of(second)})
    assert patched.spec.owner == "ann"
    assert (await tasks.mutate("a", lambda _: None, **{precondition: value_of(patched)})) == patched


async def test_a_mutation_of_a_version_is_not_tried_on_the_next_one(
    tasks: Repository[Task],
) -> None:
    added = await tasks.add(task("a"))
    tries = 0

    async def interfere(current: Task) -> None:
        nonlocal tries
        tries += 1
        await tasks.patch("a", {"spec": {"owner": "bob"}})
        current.spec.owner = "ann"

    with pytest.raises(ConflictError):
        await tasks.mutate("a", interfere, resource_version=version_of(added))

    assert tries == 1
    assert (await tasks.get("a")).spec.owner == "bob"


async def test_a_deletion_whose_preconditions_hold_removes(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    await tasks.delete("a", uid=added.metadata.uid, resource_version=version_of(added))

    assert not await tasks.exists("a")


async def test_one_of_many_concurrent_deletions_succeeds(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    results = await asyncio.gather(*(tasks.delete("a") for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(result, Task) for result in results) == 1
    assert sum(isinstance(result, NotFoundError) for result in results) == 9


async def test_a_deletion_succeeds_although_others_change_the_resource(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task())
    changed = 0

    def label(current: Task, **labels: str) -> None:
        current.metadata.labels.update(labels)

    async def change() -> None:
        nonlocal changed
        try:
            for number in range(1_000):
                await tasks.mutate("a", partial(label, x=str(number)))
                changed += 1
        except NotFoundError:
            return

    changing = asyncio.create_task(change())
    with anyio.fail_after(DEADLINE):
        await tasks.delete("a")
        await changing

    assert not await tasks.exists("a")
    assert changed < 1_000


# --- finalizers -----------------------------------------------------------------------------------


async def test_a_resource_with_finalizers_is_marked_and_stays(tasks: Repository[Task]) -> None:
    added = await tasks.add(task(finalizers=["x.dev/one", "x.dev/two"]))
    marked = await tasks.delete("a")

    assert marked == await tasks.get("a")
    assert marked.metadata.deletion_timestamp is not None
    assert marked.metadata.finalizers == added.metadata.finalizers
    assert version_of(marked) > version_of(added)
    assert marked.metadata.generation == 1


async def test_a_second_deletion_of_a_marked_resource_changes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    await tasks.add(task(finalizers=["x"]))
    marked = await tasks.delete("a")
    revision = await revision_of(store)

    assert await tasks.delete("a") == marked
    assert await revision_of(store) == revision


async def by_update(tasks: Repository[Task]) -> Task:
    current = await tasks.get("a")
    current.metadata.finalizers.clear()
    return await tasks.update(current)


async def by_mutate(tasks: Repository[Task]) -> Task:
    return await tasks.mutate("a", lambda current: current.metadata.finalizers.clear())


async def by_patch(tasks: Repository[Task]) -> Task:
    return await tasks.patch("a", {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("take_off", [by_update, by_mutate, by_patch])
async def test_a_marked_resource_is_removed_with_its_last_finalizer(
    tasks: Repository[Task], take_off: Callable[[Repository[Task]], Awaitable[Task]]
) -> None:
    await tasks.add(task(finalizers=["x"]))
    async with tasks.watch() as watch:
        marked = await tasks.delete("a")
        last = await take_off(tasks)
        with anyio.fail_after(DEADLINE):
            events = [await anext(watch), await anext(watch)]

    assert not await tasks.exists("a")
    assert version_of(last) > version_of(marked)
    assert events[0] == kvorum.Modified(marked, await _previous_of(events[0]))
    assert events[1] == kvorum.Deleted(last)


async def _previous_of(event: kvorum.WatchEvent[Task]) -> Task:
    assert isinstance(event, kvorum.Modified)
    return event.previous


async def test_a_marked_resource_stays_while_it_has_another_finalizer(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task(finalizers=["x", "y"]))
    marked = await tasks.delete("a")
    left = await tasks.mutate("a", lambda current: current.metadata.finalizers.remove("x"))

    assert left.metadata.finalizers == ["y"]
    assert left.metadata.deletion_timestamp == marked.metadata.deletion_timestamp
    assert await tasks.get("a") == left


async def test_a_marked_resource_can_still_be_changed(tasks: Repository[Task]) -> None:
    await tasks.add(task(finalizers=["x"]))
    marked = await tasks.delete("a")
    marked.status.phase = "CleaningUp"
    marked.metadata.deletion_timestamp = None  # the mark itself cannot be taken off
    updated = await tasks.update(marked)

    assert updated.status.phase == "CleaningUp"
    assert updated.metadata.deletion_timestamp is not None


async def test_a_marked_resource_takes_no_new_finalizers(tasks: Repository[Task]) -> None:
    await tasks.add(task(finalizers=["x"]))
    marked = await tasks.delete("a")

    with pytest.raises(InvalidResourceError, match="finalizers"):
        await tasks.mutate("a", lambda current: current.metadata.finalizers.append("y"))
    with pytest.raises(InvalidResourceError, match="finalizers"):
        await tasks.mutate("a", lambda current: current.metadata.finalizers.__setitem__(0, "y"))

    assert await tasks.get("a") == marked


async def test_finalizers_that_are_taken_off_before_a_deletion_do_not_hold_it_up(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task(finalizers=["x"]))
    await by_update(tasks)
    assert await tasks.exists("a")
    await tasks.delete("a")

    assert not await tasks.exists("a")


async def test_the_name_of_a_marked_resource_is_taken_until_it_is_gone(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task(finalizers=["x"]))
    await tasks.delete("a")
    with pytest.raises(AlreadyExistsError):
        await tasks.add(task())
    await by_mutate(tasks)

    assert (await tasks.add(task())).metadata.uid != first.metadata.uid
