"""Whether a server that owes an answer is alive.

An answer may take long: a large page, a slow link. A server that hangs takes for ever. To tell one
from the other, a server that has not answered for a while is asked something cheap. If it does not
answer that either, what it owes is asked for at another server as well, and the first answer
counts: one that is under way is never thrown away. The same question settles a doubt when a call
has run out of its caller's patience: by itself that says nothing about the server.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import msgspec

from kvorum.errors import ClientClosedError, KvorumError, UnavailableError
from kvorum.etcd.transport import _rpc as rpc

A = TypeVar("A")


class Owed(msgspec.Struct, Generic[A], eq=False):
    """An answer that a server owes: a stub that remembers the call it makes.

    Attributes:
        method: what it is asked of.
        elsewhere: asks another server for the same.
        since: when `Pulse.enter` took note of it.
        answer: what another server has answered in the meantime; None if none has.
        scope: of the question to that one; None if it was not asked.
        stub: of the server.
        call: the last one: of grpc.aio, awaited like a future, and can be cancelled.
    """

    method: Callable[[Any], rpc.Unary[Any, A]]
    elsewhere: Callable[[], Coroutine[Any, Any, A]]
    since: float = 0.0
    answer: A | None = None
    scope: anyio.CancelScope | None = None
    stub: rpc.Unary[Any, A] | None = None
    call: Any = None

    def on(self, channel: Any) -> Any:
        """Return a stub that calls that of a channel: this, which is called like one."""
        self.stub = self.method(channel)
        return self

    def __call__(self, request: Any, *, timeout: float, metadata: Any = None) -> Any:
        """Make the call.

        Raises:
            UnavailableError: another server has answered, while this one was asked for a token:
                nothing is left to ask.
        """
        assert self.stub is not None, "it is called by what `on` returns"  # noqa: S101
        if self.answer is not None:
            raise UnavailableError("this server", "another one has answered")
        self.call = self.stub(request, timeout=timeout, metadata=metadata)
        return self.call

    async def ask_elsewhere(self) -> None:
        """Ask another server; its answer ends the call."""
        if self.scope is not None:
            return
        with anyio.CancelScope() as self.scope:
            try:
                self.answer = await self.elsewhere()
            except (
                KvorumError
            ):  # the first server may still answer, and whoever waits for it sees how that ends
                return
            if self.call is not None:  # else it waits for a token, and is asked for anew then
                self.call.cancel()


class Pulse:
    """Watches over the answers that one server owes.

    Args:
        is_alive: asks the server.
        spawn: runs a question in a task of its own.
        on_dead: called when it did not answer.
        pause: after how many seconds without an answer it is asked.
    """

    def __init__(
        self,
        is_alive: Callable[[], Coroutine[Any, Any, bool]],
        spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
        on_dead: Callable[[], None],
        pause: float,
    ) -> None:
        self.pause: float = pause
        self._is_alive = is_alive
        self._spawn = spawn
        self._on_dead = on_dead
        self._loop = asyncio.get_running_loop()
        self._owed: set[Owed[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_asking = False
        self._answered = 0.0

    def enter(self, owed: Owed[Any]) -> None:
        """Note that a call is about to be made; call `leave` when it is done."""
        owed.since = self._loop.time()
        self._owed.add(owed)
        if self._timer is None:
            self._timer = self._loop.call_later(self.pause, self._look)

    def leave(self, owed: Owed[Any]) -> None:
        """Note that a call is done: nobody else is asked any more."""
        self._owed.discard(owed)
        owed.call = owed.stub = None  # who keeps an error keeps this, and must not keep the channel
        if owed.scope is not None:
            owed.scope.cancel()

    def ask(self) -> None:
        """Ask the server, in the background, unless that is under way."""
        if not self._is_asking:
            try:
                self._spawn(self._ask)
            except ClientClosedError:  # all calls are about to end
                return
            self._is_asking = True

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Ask if one answer is overdue; look again as long as there are any."""
        self._timer = None
        if not self._owed:
            return
        since = max(min(owed.since for owed in self._owed), self._answered)
        due = since + self.pause
        if due <= self._loop.time():
            self.ask()
            due = self._loop.time() + self.pause
        self._timer = self._loop.call_at(due, self._look)

    async def _ask(self) -> None:
        asked = self._loop.time()
        try:
            if await self._is_alive():
                self._answered = self._loop.time()
                return
        finally:
            self._is_asking = False
        self._on_dead()
        with suppress(ClientClosedError):  # then all calls are about to end
            for owed in tuple(self._owed):
                if owed.since <= asked:
                    self._spawn(owed.ask_elsewhere)
