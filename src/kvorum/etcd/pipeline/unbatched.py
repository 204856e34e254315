"""Calls that go in no batch, since one like them was refused: for them a whole batch would be refused.

They wait beside the queue of a lane, and a few requests of their own are under way for them. So a
caller that repeats refused calls for many keys waits behind itself, and takes no request from
batches.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import chain
from typing import Any, Final

from kvorum.etcd.pipeline.batch import Pending, Unanswered

SLOTS: Final = 2  # requests under way


class Unbatched:
    """A queue of such calls: the first is sent first, each in a request of its own.

    Args:
        send: sends a call and settles it, unless it is over already.
        spawn: runs a function in a task of its own, until the client is closed; raises
            `ClientClosedError` then.

    Attributes:
        size: how many calls wait or are under way.
        overdue: how many requests take so long that others may be sent beside them.
    """

    def __init__(
        self,
        send: Callable[[Pending[Any]], Coroutine[Any, Any, None]],
        spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    ) -> None:
        self.size: int = 0
        self.overdue: int = 0
        self._send = send
        self._spawn = spawn
        self._waiting: deque[Pending[Any]] = deque()
        self._under_way: list[Pending[Any]] = []
        self._senders: int = 0  # tasks; each ends when nothing waits

    def __iter__(self) -> Iterator[Pending[Any]]:
        """Go through the calls that wait or are under way."""
        return chain(self._waiting, self._under_way)

    @property
    def waiting(self) -> int:
        """How many calls wait to be sent."""
        return len(self._waiting)

    def add(self, call: Pending[Any]) -> None:
        """Let a call wait; if it writes, it is its turn among the writes of its key.

        Raises:
            ClientClosedError: the client is closed; `close` ends it as well.
        """
        self.size += 1
        self._waiting.append(call)
        self.serve()

    def serve(self) -> None:
        """Start another sender, if there are too few for what waits."""
        if self._waiting and self._senders < SLOTS + self.overdue:
            self._spawn(self._serve)
            self._senders += 1

    async def _serve(self) -> None:
        try:
            while self._waiting and self._senders <= SLOTS + self.overdue:
                call = self._waiting.popleft()
                self._under_way.append(call)
                try:
                    await self._send(call)
                finally:
                    self._under_way.remove(call)
                    self.size -= 1
        finally:
            self._senders -= 1

    def close(self) -> None:
        """End the calls that wait."""
        for each in self._waiting:
            each.settle(Unanswered.CLOSED)
        self.size -= len(self._waiting)
        self._waiting.clear()
