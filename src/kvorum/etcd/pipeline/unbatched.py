"""Calls that go in no batch, since a similar one was refused: a batch would be, too.

They wait beside the queue, and have a few requests of their own. So a caller that repeats refused
calls for many keys waits behind itself, and takes no request from batches. Reads of one key that
wait together are one request.

A slow link is no reason to wait: when a request has been in flight for a moment, the next one is
sent beside it. Otherwise callers that were all refused for a while, such as without a role, would
wait for each other long after they have it back.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import TypeAlias

from kvorum.errors import ClientClosedError
from kvorum.etcd.pipeline.calls import AnyCall, Unanswered
from kvorum.etcd.pipeline.queue_policy import QueueLimits

Spawn: TypeAlias = Callable[[Callable[[], Coroutine[object, None, None]]], None]


class Unbatched:
    """A queue of such calls: first in, first out, each in a request of its own.

    Args:
        send: sends a call, or several reads of one key as one, and settles each unless it is over
            already.
        spawn: runs a function in a task of its own, until the client is closed; raises
            `ClientClosedError` then.
        limits: how many requests may be in flight.

    Attributes:
        size: how many calls wait or are in flight.
        waiting: how many calls wait to be sent.
        overdue: how many requests take so long that others may be sent beside them.
    """

    def __init__(
        self,
        send: Callable[[Sequence[AnyCall]], Coroutine[object, None, None]],
        spawn: Spawn,
        limits: QueueLimits,
    ) -> None:
        self.size: int = 0
        self.waiting: int = 0
        self.overdue: int = 0
        self._send = send
        self._spawn = spawn
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._making_way: int = 0  # requests that have been in flight for a moment
        self._waiting: deque[list[AnyCall]] = deque()  # what each request is for
        self._reads: dict[bytes, list[AnyCall]] = {}  # those of them that read, by their keys
        self._in_flight: list[list[AnyCall]] = []
        self._senders: int = 0  # tasks; each ends when nothing waits

    def __iter__(self) -> Iterator[AnyCall]:
        """Yield the calls that wait or are in flight."""
        return chain.from_iterable(chain(self._waiting, self._in_flight))

    def add(self, call: AnyCall) -> None:
        """Let a call wait. If it writes, it is the first of its key.

        Raises:
            ClientClosedError: the client is closed; `close` ends the call as well.
        """
        self.size += 1
        self.waiting += 1
        others = None if call.is_write else self._reads.get(call.key)
        if others is not None:
            others.append(call)
            return
        calls = [call]
        self._waiting.append(calls)
        if not call.is_write:
            self._reads[call.key] = calls
        self.serve()

    @property
    def _slots(self) -> int:
        """How many requests may be in flight."""
        limits = self._limits
        return min(limits.unbatched_slots + self._making_way, limits.unbatched) + self.overdue

    def serve(self) -> None:
        """Start another sender, if there are too few for what waits.

        Raises:
            ClientClosedError: the client is closed.
        """
        if self._waiting and self._senders < self._slots:
            self._spawn(self._serve)
            self._senders += 1

    async def _serve(self) -> None:
        try:
            while self._waiting and self._senders <= self._slots:
                calls = self._waiting.popleft()
                self._reads.pop(calls[0].key, None)
                self.waiting -= len(calls)
                self._in_flight.append(calls)
                try:
                    await self._send_one(calls)
                finally:
                    self._in_flight.remove(calls)
                    self.size -= len(calls)
        finally:
            self._senders -= 1

    async def _send_one(self, calls: Sequence[AnyCall]) -> None:
        has_made_way = False

        def make_way() -> None:
            nonlocal has_made_way
            has_made_way = True
            self._making_way += 1
            with suppress(ClientClosedError):  # then all calls end anyway
                self.serve()

        timer = self._loop.call_later(self._limits.unbatched_hold, make_way)
        try:
            await self._send(calls)
        finally:
            timer.cancel()
            self._making_way -= has_made_way

    def close(self) -> None:
        """End the calls that wait."""
        for each in chain.from_iterable(self._waiting):
            each.settle(Unanswered.CLOSED)
        self.size -= self.waiting
        self.waiting = 0
        self._waiting.clear()
        self._reads.clear()
