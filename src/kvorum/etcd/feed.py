"""What the reader of a watch has read and its consumer has not; and how the reader goes on when a stream breaks.

Rules of the position, the revision up to which everything has been read:

1. It moves to the revision of the last event, or of a notification that nothing has happened up to one. Never to the
   revision of another response's header: during a catch-up that is the store's, and lies ahead. It never goes back.
2. A stream that takes over starts *at* the position, and drops what it has had. To start one later would lose deletions
   without a sign: of the revision that it is compacted at, etcd forgets them, and takes a watch that starts there.
3. The same can happen to a watch that lags, since etcd keeps a place of its own for it. So what comes as a catch-up
   counts only once the state at the position before it turns out to be readable still.
"""

import asyncio
import logging
import random
from collections import deque
from itertools import groupby
from typing import Final

import anyio

from kvorum.errors import ClientClosedError, FutureRevisionError, HistoryLostError, KvorumError, UnavailableError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.connection import Connection
from kvorum.etcd.entries import entry_of
from kvorum.etcd.translation import is_cancelled
from kvorum.etcd.watch_stream import WatchStream
from kvorum.keyspace import KeySpace
from kvorum.storage import Change

_log = logging.getLogger(__name__)

# The reader reads no further message while this many changes wait for the consumer, and begins again when half of them
# are taken; etcd keeps the rest. So one message more may wait: of a catch-up that is 1000 revisions, each with the
# changes of one transaction. For a consumer that has never asked for anything it reads nothing.
READ_AHEAD: Final = 256

# Seconds before a stream takes over: at random up to the first, twice that after each that broke without news, and so
# on up to the second.
_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 1.0

# Seconds that the first attempt to take over may take, twice that the next one, and so on up to the timeout of a call.
# When a server falls silent, keep-alive finds out about the connection of the watches within 12 seconds; but about that
# of the calls, on which the server is asked first, the deadline of this attempt does.
_FIRST_ATTEMPT: Final = 2.0

_DELETE: Final = 1  # mvccpb.Event.DELETE


class Feed:
    """A reader and its buffer.

    Attributes:
        subject: what is watched, for messages.
        start: the revision after which it started.
        position: everything up to this revision has been read.
        is_open: whether it has been created at all.
        is_ended: whether nothing more will be read.
        buffered: how many changes wait.
        events: how many changes were read.
        resumes: how many streams took over from one that broke.
        changed: set, and replaced, whenever something here changes.
        finished: set when the reader is gone.
    """

    def __init__(self, keys: KeySpace, prefix: str, since: int | None) -> None:
        self.subject: str = keys.prefix + prefix
        self.start: int = 0
        self.position: int = 0
        self.is_open: bool = False
        self.is_ended: bool = False
        self.buffered: int = 0
        self.events: int = 0
        self.resumes: int = 0
        self.changed: anyio.Event = anyio.Event()
        self.finished: anyio.Event = anyio.Event()
        self._keys = keys
        self._range = keys.range(prefix)
        self._since = since
        self._revisions: deque[tuple[int, tuple[Change, ...]]] = deque()
        self._error: KvorumError | None = None
        self._scope: anyio.CancelScope | None = None
        self._stream: WatchStream | None = None
        self._breaks = 0  # streams that broke since there was news
        self._is_wanted = False
        self._is_sure = True  # that what comes next follows on the position; see rule 3

    # --- the consumer's side ---

    async def wait(self) -> None:
        """Wait until there is something to take, or never will be. A wait that is cancelled takes nothing."""
        if not self._is_wanted:
            self._is_wanted = True
            self._notify()
        while not self._revisions and not self.is_ended:
            await self.changed.wait()

    def take(self) -> tuple[int, tuple[Change, ...]] | None:
        """Take the oldest revision with its changes, without any if nothing has happened up to it; None if none."""
        if not self._revisions:
            return None
        revision, changes = self._revisions.popleft()
        self.buffered -= len(changes)
        if self.buffered <= READ_AHEAD // 2 < self.buffered + len(changes):
            self._notify()
        return revision, changes

    def raise_error(self) -> None:
        """Raise what ended it, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """End it from this side: what is buffered is dropped."""
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
        """Read until it is ended, from either side; never raises but on cancellation.

        Args:
            connection: where to read.
            deadline: until when the first stream has to be there. Those that take over have as long as it takes.
        """
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
        except Exception:
            # A mistake of ours: it ends the client, and is raised where that is left. Nobody may wait in vain for it.
            self._fail(ClientClosedError.closed())
            raise
        finally:
            self._drop_stream()
            self.finished.set()

    async def _read_all(self, connection: Connection, deadline: float) -> None:
        await self._open(connection, deadline)
        while not self.is_ended:
            try:
                await self._read_stream(connection)
            except UnavailableError as exc:
                self._drop_stream()
                await self._take_over(connection, exc)

    async def _read_stream(self, connection: Connection) -> None:
        while not self.is_ended and self._stream is not None:
            while not self._is_wanted:
                await self.changed.wait()
            try:
                response = await self._stream.read()
            except HistoryLostError as exc:
                raise HistoryLostError(revision=self.position + 1, compact_revision=exc.compact_revision) from exc
            if not self._is_sure and self.position:
                await self._check_readable(connection, self.position)
            self._is_sure = _is_live(response)
            if response.events:
                self._put(response)
            else:
                self._put_bookmark(response.header.revision)
            if self.buffered >= READ_AHEAD:
                self._is_sure = False
                while self.buffered > READ_AHEAD // 2:
                    await self.changed.wait()

    # --- streams ---

    async def _open(self, connection: Connection, deadline: float) -> None:
        """Create the first stream, within the deadline, as a call would."""
        while not self.is_open:
            try:
                await self._open_once(connection, deadline)
            except UnavailableError:
                self._drop_stream()
                self._breaks += 1
                wait = self._wait()
                if anyio.current_time() + wait >= deadline:
                    raise
                await anyio.sleep(wait)

    async def _open_once(self, connection: Connection, deadline: float) -> None:
        stream = await self._create(connection, self._since, deadline)
        now = stream.created.header.revision
        await self._check_start(connection, now)
        # A watch from now begins after the revision of this header, the store's. One from the past has its own.
        self.start = self.position = now if self._since is None else self._since
        self.is_open = True
        self._notify()

    async def _take_over(self, connection: Connection, lost: UnavailableError) -> None:
        """Create a stream that goes on where the last one broke, however long that takes."""
        _log.warning("the watch of %s was interrupted at revision %d: %s", self.subject, self.position, lost)
        while True:
            await anyio.sleep(self._wait())
            self._breaks += 1
            deadline = anyio.current_time() + self._patience(connection.settings.timeout)
            try:
                stream = await self._create(connection, self.position, deadline)
                await self._check_future(connection, self.position, stream.created.header.revision)
            except UnavailableError as exc:
                _log.debug("the watch of %s is still interrupted: %s", self.subject, exc)
                self._drop_stream()
            else:
                break
        self.resumes += 1
        _log.info("the watch of %s goes on at revision %d", self.subject, self.position)

    async def _create(self, connection: Connection, since: int | None, deadline: float) -> WatchStream:
        start, end = self._range
        first = 0 if since is None else max(since, 1)  # rule 2; 0 would mean "now"
        create = rpc.WatchCreateRequest(
            key=start, range_end=end, start_revision=first, prev_kv=True, progress_notify=True
        )
        self._stream = await WatchStream.open(connection, create, self.subject, deadline)
        self._is_sure = True
        return self._stream

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None  # it would keep the connection open for as long as somebody keeps the watch

    def _wait(self) -> float:
        return random.uniform(0, min(_FIRST_WAIT * _twofold(self._breaks), _LONGEST_WAIT))  # noqa: S311 - no secret

    def _patience(self, timeout: float) -> float:
        """Return how long an attempt to take over may take."""
        return min(_FIRST_ATTEMPT * _twofold(self._breaks - 1), timeout)

    # --- checks ---

    async def _check_start(self, connection: Connection, revision: int) -> None:
        """Refuse a start in the future or in lost history. etcd waits for the first, and tells the second later."""
        if self._since is None or self._since == revision:
            return
        if self._since < revision:
            await self._check_readable(connection, max(self._since, 1))
        await self._check_future(connection, self._since, revision)

    async def _check_future(self, connection: Connection, since: int, revision: int) -> None:
        """Refuse to wait for a revision that is far away: the store was put back to an older state."""
        if since <= revision:
            return
        # The member that serves the watch may lag behind the one that told the revision. A linearizable read does not.
        now = rpc.RangeRequest(key=self._range[0], count_only=True)
        current = (await connection.range(now, self.subject)).header.revision
        if since > current:
            raise FutureRevisionError(revision=since, current=current)

    async def _check_readable(self, connection: Connection, revision: int) -> None:
        """Make sure that nothing after a revision has been compacted so far.

        Raises:
            HistoryLostError: something has.
        """
        past = rpc.RangeRequest(key=self._range[0], count_only=True, revision=revision)
        await connection.range(past, self.subject, revision=revision + 1)

    # --- the buffer ---

    def _put(self, response: rpc.WatchResponse) -> None:
        """Buffer the events of a response, a tuple for each revision; etcd does not split one between responses."""
        if self.is_ended:  # while the response was on its way from the event loop
            return
        for revision, events in groupby(response.events, key=lambda event: event.kv.mod_revision):
            if revision <= self.position:
                continue
            changes = tuple(self._change(event) for event in events)
            self.position = revision
            self._breaks = 0
            self._revisions.append((revision, changes))
            self.buffered += len(changes)
            self.events += len(changes)
        self._notify()

    def _put_bookmark(self, revision: int) -> None:
        """Take note that nothing has happened up to a revision. Of several in a row the last one says it all."""
        if self.is_ended or revision <= self.position:
            return
        if self._revisions and not self._revisions[-1][1]:
            self._revisions.pop()
        self.position = revision
        self._revisions.append((revision, ()))
        self._notify()

    def _change(self, event: rpc.Event) -> Change:
        kv, before = event.kv, event.prev_kv
        deleted = event.type == _DELETE
        # On a create the previous value is an empty message, not absent.
        key = self._keys.relative(kv.key)
        previous = entry_of(self._keys, before, key) if before.mod_revision else None
        if previous is None and (deleted or kv.create_revision != kv.mod_revision):
            # Compaction has overtaken this watch: etcd then leaves the previous value out, without an error.
            raise HistoryLostError(revision=kv.mod_revision)
        entry = None if deleted else entry_of(self._keys, kv, key)
        return Change(key, kv.mod_revision, entry, previous)

    def _fail(self, error: KvorumError) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._error = error
            self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


def _twofold(times: int) -> int:
    """Return two to that power, or so much that it makes no difference. 2**1024, after ten minutes, is no float."""
    return 1 << min(times, 16)


def _is_live(response: rpc.WatchResponse) -> bool:
    """Tell whether etcd has nothing more to send for now. Notifications that nothing happened come only then."""
    if not response.events:
        return True
    return response.events[0].kv.mod_revision == response.events[-1].kv.mod_revision == response.header.revision
