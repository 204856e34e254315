"""Increments of one resource while replies are lost and requests are late.

Each increment is applied once, and its caller knows.
"""

from collections.abc import AsyncIterator

import anyio
import pytest
from tests.kinds import Counter, CounterSpec, CounterStatus

import kvorum
from kvorum import (
    ConflictError,
    EtcdSettings,
    Metadata,
    OutcomeUnknownError,
    UnavailableError,
)
from kvorum.testing import FaultProxy

WRITERS = 16
TIMEOUT = 0.2


@pytest.fixture
async def proxy(kvorum_etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def troubled(proxy: FaultProxy, kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    prefix = kvorum_url.rpartition("/")[2]
    async with kvorum.connect(
        EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=TIMEOUT)
    ) as client:
        yield client


class Counting:
    """Tasks that increment one resource, and their results."""

    def __init__(self, counters: kvorum.Repository[Counter], enough: int) -> None:
        self.counters = counters
        self.enough = enough
        self.acknowledged = 0
        self.unknown: list[OutcomeUnknownError] = []
        self._news = anyio.Event()

    @property
    def is_over(self) -> bool:
        return self.acknowledged >= self.enough

    async def count(self) -> None:
        while not self.is_over:
            try:
                await self.counters.mutate("c", self.increment)
            except OutcomeUnknownError as exc:
                self.unknown.append(exc)
            except (UnavailableError, ConflictError):
                continue
            else:
                self.acknowledged += 1
                self._news.set()
                self._news = anyio.Event()

    async def some_more(self, number: int) -> None:
        """Wait for `number` more increments."""
        until = min(self.acknowledged + number, self.enough)
        while self.acknowledged < until:
            await self._news.wait()

    @staticmethod
    def increment(counter: Counter) -> None:
        counter.spec.number += 1


async def lose_answers(proxy: FaultProxy) -> None:
    """Let requests take effect and lose their replies."""
    before = proxy.statistics().dropped
    proxy.drop("replies")
    await proxy.wait(lambda now: now.dropped > before)
    await proxy.heal()


async def hold_requests_back(proxy: FaultProxy) -> None:
    """Deliver requests after their callers gave up."""
    proxy.hold("requests")
    await proxy.wait(lambda now: now.held > 0)
    await anyio.sleep(1.2 * TIMEOUT)  # the callers' deadlines pass
    await proxy.heal()


@pytest.mark.timeout(900)
async def test_increments_end_at_exactly_the_number_that_was_acknowledged_or_proven(
    proxy: FaultProxy, troubled: kvorum.Client, kvorum_client: kvorum.Client, *, is_long: bool
) -> None:
    """Sixteen tasks; half of the faults lose replies, half delay requests."""
    enough, faults = (10_000, 500) if is_long else (400, 20)
    counters = kvorum_client.repository(Counter)
    await counters.add(
        Counter(metadata=Metadata(name="c"), spec=CounterSpec(), status=CounterStatus())
    )
    counting = Counting(troubled.repository(Counter), enough)
    made = 0
    async with anyio.create_task_group() as group:
        for _ in range(WRITERS):
            group.start_soon(counting.count)
        while not counting.is_over:
            await counting.some_more(enough // (faults + faults // 5))
            await (lose_answers if made % 2 else hold_requests_back)(proxy)
            made += 1

    proven = 0
    for lost in counting.unknown:
        try:
            await kvorum_client.backend.settle(lost)
        except ConflictError:
            continue
        proven += 1
    counter = await counters.get("c")
    print(
        f"{counter.spec.number} counted: {counting.acknowledged} acknowledged,"
        f" {proven} proven later, {made} faults"
    )
    assert counter.spec.number == counting.acknowledged + proven
    assert made >= faults
