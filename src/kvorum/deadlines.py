"""How long calls may take: a deadline for a block of them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import anyio

from kvorum.arguments import MAX_SECONDS, problem_of_seconds, shown
from kvorum.errors import ConfigurationError

_deadline: Final[ContextVar[float | None]] = ContextVar("kvorum_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give all calls in this block so many seconds together, in place of `EtcdSettings.timeout` for each.

        with kvorum.deadline(0.5):
            worker = await workers.get("worker-001")

    A call that is not done by then raises `UnavailableError` (nothing was changed) or
    `OutcomeUnknownError`; one that starts later raises `UnavailableError`, and sends nothing.
    `asyncio.timeout` cancels instead, and whether a write that it cut short was applied is then not
    known, without an error that says so.

    Of blocks within each other the earliest deadline counts. It holds for tasks that are started
    inside, and for opening a watch, not for waiting for its events.

    Args:
        seconds: from now; more than the client's timeout is fine.

    Raises:
        ConfigurationError: it is no number, not above 0, or more than thirty years.
    """
    if problem_of_seconds("a deadline", seconds):
        rule = f"a number of seconds, more than 0 away and at most {MAX_SECONDS:,}"
        raise ConfigurationError(f"a deadline must be {rule}, not {shown(seconds)}")
    mine, outer = anyio.current_time() + seconds, _deadline.get()
    token = _deadline.set(mine if outer is None else min(mine, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def own_time(seconds: float) -> Iterator[None]:
    """Give the calls in this block so many seconds, whatever is left to the caller.

    For what has to be cleaned up.
    """
    token = _deadline.set(now() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def deadline_of(timeout: float, start: float | None = None) -> float:
    """Return when a call that starts now (or at `start`) has to be done, on anyio's clock."""
    fixed = _deadline.get()
    if fixed is not None:
        return fixed
    return (now() if start is None else start) + timeout


def now() -> float:
    """Return the time on the clock of deadlines, which is anyio's, without the look for which library runs."""
    return asyncio.get_running_loop().time()
