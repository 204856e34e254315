"""How long calls may take: a deadline for a block of calls."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import anyio

from kvorum.arguments import MAX_SECONDS, problem_of_seconds, short_repr
from kvorum.errors import ConfigurationError

_deadline: Final[ContextVar[float | None]] = ContextVar("kvorum_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give all calls in this block one deadline, instead of `EtcdSettings.timeout` for each.

    ::

        with kvorum.deadline(0.5):
            worker = await workers.get("worker-001")

    A call that has not finished by then raises `UnavailableError` (nothing was changed) or
    `OutcomeUnknownError`. One that starts later raises `UnavailableError` and sends nothing.
    Prefer it to `asyncio.timeout`, which cancels: after that, nothing says whether a write that was
    under way has been applied.

    Nested deadlines: the earliest one applies. Tasks started in the block inherit it. It also
    limits opening a watch, but not waiting for its events.

    Args:
        seconds: from now; may exceed the client's timeout.

    Raises:
        ConfigurationError: it is not a number above 0 and up to thirty years.
    """
    if problem_of_seconds("a deadline", seconds):
        rule = f"a number of seconds, more than 0 away and at most {MAX_SECONDS:,}"
        raise ConfigurationError(f"a deadline must be {rule}, not {short_repr(seconds)}")
    mine, outer = anyio.current_time() + seconds, _deadline.get()
    token = _deadline.set(mine if outer is None else min(mine, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def own_time(seconds: float) -> Iterator[None]:
    """Give the calls in this block a deadline of their own, whatever the caller has left.

    For clean-up that must happen.
    """
    token = _deadline.set(now() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def deadline_of(timeout: float, start: float | None = None) -> float:
    """Return the deadline of a call that starts now (or at `start`), on anyio's clock."""
    fixed = _deadline.get()
    if fixed is not None:
        return fixed
    return (now() if start is None else start) + timeout


def now() -> float:
    """Return `anyio.current_time()`, without its check of which async library is running."""
    return asyncio.get_running_loop().time()
