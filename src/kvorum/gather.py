"""Many calls at once, with a result for each."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import anyio

from kvorum.errors import CorruptResourceError, KvorumError, without_frames

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 256  # calls under way: a few full requests of the pipeline


async def each(
    call: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int = AT_ONCE
) -> list[R | KvorumError]:
    """Make a call for each item, some of them at once; return what each of them returned, or its error, in their order.

    An error of Kvorum's is a result, and stops nothing. Any other one ends all calls, and comes out
    as a group.
    """
    given = list(items)
    results: dict[int, R | KvorumError] = {}
    waiting = iter(enumerate(given))

    async def work() -> None:
        for number, item in waiting:
            try:
                results[number] = await call(item)
            except KvorumError as exc:
                results[number] = (
                    without_frames(exc) if isinstance(exc, CorruptResourceError) else exc
                )

    async with anyio.create_task_group() as group:
        for _ in given[:at_once]:
            group.start_soon(work)
    return [results[number] for number in range(len(given))]
