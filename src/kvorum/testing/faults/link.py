"""One connection through a fault proxy.

Two pipes, one for each direction, under the conditions of the moment.
"""

import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream

BUFFER_SIZE: Final = 1 << 20  # bytes; a pipe that holds so many takes no more from its sender
_CHUNK_SIZE: Final = 1 << 16
_TICK: Final = 0.02  # seconds between the portions of a throttled pipe


class Conditions:
    """What one direction does to bytes at the moment; shared by all connections of a proxy.

    Attributes:
        is_held: bytes wait in the pipe.
        is_dropped: bytes are thrown away.
        delay: seconds that each byte is under way.
        rate: bytes per second for each connection; None for as many as there are.
        cut_after: how many more bytes pass, on all connections together, until theirs is cut; None
            for no such limit.
        passed: how many bytes have been delivered.
        dropped: how many bytes have been thrown away.
    """

    def __init__(self) -> None:
        self.passed: int = 0
        self.dropped: int = 0
        self.reset()

    def reset(self) -> None:
        """Pass everything, at once."""
        self.is_held: bool = False
        self.is_dropped: bool = False
        self.delay: float = 0.0
        self.rate: float | None = None
        self.cut_after: int | None = None


class Pipe:
    """One direction of a connection: from `source` to `sink`.

    The end of what the source sends is passed on like a last byte: as an end, or as a reset. If the
    sink takes no more the source is still read, and forgotten, so that the other direction can
    finish.
    """

    def __init__(self, conditions: Conditions, link: "Link") -> None:
        self.buffered: int = 0
        self.is_damaged: bool = (
            False  # bytes are missing in the middle: nobody can make sense of what follows
        )
        self._conditions = conditions
        self._link = link
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._source_state: str = "open"  # or "ended", "broken"
        self._news = anyio.Event()

    def wake(self) -> None:
        """Look at the conditions again."""
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
        """Deliver what is buffered, as the conditions allow, and then the end."""
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
        """Wait for the next portion that may go; None if that was all."""
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
        """Pass a portion on, or what the conditions leave of it.

        Say whether the sink takes more.
        """
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
        was_cut: whether it was reset by the proxy.
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
        """Whether bytes of it were thrown away."""
        return self.requests.is_damaged or self.replies.is_damaged

    async def run(self, connect: Callable[[], Awaitable[SocketStream]]) -> None:
        """Pass bytes in both directions, until both have ended or the connection is cut."""
        with self._scope:
            async with self._client, await connect() as server, anyio.create_task_group() as group:
                self._server = server
                group.start_soon(self.requests.fill, self._client)
                group.start_soon(self.requests.drain, server)
                group.start_soon(self.replies.fill, server)
                group.start_soon(self.replies.drain, self._client)

    def cut(self) -> None:
        """Reset both sides, and throw away what is buffered."""
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
        """Tell that something has happened."""
        self.wake()
        self._notify()


def reset(stream: SocketStream) -> None:
    """Let the connection end with a reset instead of an end once it is closed."""
    with suppress(OSError, anyio.ClosedResourceError):
        sock = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
