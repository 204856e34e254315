"""Calls that go in no batch, since a similar one was refused: a batch would be, too.

They wait beside the queue, and have a few requests of their own. So a caller that repeats refused
calls for many keys waits behind itself, and takes no request from batches. Reads of one key that
wait together are one request.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

from kvorum.etcd.pipeline.calls import AnyCall, Unanswered

Spawn: TypeAlias = Callable[[Callable[[], Coroutine[object, None, None]]], None]


class Unbatched:
    """A queue of such calls: first in, first out, each in a request of its own.

    Args:
        send: sends a call, or several reads of one key as one, and settles each unless it is over
            already.
        spawn: runs a function in a task of its own, until the client is closed; raises
            `ClientClosedError` then.
        slots: how many requests may be in flight.

    Attributes:
        size: how many calls wait or are in flight.
        waiting: how many calls wait to be sent.
        overdue: how many requests take so long that others may be sent beside them.
    """

    def __init__(
        self,
        send: Callable[[Sequence[AnyCall]], Coroutine[object, None, None]],
        spawn: Spawn,
        slots: int,
    ) -> None:
        self.size: int = 0
        self.waiting: int = 0
        self.overdue: int = 0
        self._send = send
        self._spawn = spawn
        self._slots = slots
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
                calls = self._waiting.popleft()
                self._reads.pop(calls[0].key, None)
                self.waiting -= len(calls)
                self._in_flight.append(calls)
                try:
                    await self._send(calls)
                finally:
                    self._in_flight.remove(calls)
                    self.size -= len(calls)
        finally:
            self._senders -= 1

    def close(self) -> None:
        """End the calls that wait."""
        for each in chain.from_iterable(self._waiting):
            each.settle(Unanswered.CLOSED)
        self.size -= self.waiting
        self.waiting = 0
        self._waiting.clear()
        self._reads.clear()
