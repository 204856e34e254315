"""Whether the store has room: asked now and then where batches of writes bypass etcd's quota.

Such a server does not count what is nested in a transaction, nor refuse it when the quota is used
up. So each second one write is sent alone, which etcd counts, and which raises the alarm if there
is no room; the alarms are asked for; and batches are sent only while the last answer is fresh and
shows no alarm. While there is no fresh answer and a question is in flight, writes wait for it, but
not for long: what delays the answer must not delay the writes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kvorum.errors import ClientClosedError, KvorumError
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import _rpc as rpc
from kvorum.runtime import Limits

_log = logging.getLogger(__name__)


class QuotaTiming(Limits, frozen=True):
    """How often the alarms are asked for, and how long an answer counts. All in seconds.

    Attributes:
        period: between two questions.
        fresh: for which an answer counts, from the question on.
        wait: for which writes wait for an answer.
        full: for which the store counts as full after it refused a write.
    """

    period: float = 1.0
    fresh: float = 3.0
    wait: float = 0.3
    full: float = 5.0


DEFAULT_TIMING: Final = QuotaTiming()


class Quota:
    """What is known about the room that the store has.

    Args:
        ask: asks for the alarms of the cluster.
        supervisor: runs a question in a task of its own.
        loop: whose clock counts.
        timing: how often it asks, and how long an answer counts.

    Attributes:
        on_answer: called when writes need not wait for an answer any more.
    """

    def __init__(
        self,
        ask: Callable[[rpc.AlarmRequest], Awaitable[rpc.AlarmResponse]],
        supervisor: Supervisor,
        loop: asyncio.AbstractEventLoop,
        timing: QuotaTiming = DEFAULT_TIMING,
    ) -> None:
        self.on_answer: Callable[[], None] = lambda: None
        self._ask = ask
        self._supervisor = supervisor
        self._loop = loop
        self._timing = timing
        self._is_asking = False
        self._due = 0.0
        self._refused = 0.0  # when a write was refused
        self._fresh_until = 0.0
        self._full_until = 0.0
        self._awaited_until = 0.0

    @property
    def has_room(self) -> bool:
        """Whether batches of writes may be sent, by the last answer."""
        return self._loop.time() < self._fresh_until

    @property
    def is_full(self) -> bool:
        """Whether a write was refused recently, and no answer since then has shown room."""
        return self._full_until > 0 and self._loop.time() < self._full_until

    @property
    def is_awaited(self) -> bool:
        """Whether writes should wait for the pending question."""
        return self._is_asking and not self.has_room and self._loop.time() < self._awaited_until

    @property
    def is_due(self) -> bool:
        """Whether it is time to `look`."""
        return not self._is_asking and self._loop.time() >= self._due

    def look(self) -> None:
        """Ask for the alarms. The caller sends a write alone, which etcd counts.

        Raises:
            ClientClosedError: the client is closed.
        """
        now, timing = self._loop.time(), self._timing
        # First, since it may raise. The task starts when this one yields, and finds the state set.
        self._supervisor.spawn_aside(self._look, now, name="kvorum-pipeline-alarms")
        self._is_asking, self._due = True, now + timing.period
        self._awaited_until = now + timing.wait

    def note_full(self) -> None:
        """Record that a write was refused for lack of space."""
        self._refused = self._loop.time()
        self._full_until = self._refused + self._timing.full
        self._fresh_until = 0.0

    async def _look(self, asked: float) -> None:
        # When the answer is late, writes stop waiting for it.
        late = self._loop.call_at(self._awaited_until, self.on_answer)
        try:
            alarms = await self._ask(rpc.AlarmRequest())
        except ClientClosedError:
            pass
        except KvorumError as exc:  # a client that may not ask does not batch
            _log.debug("writes are not batched, since the alarms are unknown: %s", exc)
        else:
            has_room = not alarms.alarms and asked > self._refused
            self._fresh_until = asked + self._timing.fresh if has_room else 0.0
            if has_room:
                self._full_until = 0.0
        finally:
            late.cancel()
            self._is_asking = False
            self.on_answer()
