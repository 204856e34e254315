"""A stream of changes from etcd.

Each watch has a gRPC stream of its own. HTTP/2's flow control then holds back each one separately:
a slow consumer delays only itself, and a rejected watch cannot take the place of another. On shared
streams, etcd 3.5.1 does that.

One task reads the stream, because cancelling a pending `read()` of grpc.aio cancels the whole call:
a consumer with a timeout must not do that. The task and the consumer share a `WatchReader`. Only
the consumer refers to the watch itself, so dropping it ends the stream.
"""

import asyncio
import weakref
from collections.abc import Callable
from contextlib import suppress

from typing_extensions import override

from kvorum.deadlines import deadline_of
from kvorum.etcd.transport import Connection
from kvorum.etcd.watch.reader import WatchReader
from kvorum.etcd.watch.timing import WatchTiming
from kvorum.runtime import Owner
from kvorum.storage import Change, Entry, KeySpace, StorageWatch, WatchStatistics


class EtcdStorageWatch(StorageWatch):
    """Follows the keys under a prefix, and resumes when its stream breaks.

    `EtcdStorageBackend` makes it. Once open, it fails only on errors that it cannot recover from:
    history that is compacted, a permission that was revoked, a store that was restored to a state
    without the last change that it has read.
    """

    def __init__(
        self,
        connection: Callable[[], Connection],
        keys: KeySpace,
        prefix: str,
        since: int | None,
        *,
        bookmarks: bool,
        timing: WatchTiming | None = None,
    ) -> None:
        self._connection = connection  # a watch may be made before there is one
        self._reader = WatchReader(keys, prefix, since, timing)
        self._bookmarks = bookmarks
        self._revision = 0
        self._owner: Owner | None = None  # set when it is opened

    def __repr__(self) -> str:
        reader, buffered = self._reader, self._reader.buffer.size
        state = "ended" if reader.buffer.is_ended else "open" if reader.is_open else "not open"
        return (
            f"<EtcdStorageWatch {reader.subject} "
            f"[{state}, at {self._revision}, {buffered} buffered]>"
        )

    @property
    @override
    def revision(self) -> int:
        return self._revision

    @override
    def statistics(self) -> WatchStatistics:
        reader, buffer = self._reader, self._reader.buffer
        return WatchStatistics(
            position=reader.position,
            resumes=reader.resumes,
            buffered=buffer.size,
            events=buffer.events,
        )

    @override
    def expect(self, entry: Entry) -> None:
        self._reader.expect(entry)

    @override
    async def open(self) -> None:
        self._check_owner()
        reader, buffer = self._reader, self._reader.buffer
        if self._owner is None and not buffer.is_ended:
            connection = self._connection()
            deadline = deadline_of(connection.settings.timeout)
            connection.supervisor.spawn(
                reader.run, connection, deadline, name=f"kvorum-watch {reader.subject}"
            )
            self._owner = Owner()
            # A dropped watch is cancelled on the server, too. Garbage collection alone does not:
            # grpc keeps a pending call.
            weakref.finalize(self, _end_soon, asyncio.get_running_loop(), reader).atexit = False
        while not reader.is_open and not buffer.is_ended:
            await buffer.changed.wait()
        if not reader.is_open:
            buffer.raise_error()
        self._revision = max(self._revision, reader.start)

    @override
    async def aclose(self) -> None:
        self._check_owner()
        self._reader.end()
        if self._owner is not None:
            await self._reader.finished.wait()

    def _check_owner(self) -> None:
        """Refuse a process or event loop other than the one that opened it, where it would hang."""
        if self._owner is not None:
            self._owner.check()

    @override
    async def __anext__(self) -> tuple[Change, ...]:
        await self.open()
        buffer = self._reader.buffer
        while True:
            await buffer.wait()
            taken = buffer.take()  # with no await since the wait: a cancelled wait takes nothing
            if taken is None:
                buffer.raise_error()
                raise StopAsyncIteration
            self._revision, changes = taken
            if changes or self._bookmarks:
                return changes


def _end_soon(loop: asyncio.AbstractEventLoop, reader: WatchReader) -> None:
    """End a reader from the garbage collector: on any thread, with the loop running or not."""
    with suppress(RuntimeError):  # the loop is closed, and the connection with it
        loop.call_soon_threadsafe(reader.end)
