"""A stream of changes from etcd.

Each watch has a gRPC stream of its own: HTTP/2's flow control then holds back each alone, so a consumer that does not
read costs itself, and a refused watch cannot take another's place (etcd 3.5.1 does that on shared streams).

A single task reads the stream, because cancelling a pending `read()` of grpc.aio cancels the whole call: a consumer
with a timeout must not do that. The task and the consumer share a `_Feed`; the watch itself is known to the consumer
only, so that dropping it ends the stream.
"""

import asyncio
import weakref
from collections import deque
from contextlib import suppress
from itertools import groupby
from typing import Final

import anyio

from kvorum.deadlines import deadline_of
from kvorum.errors import ClientClosedError, FutureRevisionError, HistoryLostError, KvorumError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.connection import Connection, HasConnection
from kvorum.etcd.entries import entry_of
from kvorum.etcd.translation import is_cancelled
from kvorum.etcd.watch_stream import WatchStream
from kvorum.keyspace import KeySpace
from kvorum.storage import Change, StorageWatch

# The reader reads no further message while this many changes wait for the consumer; etcd then keeps the rest. So at
# most one message more may wait: of a catch-up that is 1000 revisions, each with the changes of one transaction.
READ_AHEAD: Final = 1000

_DELETE: Final = 1  # mvccpb.Event.DELETE


class EtcdStorageWatch(StorageWatch):
    """Follows the keys under a prefix, on one stream. Made by `EtcdStorageBackend.watch`."""

    def __init__(self, client: HasConnection, keys: KeySpace, prefix: str, since: int | None) -> None:
        self._client = client
        self._feed = _Feed(keys, prefix, since)
        self._revision = 0
        self._started = False

    def __repr__(self) -> str:
        feed = self._feed
        state = "ended" if feed.is_ended else "open" if feed.is_open else "not open"
        return f"<EtcdStorageWatch {feed.subject} [{state}, at {self._revision}, {feed.buffered} buffered]>"

    @property
    def revision(self) -> int:
        """The revision delivered last, or the one that the watch started after."""
        return self._revision

    async def open(self) -> None:
        """Start the reader, and wait until etcd has created the watch."""
        if not self._started and not self._feed.is_ended:
            connection = self._client.connection
            deadline = deadline_of(connection.settings.timeout)
            connection.supervisor.spawn(self._feed.run, connection, deadline, name=f"watch {self._feed.subject}")
            self._started = True
            # A watch that is merely dropped is cancelled on the server, too. Python's garbage collector would not do
            # it: grpc keeps a call that is under way.
            weakref.finalize(self, _end_soon, asyncio.get_running_loop(), self._feed).atexit = False
        while not self._feed.is_open and not self._feed.is_ended:
            await self._feed.changed.wait()
        if not self._feed.is_open:
            self._feed.raise_error()
        self._revision = max(self._revision, self._feed.start)

    async def aclose(self) -> None:
        """Cancel the stream, and wait until its reader is gone."""
        self._feed.end()
        if self._started:
            await self._feed.finished.wait()

    async def __anext__(self) -> tuple[Change, ...]:
        await self.open()
        feed = self._feed
        # First wait, then take, with no await in between: so a wait that is cancelled takes nothing.
        while not feed.buffered and not feed.is_ended:
            await feed.changed.wait()
        changes = feed.take()
        if changes is None:
            feed.raise_error()
            raise StopAsyncIteration
        self._revision = changes[0].revision
        return changes


def _end_soon(loop: asyncio.AbstractEventLoop, feed: "_Feed") -> None:
    """End a feed from wherever the garbage collector runs: on any thread, and with the loop running or not."""
    with suppress(RuntimeError):  # the loop is closed, and the connection with it
        loop.call_soon_threadsafe(feed.end)


class _Feed:
    """What the reader has read and the consumer has not."""

    def __init__(self, keys: KeySpace, prefix: str, since: int | None) -> None:
        self.subject = keys.prefix + prefix
        self.start = 0
        self.is_open = False
        self.is_ended = False
        self.buffered = 0
        self.changed = anyio.Event()
        self.finished = anyio.Event()
        self._keys = keys
        self._prefix = prefix
        self._since = since
        self._position = 0
        self._revisions: deque[tuple[Change, ...]] = deque()
        self._error: KvorumError | None = None
        self._scope: anyio.CancelScope | None = None
        self._stream: WatchStream | None = None

    # --- the consumer's side ---

    def take(self) -> tuple[Change, ...] | None:
        """Take the oldest revision; None if there is none."""
        if not self._revisions:
            return None
        changes = self._revisions.popleft()
        self.buffered -= len(changes)
        if self.buffered < READ_AHEAD <= self.buffered + len(changes):
            self._notify()
        return changes

    def raise_error(self) -> None:
        """Raise what ended the stream, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """End the stream from this side: what is buffered is dropped."""
        self.is_ended = True
        self._error = None
        self._revisions.clear()
        self.buffered = 0
        if self._stream is not None:
            self._stream.cancel()
        if self._scope is not None:
            self._scope.cancel()
        self._notify()

    # --- the reader's side ---

    async def run(self, connection: Connection, deadline: float) -> None:
        """Read the stream until it ends, from either side; never raises but on cancellation."""
        try:
            with anyio.CancelScope() as self._scope:
                await self._read_all(connection, deadline)
        except KvorumError as exc:
            self._fail(exc)
        except asyncio.CancelledError:
            # `end` cancels the call, too, which grpc.aio tells its reader in this way.
            if is_cancelled():
                self._fail(ClientClosedError.closed())
                raise
        finally:
            if self._stream is not None:
                self._stream.cancel()
                self._stream = None  # it would keep the connection open for as long as somebody keeps the watch
            self.finished.set()

    async def _read_all(self, connection: Connection, deadline: float) -> None:
        stream = self._stream = await self._open(connection, deadline)
        self.is_open = True
        self._notify()
        while not self.is_ended:
            self._put(await self._read(stream))
            while self.buffered >= READ_AHEAD:
                await self.changed.wait()

    async def _open(self, connection: Connection, deadline: float) -> WatchStream:
        start, end = self._keys.range(self._prefix)
        first = 0 if self._since is None else self._since + 1
        create = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=first, prev_kv=True)
        stream = await WatchStream.open(connection, create, self.subject, deadline)
        try:
            await self._check_start(connection, stream.created.header.revision)
        except BaseException:
            stream.cancel()
            raise
        # A watch from now begins after the revision in this header. One from the past has its own position; the header
        # tells the store's, and to go on from there would lose what lies between.
        self.start = self._position = stream.created.header.revision if self._since is None else self._since
        return stream

    async def _read(self, stream: WatchStream) -> rpc.WatchResponse:
        try:
            return await stream.read()
        except HistoryLostError as exc:
            raise HistoryLostError(revision=self._position + 1, compact_revision=exc.compact_revision) from exc

    async def _check_start(self, connection: Connection, revision: int) -> None:
        """Refuse a start in the future or in lost history; etcd waits for the first, and tells of the second later."""
        if self._since is None or self._since == revision:
            return
        start, end = self._keys.range(self._prefix)
        if self._since < revision:
            # Compaction forgets the deletions of its own revision, too, and etcd does not say so to a watch that starts
            # there. So the state before the first change has to be there still.
            past = rpc.RangeRequest(key=start, range_end=end, count_only=True, revision=max(self._since, 1))
            await connection.range(past, self.subject, revision=self._since + 1)
            return
        # The member that serves the watch may lag behind the one that told the revision. A linearizable read does not.
        now = rpc.RangeRequest(key=start, range_end=end, count_only=True)
        current = (await connection.range(now, self.subject)).header.revision
        if self._since > current:
            raise FutureRevisionError(revision=self._since, current=current)

    def _put(self, response: rpc.WatchResponse) -> None:
        """Buffer the events of a response, a tuple for each revision; etcd does not split one between responses."""
        if self.is_ended:  # while the response was on its way from the event loop
            return
        for revision, events in groupby(response.events, key=lambda event: event.kv.mod_revision):
            if revision <= self._position:
                continue
            changes = tuple(self._change(event) for event in events)
            self._position = revision
            self._revisions.append(changes)
            self.buffered += len(changes)
        self._notify()

    def _change(self, event: rpc.Event) -> Change:
        kv, before = event.kv, event.prev_kv
        deleted = event.type == _DELETE
        # On a create the previous value is an empty message, not absent.
        previous = entry_of(self._keys, before) if before.mod_revision else None
        if previous is None and (deleted or kv.create_revision != kv.mod_revision):
            # Compaction has overtaken this watch: etcd then leaves the previous value out, without an error.
            raise HistoryLostError(revision=kv.mod_revision)
        entry = None if deleted else entry_of(self._keys, kv)
        return Change(self._keys.relative(kv.key), kv.mod_revision, entry, previous)

    def _fail(self, error: KvorumError) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._error = error
            self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()
