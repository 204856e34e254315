"""A queue of calls that leave together: those that come while requests are under way.

An idle lane lets a call pass at once. While requests are under way further calls gather, and leave together as soon as
there is room for another request, and as many of them as are worth one.
"""

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Final, TypeVar

import anyio

from kvorum.errors import ClientClosedError, KvorumError
from kvorum.etcd.batch import MAX_OPERATIONS, Batch, Limit, Pending, calls_of, plan_batch, superseded

SLOTS: Final = 2  # requests under way: one that the server works at while this process works at another
WORTHWHILE: Final = 32  # calls that are not split between two requests
MAX_WAITING: Final = 10_000  # calls; more wait for room, with their deadlines running

A = TypeVar("A")


class Unanswered(Enum):
    """What a call can find instead of an answer."""

    ALONE = "its batch has done nothing: send it by itself"
    SUPERSEDED = "its key is past the revision that it expects, so nothing is left of it but a read"
    EXPIRED = "its deadline has passed"
    CLOSED = "the client was closed before it was sent"


class Lane:
    """One queue. `Pipeline` has two: a read does not wait for what a write waits for.

    Args:
        loop: the event loop that it is used on.
        send: sends a batch, and settles all its calls, whatever happens.
        spawn: runs it in a task of its own; raises `ClientClosedError` if there can be none.

    Attributes:
        requests: how many were sent.
        operations: how many operations were in them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Batch], Coroutine[Any, Any, dict[bytes, int]]],
        spawn: Callable[[Callable[[Batch], Coroutine[Any, Any, None]], Batch], None],
    ) -> None:
        self.requests: int = 0
        self.operations: int = 0
        self._loop = loop
        self._send = send
        self._spawn = spawn
        self._waiting: list[Pending[Any]] = []
        self._under_way: list[Batch] = []
        self._alone: int = 0  # calls that passed at once, and are under way
        self._busy: set[bytes] = set()  # keys with a write under way
        self._is_gathering = False
        self._timer: asyncio.TimerHandle | None = None
        self._room: anyio.Event = anyio.Event()  # set, and replaced, when calls were sent
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Lane [{len(self._waiting)} waiting, {self._in_flight} requests under way]>"

    @property
    def waiting(self) -> int:
        """How many calls wait to be sent."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is under way, so that a call may pass at once."""
        return not (self._waiting or self._under_way or self._alone or self._is_gathering)

    @property
    def _in_flight(self) -> int:
        return len(self._under_way) + self._alone

    # --- calls that do not wait ---

    def pass_by(self) -> None:
        """Note that a call has nothing to do with the others: its caller sends it, whatever else is under way."""
        self.requests += 1
        self.operations += 1

    def enter(self, call: Pending[Any]) -> None:
        """Note that a call found nobody else: its caller sends it, and calls `leave`; who comes now waits for it."""
        self.pass_by()
        self._alone += 1
        if call.is_write:
            self._busy.add(call.key)

    def leave(self, call: Pending[Any], known: int) -> None:
        """Note that it is done, and the revision at which its key is known to be."""
        self._alone -= 1
        if call.is_write:
            self._busy.discard(call.key)
        if self._waiting:
            self._supersede({call.key: known})
            self._gather()

    # --- calls that wait ---

    async def join(self, call: Pending[A]) -> A | KvorumError | Unanswered:
        """Wait with others, and return what came of it: an answer, an error, or why there is neither."""
        if len(self._waiting) >= MAX_WAITING and not await self._is_room(call.deadline):
            return Unanswered.EXPIRED
        if self._is_closed:
            return Unanswered.CLOSED
        outcome: asyncio.Future[A | KvorumError | Unanswered] = self._loop.create_future()
        call.outcome = outcome
        self._waiting.append(call)
        if self._timer is None or call.deadline < self._timer.when():
            self._expire_at(call.deadline)
        if not self._is_gathering:
            self._gather()
        return await outcome

    async def _is_room(self, deadline: float) -> bool:
        with anyio.move_on_after(deadline - anyio.current_time()):
            while len(self._waiting) >= MAX_WAITING and not self._is_closed:
                await self._room.wait()
            return True
        return False

    def _gather(self) -> None:
        """Send at the end of this turn of the event loop: until then those that come now can go along."""
        if not self._is_gathering:
            self._is_gathering = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_gathering = False
        while self._waiting and (slots := SLOTS - self._in_flight) > 0:
            waiting = len(self._waiting)
            if 2 * waiting < self._calls_in_flight():
                break  # a request for a few, beside one for many, costs the many more than it brings the few
            share = min(MAX_OPERATIONS, max(WORTHWHILE, -(-waiting // slots)))
            batch, self._waiting = plan_batch(self._waiting, Limit(share), self._busy)
            if not batch:
                break
            self._start(batch)
        self._room.set()
        self._room = anyio.Event()

    def _calls_in_flight(self) -> int:
        return self._alone + sum(map(len, self._under_way))

    def _start(self, batch: Batch) -> None:
        self._under_way.append(batch)
        self.requests += 1
        self.operations += len(batch)
        for each in calls_of(batch):
            each.is_sent = True
            if each.is_write:
                self._busy.add(each.key)
        try:
            self._spawn(self._run, batch)
        except ClientClosedError:
            self._finish(batch)
            for each in calls_of(batch):
                each.settle(Unanswered.CLOSED)

    async def _run(self, batch: Batch) -> None:
        known: dict[bytes, int] = {}
        try:
            known = await self._send(batch)
        finally:
            self._finish(batch)
            self._supersede(known)
            if len(batch) > 1 or self._waiting:
                self._gather()  # whoever got an answer just now, and asks for the next thing, goes along

    def _finish(self, batch: Batch) -> None:
        self._under_way.remove(batch)
        self._busy.difference_update(batch)

    def _supersede(self, known: dict[bytes, int]) -> None:
        for each in superseded(self._waiting, known):
            each.settle(Unanswered.SUPERSEDED)

    # --- deadlines: one timer for all ---

    def _expire_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """End the calls whose deadline has passed."""
        now = self._loop.time()
        self._timer = None
        deadlines = []
        for each in [*self._waiting, *(each for batch in self._under_way for each in calls_of(batch))]:
            if each.is_over:
                continue
            if each.deadline > now:
                deadlines.append(each.deadline)
            else:
                each.settle(Unanswered.EXPIRED)
        if deadlines:
            self._expire_at(min(deadlines))

    # --- the end ---

    def close(self) -> None:
        """End all calls that wait. Those that are under way end with their requests."""
        self._is_closed = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.settle(Unanswered.CLOSED)
        if self._timer is not None:
            self._timer.cancel()
        self._room.set()
