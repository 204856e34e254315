"""Whether the store has room: asked now and then where batches of writes pass by etcd's quota.

Such a server neither counts what is nested in a transaction, nor refuses it once the quota is used
up. So every second one write goes by itself, which etcd counts, and which raises the alarm if there
is no room; the alarms are asked; and batches are sent only for as long as the last answer is fresh
and says that there is none. While there is none to go by, and one is under way, writes wait for it;
but not for long, for what keeps the answer away may not keep writes away.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kvorum.errors import ClientClosedError, KvorumError
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import _rpc as rpc

_log = logging.getLogger(__name__)

_PERIOD: Final = 1.0  # seconds between two questions
_FRESH: Final = 3.0  # seconds for which an answer counts, from the question on
_PATIENCE: Final = 0.3  # seconds that writes wait for one
_FULL: Final = 5.0  # seconds for which the store counts as full after it refused a write


class Quota:
    """What is known about the room that the store has.

    Args:
        ask: asks for the alarms of the cluster.
        supervisor: runs a question in a task of its own.
        loop: whose clock counts.
        tell: called when writes need not wait for an answer any more.
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
        self._full_until = 0.0
        self._awaited_until = 0.0

    @property
    def has_room(self) -> bool:
        """Whether batches of writes may be sent, by the last answer."""
        return self._loop.time() < self._fresh_until

    @property
    def is_full(self) -> bool:
        """Whether a write was refused a short time ago, and no answer has shown since that there is room."""
        return self._full_until > 0 and self._loop.time() < self._full_until

    @property
    def is_awaited(self) -> bool:
        """Whether writes had better wait.

        That is being asked, and an answer is likely to come at once.
        """
        return self._is_asking and not self.has_room and self._loop.time() < self._awaited_until

    @property
    def is_due(self) -> bool:
        """Whether it is time to `look`."""
        return not self._is_asking and self._loop.time() >= self._due

    def look(self) -> None:
        """Ask for the alarms. Whoever does this sends a write by itself, so that it is counted."""
        now = self._loop.time()
        self._supervisor.spawn_aside(self._look, now, name="look for alarms")
        self._is_asking, self._due, self._awaited_until = True, now + _PERIOD, now + _PATIENCE

    def close(self) -> None:
        """Take note that a write was refused for want of room."""
        self._closed = self._loop.time()
        self._full_until = self._closed + _FULL
        self._fresh_until = 0.0

    async def _look(self, asked: float) -> None:
        in_trouble = self._loop.call_at(self._awaited_until, self._tell)
        try:
            alarms = await self._ask(rpc.AlarmRequest())
        except ClientClosedError:
            pass
        except KvorumError as exc:  # whoever may not ask does not batch
            _log.debug("writes are not batched, since the alarms are not known: %s", exc)
        else:
            has_room = not alarms.alarms and asked > self._closed
            self._fresh_until = asked + _FRESH if has_room else 0.0
            if has_room:
                self._full_until = 0.0
        finally:
            in_trouble.cancel()
            self._is_asking = False
            self._tell()
