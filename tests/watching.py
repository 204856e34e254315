"""What tests of typed watches share: taking events with a deadline, and waiting for a state."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from tests.kinds import Task, task_by_hand

import kvorum
from kvorum import Operation, Resource, Watch, WatchEvent

DEADLINE = 10.0


def version_of(resource: Resource[Any, Any]) -> int:
    return resource.metadata.resource_version


def touch(current: Task) -> None:
    """Change a task, so that an update writes it."""
    current.spec.owner += "x"


async def commit_three(store: kvorum.StorageBackend) -> int:
    """Write three tasks in one transaction."""
    return await store.commit(
        [Operation.put(f"tasks/{name}", task_by_hand(name)) for name in "abc"]
    )


async def take(watch: Watch[Task], number: int) -> list[WatchEvent[Task]]:
    with anyio.fail_after(DEADLINE):
        return [await anext(watch) for _ in range(number)]


async def take_until(watch: Watch[Task], revision: int) -> list[WatchEvent[Task]]:
    """Take all events up to that of a revision.

    What a watch has not delivered by then it never will.
    """
    taken: list[WatchEvent[Task]] = []
    while not taken or taken[-1].resource_version < revision:
        taken += await take(watch, 1)
    return taken


async def assert_ended(watch: Watch[Task]) -> None:
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def cancel_in(
    target: object, method: str, call: Callable[[], Coroutine[Any, Any, object]]
) -> None:
    """Cancel a call while it waits for a method of an object, which does not return."""
    reached = anyio.Event()

    async def wait(*_: object, **__: object) -> None:
        reached.set()
        await anyio.sleep_forever()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, method, wait)
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            with anyio.fail_after(DEADLINE):
                await reached.wait()
            group.cancel_scope.cancel()
