"""The reader of a watch: it reads one stream after another into a buffer.

`history` has the rules by which it reads. `last_change` checks that a new stream continues the same
history.
"""

import asyncio
import logging
import random

import anyio

from kvorum.deadlines import now
from kvorum.errors import (
    AuthenticationError,
    ConfigurationError,
    FutureRevisionError,
    HistoryLostError,
    InternalError,
    KvorumError,
    PermissionDeniedError,
    UnavailableError,
)
from kvorum.etcd.entries import change_of
from kvorum.etcd.transport import (
    EVENTS_LOST,
    Connection,
    TokenRefusedError,
    has_hazard,
    is_cancelled,
    is_of_observer,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch.buffer import WatchBuffer
from kvorum.etcd.watch.history import (
    GapDetector,
    Reading,
    check_readable,
    revision_now,
    with_oldest,
)
from kvorum.etcd.watch.last_change import LastChange
from kvorum.etcd.watch.stream import WatchStream, no_watch
from kvorum.etcd.watch.timing import WatchTiming
from kvorum.storage import Change, Entry, KeySpace

_log = logging.getLogger(__name__)


class WatchReader:
    """Reads a range of keys from a revision on, and resumes when its stream breaks.

    Attributes:
        subject: what is watched, for messages.
        start: the revision after which it started.
        is_open: whether etcd has created the watch.
        resumes: how many streams have replaced a broken one.
        buffer: what was read, for the consumer.
        finished: set when the reader's task has ended.
    """

    def __init__(
        self,
        keys: KeySpace,
        prefix: str,
        since: int | None,
        timing: WatchTiming | None = None,
    ) -> None:
        self.subject: str = keys.prefix + prefix
        self.start: int = 0
        self.is_open: bool = False
        self.resumes: int = 0
        self.buffer: WatchBuffer = WatchBuffer()
        self.finished: anyio.Event = anyio.Event()
        self._keys = keys
        self._range = keys.range(prefix)
        self._since = since
        self._timing = WatchTiming() if timing is None else timing
        self._scope: anyio.CancelScope | None = None
        self._stream: WatchStream | None = None
        self._breaks = 0  # streams that broke since the last news
        self._has_news = False  # whether the stream has brought any
        self._was_silent = False  # whether the last broken stream had brought none
        self._reading = Reading()
        # Of the stream; None if its server never omits events without a sign.
        self._gap_detector: GapDetector | None = None
        self._last = LastChange(keys, self.subject)
        # When the user was first rejected, while its password file may still be updated.
        self._refused_since: float | None = None

    @property
    def position(self) -> int:
        """Everything up to this revision has been read."""
        return self._reading.position

    @position.setter
    def position(self, revision: int) -> None:
        self._reading.position = revision

    def expect(self, entry: Entry) -> None:
        """Record the newest entry that was read by other means at the revision to start after."""
        self._last.change = Change(entry.key, entry.mod_revision, entry, None)

    def end(self) -> None:
        """End it from the consumer's side, and drop what is buffered."""
        self.buffer.close()
        if self._stream is not None:
            self._stream.cancel()
        if self._scope is not None:
            self._scope.cancel()

    async def run(self, connection: Connection, deadline: float) -> None:
        """Read until either side ends it. Raises nothing but cancellation.

        Args:
            connection: where to read.
            deadline: when the first stream has to be open. Later streams may take any time.
        """
        try:
            with anyio.CancelScope() as self._scope:
                await self._read_or_fail(connection, deadline)
        except KvorumError as exc:
            self.buffer.fail(exc)
        except asyncio.CancelledError:
            # `end` cancels the call, too, and grpc.aio then raises this in the task that reads.
            if is_cancelled():
                self.buffer.fail(connection.supervisor.closed())
                raise
        except Exception as exc:  # noqa: BLE001 - raised to the consumer
            if is_of_observer(exc):
                self.buffer.fail(exc)
                return
            # A bug of ours. It ends this watch, not the others.
            _log.exception("the watch of %s failed because of a bug in Kvorum", self.subject)
            error = InternalError(f"the watch of {self.subject}", exc)
            error.__cause__ = exc
            self.buffer.fail(error)
            del error  # the traceback of its cause holds this frame
        finally:
            self._drop_stream()
            self.finished.set()

    async def _read_or_fail(self, connection: Connection, deadline: float) -> None:
        try:
            await self._read_all(connection, deadline)
        except HistoryLostError as exc:
            self._drop_stream()
            until = None if self.is_open else deadline
            raise await with_oldest(exc, connection, self._range[0], self.subject, until) from exc

    async def _read_all(self, connection: Connection, deadline: float) -> None:
        await self._open(connection, deadline)
        while not self.buffer.is_ended:
            try:
                await self._read_stream(connection)
            except KvorumError as exc:
                if self._stream is not None:
                    endpoint = self._stream.server.address
                    connection.observer.watch_interrupted(self.subject, endpoint, exc)
                if not self._waits_out(connection, exc):
                    raise
                self._was_silent = not self._has_news
                self._drop_stream()
                await self._resume(connection, exc)

    async def _read_stream(self, connection: Connection) -> None:
        buffer = self.buffer
        while not buffer.is_ended and self._stream is not None:
            while not buffer.is_wanted:
                await buffer.changed.wait()
            endpoint = self._stream.server.address
            response = await self._read_once(self._stream)
            connection.observer.watch_received(self.subject, endpoint, response)
            if self._gap_detector is not None:
                self._gap_detector.count()
                if self._gap_detector.may_have_gap:
                    await self._check_for_gap(connection, self._gap_detector)
            self._has_news = True
            self._put(response)
            connection.observer.watch_buffered(self.subject, buffer.size)
            if self._gap_detector is not None and self._gap_detector.is_due(now()):
                await self._try_check_for_gap(connection, self._gap_detector)
            if buffer.is_full:
                while not buffer.has_room:
                    await buffer.changed.wait()

    async def _read_once(self, stream: WatchStream) -> rpc.WatchResponse:
        try:
            return await stream.read()
        except HistoryLostError as exc:
            raise HistoryLostError(
                revision=self.position + 1, compact_revision=exc.compact_revision
            ) from exc

    def _put(self, response: rpc.WatchResponse) -> None:
        """Buffer what is new in a response: changes, or that nothing has happened."""
        if self.buffer.is_ended:  # while the response was on its way from the event loop
            return
        self._last.compare(response, self.position)
        for revision, events in self._reading.take_new_revisions(response):
            if events:
                changes = tuple(change_of(self._keys, event) for event in events)
                self._last.change = changes[-1]
                self._breaks = 0
                self.buffer.put(revision, changes)
            else:
                self.buffer.put_bookmark(revision)
        self.buffer.notify()

    def _waits_out(self, connection: Connection, error: KvorumError) -> bool:
        """Return whether an open watch waits for an error to pass.

        A rejected user may: a password is not changed in etcd and in its file at the same instant.
        Calls recover from that by themselves; a watch that has ended does not.
        """
        if _is_transient(connection, error):
            return True
        if (
            not isinstance(error, AuthenticationError | ConfigurationError)
            or not connection.settings.password_file
        ):
            return False
        if self._refused_since is None:
            self._refused_since = now()
        return now() - self._refused_since < self._timing.password

    # --- streams ---

    async def _open(self, connection: Connection, deadline: float) -> None:
        """Create the first stream by the deadline, with retries as for a call."""
        lost: KvorumError | None = None
        try:
            with anyio.move_on_after(deadline - now()):
                while not self.is_open:
                    try:
                        await self._open_once(connection, deadline)
                    except KvorumError as exc:
                        if not _is_transient(connection, exc):
                            raise
                        lost = exc
                        self._drop_stream()
                        self._breaks += 1
                        wait = self._wait()
                        if now() + wait >= deadline:
                            raise
                        await anyio.sleep(wait)
            if not self.is_open:
                raise no_watch(connection.cluster.current, self.subject) from lost
        finally:
            del lost  # its traceback holds this frame

    async def _open_once(self, connection: Connection, deadline: float) -> None:
        if self._since is None:
            self.position = await self._open_now(connection, deadline)
        else:
            self.position = self._since
            stream = await self._create(connection, self._since, deadline)
            await self._check_start(
                connection, self._since, stream.created.header.revision, deadline
            )
        self.start = self.position
        self.is_open = True
        self.buffer.notify()
        if self._stream is not None:
            endpoint = self._stream.server.address
            connection.observer.watch_opened(self.subject, endpoint, self.start)

    async def _open_now(self, connection: Connection, deadline: float) -> int:
        """Create a stream that starts now; return that revision.

        A linearizable read tells it. The header of the member that creates the watch may be far
        behind.
        """
        while True:
            try:
                start = await revision_now(connection, self._range[0], self.subject, deadline)
            except PermissionDeniedError as exc:  # named after what the user asked for
                raise PermissionDeniedError(f"watch {self.subject}") from exc
            # If nothing has happened since, etcd need not catch up, and no compaction can overtake
            # the watch.
            stream = await self._create(connection, start + 1, deadline)
            if stream.created.header.revision <= start:
                return start
            # Something has, and may already be compacted: by rule 2 of `history` the stream starts
            # at that revision.
            self._drop_stream()
            await self._create(connection, start, deadline)
            try:
                await check_readable(connection, self._range[0], start, self.subject, deadline)
            except HistoryLostError:
                self._drop_stream()
            else:
                return start

    async def _resume(self, connection: Connection, lost: KvorumError) -> None:
        """Create a stream that continues where the last one broke, however long that takes."""
        _log.warning(
            "the watch of %s was interrupted at revision %d: %s", self.subject, self.position, lost
        )
        stream: WatchStream | None = None
        while stream is None:
            await anyio.sleep(self._wait())
            self._breaks += 1
            try:
                stream = await self._resume_once(connection)
            except KvorumError as exc:
                if not self._waits_out(connection, exc):
                    raise
                _log.debug("the watch of %s is still interrupted: %s", self.subject, exc)
                self._drop_stream()
        self._refused_since = None
        self.resumes += 1
        _log.info("the watch of %s resumed at revision %d", self.subject, self.position)
        connection.observer.watch_resumed(self.subject, stream.server.address, self.position)

    async def _resume_once(self, connection: Connection) -> WatchStream:
        timeout = connection.settings.timeout
        deadline = now() + self._timing.attempt_after(self._breaks, timeout)
        stream = await self._create(connection, self.position, deadline)
        revision = stream.created.header.revision
        await self._check_future(connection, self.position, revision, deadline)
        await self._last.check(connection, self.position, deadline)
        return stream

    async def _create(self, connection: Connection, since: int, deadline: float) -> WatchStream:
        start, end = self._range
        create = rpc.WatchCreateRequest(
            key=start,
            range_end=end,
            start_revision=max(since, 1),  # 0 would mean "now"
            prev_kv=True,
            progress_notify=True,
            # Fragments cost the server time that grows with the square of their number. But a
            # response of more than 2 GiB never arrives in one.
            fragment=self._was_silent,
        )
        self._reading.begin_stream()
        self._stream = await WatchStream.open(connection, create, self.subject, deadline)
        can_omit = has_hazard(self._stream.server.version, EVENTS_LOST)
        self._gap_detector = GapDetector(now()) if can_omit else None
        self._has_news = False
        return self._stream

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            # It would keep the connection open as long as the watch is referenced.
            self._stream = None

    def _wait(self) -> float:
        return random.uniform(0, self._timing.wait_after(self._breaks))  # noqa: S311 - no secret

    # --- checks ---

    async def _check_start(
        self, connection: Connection, since: int, revision: int, deadline: float
    ) -> None:
        """Refuse to start in the future, where etcd would wait, or in lost history."""
        if since < revision:
            await check_readable(connection, self._range[0], max(since, 1), self.subject, deadline)
        await self._check_future(connection, since, revision, deadline)

    async def _check_future(
        self, connection: Connection, since: int, revision: int, deadline: float
    ) -> None:
        """Refuse to wait for a future revision: the store was restored to an older state."""
        if since <= revision:
            return
        # The member that serves the watch may lag behind the one that reported the revision. A
        # linearizable read does not.
        current = await revision_now(connection, self._range[0], self.subject, deadline)
        if since > current:
            raise FutureRevisionError(revision=since, current=current)

    async def _check_for_gap(
        self, connection: Connection, detector: GapDetector, deadline: float | None = None
    ) -> None:
        """Make sure that nothing is missing between the position and the last response."""
        detector.start(now())
        await check_readable(
            connection, self._range[0], max(self.position, 1), self.subject, deadline
        )
        detector.succeed()

    async def _try_check_for_gap(self, connection: Connection, detector: GapDetector) -> None:
        deadline = now() + min(self._timing.check, connection.settings.timeout)
        try:
            await self._check_for_gap(connection, detector, deadline)
        except KvorumError as exc:
            # It proves nothing, and need not yet. The check that must succeed raises the error.
            detector.fail(now())
            _log.debug(
                "the watch of %s could not be checked at revision %d: %s",
                self.subject,
                self.position,
                exc,
            )


def _is_transient(connection: Connection, error: KvorumError) -> bool:
    """Return whether a retry may succeed.

    A token that is rejected while users are being changed says nothing about the user.
    """
    if isinstance(error, TokenRefusedError):
        return connection.cluster.tokens.has_user
    return isinstance(error, UnavailableError)
