"""Whether the store has room: asked now and then where batches of writes pass by etcd's quota.

Such a server neither counts what is nested in a transaction, nor refuses it once the quota is used up. So every second
one write goes by itself, which etcd counts, and which raises the alarm if there is no room; the alarms are asked; and
batches are sent only for as long as the last answer is fresh and says that there is none.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from kvorum.errors import ClientClosedError, KvorumError
from kvorum.etcd import _rpc as rpc
from kvorum.supervisor import Supervisor

_log = logging.getLogger(__name__)

_PERIOD: Final = 1.0  # seconds between two questions
_FRESH: Final = 3.0  # seconds for which an answer counts


class Quota:
    """What is known about the room that the store has.

    Args:
        ask: asks for the alarms of the cluster.
        supervisor: runs a question in a task of its own.
    """

    def __init__(self, ask: Callable[[rpc.AlarmRequest], Awaitable[rpc.AlarmResponse]], supervisor: Supervisor) -> None:
        self._ask = ask
        self._supervisor = supervisor
        self._is_asking = False
        self._due = 0.0
        self._fresh_until = 0.0

    def admits(self, now: float) -> bool:
        """Tell whether a write may go into a batch; if not, it has to go by itself. Asks again when it is time.

        Args:
            now: on the event loop's clock.
        """
        if now >= self._due and not self._is_asking:
            self._is_asking = True
            self._due = now + _PERIOD
            self._supervisor.spawn(self._look, name="look for alarms")
            return False  # this write is the one that etcd counts
        return self.is_open(now)

    def is_open(self, now: float) -> bool:
        """Tell whether batches of writes may be sent, by the last answer."""
        return now < self._fresh_until

    def close(self) -> None:
        """Take note that a write was refused for want of room."""
        self._fresh_until = 0.0

    async def _look(self) -> None:
        try:
            alarms = await self._ask(rpc.AlarmRequest())
        except ClientClosedError:
            pass
        except KvorumError as exc:  # whoever may not ask does not batch
            _log.debug("writes are not batched, since the alarms are not known: %s", exc)
        else:
            self._fresh_until = 0.0 if alarms.alarms else anyio.current_time() + _FRESH
        finally:
            self._is_asking = False
