"""The cost of unread watches: a bounded amount of memory, and no time of others."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest

import kvorum
from kvorum import Operation

WATCHERS = 50
PER_REVISION = 4

# Bounds that the documentation names, in MiB.
NEVER_READ = 16
# for each: a message of a thousand revisions, of four changes of 0.4 KB with what was before
PER_READ_AHEAD = 16

pytestmark = pytest.mark.timeout(300)


Measured: TypeAlias = Callable[[int, int], Awaitable[Mapping[str, Any]]]


@pytest.fixture
def events(*, is_long: bool) -> int:
    return 100_000 if is_long else 8_000


@pytest.fixture
async def backlog(kvorum_client: kvorum.Client, events: int) -> tuple[int, int]:
    """Write the backlog, in changes of 0.4 KB. Return the revision before it, and its last one."""
    backend = kvorum_client.backend
    start = await backend.set("first", b"")
    limiter = anyio.Semaphore(16)

    async def write(number: int) -> None:
        async with limiter:
            names = [f"k{number % 100}-{n}" for n in range(PER_REVISION)]
            await backend.commit([Operation.put(name, b"%400d" % number) for name in names])

    async with anyio.create_task_group() as group:
        for number in range(events // PER_REVISION):
            group.start_soon(write, number)
    return start, (await backend.list("", limit=1)).revision


@pytest.fixture
def measured(
    kvorum_etcd: kvorum.EmbeddedEtcd, kvorum_url: str, backlog: tuple[int, int]
) -> Measured:
    async def run(watchers: int, reads_first: int) -> Mapping[str, Any]:
        script = Path(__file__).with_name("watch_memory.py")
        arguments = map(str, (kvorum_url, kvorum_etcd.pid, *backlog, watchers, reads_first))
        done = await anyio.run_process([sys.executable, str(script), *arguments], stderr=None)
        figures: Mapping[str, Any] = msgspec.json.decode(done.stdout)
        print(f"\n{figures}")
        return figures

    return run


async def test_fifty_unread_watches_cost_a_fixed_amount_of_memory(
    measured: Measured, events: int
) -> None:
    """A watch that is read gets everything meanwhile; the others, as soon as they are read.

    The time that this takes is printed, not asserted: it depends on the load of the machine.
    """
    figures = await measured(WATCHERS, 0)

    assert figures["idle"] < NEVER_READ
    assert figures["most_beside"] - figures["most_alone"] < NEVER_READ
    assert figures["buffered"] == 0
    assert figures["events"] == events
    assert figures["woken"] == [events] * (WATCHERS // 10)


async def test_a_watch_that_is_no_longer_read_costs_one_message_of_etcd(
    measured: Measured, events: int
) -> None:
    """For a catch-up, a thousand revisions of any size: etcd sends them in whole messages."""
    figures = await measured(10, 1)

    assert figures["idle"] < 10 * PER_READ_AHEAD
    assert figures["buffered"] < 1_000 * PER_REVISION + 256
    assert figures["events"] == events
    assert figures["woken"] == [events - PER_REVISION]
