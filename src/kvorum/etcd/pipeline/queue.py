"""A queue of calls that are batched: those that come while requests are in flight.

An idle queue lets a call pass at once. While requests are in flight further calls gather, and are
sent together as `how_many` says. A few tasks send them, one request at a time each; those are made
when they are first needed, and stay, since a task for each request would cost more.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TypeAlias

from kvorum.errors import ClientClosedError
from kvorum.etcd.pipeline.batch import Batch, Limit, calls_of, first_of_batch, plan_batch
from kvorum.etcd.pipeline.calls import A, AnyCall, PendingCall, Result, Unanswered, known_revision
from kvorum.etcd.pipeline.key_order import KeyOrder
from kvorum.etcd.pipeline.queue_policy import DEFAULT_LIMITS, QueueLimits, Room, Wait, how_many
from kvorum.etcd.pipeline.unbatched import Spawn, Unbatched

SendBatch: TypeAlias = Callable[[Batch], Coroutine[object, None, Mapping[bytes, Result]]]


def _plenty() -> Room:
    return Room.PLENTY


class BatchQueue:
    """One queue, of reads or of writes. They are apart, so that a read waits for no write.

    Args:
        kind: `reads` or `writes`, for reports.
        loop: the event loop that it is used on.
        send: sends a batch, and settles all its calls, whatever happens; returns the results of
            writes, by their keys.
        spawn: runs a function in a task of its own, until the client is closed; raises
            `ClientClosedError` then.
        room: tells how many operations the next request may hold. Call `schedule` when that is
            more.
        ask_for_room: called when a request is made by `Room.ONE`.
        limits: its limits.

    Attributes:
        kind: `reads` or `writes`.
        requests: how many were sent.
        operations: how many operations were in them.
        limit: how much a request may hold.
    """

    def __init__(
        self,
        kind: str,
        loop: asyncio.AbstractEventLoop,
        send: SendBatch,
        spawn: Spawn,
        *,
        room: Callable[[], Room] = _plenty,
        ask_for_room: Callable[[], None] = lambda: None,
        limits: QueueLimits = DEFAULT_LIMITS,
    ) -> None:
        self.kind: str = kind
        self.requests: int = 0
        self.operations: int = 0
        self.limit: Limit = Limit()
        self._loop = loop
        self._send = send
        self._spawn = spawn
        self._room = room
        self._ask_for_room = ask_for_room
        self._limits = limits
        self._waiting: list[AnyCall] = []  # of the writes of a key the first
        self._key_order = KeyOrder()  # and the others
        self._overflow: deque[AnyCall] = deque()  # those for which the queue has no room
        self._unbatched = Unbatched(self._run_unbatched, spawn, limits)
        self._in_flight: list[Batch] = []
        self._singles: int = 0  # calls that found an idle queue, and are in flight
        self._senders: int = 0  # tasks that send, one request at a time each
        self._idle_senders: list[asyncio.Future[None]] = []
        self._overdue: int = 0  # requests that take long, beside which others may be sent
        self._is_scheduled = False
        self._hold: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expires: float = math.inf  # when that is due: at or before the first deadline
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<BatchQueue [{self.waiting} waiting, {self._requests_in_flight} in flight]>"

    @property
    def waiting(self) -> int:
        """How many calls wait to be sent."""
        return self._queued + len(self._overflow) + self._unbatched.waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is in flight, so that a call may pass at once."""
        is_busy = self._waiting or self._in_flight or self._singles or self._is_scheduled
        return not (is_busy or self._overflow or self._unbatched.size)

    @property
    def _queued(self) -> int:
        return len(self._waiting) + self._key_order.waiting

    @property
    def _requests_in_flight(self) -> int:
        return len(self._in_flight) + self._singles

    @property
    def _slots(self) -> int:
        """How many requests may be in flight."""
        return self._limits.slots + self._overdue

    def count(self, operations: int) -> None:
        """Record that a request is sent."""
        self.requests += 1
        self.operations += operations

    # --- a call that does not wait ---

    def begin_single(self, call: AnyCall) -> None:
        """Record that a call found an idle queue: its caller sends it, and calls `end_single`.

        Calls that come now wait for it.
        """
        self._singles += 1
        if call.is_write:
            self._key_order.admit(call)

    def end_single(self, call: AnyCall, result: Result) -> None:
        """Record that it is done, with its result if it was a write; None if there is none."""
        self._singles -= 1
        if call.is_write:
            self._release((call.key,), {call.key: result})
        if self._waiting or self._overflow:
            self.schedule()

    # --- calls that wait ---

    def join(self, call: PendingCall[A]) -> asyncio.Future[A | Exception | Unanswered]:
        """Let a call wait with others; return its outcome, to be awaited."""
        outcome = self._loop.create_future()  # the sender sets it to what the call makes of a reply
        if self._is_closed:
            outcome.set_result(Unanswered.CLOSED)
            return outcome
        if call.deadline < self._expires:  # else the timer that is set covers it
            if call.deadline <= self._loop.time():
                outcome.set_result(Unanswered.EXPIRED)
                return outcome
            self._expire_at(call.deadline)
        call.outcome = outcome
        if self._overflow or len(self._waiting) + self._key_order.waiting >= self._limits.waiting:
            self._overflow.append(call)
        elif not call.is_write or self._key_order.admit(call):  # else behind a write of its key
            if call.goes_alone:
                self._add_unbatched(call)
                return outcome
            self._waiting.append(call)
        if not self._is_scheduled:
            self.schedule()
        return outcome

    def _admit(self, call: AnyCall) -> None:
        """Let a call wait for its request, after it has waited for room or for its key."""
        if call.goes_alone:
            self._add_unbatched(call)
        else:
            self._waiting.append(call)

    def _add_unbatched(self, call: AnyCall) -> None:
        try:
            self._unbatched.add(call)
        except ClientClosedError:
            self.close()

    def _admit_overflow(self) -> None:
        """Take calls that waited for room into the queue, as far as it has room."""
        while self._overflow and self._queued < self._limits.waiting:
            call = self._overflow.popleft()
            if not call.is_write or self._key_order.admit(call):
                self._admit(call)

    def _release(self, keys: Iterable[bytes], results: Mapping[bytes, Result]) -> None:
        """Let the next write of each key into the queue.

        Compare-and-swaps that can never apply are settled here.
        """
        for key in self._key_order.release_free(keys):
            following = self._key_order.release(key, known_revision(results.get(key)))
            if following is not None:
                self._admit(following)

    def schedule(self) -> None:
        """Send at the end of this turn of the event loop; calls that come until then are included.

        If all senders are busy there is nothing to do: each looks at the queue when it is free.
        """
        if self._is_scheduled:
            return
        while self._idle_senders:
            sender = self._idle_senders.pop()
            if not sender.done():  # else its task was cancelled, since the client is being closed
                self._is_scheduled = True
                sender.set_result(None)
                return
        if self._senders < self._slots:
            try:
                self._spawn(self._serve)
            except ClientClosedError:
                self.close()
            else:
                self._is_scheduled = True
                self._senders += 1

    async def _serve(self) -> None:
        """Send batches until the client is closed, or enough other senders are there."""
        try:
            while self._senders <= self._slots:
                batch = self._next()
                if batch:
                    await self._run(batch)
                if len(batch) > 1 or (batch and (self._waiting or self._overflow)):
                    # Callers that were answered just now ask for the next thing in this turn, and
                    # are included.
                    self._is_scheduled = True
                    await asyncio.sleep(0)
                else:
                    del batch  # an idle sender keeps nothing of its last callers
                    idle: asyncio.Future[None] = self._loop.create_future()
                    self._idle_senders.append(idle)
                    await idle
        except BaseException:
            self.close()  # or else calls would wait for a sender
            raise
        self._senders -= 1
        self._is_scheduled = False
        self.schedule()

    def _next(self) -> Batch:
        """Take the next batch out of the queue; an empty one if nothing is to be sent now."""
        self._is_scheduled = False
        while True:
            if self._overflow:
                self._admit_overflow()
            number = self._decide()
            if isinstance(number, Wait):
                return {}
            if batch := self._take(self.limit._replace(operations=number)):
                return batch

    def _decide(self) -> int | Wait:
        """Ask `how_many`, and do what its answer asks for."""
        hold, room = self._hold, self._room()
        has_held = hold is not None and hold.when() <= self._loop.time()
        number = how_many(
            waiting=len(self._waiting),
            free_slots=self._slots - self._requests_in_flight,
            in_flight=self._singles + sum(map(len, self._in_flight)),
            has_held=has_held,
            room=room,
            limit=self.limit,
            limits=self._limits,
        )
        if number is Wait.MORE:
            if hold is None:
                self._hold = self._loop.call_later(self._limits.hold, self.schedule)
        elif has_held and number is not Wait.CALL and number is not Wait.SLOT:
            self._hold = None
        if room is Room.ONE and not isinstance(number, Wait):
            # If its key is busy it is not sent, but then the write that keeps it busy counts.
            self._ask_for_room()
        return number

    def _take(self, limit: Limit) -> Batch:
        """Take a batch out of the queue, and drop the calls that are over.

        The next writes of the keys of those are admitted.
        """
        before = self._waiting
        batch, self._waiting = plan_batch(before, limit)
        if before[0].is_write and len(before) > len(batch) + len(self._waiting):
            kept = {each.key for each in self._waiting}
            self._release(
                [each.key for each in before if each.key not in kept and each.key not in batch], {}
            )
        return batch

    async def _run(self, batch: Batch) -> None:
        results: Mapping[bytes, Result] = {}
        self._in_flight.append(batch)
        if self._waiting:
            self.schedule()
        try:
            results = await self._send(batch)
        finally:
            self._in_flight.remove(batch)
            if first_of_batch(batch).is_write:
                self._release(batch, results)

    async def _run_unbatched(self, calls: Sequence[AnyCall]) -> None:
        results: Mapping[bytes, Result] = {}
        first = calls[0]
        try:
            if live := [each for each in calls if not each.is_done]:
                results = await self._send({first.key: live})
        finally:
            if first.is_write:
                self._release((first.key,), results)
                if self._waiting or self._overflow:
                    self.schedule()

    # --- requests that take long ---

    def add_slot(self) -> bool:
        """Let another request be sent beside one that takes long; tell whether that is so.

        Then `remove_slot` follows.
        """
        if self._overdue >= self._limits.overdue:
            return False
        self._overdue += 1
        self._unbatched.overdue = self._overdue
        if self._waiting or self._overflow:
            self.schedule()
        with suppress(ClientClosedError):  # then all calls end anyway
            self._unbatched.serve()
        return True

    def remove_slot(self) -> None:
        """Record that a request that took long is done."""
        self._overdue -= 1
        self._unbatched.overdue = self._overdue

    # --- deadlines: one timer for all ---

    def _expire_at(self, deadline: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry, self._expires = self._loop.call_at(deadline, self._expire), deadline

    def _expire(self) -> None:
        """End the calls whose deadline has passed."""
        now = self._loop.time()
        self._expiry, self._expires = None, math.inf
        deadlines = []
        for each in chain(
            self._waiting,
            self._key_order,
            self._overflow,
            self._unbatched,
            *map(calls_of, self._in_flight),
        ):
            if each.is_done:
                continue
            if each.deadline > now:
                deadlines.append(each.deadline)
            else:
                each.settle(Unanswered.EXPIRED)
        if deadlines:
            self._expire_at(max(min(deadlines), now + self._limits.expiry_interval))

    # --- the end ---

    def close(self) -> None:
        """End all calls that wait. Those in flight end with their requests. Idempotent."""
        self._is_closed = True
        for each in chain(self._waiting, self._key_order, self._overflow):
            each.settle(Unanswered.CLOSED)
        self._waiting, self._overflow = [], deque()
        self._key_order.clear()
        self._unbatched.close()
        for timer in (self._expiry, self._hold):
            if timer is not None:
                timer.cancel()
