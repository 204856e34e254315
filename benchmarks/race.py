"""A race: the contenders take turns, so that a disturbance of the machine affects all alike.

A heat is one turn of one contender. Figures are medians over the rounds; a ratio is the median of
the ratios of two contenders' heats in the same round.
"""

import asyncio
import gc
import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

Call: TypeAlias = Callable[[Any], Any]  # async or not
Step: TypeAlias = tuple[Call, Any]  # a call, and its arguments
Run: TypeAlias = Callable[..., Any]  # runs a coroutine on the session's event loop


class Heat(NamedTuple):
    """One turn of one contender.

    Attributes:
        seconds: the total time.
        calls: the number of calls, events or workers.
        latencies: the time of each call, in seconds; empty for a single call.
    """

    seconds: float
    calls: int
    latencies: Sequence[float] = ()

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


class Result:
    """The heats of one contender, one for each round."""

    def __init__(self, heats: Sequence[Heat]) -> None:
        self.heats: Sequence[Heat] = heats

    @property
    def rate(self) -> float:
        """Calls per second."""
        return statistics.median(heat.rate for heat in self.heats)

    @property
    def has_latencies(self) -> bool:
        return bool(self.heats[0].latencies)

    def latency(self, percent: int) -> float:
        """Return the median over the rounds of a percentile of the single calls, in seconds."""
        return statistics.median(_percentile(heat.latencies, percent) for heat in self.heats)

    def ratio_to(self, other: "Result") -> float:
        """Return the median of the ratios of rates, each of two heats of the same round."""
        return statistics.median(
            mine.rate / theirs.rate for mine, theirs in zip(self.heats, other.heats, strict=True)
        )


def race(contenders: Mapping[str, Callable[[], Heat]], rounds: int) -> Mapping[str, Result]:
    """Run each once to warm up, then once in every round, starting with another one each time."""
    gc.collect()
    # loaded modules would make each collection slow
    gc.freeze()
    names = list(contenders)
    heats: dict[str, list[Heat]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()  # garbage of the previous heat
            heat = contenders[name]()
            if number > 0:
                heats[name].append(heat)
    return {name: Result(each) for name, each in heats.items()}


# --- many calls at once ---


def at_once(steps: Sequence[Step], tasks: int, run: Run) -> Heat:
    """Make all calls from `tasks` tasks at once, or threads if they are not async.

    Each task makes one call at a time. Steps whose indexes differ by a multiple of `tasks` share a
    task.
    """
    shares = [steps[place::tasks] for place in range(tasks)]
    if inspect.iscoroutinefunction(steps[0][0]):
        heat: Heat = run(_in_tasks(shares))
        return heat
    return _in_threads(shares)


async def _in_tasks(shares: Sequence[Sequence[Step]]) -> Heat:
    latencies: list[float] = []

    async def make(share: Sequence[Step]) -> None:
        for call, item in share:
            started = time.perf_counter()
            await call(item)
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(make(share))
    return Heat(time.perf_counter() - started, len(latencies), latencies)


def beside(lone: Sequence[Step], others: Sequence[Step], tasks: int, run: Run) -> Heat:
    """Make single calls while `tasks` tasks make others; measure the single ones only."""
    heat: Heat = run(_beside(lone, others, tasks))
    return heat


async def _beside(lone: Sequence[Step], others: Sequence[Step], tasks: int) -> Heat:
    async def make_on(share: Sequence[Step]) -> None:
        for call, item in itertools.cycle(share):
            await call(item)

    async with asyncio.TaskGroup() as group:
        crowd = [group.create_task(make_on(others[place::tasks])) for place in range(tasks)]
        heat = await _in_tasks([lone])
        for each in crowd:
            each.cancel()
    return heat


def _in_threads(shares: Sequence[Sequence[Step]]) -> Heat:
    latencies: list[float] = []

    def make(share: Sequence[Step]) -> None:
        for call, item in share:
            started = time.perf_counter()
            call(item)
            latencies.append(time.perf_counter() - started)

    with ThreadPoolExecutor(len(shares)) as pool:
        started = time.perf_counter()
        for _ in pool.map(make, shares):  # raises the error of a call
            pass
        seconds = time.perf_counter() - started
    return Heat(seconds, len(latencies), latencies)


async def wait_for(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that may be async, in a thread if it is not."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    return await asyncio.to_thread(function, *args)


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]
