"""One connection through a fault proxy: a pipe for each direction."""

import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream

BUFFER_SIZE: Final = 1 << 20  # bytes; a pipe that buffers this much stops reading
_CHUNK_SIZE: Final = 1 << 16
_TICK: Final = 0.02  # seconds between the portions of a throttled pipe


class Conditions:
    """The faults of one direction, shared by all connections of a proxy.

    Attributes:
        is_held: bytes stay in the pipe.
        is_dropped: bytes are discarded.
        delay: the latency of each byte, in seconds.
        rate: bytes per second and connection; None for no limit.
        cut_after: how many more bytes pass, over all connections, before the current one is reset;
            None for no limit.
        passed: how many bytes were delivered.
        dropped: how many bytes were discarded.
    """

    def __init__(self) -> None:
        self.passed: int = 0
        self.dropped: int = 0
        self.reset()

    def reset(self) -> None:
        """Remove all faults."""
        self.is_held: bool = False
        self.is_dropped: bool = False
        self.delay: float = 0.0
        self.rate: float | None = None
        self.cut_after: int | None = None


class Pipe:
    """One direction of a connection: from `source` to `sink`.

    The end of the source is passed on after its last byte, as an end of stream or as a reset. If
    the sink is closed, the source is still read and discarded, so that the other direction can
    finish.
    """

    def __init__(self, conditions: Conditions, link: "Link") -> None:
        self.buffered: int = 0
        self.is_damaged: bool = False  # bytes are missing, so what follows is useless
        self._conditions = conditions
        self._link = link
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._source_state: str = "open"  # or "ended", "broken"
        self._news = anyio.Event()

    def wake(self) -> None:
        """Apply changed conditions."""
        self._news.set()
        self._news = anyio.Event()

    async def fill(self, source: SocketStream) -> None:
        """Read the source into the buffer until it ends."""
        while self._source_state == "open":
            try:
                chunk = await source.receive(_CHUNK_SIZE)
            except anyio.EndOfStream:
                self._source_state = "ended"
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._source_state = "broken"
            else:
                self._chunks.append((anyio.current_time() + self._conditions.delay, chunk))
                self.buffered += len(chunk)
            self._link.notify()
            while self.buffered >= BUFFER_SIZE:
                await self._news.wait()

    async def drain(self, sink: SocketStream) -> None:
        """Deliver the buffered bytes as the conditions allow, and then the end."""
        takes_more = True
        while (chunk := await self._next()) is not None:
            if takes_more:
                takes_more = await self._deliver(chunk, sink)
        if self._source_state == "broken":
            reset(sink)
            await sink.aclose()
            return
        with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await sink.send_eof()

    async def _next(self) -> bytes | None:
        """Wait for the next portion to deliver; None at the end."""
        while True:
            conditions = self._conditions
            if conditions.is_held or (not self._chunks and self._source_state == "open"):
                await self._news.wait()
                continue
            if not self._chunks:
                return None
            wait = self._chunks[0][0] - anyio.current_time()
            if wait > 0:
                with anyio.move_on_after(wait):
                    await self._news.wait()
                continue
            return await self._take()

    async def _take(self) -> bytes:
        due, chunk = self._chunks.popleft()
        rate = self._conditions.rate
        if rate is not None:
            size = max(int(rate * _TICK), 1)
            chunk, rest = chunk[:size], chunk[size:]
            if rest:
                self._chunks.appendleft((due, rest))
            await anyio.sleep(len(chunk) / rate)
        self.buffered -= len(chunk)
        self.wake()
        return chunk

    async def _deliver(self, chunk: bytes, sink: SocketStream) -> bool:
        """Deliver what the conditions leave of a portion; return whether the sink accepts more."""
        conditions = self._conditions
        if conditions.is_dropped or self.is_damaged:
            self.is_damaged = True
            conditions.dropped += len(chunk)
            self._link.notify()
            return True
        cut = conditions.cut_after is not None and conditions.cut_after <= len(chunk)
        if conditions.cut_after is not None:
            chunk = chunk[: conditions.cut_after]
            conditions.cut_after = None if cut else conditions.cut_after - len(chunk)
        try:
            await sink.send(chunk)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        conditions.passed += len(chunk)
        if cut:
            self._link.cut()
        self._link.notify()
        return not cut


class Link:
    """One connection from a client through the proxy to the server.

    Attributes:
        was_cut: whether the proxy reset it.
    """

    def __init__(
        self,
        client: SocketStream,
        requests: Conditions,
        replies: Conditions,
        notify: Callable[[], None],
    ) -> None:
        self.requests: Pipe = Pipe(requests, self)
        self.replies: Pipe = Pipe(replies, self)
        self.was_cut: bool = False
        self._client = client
        self._server: SocketStream | None = None
        self._scope = anyio.CancelScope()
        self._notify = notify

    @property
    def is_damaged(self) -> bool:
        """Whether bytes of it were discarded."""
        return self.requests.is_damaged or self.replies.is_damaged

    async def run(self, connect: Callable[[], Awaitable[SocketStream]]) -> None:
        """Forward bytes in both directions until both end or the connection is cut."""
        with self._scope:
            async with self._client, await connect() as server, anyio.create_task_group() as group:
                self._server = server
                group.start_soon(self.requests.fill, self._client)
                group.start_soon(self.requests.drain, server)
                group.start_soon(self.replies.fill, server)
                group.start_soon(self.replies.drain, self._client)

    def cut(self) -> None:
        """Reset both sides and discard what is buffered."""
        self.was_cut = True
        for side in (self._client, self._server):
            if side is not None:
                reset(side)
        self._scope.cancel()

    def wake(self) -> None:
        """Look at the conditions again."""
        self.requests.wake()
        self.replies.wake()

    def notify(self) -> None:
        """Report that something has happened."""
        self.wake()
        self._notify()


def reset(stream: SocketStream) -> None:
    """Make closing the stream reset the connection instead of ending it."""
    with suppress(OSError, anyio.ClosedResourceError):
        sock = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
