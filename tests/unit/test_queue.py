"""A queue batches what comes while requests are in flight. No server: the test answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import anyio
import pytest

from kvorum.etcd.pipeline.batch import Batch, calls_of
from kvorum.etcd.pipeline.calls import PutCall, ReadCall, Result, Unanswered
from kvorum.etcd.pipeline.queue import BatchQueue
from kvorum.etcd.pipeline.queue_policy import QueueLimits, Room
from kvorum.etcd.transport import _rpc as rpc

LATER = 1e9  # a deadline


class Server:
    """Takes the batches of a queue, and answers each write with the next revision.

    Attributes:
        queue: the queue.
        batches: the keys of each batch that it got.
        opened: while it is not set, no batch is answered.
        room: what the queue is told about room.
        questions: how often the queue asked for room.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.batches: list[list[bytes]] = []
        self.opened = asyncio.Event()
        self.room = Room.PLENTY
        self.questions = 0
        self.tasks: list[asyncio.Task[None]] = []
        self._revision = 0
        self.queue = BatchQueue(
            "writes",
            asyncio.get_running_loop(),
            self._send,
            self._spawn,
            room=lambda: self.room,
            ask_for_room=self._ask,
            limits=limits,
        )

    def _ask(self) -> None:
        self.questions += 1
        self.room = Room.UNKNOWN

    def _spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.tasks.append(asyncio.ensure_future(run()))

    async def _send(self, batch: Batch) -> Mapping[bytes, Result]:
        self.batches.append(list(batch))
        await self.opened.wait()
        self._revision += 1
        for call in calls_of(batch):
            call.settle(self._revision if call.is_write else None)
        return dict.fromkeys(batch, self._revision)


@pytest.fixture
def limits() -> QueueLimits:
    return QueueLimits()


@pytest.fixture
async def server(limits: QueueLimits) -> AsyncIterator[Server]:
    server = Server(limits)
    yield server
    server.queue.close()
    for task in server.tasks:
        task.cancel()
    await asyncio.gather(*server.tasks, return_exceptions=True)


def put(key: bytes, deadline: float = LATER) -> PutCall:
    return PutCall(key, deadline, request=rpc.PutRequest(key=key))


async def turns(number: int = 5) -> None:
    """Let the senders run."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_calls_that_come_while_requests_are_in_flight_share_the_next_one(
    server: Server,
) -> None:
    first = server.queue.join(put(b"first"))
    await turns()
    others = [server.queue.join(put(b"%d" % number)) for number in range(40)]
    await turns()
    server.opened.set()

    assert await asyncio.gather(first, *others) == [1] + [2] * 40
    assert [len(batch) for batch in server.batches] == [1, 40]


async def test_at_most_two_requests_are_in_flight(server: Server) -> None:
    calls = [server.queue.join(put(b"%d" % number)) for number in range(250)]
    await turns()

    assert [len(batch) for batch in server.batches] == [100, 100]  # 100 operations at most

    server.opened.set()
    await asyncio.gather(*calls)
    assert sum(map(len, server.batches)) == 250


class Counted(PutCall):
    """A write that counts how often it is looked at."""

    looks: int = 0

    @property
    def is_done(self) -> bool:
        self.looks += 1
        return super().is_done


async def test_waiting_writes_of_one_key_are_looked_at_once_each(server: Server) -> None:
    """A thousand that wait for the key are not gone through for each that is sent."""
    server.opened.set()
    request = rpc.PutRequest(key=b"a")
    calls = [Counted(b"a", LATER, request=request) for _ in range(1_000)]

    revisions = await asyncio.gather(*map(server.queue.join, calls))

    assert revisions == list(range(1, 1_001))
    assert max(call.looks for call in calls) <= 3  # when the line moves, and for its batch


@pytest.mark.parametrize("limits", [QueueLimits(waiting=10)])
async def test_calls_beyond_the_limit_wait_for_room_in_order(server: Server) -> None:
    calls = [server.queue.join(put(b"%d" % number)) for number in range(100)]
    assert server.queue.waiting == 100
    server.opened.set()
    await asyncio.gather(*calls)

    assert [key for batch in server.batches for key in batch] == [b"%d" % n for n in range(100)]
    assert max(map(len, server.batches)) <= 10


async def test_one_write_asks_for_room_and_the_others_wait_for_the_answer(server: Server) -> None:
    server.room = Room.ONE
    calls = [server.queue.join(put(b"%d" % number)) for number in range(20)]
    server.opened.set()
    await turns()

    assert server.questions == 1
    assert server.batches == [[b"0"]]

    server.room = Room.PLENTY
    server.queue.schedule()
    await asyncio.gather(*calls)
    assert [len(batch) for batch in server.batches] == [1, 19]


async def test_a_call_whose_deadline_passes_while_it_waits_is_not_sent(server: Server) -> None:
    now = asyncio.get_running_loop().time()
    in_flight = [server.queue.join(put(b"%d" % number)) for number in range(200)]
    await turns()
    late = server.queue.join(put(b"late", now + 0.02))

    assert await late is Unanswered.EXPIRED

    server.opened.set()
    await asyncio.gather(*in_flight)
    assert [b"late"] not in server.batches


async def test_a_call_that_may_not_be_batched_has_a_request_of_its_own(server: Server) -> None:
    """Its requests do not count among those of batches."""
    batched = [server.queue.join(put(b"%d" % number)) for number in range(200)]
    await turns()
    alone = put(b"alone")
    alone.goes_alone = True
    refused = server.queue.join(alone)
    await turns()

    assert [len(batch) for batch in server.batches] == [100, 100, 1]

    server.opened.set()
    await asyncio.gather(*batched, refused)


async def test_closing_ends_the_calls_that_wait_and_those_that_come_later(server: Server) -> None:
    in_flight = [server.queue.join(put(b"%d" % number)) for number in range(200)]
    await turns()
    waiting, behind = server.queue.join(put(b"x")), server.queue.join(put(b"x"))
    server.queue.close()

    assert await waiting is await behind is Unanswered.CLOSED
    assert await server.queue.join(ReadCall(b"y", LATER)) is Unanswered.CLOSED

    server.opened.set()
    assert all(isinstance(answer, int) for answer in await asyncio.gather(*in_flight))


async def test_a_request_that_takes_long_makes_room_for_another(server: Server) -> None:
    calls = [server.queue.join(put(b"%d" % number)) for number in range(300)]
    await turns()
    assert [len(batch) for batch in server.batches] == [100, 100]

    assert server.queue.add_slot()
    await turns()
    assert [len(batch) for batch in server.batches] == [100, 100, 100]

    server.queue.remove_slot()
    server.opened.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("limits", [QueueLimits(overdue=2)])
async def test_the_number_of_requests_that_take_long_is_limited(server: Server) -> None:
    assert [server.queue.add_slot() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("limits", [QueueLimits(unbatched_hold=60)])
async def test_reads_of_one_key_that_go_alone_and_wait_together_are_one_request(
    server: Server,
) -> None:
    """None joins one that was sent before."""

    def read(key: bytes) -> ReadCall:
        return ReadCall(key, LATER, goes_alone=True)

    in_flight = [server.queue.join(read(key)) for key in (b"a", b"b")]
    await turns()
    waiting = [server.queue.join(read(key)) for key in (b"a", b"c", b"a", b"c", b"a")]
    await turns()
    assert server.queue.waiting == 5

    server.opened.set()
    assert await asyncio.gather(*in_flight, *waiting) == [None] * 7
    await turns()
    assert server.batches == [[b"a"], [b"b"], [b"a"], [b"c"]]
    assert server.queue.waiting == 0
    assert server.queue.is_idle


@pytest.mark.parametrize("limits", [QueueLimits(unbatched_hold=60)])
async def test_a_read_that_goes_alone_and_is_done_keeps_no_other_from_its_answer(
    server: Server,
) -> None:
    for key in (b"a", b"b"):
        server.queue.join(ReadCall(key, LATER, goes_alone=True))
    await turns()
    waiting = [server.queue.join(ReadCall(b"c", LATER, goes_alone=True)) for _ in range(3)]
    waiting[0].cancel()
    server.opened.set()

    assert await asyncio.gather(*waiting[1:]) == [None] * 2


@pytest.mark.parametrize("limits", [QueueLimits(unbatched_hold=0, unbatched=5)])
async def test_a_call_that_goes_alone_makes_way_for_others_after_a_moment(server: Server) -> None:
    """Up to a limit; and those that were answered make way no more."""
    calls = [server.queue.join(ReadCall(b"%d" % n, LATER, goes_alone=True)) for n in range(20)]
    with anyio.fail_after(5):
        while len(server.batches) < 5:
            await turns()
    await turns(50)
    assert len(server.batches) == 5

    server.opened.set()
    assert await asyncio.gather(*calls) == [None] * 20
    await turns()
    assert server.queue.is_idle
    assert server.queue._unbatched._making_way == 0


@pytest.mark.parametrize("limits", [QueueLimits(unbatched_hold=60)])
async def test_at_most_two_calls_that_go_alone_are_sent_in_the_same_moment(server: Server) -> None:
    for number in range(20):
        server.queue.join(ReadCall(b"%d" % number, LATER, goes_alone=True))
    await turns(50)

    assert len(server.batches) == 2
