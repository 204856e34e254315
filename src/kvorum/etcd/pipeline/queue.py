"""A queue of calls that leave together: those that come while requests are under way.

An idle lane lets a call pass at once. While requests are under way further calls gather, and leave
together as soon as there is room for another request, and as many of them as are worth one. They
are sent by a few tasks, one request at a time each; those are made when they are first needed, and
stay, since a task for each request would cost more.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Final, TypeVar

from kvorum.errors import ClientClosedError, KvorumError
from kvorum.etcd.pipeline.batch import (
    MAX_OPERATIONS,
    Batch,
    Limit,
    Pending,
    Unanswered,
    calls_of,
    known_revision,
    plan_batch,
)
from kvorum.etcd.pipeline.key_order import KeyOrder
from kvorum.etcd.pipeline.unbatched import Unbatched

SLOTS: Final = (
    2  # requests under way: one that the server works at while this process works at another
)
WORTHWHILE: Final = 32  # calls that are not split between two requests
PATIENCE: Final = (
    0.005  # seconds that a few calls wait for a request for many, although there is room for theirs
)
MAX_WAITING: Final = 10_000  # calls; more wait for room, with their deadlines running
MAX_OVERDUE: Final = 16  # requests that take so long that they keep no place from others
# seconds between two looks for calls whose deadlines have passed: each looks at all that wait
_GRAIN: Final = 0.01

A = TypeVar("A")


class BatchQueue:
    """One queue, of reads or of writes. `Pipeline` has two: a read does not wait for what a write waits for.

    Args:
        loop: the event loop that it is used on.
        send: sends a batch, and settles all its calls, whatever happens; returns what writes got,
            by their keys.
        spawn: runs a function in a task of its own, until the client is closed; raises
            `ClientClosedError` then.
        room: tells, before a request is made, how many operations it may hold. If that is none,
            whoever says so calls `gather` as soon as it is more.

    Attributes:
        requests: how many were sent.
        operations: how many operations were in them.
        limit: how much a request may hold.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Batch], Coroutine[Any, Any, Mapping[bytes, object]]],
        spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
        room: Callable[[], int] = lambda: MAX_OPERATIONS,
    ) -> None:
        self.requests: int = 0
        self.operations: int = 0
        self.limit: Limit = Limit()
        self._loop = loop
        self._send = send
        self._spawn = spawn
        self._room = room
        self._waiting: list[Pending[Any]] = []  # of the writes of a key the first
        self._turns = KeyOrder()  # and the others
        self._outside: deque[Pending[Any]] = (
            deque()
        )  # those for which there is no room in the queue
        self._aside = Unbatched(self._run_aside, spawn)  # those that go in no batch
        self._under_way: list[Batch] = []
        self._senders: int = 0  # tasks that send, one request at a time each
        self._resting: list[
            asyncio.Future[None]
        ] = []  # what those of them wait for that have nothing to do
        self._alone: int = 0  # calls that found nobody else, and are under way
        self._overdue: int = 0  # requests that take long, and for which others may be sent
        self._is_gathering = False
        self._held: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expires: float = (
            math.inf
        )  # when that is due: before the first deadline of all that wait, or just then
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<BatchQueue [{self.waiting} waiting, {self._in_flight} requests under way]>"

    @property
    def waiting(self) -> int:
        """How many calls wait to be sent."""
        return len(self._waiting) + self._turns.standing + len(self._outside) + self._aside.waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is under way, so that a call may pass at once."""
        is_busy = self._waiting or self._under_way or self._alone or self._is_gathering
        return not (is_busy or self._outside or self._aside.size)

    @property
    def _in_flight(self) -> int:
        return len(self._under_way) + self._alone

    @property
    def _slots(self) -> int:
        """How many requests may be under way."""
        return SLOTS + self._overdue

    def count(self, operations: int) -> None:
        """Note that a request is sent."""
        self.requests += 1
        self.operations += operations

    # --- a call that does not wait ---

    def enter(self, call: Pending[Any]) -> None:
        """Note that a call found nobody else: its caller sends it, and calls `leave`.

        Who comes now waits for it.
        """
        self._alone += 1
        if call.write is not None:
            self._turns.admit(call)

    def leave(self, call: Pending[Any], answer: object) -> None:
        """Note that it is done, and what it got, if it was a write; None if it was not answered."""
        self._alone -= 1
        if call.write is not None:
            self._end_turns((call.key,), {call.key: answer})
        if self._waiting or self._outside:
            self.gather()

    # --- calls that wait ---

    def join(self, call: Pending[A]) -> asyncio.Future[A | KvorumError | Unanswered]:
        """Let a call wait with others; return what will come of it.

        An answer, an error, or why there is neither.
        """
        outcome: asyncio.Future[A | KvorumError | Unanswered] = self._loop.create_future()
        if self._is_closed:
            outcome.set_result(Unanswered.CLOSED)
            return outcome
        if call.deadline < self._expires:  # else it ends with the others
            if call.deadline <= self._loop.time():
                outcome.set_result(Unanswered.EXPIRED)
                return outcome
            self._expire_at(call.deadline)
        call.outcome = outcome
        if self._outside or len(self._waiting) + self._turns.standing >= MAX_WAITING:
            self._outside.append(call)
        elif call.write is None or self._turns.admit(
            call
        ):  # else it stands behind another write of its key
            if call.goes_alone:
                self._set_aside(call)
                return outcome
            self._waiting.append(call)
        if not self._is_gathering:
            self.gather()
        return outcome

    def _admit(self, call: Pending[Any]) -> None:
        """Let a call into the queue whose turn it is."""
        if call.goes_alone:
            self._set_aside(call)
        else:
            self._waiting.append(call)

    def _set_aside(self, call: Pending[Any]) -> None:
        try:
            self._aside.add(call)
        except ClientClosedError:
            self.close()

    def _let_in(self) -> None:
        """Take calls from outside into the queue, as far as there is room."""
        while self._outside and len(self._waiting) + self._turns.standing < MAX_WAITING:
            call = self._outside.popleft()
            if call.write is None or self._turns.admit(call):
                self._admit(call)

    def _end_turns(self, keys: Iterable[bytes], answers: Mapping[bytes, object]) -> None:
        """Let the next write of each key into the queue.

        Compare-and-swaps that can never apply end here.
        """
        for key in self._turns.end_free(keys):
            answer = answers.get(key)
            following = self._turns.end(key, 0 if answer is None else known_revision(answer))
            if following is not None:
                self._admit(following)

    def gather(self) -> None:
        """Send at the end of this turn of the event loop: until then no call passes, but those that come go along.

        If all senders are busy, nothing is to be done: each of them looks at the queue when it is
        through.
        """
        if self._is_gathering:
            return
        while self._resting:
            rest = self._resting.pop()
            if not rest.done():  # else its task was cancelled, since the client is being closed
                self._is_gathering = True
                rest.set_result(None)
                return
        if self._senders < self._slots:
            try:
                self._spawn(self._serve)
            except ClientClosedError:
                self.close()
            else:
                self._is_gathering = True
                self._senders += 1

    async def _serve(self) -> None:
        """Be one of the senders, until the client is closed, or there are enough without it."""
        try:
            while self._senders <= self._slots:
                batch = self._next()
                if batch:
                    await self._run(batch)
                if len(batch) > 1 or (batch and (self._waiting or self._outside)):
                    self._is_gathering = (
                        True  # who got an answer just now, and asks for the next thing, goes along
                    )
                    await asyncio.sleep(0)
                else:
                    rest: asyncio.Future[None] = self._loop.create_future()
                    self._resting.append(rest)
                    await rest
        except BaseException:
            self.close()  # or else calls would wait for a sender
            raise
        self._senders -= 1
        self._is_gathering = False
        self.gather()

    def _next(self) -> Batch:
        """Take what is to be sent now out of the queue.

        Nothing if that is nothing, or has to wait.
        """
        self._is_gathering = False
        while True:
            if self._outside:
                self._let_in()
            waiting, slots = len(self._waiting), self._slots - self._in_flight
            if not waiting or slots <= 0 or self._is_too_few(waiting):
                return {}
            share = min(self.limit.operations, self._room(), max(WORTHWHILE, -(-waiting // slots)))
            if not share:
                return {}
            if batch := self._plan(self.limit._replace(operations=share)):
                return batch

    def _plan(self, limit: Limit) -> Batch:
        """Take a batch out of the queue, and what nobody waits for any more.

        There the next of its key comes.
        """
        before = self._waiting
        batch, self._waiting = plan_batch(before, limit)
        if before[0].is_write and len(before) > len(batch) + len(self._waiting):
            kept = {each.key for each in self._waiting}
            self._end_turns(
                [each.key for each in before if each.key not in kept and each.key not in batch], {}
            )
        return batch

    def _is_too_few(self, waiting: int) -> bool:
        """Wait on, but not for long.

        A request for a few costs those who are many more than it brings the few.
        """
        if self._held is not None and self._held.when() <= self._loop.time():
            self._held = None
            return False
        if 2 * waiting >= self._alone + sum(map(len, self._under_way)):
            return False
        if self._held is None:
            self._held = self._loop.call_later(PATIENCE, self.gather)
        return True

    async def _run(self, batch: Batch) -> None:
        answers: Mapping[bytes, object] = {}
        self._under_way.append(batch)
        if self._waiting:
            self.gather()
        try:
            answers = await self._send(batch)
        finally:
            self._under_way.remove(batch)
            if next(calls_of(batch)).is_write:
                self._end_turns(batch, answers)

    async def _run_aside(self, call: Pending[Any]) -> None:
        answers: Mapping[bytes, object] = {}
        try:
            if not call.is_over:
                answers = await self._send({call.key: [call]})
        finally:
            if call.write is not None:
                self._end_turns((call.key,), answers)
                if self._waiting or self._outside:
                    self.gather()

    # --- requests that take long ---

    def give_way(self) -> bool:
        """Let another request be sent beside one that takes long; tell whether that is so.

        Then `make_up` follows.
        """
        if self._overdue >= MAX_OVERDUE:
            return False
        self._overdue += 1
        self._aside.overdue = self._overdue
        if self._waiting or self._outside:
            self.gather()
        with suppress(ClientClosedError):  # then all calls are ended anyhow
            self._aside.serve()
        return True

    def make_up(self) -> None:
        """Note that a request is done that took long."""
        self._overdue -= 1
        self._aside.overdue = self._overdue

    # --- deadlines: one timer for all ---

    def _expire_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._expires = self._loop.call_at(deadline, self._expire), deadline

    def _expire(self) -> None:
        """End the calls whose deadline has passed."""
        now = self._loop.time()
        self._timer, self._expires = None, math.inf
        deadlines = []
        for each in chain(
            self._waiting, self._turns, self._outside, self._aside, *map(calls_of, self._under_way)
        ):
            if each.is_over:
                continue
            if each.deadline > now:
                deadlines.append(each.deadline)
            else:
                each.settle(Unanswered.EXPIRED)
        if deadlines:
            self._expire_at(max(min(deadlines), now + _GRAIN))

    # --- the end ---

    def close(self) -> None:
        """End all calls that wait. Those that are under way end with their requests."""
        self._is_closed = True
        for each in chain(self._waiting, self._turns, self._outside):
            each.settle(Unanswered.CLOSED)
        self._waiting, self._outside = [], deque()
        self._turns.clear()
        self._aside.close()
        for timer in (self._timer, self._held):
            if timer is not None:
                timer.cancel()
