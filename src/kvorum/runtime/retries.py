"""What tenacity raises, without what its frames keep alive."""

from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


async def raised_alone(retried: Awaitable[T]) -> T:
    """Return what a call with retries returns; raise its error without tenacity's frames.

    They hold the last error, and its traceback holds them. Such a cycle keeps the frames of all
    callers, and a watch in one of them, until the garbage collector runs. (The loop `async for
    attempt in AsyncRetrying(…)` makes one that this does not break.)
    """
    try:
        return await retried
    except Exception as exc:
        exc.__traceback__ = _below_tenacity(exc.__traceback__)
        raise


def _below_tenacity(traceback: TracebackType | None) -> TracebackType | None:
    found = traceback
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
        if name.startswith("tenacity"):
            found = traceback
    return found
