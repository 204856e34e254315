"""The channels of all servers: opened with the certificates on disk, closed when unused."""

import logging
from collections.abc import Iterable, Sequence

import anyio

from kvorum.errors import ConfigurationError
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport.certificates import Certificates
from kvorum.etcd.transport.server import Channel, Server, flush
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)


class Channels:
    """Opens, replaces and closes channels.

    A replaced channel is closed after the client's timeout, or when the last call on it has ended
    if that is later: the deadlines of calls may be. They get no error for it.
    """

    def __init__(self, settings: EtcdSettings, supervisor: Supervisor) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._retired: set[Channel] = set()  # replaced, and not closed yet
        self._is_closed = False

    async def open(self, server: Server) -> None:
        """Open the channels of a server; replace them if the certificates on disk have changed.

        Raises:
            ConfigurationError: the certificates are unusable, and none were read before.
        """
        certificates = await self._certificates(server) if self._settings.tls else None
        if self._is_closed:
            raise self._supervisor.closed()
        self.retire(server.open(certificates))

    def renew(self, server: Server) -> None:
        """Replace the channels of a server that is connected but silent.

        The connection itself may be dead. Keep-alive would notice, but runs during calls only.
        """
        server.is_suspect = False
        if not self._is_closed and server.is_open and server.calls.is_connected:
            self.retire(server.open(server.certificates, replace=True))

    def renew_calls(self, server: Server, channel: Channel) -> None:
        """Replace a call channel that is silent though the server answers, unless that was done.

        Calls on it may still be answered: a large page may keep them waiting.
        """
        if not self._is_closed and server.is_open and server.calls is channel:
            self.retire(server.open_calls())

    def renew_watches(self, server: Server, channel: Channel) -> None:
        """Replace a watch channel that leads to another cluster, unless that was done already.

        The call channel may be older and lead to the right cluster. Then no call would ever replace
        the channel of the watches.
        """
        if not self._is_closed and server.is_open and server.has_watches_on(channel):
            self.retire(server.open_watches())

    def retire(self, channels: Sequence[Channel]) -> None:
        """Close channels when their calls have ended, or with the client."""
        for channel in channels:
            self.close_later(channel, self._settings.timeout)

    def close_later(self, channel: Channel, seconds: float = 0) -> None:
        """Close a channel that gets no more calls after so many seconds, or with the client.

        Calls under way on it end first.

        Raises:
            ClientClosedError: the client is closed, or closing; it closes this channel, too.
        """
        # First: a task that is cancelled before its first step closes nothing.
        self._retired.add(channel)
        self._supervisor.spawn_aside(self._close_in, seconds, channel, name="kvorum-close-channel")

    async def aclose(self, servers: Iterable[Server]) -> None:
        """Close the channels of these servers and all retired ones. Idempotent.

        Calls on them end with an error.
        """
        if self._is_closed:
            return
        self._is_closed = True
        for server in servers:
            await server.aclose(self._supervisor.failure)
        while self._retired:  # the tasks that would have closed these were cancelled
            await self._retired.pop().aclose()
        await flush()

    async def _close_in(self, seconds: float, channel: Channel) -> None:
        await anyio.sleep(seconds)
        await channel.until_idle()
        self._retired.discard(channel)
        await channel.aclose()

    async def _certificates(self, server: Server) -> Certificates | None:
        try:
            return await Certificates.read(self._settings)
        except ConfigurationError as exc:
            if not server.is_open:
                raise
            # They may be in the middle of being replaced, one file after the other.
            _log.warning("unusable certificates on disk; keeping the ones read before: %s", exc)
            return server.certificates
