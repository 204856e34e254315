"""When a queue sends its next request, and how many operations that request holds.

One plain function of values, `how_many`; `BatchQueue` does what it says.
"""

from enum import Enum
from typing import Final

from kvorum.etcd.pipeline.batch import Limit
from kvorum.runtime import Limits


class QueueLimits(Limits, frozen=True):
    """Limits of a queue. Change them in tests only: the defaults are measured.

    Attributes:
        slots: requests in flight: one that the server works on while the client works on another.
        unbatched_slots: requests in flight, besides those, for calls that go in no batch.
        unbatched_hold: seconds after which such a request makes way for another one beside it.
        unbatched: how many of them are in flight at most.
        overdue: requests that take so long that others may be sent beside them.
        worthwhile: calls that are not split between two requests.
        hold: seconds that a few calls wait for more, although there is a slot for their request.
        waiting: calls that wait. More of them wait for room, with their deadlines running.
        expiry_interval: seconds between two scans for passed deadlines: each scan looks at all
            calls.
    """

    slots: int = 2
    unbatched_slots: int = 2
    unbatched_hold: float = 0.002
    unbatched: int = 100
    overdue: int = 16
    worthwhile: int = 32
    hold: float = 0.005
    waiting: int = 10_000
    expiry_interval: float = 0.01


DEFAULT_LIMITS: Final = QueueLimits()


class Room(Enum):
    """How many operations the next request may hold, by what is known about the store's room."""

    PLENTY = "as many as fit"
    ONE = "one: etcd counts it against its quota, and meanwhile the alarms are asked for"
    UNKNOWN = "none, until the alarms are known"


class Wait(Enum):
    """Why a queue sends nothing now, and what it waits for."""

    CALL = "nothing waits"
    SLOT = "as many requests are in flight as may be"
    MORE = "a request for so few calls would cost the many more than it gains the few"
    ROOM = "it is not known whether the store has room"


def how_many(
    *,
    waiting: int,
    free_slots: int,
    in_flight: int,
    has_held: bool,
    room: Room,
    limit: Limit,
    limits: QueueLimits = DEFAULT_LIMITS,
) -> int | Wait:
    """Decide how many operations the next request may hold.

    1. Nothing is sent while nothing waits, or while no slot is free.
    2. Calls that are fewer than half of those in flight wait once for more, up to `limits.hold`.
    3. Nothing is sent while it is unknown whether the store has room; one operation is sent with
       the question.
    4. Otherwise the waiting calls are shared among the free slots, but never split below
       `limits.worthwhile`, and never above what the server takes.

    Args:
        waiting: calls that wait in the queue.
        free_slots: requests that may be sent beside those in flight.
        in_flight: operations in flight.
        has_held: whether these calls have waited for more already.
        room: what is known about the store.
        limit: what the server takes in one request.
        limits: the limits of the queue.

    Returns:
        A number above 0, or why nothing is sent.
    """
    if waiting <= 0:
        return Wait.CALL
    if free_slots <= 0:
        return Wait.SLOT
    if not has_held and 2 * waiting < in_flight:
        return Wait.MORE
    if room is Room.UNKNOWN:
        return Wait.ROOM
    if room is Room.ONE:
        return 1
    share = -(-waiting // free_slots)
    return min(limit.operations, max(limits.worthwhile, share))
