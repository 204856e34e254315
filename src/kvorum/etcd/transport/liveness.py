"""Whether a server is alive: a cheap question, asked when an answer is overdue."""

import logging
from collections.abc import Callable
from typing import Protocol

import anyio

from kvorum.deadlines import now
from kvorum.errors import KvorumError, UnavailableError
from kvorum.etcd.supervisor import Coro, Supervisor
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.errors import STATUS
from kvorum.etcd.transport.pulse import Life, Pulse
from kvorum.etcd.transport.server import Channel, Server
from kvorum.etcd.transport.tokens import Metadata

_log = logging.getLogger(__name__)


class HasServers(Protocol):
    """What the servers belong to: a cluster."""

    servers: list[Server]

    @property
    def share(self) -> float:
        """How many seconds one server may take."""
        ...

    @property
    def metadata(self) -> Metadata:
        """What each call sends along."""
        ...

    def is_prepared(self, server: Server) -> bool:
        """Whether a call can be sent at once."""
        ...

    async def prepare_within(self, server: Server, seconds: float) -> None:
        """Prepare a server, or raise `UnavailableError`."""
        ...

    def renew_calls(self, server: Server, channel: Channel) -> None:
        """Replace the channel of the calls."""
        ...

    def leave_dead(self, server: Server) -> None:
        """Stop using a server that does not answer."""
        ...


class Liveness:
    """One `Pulse` for each server whose answers are waited for."""

    def __init__(self, cluster: HasServers, supervisor: Supervisor) -> None:
        self._cluster = cluster
        self._supervisor = supervisor
        self._pulses: dict[Server, Pulse] = {}

    def pulse_of(self, server: Server) -> Pulse:
        """Return what watches over the answers that a server owes."""
        pulse = self._pulses.get(server)
        if pulse is None:

            async def ask() -> Life:
                return await self.life_of(server)

            def spawn(run: Callable[[], Coro[None]]) -> None:
                self._supervisor.spawn_aside(run, name="kvorum-liveness")

            pulse = Pulse(
                ask, spawn, lambda: self._cluster.leave_dead(server), self._cluster.share / 2
            )
            self._pulses[server] = pulse
        return pulse

    def adjust(self) -> None:
        """Take over the share of a server, which depends on how many there are."""
        for pulse in self._pulses.values():
            pulse.pause = self._cluster.share / 2

    def forget(self, server: Server) -> None:
        """Stop watching over a server."""
        if pulse := self._pulses.pop(server, None):
            pulse.close()

    def close(self) -> None:
        """Stop watching over all servers. Idempotent."""
        for pulse in self._pulses.values():
            pulse.close()

    async def life_of(self, server: Server) -> Life:
        """Ask a server something cheap. If only its watches' connection answers, renew the other.

        A server that refuses as a member is no better than a silent one.
        """
        cluster = self._cluster
        seconds = cluster.share / (1 if len(cluster.servers) == 1 else 2)
        if not cluster.is_prepared(server):
            is_answer = await self._is_answer(server, cluster.prepare_within(server, seconds))
            return Life.ALIVE if is_answer else Life.DEAD
        calls, answered = server.calls, set[Channel]()
        patience = now() + cluster.share / 2
        async with anyio.create_task_group() as group:

            async def ask(channel: Channel) -> None:
                status = server.call(
                    channel,
                    lambda channel: channel.maintenance.Status,
                    rpc.StatusRequest(),
                    STATUS,
                    now() + seconds,
                    cluster.metadata,
                )
                if not await self._is_answer(server, status):
                    return
                answered.add(channel)
                if channel is calls:
                    group.cancel_scope.cancel()
                else:
                    group.cancel_scope.deadline = patience

            # On both channels: on that of the calls the question may queue behind the very page
            # that is overdue. Or its connection is dead, and the server is not.
            group.start_soon(ask, calls)
            group.start_soon(ask, server.watches)
        if calls in answered:
            return Life.ALIVE
        if not answered:
            return Life.DEAD
        cluster.renew_calls(server, calls)
        return Life.CALLS_SILENT

    async def _is_answer(self, server: Server, question: Coro[object]) -> bool:
        try:
            await question
        except UnavailableError as exc:
            _log.debug("etcd at %s does not answer: %s", server.address, exc)
            return False
        except KvorumError:  # a refusal is an answer; and in a closed client nothing matters
            return True
        return True
