"""What a repository promises about mutations and patches, on both stores."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from tests.kinds import (
    Task,
    TaskSpec,
    task,
    version_of,
)

import kvorum
from kvorum import (
    ConflictError,
    InvalidResourceError,
    NotFoundError,
    Repository,
)
from kvorum.lab import LabWorker
from kvorum.repository import ContentionPolicy

DEADLINE = 10.0


# --- mutate ---------------------------------------------------------------------------------------


def in_place(current: Task) -> None:
    current.spec.owner = "ann"


def another(current: Task) -> Task:
    changed = copy.deepcopy(current)
    changed.spec.owner = "ann"
    return changed


async def in_place_later(current: Task) -> None:
    await anyio.lowlevel.checkpoint()
    current.spec.owner = "ann"


async def another_later(current: Task) -> Task:
    await anyio.lowlevel.checkpoint()
    return another(current)


class Changer:
    """A callable object, such as a `functools.partial`."""

    async def __call__(self, current: Task) -> None:
        current.spec.owner = "ann"


@pytest.mark.parametrize("change", [in_place, another, in_place_later, another_later, Changer()])
async def test_a_change_may_be_made_in_place_or_returned_at_once_or_later(
    tasks: Repository[Task], change: Callable[[Task], Any]
) -> None:
    added = await tasks.add(task())
    changed = await tasks.mutate("a", change)

    assert changed == await tasks.get("a")
    assert changed.spec.owner == "ann"
    assert version_of(changed) > version_of(added)


async def test_two_mutations_at_once_both_succeed_and_the_second_sees_the_first(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task())
    reading, committed = anyio.Event(), anyio.Event()
    seen: list[dict[str, str]] = []

    async def second(current: Task) -> None:
        seen.append(dict(current.metadata.annotations))
        reading.set()
        await committed.wait()
        current.metadata.annotations["second"] = "x"

    held = asyncio.create_task(tasks.mutate("a", second))
    await reading.wait()
    await tasks.mutate("a", lambda current: current.metadata.annotations.update(first="x"))
    committed.set()
    result = await held

    assert seen == [{}, {"first": "x"}]
    assert result.metadata.annotations == {"first": "x", "second": "x"}
    assert result == await tasks.get("a")


async def test_no_mutation_of_many_at_once_is_lost(tasks: Repository[Task]) -> None:
    await tasks.add(task())

    def increment(current: Task) -> None:
        current.status.copies_done += 1

    await asyncio.gather(*(tasks.mutate("a", increment) for _ in range(30)))

    assert (await tasks.get("a")).status.copies_done == 30


async def test_a_mutation_that_always_loses_raises_its_last_conflict_after_the_timeout(
    client: kvorum.Client, tasks: Repository[Task]
) -> None:
    """A program must learn that it makes no progress, not wait forever."""
    await tasks.add(task())
    hasty = Repository(client, Task, contention=ContentionPolicy(timeout=0.1))
    attempts = 0

    async def lose(current: Task) -> None:
        nonlocal attempts
        attempts += 1
        await tasks.mutate("a", lambda other: other.metadata.labels.update(n=str(attempts)))
        current.spec.owner = "ann"

    with anyio.fail_after(DEADLINE), pytest.raises(ConflictError) as caught:
        await hasty.mutate("a", lose)

    assert attempts > 1
    assert caught.value.current == await tasks.get("a")


async def test_what_a_change_raises_is_raised_once_and_nothing_is_written(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task())
    error = ValueError("no")
    calls = 0

    def refuse(current: Task) -> None:
        nonlocal calls
        calls += 1
        current.spec.owner = "ann"
        raise error

    requests.clear()
    with pytest.raises(ValueError, match="no") as caught:
        await tasks.mutate("a", refuse)

    assert caught.value is error
    assert calls == 1
    assert requests == ["read"]
    assert await tasks.get("a") == added


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
async def test_a_conflict_that_a_change_raises_itself_is_not_retried(
    tasks: Repository[Task], later: bool
) -> None:
    """It is not about this write, and a retry would not fix it."""
    await tasks.add(task())
    error = ConflictError("something else", expected=1)
    calls = 0

    def refuse(_: Task) -> None:
        nonlocal calls
        calls += 1
        raise error

    async def refuse_later(current: Task) -> None:
        refuse(current)

    with pytest.raises(ConflictError) as caught:
        await tasks.mutate("a", refuse_later if later else refuse)

    assert caught.value is error
    assert calls == 1


async def test_a_change_of_what_does_not_exist_is_never_called(tasks: Repository[Task]) -> None:
    calls: list[Task] = []

    with pytest.raises(NotFoundError):
        await tasks.mutate("a", calls.append)

    assert calls == []


async def test_a_resource_that_is_deleted_while_it_is_changed_stays_deleted(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task())

    async def delete_it(current: Task) -> None:
        await tasks.delete("a")
        current.spec.owner = "ann"

    with pytest.raises(NotFoundError):
        await tasks.mutate("a", delete_it)

    assert not await tasks.exists("a")


async def test_a_mutation_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task())
    requests.clear()

    assert await tasks.mutate("a", lambda _: None) == added
    assert requests == ["read"]


async def test_a_change_may_not_turn_it_into_another_resource(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    other = await tasks.add(task("b"))

    def rename(current: Task) -> None:
        current.metadata.name = "b"

    with pytest.raises(InvalidResourceError):
        await tasks.mutate("a", rename)
    with pytest.raises(InvalidResourceError):
        await tasks.mutate("a", lambda _: cast("Task", LabWorker.new("a", lab_track="x")))

    assert list(await tasks.list()) == [added, other]


# --- patch ----------------------------------------------------------------------------------------


async def test_a_patch_sets_removes_and_leaves_the_rest(
    tasks: Repository[Task], requests: list[str]
) -> None:
    await tasks.add(task(owner="ann", labels={"x": "1", "y": "2"}, annotations={"n": "m"}))
    requests.clear()
    patch = {
        "metadata": {"labels": {"x": None, "z": "3"}},
        "spec": {"wantedCopies": 5},
        "status": {"phase": "Done"},
    }
    patched = await tasks.patch("a", patch)

    assert requests == ["read", "transaction"]
    assert patched == await tasks.get("a")
    assert patched.metadata.labels == {"y": "2", "z": "3"}
    assert patched.metadata.annotations == {"n": "m"}
    assert patched.spec == TaskSpec(owner="ann", wanted_copies=5)
    assert patched.status.phase == "Done"
    assert patched.metadata.generation == 2


async def test_null_sets_a_field_back_to_its_default(tasks: Repository[Task]) -> None:
    await tasks.add(task(owner="ann"))

    assert (await tasks.patch("a", {"spec": {"owner": None}})).spec.owner == ""


@pytest.mark.parametrize(
    "patch",
    [
        {"metadata": {"uid": "x"}},
        {"metadata": {"name": "b"}},
        {"metadata": {"resourceVersion": "7"}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"metadata": {"generation": None}},
        {"metadata": None},
        {"metadata": 7},
        {"kind": "Other"},
        {"apiVersion": None},
        {"spec": {"wanted_copies": 5}},
        {"spec": {"owner": 5}},
        {"spec": []},
        {"colour": "blue"},
        {"spec": {"owner": {1, 2}}},
        {"metadata": {"labels": {"x": "not a label value"}}},
    ],
)
async def test_a_patch_of_a_field_that_the_store_owns_or_that_is_unknown_is_refused(
    tasks: Repository[Task], patch: dict[str, Any]
) -> None:
    added = await tasks.add(task())

    with pytest.raises(InvalidResourceError):
        await tasks.patch("a", patch)

    assert await tasks.get("a") == added


async def test_no_patch_of_many_at_once_is_lost(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    await asyncio.gather(
        *(tasks.patch("a", {"metadata": {"labels": {f"l{n}": "x"}}}) for n in range(20))
    )

    assert len((await tasks.get("a")).metadata.labels) == 20


async def test_a_patch_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task(owner="ann"))
    requests.clear()

    assert (
        await tasks.patch("a", {"spec": {"owner": "ann"}, "metadata": {"labels": {"x": None}}})
        == added
    )
    assert requests == ["read"]
    with pytest.raises(NotFoundError):
        await tasks.patch("missing", {})
