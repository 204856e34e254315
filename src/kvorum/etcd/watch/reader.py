"""What the reader of a watch has read and its consumer has not; and how the reader goes on when a stream breaks.

By which rules it reads, `history` says; how a stream that takes over makes sure that it goes on in
the same history, `last_change` does.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

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
from kvorum.etcd.entries import entry_of
from kvorum.etcd.transport import (
    EVENTS_LOST,
    Connection,
    TokenRefusedError,
    has_hazard,
    is_cancelled,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch.history import (
    DELETE,
    Gapless,
    Reading,
    check_readable,
    revision_now,
    with_oldest,
)
from kvorum.etcd.watch.last_change import LastChange
from kvorum.etcd.watch.stream import WatchStream, no_watch
from kvorum.storage import Change, Entry, KeySpace

_log = logging.getLogger(__name__)

# The reader reads no further message while this many changes wait for the consumer, and begins
# again when half of them are taken; etcd keeps the rest. So one message more may wait: of a
# catch-up that is 1000 revisions, each with the changes of one transaction. For a consumer that has
# never asked for anything it reads nothing.
READ_AHEAD: Final = 256

# Seconds before a stream takes over: at random up to the first, twice that after each that broke
# without news, and so on up to the second.
_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 1.0

# Seconds that the first attempt to take over may take, twice that the next one, and so on up to the
# timeout of a call. When a server falls silent, keep-alive finds out about the connection of the
# watches within 12 seconds; but about that of the calls, on which the server is asked first, the
# deadline of this attempt does.
_FIRST_ATTEMPT: Final = 2.0

# Seconds for which an open watch waits when its user is refused, if the password is in a file that
# may follow.
_PASSWORD: Final = 60.0

# Seconds that a check may take that need not succeed yet.
_CHECK: Final = 1.0


class WatchReader:
    """A reader and its buffer.

    Attributes:
        subject: what is watched, for messages.
        start: the revision after which it started.
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
        self._has_news = False  # whether the stream has brought any
        self._is_mute = False  # whether the one that broke last had not
        self._reading = Reading()
        self._gapless: Gapless | None = (
            None  # of the stream; None if its server leaves nothing out without a sign
        )
        self._last = LastChange(keys, self.subject)
        self._refused_since: float | None = (
            None  # the user, while its password may be about to be replaced
        )

    @property
    def position(self) -> int:
        """Everything up to this revision has been read."""
        return self._reading.position

    @position.setter
    def position(self, revision: int) -> None:
        self._reading.position = revision

    # --- the consumer's side ---

    async def wait(self) -> None:
        """Wait until there is something to take, or never will be.

        A wait that is cancelled takes nothing.
        """
        if not self._is_wanted:
            self._is_wanted = True
            self._notify()
        while not self._revisions and not self.is_ended:
            await self.changed.wait()

    def take(self) -> tuple[int, tuple[Change, ...]] | None:
        """Take the oldest revision with its changes, without any if nothing has happened up to it.

        None if none.
        """
        if not self._revisions:
            return None
        revision, changes = self._revisions.popleft()
        self.buffered -= len(changes)
        if self.buffered <= READ_AHEAD // 2 < self.buffered + len(changes):
            self._notify()
        return revision, changes

    def expect(self, entry: Entry) -> None:
        """Take note of what was read last by other means, at the revision after which it starts."""
        self._last.change = Change(entry.key, entry.mod_revision, entry, None)

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
            deadline: until when the first stream has to be there. Those that take over have as long
                as it takes.
        """
        try:
            with anyio.CancelScope() as self._scope:
                await self._read_or_tell(connection, deadline)
        except KvorumError as exc:
            self._fail(exc)
        except asyncio.CancelledError:
            # `end` cancels the call, too, which grpc.aio tells its reader in this way.
            if is_cancelled():
                self._fail(connection.supervisor.closed())
                raise
        except Exception as exc:  # noqa: BLE001 - told to the one who waits, and logged
            # A mistake of ours. It is raised to the consumer, with its cause: others have no part
            # in it.
            _log.exception("the watch of %s ends by a mistake of Kvorum's", self.subject)
            error = InternalError(f"the watch of {self.subject}", exc)
            error.__cause__ = exc
            self._fail(error)
        finally:
            self._drop_stream()
            self.finished.set()

    async def _read_or_tell(self, connection: Connection, deadline: float) -> None:
        try:
            await self._read_all(connection, deadline)
        except HistoryLostError as exc:
            self._drop_stream()
            patience = None if self.is_open else deadline
            raise await with_oldest(
                exc, connection, self._range[0], self.subject, patience
            ) from exc

    async def _read_all(self, connection: Connection, deadline: float) -> None:
        await self._open(connection, deadline)
        while not self.is_ended:
            try:
                await self._read_stream(connection)
            except KvorumError as exc:
                if not self._may_pass(connection, exc):
                    raise
                self._is_mute = not self._has_news
                self._drop_stream()
                await self._take_over(connection, exc)

    async def _read_stream(self, connection: Connection) -> None:
        while not self.is_ended and self._stream is not None:
            while not self._is_wanted:
                await self.changed.wait()
            try:
                response = await self._stream.read()
            except HistoryLostError as exc:
                raise HistoryLostError(
                    revision=self.position + 1, compact_revision=exc.compact_revision
                ) from exc
            if self._gapless is not None:
                self._gapless.count()
                if self._gapless.is_open:
                    await self._check_gapless(connection, self._gapless)
            self._has_news = True
            self._put(response)
            if self._gapless is not None and self._gapless.is_due(now()):
                await self._try_gapless(connection, self._gapless)
            if self.buffered >= READ_AHEAD:
                while self.buffered > READ_AHEAD // 2:
                    await self.changed.wait()

    async def _check_gapless(
        self, connection: Connection, gapless: Gapless, deadline: float | None = None
    ) -> None:
        """Make sure that the server has left out nothing after the position, up to the response that came last."""
        gapless.start(now())
        await check_readable(
            connection, self._range[0], max(self.position, 1), self.subject, deadline
        )
        gapless.succeed()

    async def _try_gapless(self, connection: Connection, gapless: Gapless) -> None:
        try:
            await self._check_gapless(
                connection, gapless, now() + min(_CHECK, connection.settings.timeout)
            )
        except (
            KvorumError
        ) as exc:  # it proves nothing, and need not: one that must succeed raises the error
            gapless.fail(now())
            _log.debug(
                "the watch of %s could not be checked at revision %d: %s",
                self.subject,
                self.position,
                exc,
            )

    def _may_pass(self, connection: Connection, error: KvorumError) -> bool:
        """Tell whether an open watch waits for an error to pass; a user that is refused, for as long as a file takes.

        A password is set in etcd and in its file, not in both at once. Calls recover by themselves,
        a watch that ended does not.
        """
        if _is_passing(connection, error):
            return True
        if (
            not isinstance(error, AuthenticationError | ConfigurationError)
            or not connection.settings.password_file
        ):
            return False
        if self._refused_since is None:
            self._refused_since = now()
        return now() - self._refused_since < _PASSWORD

    # --- streams ---

    async def _open(self, connection: Connection, deadline: float) -> None:
        """Create the first stream, within the deadline, as a call would."""
        lost: KvorumError | None = None
        with anyio.move_on_after(deadline - now()):
            while not self.is_open:
                try:
                    await self._open_once(connection, deadline)
                except KvorumError as exc:
                    if not _is_passing(connection, exc):
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
        self._notify()

    async def _open_now(self, connection: Connection, deadline: float) -> int:
        """Create a stream that starts now; return that revision.

        A linearizable read tells it: what the member says that creates the watch may be long past,
        if it lags.
        """
        while True:
            try:
                start = await revision_now(connection, self._range[0], self.subject, deadline)
            except PermissionDeniedError as exc:  # in the words of what the user asked for
                raise PermissionDeniedError(f"watch {self.subject}") from exc
            # While nothing has happened since, etcd need not catch up, and no compaction can
            # overtake the watch.
            stream = await self._create(connection, start + 1, deadline)
            if stream.created.header.revision <= start:
                return start
            # More has, and may even be compacted: by rule 2 of `history` it begins at that
            # revision.
            self._drop_stream()
            await self._create(connection, start, deadline)
            try:
                await check_readable(connection, self._range[0], start, self.subject, deadline)
            except HistoryLostError:
                self._drop_stream()
            else:
                return start

    async def _take_over(self, connection: Connection, lost: KvorumError) -> None:
        """Create a stream that goes on where the last one broke, however long that takes."""
        _log.warning(
            "the watch of %s was interrupted at revision %d: %s", self.subject, self.position, lost
        )
        while True:
            await anyio.sleep(self._wait())
            self._breaks += 1
            deadline = now() + self._patience(connection.settings.timeout)
            try:
                stream = await self._create(connection, self.position, deadline)
                await self._check_future(
                    connection, self.position, stream.created.header.revision, deadline
                )
                await self._last.check(connection, self.position, deadline)
            except KvorumError as exc:
                if not self._may_pass(connection, exc):
                    raise
                _log.debug("the watch of %s is still interrupted: %s", self.subject, exc)
                self._drop_stream()
            else:
                break
        self._refused_since = None
        self.resumes += 1
        _log.info("the watch of %s goes on at revision %d", self.subject, self.position)

    async def _create(self, connection: Connection, since: int, deadline: float) -> WatchStream:
        start, end = self._range
        create = rpc.WatchCreateRequest(
            key=start,
            range_end=end,
            start_revision=max(since, 1),  # 0 would mean "now"
            prev_kv=True,
            progress_notify=True,
            # In pieces costs the server time that grows with the square of their number. But a
            # response of more than 2 GiB never arrives in one.
            fragment=self._is_mute,
        )
        self._reading.begin_stream()
        self._stream = await WatchStream.open(connection, create, self.subject, deadline)
        self._gapless = (
            Gapless(now()) if has_hazard(self._stream.server.version, EVENTS_LOST) else None
        )
        self._has_news = False
        return self._stream

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = (
                None  # it would keep the connection open for as long as somebody keeps the watch
            )

    def _wait(self) -> float:
        return random.uniform(0, min(_FIRST_WAIT * _twofold(self._breaks), _LONGEST_WAIT))  # noqa: S311 - no secret

    def _patience(self, timeout: float) -> float:
        """Return how long an attempt to take over may take."""
        return min(_FIRST_ATTEMPT * _twofold(self._breaks - 1), timeout)

    # --- checks ---

    async def _check_start(
        self, connection: Connection, since: int, revision: int, deadline: float
    ) -> None:
        """Refuse a start in the future or in lost history.

        Etcd waits for the first, and tells the second later.
        """
        if since < revision:
            await check_readable(connection, self._range[0], max(since, 1), self.subject, deadline)
        await self._check_future(connection, since, revision, deadline)

    async def _check_future(
        self, connection: Connection, since: int, revision: int, deadline: float
    ) -> None:
        """Refuse to wait for a revision that is far away.

        The store was put back to an older state.
        """
        if since <= revision:
            return
        # The member that serves the watch may lag behind the one that told the revision. A
        # linearizable read does not.
        current = await revision_now(connection, self._range[0], self.subject, deadline)
        if since > current:
            raise FutureRevisionError(revision=since, current=current)

    # --- the buffer ---

    def _put(self, response: rpc.WatchResponse) -> None:
        """Buffer what is new in a response.

        The events of each revision, or that nothing has happened up to one.
        """
        if self.is_ended:  # while the response was on its way from the event loop
            return
        self._last.compare(response, self.position)
        for revision, events in self._reading.news_of(response):
            if events:
                self._put_changes(revision, events)
            else:
                self._put_bookmark(revision)
        self._notify()

    def _put_changes(self, revision: int, events: Sequence[rpc.Event]) -> None:
        changes = tuple(self._change(event) for event in events)
        self._last.change = changes[-1]
        self._breaks = 0
        self._revisions.append((revision, changes))
        self.buffered += len(changes)
        self.events += len(changes)

    def _put_bookmark(self, revision: int) -> None:
        """Take note that nothing has happened up to a revision.

        Of several in a row the last one says it all.
        """
        if self._revisions and not self._revisions[-1][1]:
            self._revisions.pop()
        self._revisions.append((revision, ()))

    def _change(self, event: rpc.Event) -> Change:
        kv, before = event.kv, event.prev_kv
        deleted = event.type == DELETE
        # On a create the previous value is an empty message, not absent.
        key = self._keys.relative(kv.key)
        previous = entry_of(self._keys, before, key) if before.mod_revision else None
        if previous is None and (deleted or kv.create_revision != kv.mod_revision):
            # Compaction has overtaken this watch: etcd then leaves the previous value out, without
            # an error.
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


def _is_passing(connection: Connection, error: KvorumError) -> bool:
    """Tell whether to try again is worth it.

    A token that is refused while users are changed is none of the user.
    """
    if isinstance(error, TokenRefusedError):
        return connection.cluster.tokens.has_user
    return isinstance(error, UnavailableError)


def _twofold(times: int) -> int:
    """Return two to that power, or so much that it makes no difference.

    2**1024, after ten minutes, is no float.
    """
    return 1 << min(times, 16)
