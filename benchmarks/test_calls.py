"""Single calls from 1 to 256 tasks: get, add, update, and nine gets to one update.

An update reads, changes and compares-and-swaps. Also: a single get beside tasks that update.
"""

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
from benchmarks import sample
from benchmarks.conftest import Compete
from benchmarks.contenders import NAMES, Contender, Kvorum
from benchmarks.race import Heat, Run, Step, at_once, beside, wait_for
from benchmarks.referee import Referee

KEYS = 1024  # a multiple of each number of tasks, so that each key has one writer

Steps = Callable[[Contender, int], Sequence[Step]]  # (contender, calls)

pytestmark = [
    pytest.mark.parametrize("name", NAMES),
    pytest.mark.parametrize("tasks", [1, 16, 64, 256]),
]


class Course:
    """The setup of this module's races: 1,024 workers for each contender, and a referee."""

    def __init__(
        self, contenders: Mapping[str, Contender], referee: Referee, run: Run, *, is_quick: bool
    ) -> None:
        self._contenders = contenders
        self._referee = referee
        self._run = run
        self._is_quick = is_quick

    def heats(
        self, tasks: int, steps: Steps, *, share_of_writes: float
    ) -> Mapping[str, Callable[[], Heat]]:
        for contender in self._contenders.values():
            if self._referee.count(contender.prefix) != KEYS:
                self._referee.wipe(contender.prefix)
                self._referee.fill(
                    [sample.pair_of(contender.prefix, number) for number in range(KEYS)]
                )
        calls = 100 + tasks if self._is_quick else 500 + 10 * tasks
        calls -= calls % 10
        return {
            name: partial(
                self._heat,
                contender,
                tasks,
                partial(steps, contender, calls),
                round(calls * share_of_writes),
            )
            for name, contender in self._contenders.items()
        }

    def lone_heats(self, tasks: int) -> Mapping[str, Callable[[], Heat]]:
        self.heats(tasks, lambda *_: (), share_of_writes=0)  # so that the workers are there
        number = 30 if self._is_quick else 200
        return {
            name: partial(
                beside,
                [(each.get, each.item(place % KEYS)) for place in range(number)],
                [(each.update, each.item(place)) for place in range(KEYS)],
                tasks,
                self._run,
            )
            for name, each in self._contenders.items()
            if inspect.iscoroutinefunction(each.get)
        }

    def _heat(
        self, contender: Contender, tasks: int, steps: Callable[[], Sequence[Step]], writes: int
    ) -> Heat:
        todo = steps()
        before = self._referee.writes(contender.prefix)
        heat = at_once(todo, tasks, self._run)
        assert heat.calls == len(todo)
        assert self._referee.writes(contender.prefix) - before == writes
        self._look_at(contender, todo)
        return heat

    def _look_at(self, contender: Contender, done: Sequence[Step]) -> None:
        """Read some of the written workers with the contender's own client."""
        for call, item in done[-20:]:
            turn = self._run(wait_for(contender.turn, item))
            assert turn > 0 or call != contender.update


@pytest.fixture(scope="session")
def course(contenders: dict[str, Contender], referee: Referee, run: Run, is_quick: bool) -> Course:
    return Course(contenders, referee, run, is_quick=is_quick)


def test_get(compete: Compete, course: Course, name: str, tasks: int) -> None:
    def steps(contender: Contender, calls: int) -> Sequence[Step]:
        return [(contender.get, contender.item(number % KEYS)) for number in range(calls)]

    compete("get", _column(tasks), name, lambda: course.heats(tasks, steps, share_of_writes=0))


def test_add(compete: Compete, course: Course, referee: Referee, name: str, tasks: int) -> None:
    def steps(contender: Contender, calls: int) -> Sequence[Step]:
        there = referee.count(contender.prefix)  # those before this heat, and all new ones
        assert there % calls == KEYS % calls
        return [(contender.add, contender.item(there + number)) for number in range(calls)]

    compete("add", _column(tasks), name, lambda: course.heats(tasks, steps, share_of_writes=1))


def test_set(compete: Compete, course: Course, referee: Referee, name: str, tasks: int) -> None:
    """The same bytes for all: `add` without types."""

    def steps(contender: Contender, calls: int) -> Sequence[Step]:
        there = referee.count(contender.prefix)
        for number in range(calls):
            sample.stored_form_of(there + number)  # before the clock runs
        verb = contender.set if isinstance(contender, Kvorum) else contender.add
        return [(verb, contender.item(there + number)) for number in range(calls)]

    compete("set", _column(tasks), name, lambda: course.heats(tasks, steps, share_of_writes=1))


def test_update(compete: Compete, course: Course, name: str, tasks: int) -> None:
    def steps(contender: Contender, calls: int) -> Sequence[Step]:
        return [(contender.update, contender.item(number % KEYS)) for number in range(calls)]

    compete("update", _column(tasks), name, lambda: course.heats(tasks, steps, share_of_writes=1))


def test_nine_gets_to_one_update(compete: Compete, course: Course, name: str, tasks: int) -> None:
    def steps(contender: Contender, calls: int) -> Sequence[Step]:
        verbs = [contender.update] * (calls // 10) + [contender.get] * (calls - calls // 10)
        random.Random(calls).shuffle(verbs)  # the same for all
        return [(verb, contender.item(number % KEYS)) for number, verb in enumerate(verbs)]

    compete(
        "mixed 90/10", _column(tasks), name, lambda: course.heats(tasks, steps, share_of_writes=0.1)
    )


def test_a_lone_get(compete: Compete, course: Course, name: str, tasks: int) -> None:
    """The latency of a single caller while others keep the client busy with updates.

    Threads would not share the client.
    """
    if tasks == 1:
        pytest.skip("there are no others")
    compete("get beside updates", f"{tasks} others", name, lambda: course.lone_heats(tasks))


def _column(tasks: int) -> str:
    return f"{tasks} task{'s' if tasks > 1 else ''}"
