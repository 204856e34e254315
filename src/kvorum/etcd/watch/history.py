"""How the history of a range of keys is read: one set of rules, for watches and for the search of a single change.

Rules of the position, the revision up to which everything has been read:

1. It moves to the revision of the last event, or of a notification that nothing has happened up to
   one. Never to the revision of another response's header: during a catch-up that is the store's,
   and lies ahead. It never goes back.
2. A stream starts *at* the position, and what is not above it is skipped. To start one later would
   lose deletions without a sign: etcd forgets a deletion whose own revision is compacted, and still
   takes a watch that starts there.
3. A compaction above the position is lost history, whatever is still sent afterwards.
4. A revision is passed on whole. A response that etcd sends in pieces may be cut within one, so the
   last revision of a piece waits for the next piece.
5. Old servers can leave out, without a sign, what is compacted while their queue for a stream is
   full. `Gapless` says how far that is ruled out.

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

DELETE: Final = 1  # mvccpb.Event.DELETE

# A revision, with all its events; without any, nothing has happened up to it.
Revision: TypeAlias = tuple[int, Sequence[rpc.Event]]

_LONGEST_LOOK: Final = (
    1.0  # seconds for finding out what the oldest revision is, which is for a message only
)


class Reading:
    """Where a reader of history is, and what it makes of responses.

    Attributes:
        position: everything up to this revision has been read.
    """

    def __init__(self, position: int = 0) -> None:
        self.position: int = position
        self._held: list[rpc.Event] = []  # of a revision that may go on in the next piece

    @property
    def first(self) -> int:
        """The revision at which a stream has to start that goes on from here (rule 2).

        0 would mean "now".
        """
        return max(self.position, 1)

    def begin_stream(self) -> None:
        """Forget what another stream has begun to tell: the next one starts at the position."""
        self._held = []

    def news_of(self, response: rpc.WatchResponse) -> list[Revision]:
        """Return what is new in a response, whole and in order, and move the position there."""
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
    """Return what was done to a key first after a revision; wait until something was.

    Nothing between that revision and the change has been compacted: that is made sure after the
    change has come.

    Args:
        connection: where to read.
        key: as etcd knows it.
        after: the revision, above 0.
        subject: the key for messages.
        deadline: until when the watch has to be created, and each read be done. The wait for the
            change is the caller's to bound.

    Raises:
        HistoryLostError: something has been compacted, so what is found need not be the first
            change.
        UnavailableError: the server went away. Nothing is changed by trying again.
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
        for _, events in reading.news_of(await stream.read()):
            if events:
                return events[0]


async def check_readable(
    connection: Connection, key: bytes, revision: int, subject: str, deadline: float | None = None
) -> None:
    """Make sure that nothing after a revision has been compacted so far, by one linearizable read of no values.

    Raises:
        HistoryLostError: something has.
        FutureRevisionError: there is no such revision yet.
    """
    past = rpc.RangeRequest(key=key, count_only=True, revision=revision)
    await connection.range(past, subject, revision=revision + 1, deadline=deadline)


async def revision_now(
    connection: Connection, key: bytes, subject: str, deadline: float | None = None
) -> int:
    """Return the revision of the store, by one linearizable read of no values.

    What another answer says in its header, such as that to the creation of a watch, a member that
    lags says, too.
    """
    now_ = rpc.RangeRequest(key=key, count_only=True)
    return (await connection.range(now_, subject, deadline=deadline)).header.revision


async def with_oldest(
    lost: HistoryLostError,
    connection: Connection,
    key: bytes,
    subject: str,
    deadline: float | None = None,
) -> HistoryLostError:
    """Return the error with the oldest revision that can still be read, if that can be found out within a second.

    A refused read does not tell; a watch that starts too early does.
    """
    if lost.compact_revision or lost.reason:
        return lost
    create = rpc.WatchCreateRequest(key=key, range_end=b"", start_revision=1, prev_kv=False)
    deadline = min(
        now() + _LONGEST_LOOK,
        deadline_of(connection.settings.timeout) if deadline is None else deadline,
    )
    oldest = 0
    with anyio.move_on_after(deadline - now()):
        try:
            stream = await WatchStream.open(connection, create, subject, deadline)
            try:
                await (
                    stream.read()
                )  # at once, if there is nothing, or within the 100 ms of a catch-up
            finally:
                stream.cancel()
        except HistoryLostError as exc:
            oldest = exc.compact_revision
        except KvorumError:
            # it is for the message only, and the error that it belongs to is raised in any case
            pass
    return HistoryLostError(revision=lost.revision, compact_revision=oldest)


class Gapless:
    """Whether events that a stream brings follow on each other, on servers that can leave some out without a sign.

    etcd before 3.4.31, and from 3.5.0 to 3.5.12, does so when it is compacted past a watch that
    lags, and finds its queue for the stream full: 128 responses. (It goes on at the store's
    revision instead of saying so again later.) All of those were queued before the gap and after
    the compaction, so they come before what follows the gap. Hence: fewer than that since a moment
    up to which nothing after the position was compacted, and there is no gap.

    A new stream is such a moment, as its queue is empty. Later ones are made by `check_readable` at
    the position.

    Attributes:
        unproven: how many responses have come since the last of these moments.
    """

    QUEUE: Final = 100  # of 128, to be on the safe side
    _AGAIN: Final = 32  # how many responses may come before the next moment is made
    # seconds, after which a single response has one made; and between one that failed and the next
    _PAUSE: Final = 1.0

    def __init__(self, time: float) -> None:
        self.unproven: int = 0
        self._at_start = 0
        self._started = time
        self._failed = -self._PAUSE

    def count(self) -> None:
        """Take note of a response that has come."""
        self.unproven += 1

    @property
    def is_open(self) -> bool:
        """Whether the response that came last may follow on a gap: it must not be passed on."""
        return self.unproven > self.QUEUE

    def is_due(self, time: float) -> bool:
        """Tell whether it is time for a check: so that an idle watch has one for each burst, a busy one for many.

        One that has failed has kept the reader waiting, and the next one may as well: events come
        in between.
        """
        if time - self._failed < self._PAUSE:
            return False
        return self.unproven >= self._AGAIN or (
            self.unproven > 0 and time - self._started >= self._PAUSE
        )

    def start(self, time: float) -> None:
        """Take note that a check starts, at a position that is no later than the last response passed on."""
        self._started = time
        self._at_start = self.unproven

    def succeed(self) -> None:
        """Take note that the check has found nothing compacted.

        What came before its start needs no other proof.
        """
        self.unproven -= self._at_start
        self._at_start = 0

    def fail(self, time: float) -> None:
        """Take note that the check that was started has proven nothing."""
        self._failed = time
        self._at_start = 0
