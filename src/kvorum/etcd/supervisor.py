"""The one task that owns all others of a client.

Streams need tasks of their own, which outlive the call that opened them. anyio's task groups must
be entered and left by one and the same task, while a client may be opened by one task and closed by
another. So a client starts a single task, which enters a task group, waits to be told to stop, and
leaves it again.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from kvorum.errors import ClientClosedError

_log = logging.getLogger(__name__)

Args = TypeVarTuple("Args")


async def _nothing() -> None:
    pass


class Supervisor:
    """Runs tasks until it is closed. Bound to the event loop that it was started on.

    Args:
        on_failure: awaited when a task has raised an error and all others are gone.

    Attributes:
        failure: the first error that a task has raised; None if none has.
    """

    def __init__(self, on_failure: Callable[[], Coroutine[Any, Any, None]] = _nothing) -> None:
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._group: TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None
        self._stop = anyio.Event()

    async def start(self) -> None:
        """Begin to take tasks. Call it once."""
        entered = anyio.Event()
        # The one bare task of Kvorum; `aclose` awaits it.
        self._main = asyncio.create_task(self._run(entered), name="kvorum-supervisor")
        try:
            await entered.wait()
        except BaseException:
            self._stop.set()  # it ends by itself, and `aclose` can wait for it
            raise

    def spawn(
        self, run: Callable[[*Args], Coroutine[Any, Any, None]], *args: *Args, name: str
    ) -> None:
        """Run `run(*args)` in a task of its own, until it returns or the supervisor is closed.

        It must bring its errors to whoever waits for it: one that gets out ends all tasks, is named
        by what `closed` returns from then on, and comes out of `aclose`.

        Raises:
            ClientClosedError: the supervisor is not running.
        """
        if self._group is None:
            raise (
                self.closed()
                if self._stop.is_set() or self.failure
                else ClientClosedError.not_open()
            )
        # Not in the context of whoever happens to spawn it: its deadline is none of this task's.
        contextvars.Context().run(
            partial(self._group.start_soon, name=name), self._watch_over, run, args
        )

    def spawn_aside(
        self, run: Callable[[*Args], Coroutine[Any, Any, None]], *args: *Args, name: str
    ) -> None:
        """Run what no caller depends on, as a question in the background: an error that gets out is logged, not more.

        Raises:
            ClientClosedError: the supervisor is not running.
        """

        async def run_aside() -> None:
            try:
                await run(*args)
            except ClientClosedError:  # all ends
                pass
            except Exception:  # noqa: BLE001 - a fault of ours there is no reason to end the client
                _log.exception(
                    "a task of the client has failed, which goes on without it: %s", name
                )

        self.spawn(run_aside, name=name)

    def closed(self) -> ClientClosedError:
        """Return the error for what is asked of it after its end.

        It says why, if that was not asked for.
        """
        return ClientClosedError.closed(self.failure)

    async def aclose(self) -> None:
        """Cancel all tasks and wait until they are gone. Idempotent, and from any task."""
        self._stop.set()
        main = self._main
        if main is not None:
            await asyncio.wait(
                [main]
            )  # unlike `await main`, a wait that is cancelled leaves `main` to finish
            if self._main is main:  # of several who wait, one gets the error
                self._main = None
                main.result()

    async def _watch_over(
        self, run: Callable[..., Coroutine[Any, Any, None]], args: tuple[object, ...]
    ) -> None:
        try:
            await run(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            if self.failure is None:  # at once: the others are about to be cancelled, and say why
                self.failure, self._group = exc, None
                _log.error("the client is closed, since a task of its own has failed", exc_info=exc)
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
            self._stop.set()  # whatever has ended it
