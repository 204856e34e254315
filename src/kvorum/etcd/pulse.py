"""Whether a server that owes an answer is alive.

An answer may take long: a large page, a slow link. A server that hangs takes for ever. To tell one from the other, a
server that has not answered for a while is asked something cheap on the same connection; calls are given up only if it
does not answer that either. The same question settles a doubt when a call has run out of its caller's patience, which
by itself says nothing about the server.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from kvorum.errors import ClientClosedError
from kvorum.etcd import _rpc as rpc

Request = TypeVar("Request", bound="rpc.Message")
Response = TypeVar("Response")


class Owed(Generic[Request, Response]):
    """An answer that a server owes: a stub that remembers the call it makes.

    Attributes:
        since: when it was asked for.
        is_given_up: whether the call was cancelled, since the server is not alive.
    """

    __slots__ = ("_call", "_stub", "is_given_up", "since")

    def __init__(self, stub: rpc.Unary[Request, Response], since: float) -> None:
        self.since = since
        self.is_given_up = False
        self._stub = stub
        self._call: Any = None  # of grpc.aio, which awaits like a future, and can be cancelled

    def __call__(self, request: Request, *, timeout: float, metadata: Any = None) -> Any:
        """Make the call."""
        self._call = self._stub(request, timeout=timeout, metadata=metadata)
        return self._call

    def give_up(self) -> None:
        """Cancel the call."""
        self.is_given_up = True
        if self._call is not None:
            self._call.cancel()


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
        self._owed: set[Owed[Any, Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_asking = False
        self._answered = 0.0

    def enter(self, stub: rpc.Unary[Request, Response]) -> Owed[Request, Response]:
        """Note that a call is about to be made; call `leave` when it is done."""
        owed = Owed(stub, self._loop.time())
        self._owed.add(owed)
        if self._timer is None:
            self._timer = self._loop.call_later(self.pause, self._look)
        return owed

    def leave(self, owed: Owed[Any, Any]) -> None:
        """Note that a call is done."""
        self._owed.discard(owed)

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
        for owed in tuple(self._owed):
            if owed.since <= asked:
                owed.give_up()
