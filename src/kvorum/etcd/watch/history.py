"""The rules by which the history of a range of keys is read, for watches and for single changes.

The position is the revision up to which everything has been read.

1. It moves to the revision of the last event, or of a progress notification. It never moves to the
   revision in the header of another response: during a catch-up that is the store's, and ahead. It
   never goes back.
2. A stream starts *at* the position, and events not above it are skipped. Starting one revision
   later would lose deletions without a sign: etcd forgets a deletion whose own revision is
   compacted, and still accepts a watch that starts there.
3. A compaction above the position is lost history, whatever is sent afterwards.
4. A revision is delivered whole. A response that etcd sends in fragments may be cut within one, so
   the last revision of a fragment waits for the next fragment.
5. Old servers can omit, without a sign, events that are compacted while their queue for a stream is
   full. `GapDetector` says how far that is ruled out.

Most of this is decided without I/O: responses in, revisions out.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final, TypeAlias

import anyio

from kvorum.deadlines import deadline_of, now
from kvorum.errors import HistoryLostError, KvorumError
from kvorum.etcd.transport import Connection
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch.stream import WatchStream

# A revision with all its events; without any, nothing has happened up to it.
Revision: TypeAlias = tuple[int, Sequence[rpc.Event]]

# Seconds for finding the oldest revision, which is for an error message only.
_LONGEST_SEARCH: Final = 1.0


class Reading:
    """The position of a reader of history, and what is new in a response.

    Attributes:
        position: everything up to this revision has been read.
    """

    def __init__(self, position: int = 0) -> None:
        self.position: int = position
        self._held: list[rpc.Event] = []  # of a revision that may continue in the next fragment

    @property
    def first(self) -> int:
        """The revision at which a stream has to start to continue from here (rule 2).

        At least 1: 0 would mean "now".
        """
        return max(self.position, 1)

    def begin_stream(self) -> None:
        """Drop the part of a revision that another stream has sent: it is sent again."""
        self._held = []

    def take_new_revisions(self, response: rpc.WatchResponse) -> list[Revision]:
        """Return the new revisions of a response, whole and in order; move the position to them."""
        if response.created:
            return []
        if not response.events and not response.fragment and not self._held:
            return self._advance([(response.header.revision, ())])
        events = [*self._held, *response.events]
        self._held = []
        revisions: list[Revision] = [
            (at, [*those]) for at, those in groupby(events, lambda each: each.kv.mod_revision)
        ]
        if response.fragment and revisions:
            self._held = [*revisions.pop()[1]]
        return self._advance(revisions)

    def _advance(self, revisions: list[Revision]) -> list[Revision]:
        news = []
        for revision, events in revisions:
            if revision > self.position:
                self.position = revision
                news.append((revision, events))
        return news


async def first_change(
    connection: Connection, key: bytes, after: int, subject: str, deadline: float
) -> rpc.Event:
    """Return the first event of a key after a revision; wait until there is one.

    Nothing between that revision and the event has been compacted: this is checked after the event
    has arrived.

    Args:
        connection: where to read.
        key: the key in etcd.
        after: the revision, above 0.
        subject: the key for messages.
        deadline: when the watch has to be created, and each read done. The caller bounds the wait
            for the event.

    Raises:
        HistoryLostError: something has been compacted, so the event found need not be the first.
        UnavailableError: the server went away. A retry is safe.
        PermissionDeniedError, AuthenticationError: the user may not read the key.
    """
    reading = Reading(after)
    create = rpc.WatchCreateRequest(
        key=key, range_end=b"", start_revision=reading.first, prev_kv=False
    )
    stream = await WatchStream.open(connection, create, subject, deadline)
    try:
        event = await _first_event(stream, reading)
    finally:
        stream.cancel()
    await check_readable(connection, key, after, subject, deadline)
    return event


async def _first_event(stream: WatchStream, reading: Reading) -> rpc.Event:
    while True:
        for _, events in reading.take_new_revisions(await stream.read()):
            if events:
                return events[0]


async def check_readable(
    connection: Connection, key: bytes, revision: int, subject: str, deadline: float | None = None
) -> None:
    """Make sure that nothing after a revision has been compacted, by a linearizable read.

    It reads no values.

    Raises:
        HistoryLostError: something has been compacted.
        FutureRevisionError: there is no such revision yet.
    """
    past = rpc.RangeRequest(key=key, count_only=True, revision=revision)
    await connection.range(past, subject, revision=revision + 1, deadline=deadline)


async def revision_now(
    connection: Connection, key: bytes, subject: str, deadline: float | None = None
) -> int:
    """Return the revision of the store, by a linearizable read of no values.

    Other headers, such as that of a created watch, may come from a member that lags.
    """
    request = rpc.RangeRequest(key=key, count_only=True)
    return (await connection.range(request, subject, deadline=deadline)).header.revision


async def with_oldest(
    lost: HistoryLostError,
    connection: Connection,
    key: bytes,
    subject: str,
    deadline: float | None = None,
) -> HistoryLostError:
    """Return the error with the oldest readable revision, if it is found within a second.

    A refused read does not tell it; a watch that starts too early does.
    """
    if lost.compact_revision or lost.reason:
        return lost
    create = rpc.WatchCreateRequest(key=key, range_end=b"", start_revision=1, prev_kv=False)
    deadline = min(
        now() + _LONGEST_SEARCH,
        deadline_of(connection.settings.timeout) if deadline is None else deadline,
    )
    oldest = 0
    with anyio.move_on_after(deadline - now()):
        try:
            stream = await WatchStream.open(connection, create, subject, deadline)
            try:
                # At once if there is nothing, or within the 100 ms of a catch-up.
                await stream.read()
            finally:
                stream.cancel()
        except HistoryLostError as exc:
            oldest = exc.compact_revision
        except KvorumError:
            pass  # it is for the message only; the error itself is raised in any case
    return HistoryLostError(revision=lost.revision, compact_revision=oldest)


class GapDetector:
    """Whether a stream is free of gaps, on servers that can omit events without a sign.

    etcd before 3.4.31, and from 3.5.0 to 3.5.12, omits events when it is compacted past a watch
    that lags, and finds its queue for the stream full: 128 responses. (It continues at the store's
    revision instead of reporting the compaction later.) All of these were queued before the gap and
    after the compaction, so they arrive before the events that follow the gap. Hence, if fewer have
    arrived since a moment at which nothing after the position was compacted, there is no gap.

    A new stream is such a moment, as its queue is empty. `check_readable` at the position makes
    later ones.

    Attributes:
        unproven: how many responses have arrived since the last of these moments.
    """

    QUEUE: Final = 100  # of 128, with a margin
    _BURST: Final = 32  # unproven responses after which a check is due
    # Seconds after which a check is due for a single response, and between a failed check and the
    # next.
    _PAUSE: Final = 1.0

    def __init__(self, time: float) -> None:
        self.unproven: int = 0
        self._at_start = 0
        self._started = time
        self._failed = -self._PAUSE

    def count(self) -> None:
        """Count a response."""
        self.unproven += 1

    @property
    def may_have_gap(self) -> bool:
        """Whether the last response may follow a gap, so that it must not be delivered."""
        return self.unproven > self.QUEUE

    def is_due(self, time: float) -> bool:
        """Return whether a check is due: once a burst on an idle watch, less often on a busy one.

        After a failed check there is a pause, in which events arrive: the check delayed the reader,
        and the next one may, too.
        """
        if time - self._failed < self._PAUSE:
            return False
        return self.unproven >= self._BURST or (
            self.unproven > 0 and time - self._started >= self._PAUSE
        )

    def start(self, time: float) -> None:
        """Record that a check starts, at a position no later than the last delivered response."""
        self._started = time
        self._at_start = self.unproven

    def succeed(self) -> None:
        """Record that the check has found nothing compacted: it proves all before its start."""
        self.unproven -= self._at_start
        self._at_start = 0

    def fail(self, time: float) -> None:
        """Record that the check that was started has proven nothing."""
        self._failed = time
        self._at_start = 0
