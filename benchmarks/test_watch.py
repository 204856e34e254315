"""Watches of all workers: catching up with the past, and following the present."""

import asyncio
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from benchmarks import sample
from benchmarks.conftest import Compete
from benchmarks.contenders import NAMES, Contender, Kvorum, lineup
from benchmarks.race import Heat, Run, wait_for
from benchmarks.referee import Referee

import kvorum

PREFIX = "watched"
KEYS = 1000
WITH_PREVIOUS = "kvorum, previous decoded"


@pytest.fixture(scope="module")
def watchers(run: Run, settings: kvorum.EtcdSettings) -> Iterator[dict[str, Contender]]:
    """All contenders on the same keys, so that each sees the same events."""
    opening = lineup(settings, PREFIX)
    yield run(opening.__aenter__())
    run(opening.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def pairs(watchers: dict[str, Contender]) -> Sequence[tuple[bytes, bytes]]:
    prefix = watchers["aetcd"].prefix
    return [sample.pair_of(prefix, number) for number in range(KEYS)]


@pytest.mark.parametrize("name", [*NAMES, WITH_PREVIOUS])
@pytest.mark.parametrize("together", [1, 100])
def test_catch_up(
    compete: Compete,
    watchers: dict[str, Contender],
    pairs: Sequence[tuple[bytes, bytes]],
    referee: Referee,
    run: Run,
    is_quick: bool,
    name: str,
    together: int,
) -> None:
    """The workers were written repeatedly, so all events have previous values.

    etcd sends at most 1,000 revisions every 100 ms to a watch that catches up. With one event each,
    that limits all contenders to 10,000 events a second; with a hundred each, it limits none.
    """
    events = (2_000 if is_quick else 5_000) if together == 1 else (5_000 if is_quick else 20_000)

    def heat(follow: Callable[..., Any], since: int) -> Heat:
        revisions: list[int] = []
        started = time.perf_counter()
        run(wait_for(follow, events, since, lambda: None, revisions.append))
        seconds = time.perf_counter() - started
        assert revisions == [since + 1 + place // together for place in range(events)]
        return Heat(seconds, len(revisions))

    def heats() -> Mapping[str, Callable[[], Heat]]:
        referee.fill(pairs)
        since = referee.revision()
        for _ in range(events // KEYS):
            referee.fill(pairs, together=together)
        able = {name: each for name, each in watchers.items() if each.can_go_back}
        follows: dict[str, Callable[..., Any]] = {name: each.follow for name, each in able.items()}
        typed = watchers["kvorum"]
        assert isinstance(typed, Kvorum)
        follows[WITH_PREVIOUS] = typed.follow_with_previous
        return {name: functools.partial(heat, follow, since) for name, follow in follows.items()}

    compete("watch: catch up", f"{events:,} events, {together} a revision", name, heats)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("together", [1, 100])
def test_live(
    compete: Compete,
    watchers: dict[str, Contender],
    pairs: Sequence[tuple[bytes, bytes]],
    referee: Referee,
    run: Run,
    is_quick: bool,
    name: str,
    together: int,
) -> None:
    """One writer for all writes one transaction at a time. Latency is from sending to the event.

    With one worker at a time it measures the latency of an event, with a hundred the throughput.
    """
    events = (100 if is_quick else 1_000) * (1 if together == 1 else 10)

    async def write(opened: asyncio.Event, sent: list[float]) -> None:
        await opened.wait()
        for start in range(0, events, together):
            sent += [time.perf_counter()] * together
            await referee.write([pairs[number % KEYS] for number in range(start, start + together)])

    async def follow(contender: Contender) -> Heat:
        loop, opened = asyncio.get_running_loop(), asyncio.Event()
        sent: list[float] = []
        seen: list[float] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(write(opened, sent))
            await wait_for(
                contender.follow,
                events,
                None,
                lambda: loop.call_soon_threadsafe(opened.set),
                lambda _: seen.append(time.perf_counter()),
            )
        assert len(sent) == len(seen) == events
        return Heat(
            seen[-1] - sent[0],
            events,
            [after - before for before, after in zip(sent, seen, strict=True)],
        )

    def heat(contender: Contender) -> Heat:
        followed: Heat = run(follow(contender))
        return followed

    def heats() -> Mapping[str, Callable[[], Heat]]:
        referee.fill(pairs)
        return {name: functools.partial(heat, each) for name, each in watchers.items()}

    compete("watch: live", f"{together} event{'s' if together > 1 else ''} a write", name, heats)
