"""Whether a server that owes an answer is alive.

An answer may take long: a large page, a slow link. A server that hangs never answers. To tell the
two apart, a server that has not answered for a while is asked something cheap. If it does not
answer that either, another server is sent the same requests, and the first answer counts: one that
is under way is never thrown away. The server is asked, too, when a caller's deadline has passed: by
itself that is no evidence about the server.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, Generic, TypeVar

import anyio
import msgspec

from kvorum.errors import ClientClosedError, KvorumError, UnavailableError
from kvorum.etcd.supervisor import Coro
from kvorum.etcd.transport import _rpc as rpc

A = TypeVar("A")


class Life(Enum):
    """What a server's answer to a cheap question shows."""

    ALIVE = "it answers"
    CALLS_SILENT = "it answers, but not on the connection of the calls"
    DEAD = "it does not answer"


class HedgedRead(msgspec.Struct, Generic[A], eq=False):
    """A read that is sent to another server, too, if the first one turns out to be dead.

    It replaces the stub, and remembers the call it makes.

    Attributes:
        address: of the first server.
        method: finds the stub on a channel.
        elsewhere: sends the same request to another server, or on another connection.
        is_large: whether the answer may be large, and so late on a connection that is not dead.
        since: when it was passed to `Pulse.enter`.
        answer: the answer of another server; None if there is none.
        refusal: why the other servers refused the request; None if they did not.
        scope: cancels the request to that server; None if none was sent.
        stub: the server's own.
        call: the latest call of grpc.aio: awaited like a future, and can be cancelled.
    """

    address: str
    method: Callable[[Any], rpc.Unary[Any, A]]
    elsewhere: Callable[[], Coro[A]]
    is_large: bool = False
    since: float = 0.0
    answer: A | None = None
    refusal: KvorumError | None = None
    scope: anyio.CancelScope | None = None
    stub: rpc.Unary[Any, A] | None = None
    call: Any = None

    def bind(self, channel: Any) -> Any:
        """Take the stub of a channel, and return this in its place."""
        self.stub = self.method(channel)
        return self

    def __call__(self, request: Any, *, timeout: float, metadata: Any = None) -> Any:
        """Make the call.

        Raises:
            UnavailableError: another server has answered while this one was fetching a token, so
                the call is not needed any more.
        """
        assert self.stub is not None, "it is called by what `bind` returns"  # noqa: S101
        if self.answer is not None or self.refusal is not None:
            raise UnavailableError(self.address, "another server has answered")
        self.call = self.stub(request, timeout=timeout, metadata=metadata)
        return self.call

    async def hedge(self) -> None:
        """Ask another server; its answer, or its refusal of the request, ends the call."""
        if self.scope is not None:
            return
        with anyio.CancelScope() as self.scope:
            try:
                self.answer = await self.elsewhere()
            except UnavailableError:  # the first server may still answer, or fail by itself
                return
            except KvorumError as exc:
                self.refusal = exc
            if self.call is not None:  # else it waits for a token, and stops at its next call
                self.call.cancel()


class Pulse:
    """Watches over the answers that one server owes.

    Args:
        is_alive: asks the server.
        spawn: runs a coroutine in a task of its own.
        on_dead: called when the server does not answer that.
        pause: after how many seconds without an answer the server is asked.
    """

    def __init__(
        self,
        is_alive: Callable[[], Coro[Life]],
        spawn: Callable[[Callable[[], Coro[None]]], None],
        on_dead: Callable[[], None],
        pause: float,
    ) -> None:
        self.pause: float = pause
        self._is_alive = is_alive
        self._spawn = spawn
        self._on_dead = on_dead
        self._loop = asyncio.get_running_loop()
        self._reads: set[HedgedRead[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_asking = False
        self._answered = 0.0

    def enter(self, read: HedgedRead[Any]) -> None:
        """Record that a call is about to be made; call `leave` when it is done."""
        read.since = self._loop.time()
        self._reads.add(read)
        if self._timer is None:
            self._timer = self._loop.call_later(self.pause, self._look)

    def leave(self, read: HedgedRead[Any]) -> None:
        """Record that a call is done. A request to another server is cancelled."""
        self._reads.discard(read)
        # An error that is kept keeps this, but must not keep the channel.
        read.call = read.stub = read.refusal = None
        if read.scope is not None:
            read.scope.cancel()

    def ask(self) -> None:
        """Ask the server in the background, unless that is under way."""
        if not self._is_asking:
            try:
                self._spawn(self._ask)
            except ClientClosedError:  # all calls end anyway
                return
            self._is_asking = True

    def close(self) -> None:
        """Stop. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Ask if an answer is overdue; look again while any is owed."""
        self._timer = None
        if not self._reads:
            return
        since = max(min(read.since for read in self._reads), self._answered)
        due = since + self.pause
        if due <= self._loop.time():
            self.ask()
            due = self._loop.time() + self.pause
        self._timer = self._loop.call_at(due, self._look)

    async def _ask(self) -> None:
        asked = self._loop.time()
        try:
            life = await self._is_alive()
        finally:
            self._is_asking = False
        if life is Life.DEAD:
            self._on_dead()
        else:
            self._answered = self._loop.time()
            if life is Life.ALIVE:
                return
        with suppress(ClientClosedError):  # all calls end anyway
            for read in tuple(self._reads):
                if read.since <= asked and not (life is Life.CALLS_SILENT and read.is_large):
                    self._spawn(read.hedge)
