"""What the answers about alarms say about the store's room, and for how long."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from kvorum import UnavailableError
from kvorum.etcd.pipeline import QuotaTiming
from kvorum.etcd.pipeline.quota import Quota
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import _rpc as rpc

Args = TypeVarTuple("Args")

TIMING = QuotaTiming(period=1.0, fresh=3.0, wait=0.3, full=5.0)


class Loop(asyncio.SelectorEventLoop):
    """A clock that the test sets, and the timer that was set last."""

    now = 100.0
    timer: asyncio.TimerHandle | None = None

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timer = asyncio.TimerHandle(when, callback, args, self, context)
        return self.timer

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        self.timer = None


class Questions(Supervisor):
    """Keeps the questions that were asked, for the test to run."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Coroutine[Any, Any, None]] = []

    def spawn_aside(
        self, run: Callable[[*Args], Coroutine[Any, Any, None]], *args: *Args, name: str
    ) -> None:
        assert name == "kvorum-pipeline-alarms"
        self.asked.append(run(*args))


class Case:
    """A quota, and what the server answers to its next question."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.questions = Questions()
        self.answer: rpc.AlarmResponse | Exception = rpc.AlarmResponse()
        self.told = 0
        self.quota = Quota(self._ask, self.questions, self.loop, TIMING)
        self.quota.on_answer = self.tell

    def tell(self) -> None:
        self.told += 1

    async def _ask(self, _request: rpc.AlarmRequest) -> rpc.AlarmResponse:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    # Methods, since a type checker takes a property for constant between two looks.

    def has_room(self) -> bool:
        return self.quota.has_room

    def is_due(self) -> bool:
        return self.quota.is_due

    def is_full(self) -> bool:
        return self.quota.is_full

    def is_awaited(self) -> bool:
        return self.quota.is_awaited

    async def settle(self) -> None:
        """Answer the question that was asked."""
        await self.questions.asked.pop()


@pytest.fixture
def case() -> Iterator[Case]:
    case = Case()
    yield case
    case.loop.close()


def alarmed() -> rpc.AlarmResponse:
    answer = rpc.AlarmResponse()
    answer.alarms.add()  # type: ignore[attr-defined]  # tests build answers, the library reads them
    return answer


async def test_an_answer_without_alarms_counts_for_a_while_from_the_question_on(case: Case) -> None:
    assert not case.has_room()
    case.quota.look()
    case.loop.now += 0.5
    await case.settle()

    assert case.has_room()
    case.loop.now = 102.9
    assert case.has_room()
    case.loop.now = 103.0
    assert not case.has_room()


async def test_an_alarm_means_that_there_is_no_room(case: Case) -> None:
    case.answer = alarmed()
    case.quota.look()
    await case.settle()

    assert not case.has_room()


async def test_a_question_is_due_once_a_period_and_one_at_a_time(case: Case) -> None:
    assert case.is_due()
    case.quota.look()
    case.loop.now += 2.0
    assert not case.is_due()  # it is not answered yet

    await case.settle()
    assert case.is_due()


async def test_writes_wait_for_an_answer_but_not_for_long(case: Case) -> None:
    case.quota.look()
    assert case.is_awaited()
    case.loop.now = 100.3

    assert not case.is_awaited()
    await case.settle()


async def test_writes_are_told_when_an_answer_is_late(case: Case) -> None:
    async def answer_late(_request: rpc.AlarmRequest) -> rpc.AlarmResponse:
        assert case.loop.timer is not None
        assert case.loop.timer.when() == 100.3
        case.loop.timer._run()
        assert case.told == 1
        return rpc.AlarmResponse()

    quota = Quota(answer_late, case.questions, case.loop, TIMING)
    quota.on_answer = case.tell
    quota.look()
    await case.settle()

    assert case.told == 2
    assert case.loop.timer is None


async def test_while_the_last_answer_is_fresh_no_write_waits_for_the_next(case: Case) -> None:
    case.quota.look()
    await case.settle()
    case.loop.now += 1.0
    case.quota.look()

    assert not case.is_awaited()
    await case.settle()


async def test_an_answer_that_was_asked_for_before_a_refusal_does_not_count(case: Case) -> None:
    case.quota.look()
    case.loop.now += 0.1
    case.quota.note_full()
    await case.settle()

    assert not case.has_room()
    assert case.is_full()


async def test_the_store_counts_as_full_until_an_answer_shows_room_or_some_time_has_passed(
    case: Case,
) -> None:
    case.quota.note_full()
    assert case.is_full()
    case.loop.now += 5.0
    assert not case.is_full()

    case.quota.note_full()
    case.loop.now += 1.0
    case.quota.look()
    await case.settle()
    assert not case.is_full()


async def test_a_question_that_fails_shows_no_room_and_keeps_no_write_waiting(case: Case) -> None:
    case.answer = UnavailableError("127.0.0.1:1", "no connection")
    case.quota.look()
    await case.settle()

    assert not case.has_room()
    assert not case.is_awaited()
    assert case.told == 1
