"""What tests wait for that has no event."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

DEADLINE = 20.0


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for a state that is not announced."""
    with anyio.fail_after(DEADLINE):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await anyio.sleep(0.005)


def tasks_here() -> set[asyncio.Task[Any]]:
    """Return all tasks of the loop, except those of anyio's plugin for pytest."""
    return {each for each in asyncio.all_tasks() if "TestRunner" not in repr(each.get_coro())}
