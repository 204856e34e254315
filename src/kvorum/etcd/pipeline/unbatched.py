"""Calls that go in no batch, since a call about their key was refused: a batch would be, too.

They wait beside the queue, and have a few requests of their own. So a caller that repeats refused
calls for many keys waits behind itself, and takes no request from batches.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import chain
from typing import TypeAlias

from kvorum.etcd.pipeline.calls import AnyCall, Unanswered

Spawn: TypeAlias = Callable[[Callable[[], Coroutine[object, None, None]]], None]


class Unbatched:
    """A queue of such calls: first in, first out, each in a request of its own.

    Args:
        send: sends a call and settles it, unless it is over already.
        spawn: runs a function in a task of its own, until the client is closed; raises
            `ClientClosedError` then.
        slots: how many requests may be in flight.

    Attributes:
        size: how many calls wait or are in flight.
        overdue: how many requests take so long that others may be sent beside them.
    """

    def __init__(
        self,
        send: Callable[[AnyCall], Coroutine[object, None, None]],
        spawn: Spawn,
        slots: int,
    ) -> None:
        self.size: int = 0
        self.overdue: int = 0
        self._send = send
        self._spawn = spawn
        self._slots = slots
        self._waiting: deque[AnyCall] = deque()
        self._in_flight: list[AnyCall] = []
        self._senders: int = 0  # tasks; each ends when nothing waits

    def __iter__(self) -> Iterator[AnyCall]:
        """Yield the calls that wait or are in flight."""
        return chain(self._waiting, self._in_flight)

    @property
    def waiting(self) -> int:
        """How many calls wait to be sent."""
        return len(self._waiting)

    def add(self, call: AnyCall) -> None:
        """Let a call wait. If it writes, it is the first of its key.

        Raises:
            ClientClosedError: the client is closed; `close` ends the call as well.
        """
        self.size += 1
        self._waiting.append(call)
        self.serve()

    def serve(self) -> None:
        """Start another sender, if there are too few for what waits.

        Raises:
            ClientClosedError: the client is closed.
        """
        if self._waiting and self._senders < self._slots + self.overdue:
            self._spawn(self._serve)
            self._senders += 1

    async def _serve(self) -> None:
        try:
            while self._waiting and self._senders <= self._slots + self.overdue:
                call = self._waiting.popleft()
                self._in_flight.append(call)
                try:
                    await self._send(call)
                finally:
                    self._in_flight.remove(call)
                    self.size -= 1
        finally:
            self._senders -= 1

    def close(self) -> None:
        """End the calls that wait."""
        for each in self._waiting:
            each.settle(Unanswered.CLOSED)
        self.size -= len(self._waiting)
        self._waiting.clear()
