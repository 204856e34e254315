"""Whether the store has room: asked now and then where batches of writes pass by etcd's quota.

Such a server neither counts what is nested in a transaction, nor refuses it once the quota is used up. So every second
one write goes by itself, which etcd counts, and which raises the alarm if there is no room; the alarms are asked; and
batches are sent only for as long as the last answer is fresh and says that there is none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kvorum.errors import ClientClosedError, KvorumError
from kvorum.etcd import _rpc as rpc
from kvorum.supervisor import Supervisor

_log = logging.getLogger(__name__)

_PERIOD: Final = 1.0  # seconds between two questions
_FRESH: Final = 3.0  # seconds for which an answer counts, from the question on


class Quota:
    """What is known about the room that the store has.

    Args:
        ask: asks for the alarms of the cluster.
        supervisor: runs a question in a task of its own.
        loop: whose clock counts.
        tell: called when a question has come to its end.
    """

    def __init__(
        self,
        ask: Callable[[rpc.AlarmRequest], Awaitable[rpc.AlarmResponse]],
        supervisor: Supervisor,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[], None],
    ) -> None:
        self._ask = ask
        self._supervisor = supervisor
        self._loop = loop
        self._tell = tell
        self._is_asking = False
        self._due = 0.0
        self._closed = 0.0  # when a write was refused
        self._fresh_until = 0.0

    @property
    def has_room(self) -> bool:
        """Whether batches of writes may be sent, by the last answer."""
        return self._loop.time() < self._fresh_until

    @property
    def is_open(self) -> bool:
        """Whether that is being asked, with nothing known until the answer."""
        return self._is_asking and not self.has_room

    def is_due(self) -> bool:
        """Tell whether the next write has to go by itself, to be counted; and ask for the alarms, since it is time."""
        now = self._loop.time()
        if self._is_asking or now < self._due:
            return False
        self._supervisor.spawn(self._look, now, name="look for alarms")
        self._is_asking, self._due = True, now + _PERIOD
        return True

    def close(self) -> None:
        """Take note that a write was refused for want of room."""
        self._closed = self._loop.time()
        self._fresh_until = 0.0

    async def _look(self, asked: float) -> None:
        try:
            alarms = await self._ask(rpc.AlarmRequest())
        except ClientClosedError:
            pass
        except KvorumError as exc:  # whoever may not ask does not batch
            _log.debug("writes are not batched, since the alarms are not known: %s", exc)
        else:
            is_outdated = asked <= self._closed
            self._fresh_until = 0.0 if alarms.alarms or is_outdated else asked + _FRESH
        finally:
            self._is_asking = False
            self._tell()
