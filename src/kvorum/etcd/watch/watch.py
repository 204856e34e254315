"""A stream of changes from etcd.

Each watch has a gRPC stream of its own: HTTP/2's flow control then holds back each alone, so a
consumer that does not read costs itself, and a refused watch cannot take another's place (etcd
3.5.1 does that on shared streams).

A single task reads the stream, because cancelling a pending `read()` of grpc.aio cancels the whole
call: a consumer with a timeout must not do that. The task and the consumer share a `WatchReader`;
the watch itself is known to the consumer only, so that dropping it ends the stream.
"""

import asyncio
import weakref
from contextlib import suppress

from kvorum.deadlines import deadline_of
from kvorum.etcd.transport import HasConnection
from kvorum.etcd.watch.reader import WatchReader
from kvorum.owner import Place
from kvorum.storage import Change, Entry, KeySpace, StorageWatch, WatchStatistics


class EtcdStorageWatch(StorageWatch):
    """Follows the keys under a prefix, and goes on by itself when its stream breaks. `EtcdStorageBackend` makes it.

    Once it is open, it ends with an error for what cannot mend itself only: history that is
    compacted, a permission that was taken away, a store that was put back to an older state.
    """

    def __init__(
        self,
        client: HasConnection,
        keys: KeySpace,
        prefix: str,
        since: int | None,
        *,
        bookmarks: bool,
    ) -> None:
        self._client = client
        self._feed = WatchReader(keys, prefix, since)
        self._bookmarks = bookmarks
        self._revision = 0
        self._place: Place | None = None  # that it was opened in

    def __repr__(self) -> str:
        feed = self._feed
        state = "ended" if feed.is_ended else "open" if feed.is_open else "not open"
        return f"<EtcdStorageWatch {feed.subject} [{state}, at {self._revision}, {feed.buffered} buffered]>"

    @property
    def revision(self) -> int:
        """The revision delivered last, or the one that the watch started after, or one up to which nothing happened."""
        return self._revision

    def statistics(self) -> WatchStatistics:
        """Return the state of the stream and its buffer."""
        feed = self._feed
        return WatchStatistics(
            position=feed.position, resumes=feed.resumes, buffered=feed.buffered, events=feed.events
        )

    def expect(self, entry: Entry) -> None:
        """Have it compared with the store when a stream takes over that has read nothing newer."""
        self._feed.expect(entry)

    async def open(self) -> None:
        """Start the reader, and wait until etcd has created the watch."""
        self._check_owner()
        if self._place is None and not self._feed.is_ended:
            connection = self._client.connection
            deadline = deadline_of(connection.settings.timeout)
            connection.supervisor.spawn(
                self._feed.run, connection, deadline, name=f"watch {self._feed.subject}"
            )
            self._place = Place()
            # A watch that is merely dropped is cancelled on the server, too. Python's garbage
            # collector would not do it: grpc keeps a call that is under way.
            weakref.finalize(self, _end_soon, asyncio.get_running_loop(), self._feed).atexit = False
        while not self._feed.is_open and not self._feed.is_ended:
            await self._feed.changed.wait()
        if not self._feed.is_open:
            self._feed.raise_error()
        self._revision = max(self._revision, self._feed.start)

    async def aclose(self) -> None:
        """Cancel the stream, and wait until its reader is gone."""
        self._check_owner()
        self._feed.end()
        if self._place is not None:
            await self._feed.finished.wait()

    def _check_owner(self) -> None:
        """Refuse a process or an event loop that it was not opened in.

        There, it would wait for ever.
        """
        if self._place is not None:
            self._place.check()

    async def __anext__(self) -> tuple[Change, ...]:
        await self.open()
        feed = self._feed
        while True:
            await feed.wait()
            taken = (
                feed.take()
            )  # with no await since the wait: so one that is cancelled takes nothing
            if taken is None:
                feed.raise_error()
                raise StopAsyncIteration
            self._revision, changes = taken
            if changes or self._bookmarks:
                return changes


def _end_soon(loop: asyncio.AbstractEventLoop, feed: WatchReader) -> None:
    """End a feed from wherever the garbage collector runs.

    On any thread, and with the loop running or not.
    """
    with suppress(RuntimeError):  # the loop is closed, and the connection with it
        loop.call_soon_threadsafe(feed.end)
