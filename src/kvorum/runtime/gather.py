"""Many calls at once, with a result for each."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import anyio

from kvorum.errors import CorruptResourceError, KvorumError, without_frames

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 256  # concurrent calls: a few full requests of the pipeline


async def gather(
    call: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int = AT_ONCE
) -> list[R | KvorumError]:
    """Make a call for each item, `at_once` at a time; return the results in the items' order.

    A `KvorumError` is the result of its call and stops no other. Any other error cancels all calls
    and is raised in an exception group.
    """
    given = list(items)
    results: dict[int, R | KvorumError] = {}
    waiting = iter(enumerate(given))

    async def work() -> None:
        for index, item in waiting:
            try:
                results[index] = await call(item)
            except KvorumError as exc:
                results[index] = (
                    without_frames(exc) if isinstance(exc, CorruptResourceError) else exc
                )

    async with anyio.create_task_group() as group:
        for _ in given[:at_once]:
            group.start_soon(work)
    # Not left in `results`: the traceback of an error holds the frame that holds them.
    return [results.pop(index) for index in range(len(given))]
