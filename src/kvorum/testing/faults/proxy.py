"""A TCP proxy on the loopback interface that injects faults between a client and a server.

    async with FaultProxy(etcd.endpoints[0]) as proxy:
        async with kvorum.connect(f"etcd://{proxy.endpoint}") as client:
            proxy.drop("replies")  # requests arrive, nothing comes back
            ...
            await proxy.heal()

It works on bytes and knows nothing of gRPC, like a network. Faults can be combined, and last until
they are healed.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Literal, Self, TypeAlias

import anyio
import msgspec
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup

from kvorum.testing.faults.link import Conditions, Link

Direction: TypeAlias = Literal["requests", "replies"]
"""From the client to the server, or back."""


class ProxyStatistics(msgspec.Struct, frozen=True):
    """The traffic of a proxy so far.

    Attributes:
        accepted: connections accepted.
        open_links: connections open now.
        requests: bytes delivered to the server.
        replies: bytes delivered to clients.
        held: bytes waiting in the proxy.
        dropped: bytes discarded.
        cuts: connections reset by the proxy.
    """

    accepted: int
    open_links: int
    requests: int
    replies: int
    held: int
    dropped: int
    cuts: int


class FaultProxy:
    """Forwards connections to `upstream`, and injects faults on demand.

    Args:
        upstream: `host:port` of the server.
        host: the address to listen on.

    Attributes:
        endpoint: `host:port` to connect to; it never changes.
    """

    def __init__(self, upstream: str, *, host: str = "127.0.0.1") -> None:
        self.endpoint: str = ""
        server, _, port = upstream.rpartition(":")
        self._server = self._upstream = (server.strip("[]"), int(port))
        self._host = host
        self._requests, self._replies = Conditions(), Conditions()
        self._links: set[Link] = set()
        self._accepted = 0
        self._cuts = 0
        self._is_mute = False
        self._listener: Listener[SocketStream] | None = None
        self._news = anyio.Event()
        self._stack = AsyncExitStack()
        self._group: TaskGroup

    def __repr__(self) -> str:
        host, port = self._upstream
        return (
            f"<FaultProxy {self.endpoint or 'not open'} for {host}:{port}, {len(self._links)} open>"
        )

    # --- faults ---

    def cut(self) -> None:
        """Reset all connections now. New ones are accepted."""
        for link in tuple(self._links):
            link.cut()

    def cut_after(self, size: int, direction: Direction) -> None:
        """Reset, once, the connection that carries byte number `size` from now in a direction."""
        self._of(direction).cut_after = size
        self._wake()

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Add latency in one direction or both; the throughput stays."""
        for conditions in self._all(direction):
            conditions.delay = seconds
        self._wake()

    def throttle(self, rate: float, direction: Direction | None = None) -> None:
        """Limit the rate of each connection, in bytes per second, in one direction or both."""
        for conditions in self._all(direction):
            conditions.rate = rate
        self._wake()

    def hold(self, direction: Direction) -> None:
        """Hold bytes back; `heal` delivers them in order, even if the sender has gone."""
        self._of(direction).is_held = True
        self._wake()

    def drop(self, direction: Direction) -> None:
        """Discard bytes. With "replies", requests take effect and their replies are lost.

        A connection that has lost bytes is useless, so `heal` resets it.
        """
        self._of(direction).is_dropped = True
        self._wake()

    def mute(self) -> None:
        """Accept connections and send nothing, on new connections and on open ones."""
        self._is_mute = True
        self.hold("requests")
        self.hold("replies")

    async def refuse(self) -> None:
        """Refuse new connections. Open ones stay open."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.aclose()

    def redirect(self, upstream: str) -> None:
        """Send new connections to another server, as a reassigned port or address does.

        Open connections keep their server.
        """
        server, _, port = upstream.rpartition(":")
        self._upstream = (server.strip("[]"), int(port))

    async def heal(self) -> None:
        """End all faults: deliver held bytes, reset connections that have lost bytes.

        New connections go to the original server again.
        """
        self._is_mute = False
        self._upstream = self._server
        for conditions in self._all(None):
            conditions.reset()
        for link in tuple(self._links):
            if link.is_damaged:
                link.cut()
        self._wake()
        if self._listener is None:
            await self._listen()

    def _of(self, direction: Direction) -> Conditions:
        return self._requests if direction == "requests" else self._replies

    def _all(self, direction: Direction | None) -> list[Conditions]:
        return [self._of(direction)] if direction is not None else [self._requests, self._replies]

    def _wake(self) -> None:
        for link in self._links:
            link.wake()
        self.notify()

    # --- what has happened ---

    def statistics(self) -> ProxyStatistics:
        """Return the traffic so far."""
        return ProxyStatistics(
            accepted=self._accepted,
            open_links=len(self._links),
            requests=self._requests.passed,
            replies=self._replies.passed,
            held=sum(link.requests.buffered + link.replies.buffered for link in self._links),
            dropped=self._requests.dropped + self._replies.dropped,
            cuts=self._cuts,
        )

    async def wait(self, holds: Callable[[ProxyStatistics], bool]) -> ProxyStatistics:
        """Wait until a condition on the statistics holds, for example `lambda now: now.held > 0`.

        Return those statistics.
        """
        while not holds(now := self.statistics()):
            await self._news.wait()
        return now

    def notify(self) -> None:
        """Wake all waiters."""
        self._news.set()
        self._news = anyio.Event()

    # --- serving ---

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._group = await self._stack.enter_async_context(anyio.create_task_group())
        await self._listen()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._group.cancel_scope.cancel()
        await self._stack.__aexit__(exc_type, exc, traceback)

    async def _listen(self) -> None:
        port = int(self.endpoint.rpartition(":")[2] or 0)
        (self._listener,) = (
            await anyio.create_tcp_listener(local_host=self._host, local_port=port)
        ).listeners
        port = self._listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
        self.endpoint = f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"
        self._group.start_soon(self._serve, self._listener)

    async def _serve(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            with suppress(anyio.ClosedResourceError):  # refused
                await listener.serve(self._pass_on, self._group)

    async def _pass_on(self, client: SocketStream) -> None:
        link = Link(client, self._requests, self._replies, self.notify)
        self._accepted += 1
        self._links.add(link)
        self.notify()
        try:
            with suppress(OSError):  # the server is down; the client sees its connection end
                await link.run(self._connect)
        finally:
            self._links.discard(link)
            self._cuts += link.was_cut
            self.notify()

    async def _connect(self) -> SocketStream:
        while self._is_mute:
            await self._news.wait()
        return await anyio.connect_tcp(*self._upstream)
