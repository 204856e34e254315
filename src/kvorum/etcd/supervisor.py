"""The one task that owns all others of a client.

Streams need tasks that outlive the call that opened them. An anyio task group must be entered and
left by the same task, while a client may be opened by one task and closed by another. So a client
starts a single task, which enters a task group, waits for the signal to stop, and leaves the group.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from kvorum.errors import ClientClosedError

_log = logging.getLogger(__name__)

Args = TypeVarTuple("Args")
T = TypeVar("T")
Coro: TypeAlias = Coroutine[Any, Any, T]  # what a call of an `async def` returns


async def _nothing() -> None:
    pass


class Supervisor:
    """Runs tasks until it is closed. Bound to the event loop that it was started on.

    Args:
        on_failure: awaited after a task has raised an error and all others have ended.

    Attributes:
        failure: the first error that a task has raised; None if there is none.
    """

    def __init__(self, on_failure: Callable[[], Coro[None]] = _nothing) -> None:
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._group: TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None
        self._stop = anyio.Event()

    async def start(self) -> None:
        """Start to accept tasks. Call it once."""
        entered = anyio.Event()
        # The one bare task of Kvorum; `aclose` awaits it.
        self._main = asyncio.create_task(self._run(entered), name="kvorum-supervisor")
        try:
            await entered.wait()
        except BaseException:
            self._stop.set()  # the task ends by itself, and `aclose` can wait for it
            raise

    def spawn(self, run: Callable[[*Args], Coro[None]], *args: *Args, name: str) -> None:
        """Run `run(*args)` in a task of its own, until it returns or the supervisor is closed.

        The task must report its own errors. One that it raises ends all tasks, is the cause in what
        `closed` returns from then on, and is raised by `aclose`.

        Raises:
            ClientClosedError: the supervisor is not running.
        """
        if self._group is None:
            raise (
                self.closed()
                if self._stop.is_set() or self.failure
                else ClientClosedError.not_open()
            )
        # In an empty context: the deadline of the caller must not apply.
        contextvars.Context().run(
            partial(self._group.start_soon, name=name), self._watch_over, run, args
        )

    def spawn_aside(self, run: Callable[[*Args], Coro[None]], *args: *Args, name: str) -> None:
        """Run a background task that no caller depends on: an error is logged and nothing else.

        Raises:
            ClientClosedError: the supervisor is not running.
        """

        async def run_aside() -> None:
            try:
                await run(*args)
            except ClientClosedError:  # everything ends
                pass
            except Exception:  # noqa: BLE001 - a bug in a background task must not end the client
                _log.exception("background task %s failed; the client continues", name)

        self.spawn(run_aside, name=name)

    def closed(self) -> ClientClosedError:
        """Return the error for calls after its end. If a task has failed, it names that cause."""
        return ClientClosedError.closed(self.failure)

    async def aclose(self) -> None:
        """Cancel all tasks and wait for them. Idempotent; callable from any task."""
        self._stop.set()
        main = self._main
        if main is not None:
            # Unlike `await main`, this lets `main` finish if the wait is cancelled.
            await asyncio.wait([main])
            if self._main is main:  # of several callers, one gets the error
                self._main = None
                main.result()

    async def _watch_over(self, run: Callable[..., Coro[None]], args: tuple[object, ...]) -> None:
        try:
            await run(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            if self.failure is None:  # at once: the cancelled tasks name it as their cause
                self.failure, self._group = exc, None
                _log.error("a task of the client failed; closing the client", exc_info=exc)
            raise

    async def _run(self, entered: anyio.Event) -> None:
        try:
            await self._run_group(entered)
        except BaseException:
            if self.failure is not None:
                await self._on_failure()
            raise

    async def _run_group(self, entered: anyio.Event) -> None:
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                entered.set()
                await self._stop.wait()
                self._group = None
                group.cancel_scope.cancel()
        finally:
            self._group = None
            self._stop.set()  # in all cases
