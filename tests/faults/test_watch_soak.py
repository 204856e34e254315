"""Watches of every kind under random faults at random times, judged by the server's history.

Each follower reads through its own proxies, so the test knows which faults hit it. The writers
connect directly to the servers, which are paused, restarted and killed. The server's history is
read independently of Kvorum, in pieces, before each compaction.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

import anyio
import pytest
from tests.faults.soak import Soak
from tests.faults.soak_faults import CUT, faults_for, refuse

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings
from kvorum.etcd.transport.connection import Connection
from kvorum.etcd.watch.reader import WatchReader
from kvorum.testing import (
    Rule,
)

OFTEN: Final = "--experimental-watch-progress-notify-interval=100ms"

pytestmark = pytest.mark.timeout(1_500)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--soak-seed"))


@pytest.fixture
def open_soak(
    kvorum_etcd: EmbeddedEtcd, seed: int
) -> Callable[[int], AbstractAsyncContextManager[Soak]]:
    """Open a soak on its own servers."""

    @asynccontextmanager
    async def opened(members: int) -> AsyncIterator[Soak]:
        arguments = [OFTEN] if kvorum_etcd.version >= (3, 5) else []
        async with EmbeddedEtcd(
            binary=kvorum_etcd.binary, members=members, arguments=arguments
        ) as etcd:
            settings = EtcdSettings(endpoints=etcd.endpoints, prefix="soak", timeout=2)
            async with kvorum.connect(settings) as client:
                yield Soak(etcd, client, seed)

    return opened


Opened: TypeAlias = Callable[[int], AbstractAsyncContextManager[Soak]]


async def test_watches_lose_nothing_under_random_faults(
    open_soak: Opened, count_watchers: Callable[[EmbeddedEtcd], Awaitable[int]], *, is_long: bool
) -> None:
    async with open_soak(1) as soak:
        await soak.run(faults_for(soak.etcd.version, 1, soak.seed, is_long=is_long))
        with anyio.fail_after(10):  # no resumed watch is left on the server
            while await count_watchers(soak.etcd):  # noqa: ASYNC110 - a metric has no event
                await anyio.sleep(0.01)

    print(f"\n{soak}")
    assert soak.violations == [], str(soak)
    assert min(soak.in_flight) > 0
    assert soak.counts["re-lists"] > 0
    assert soak.counts["resumes in the middle of a batch"] > 0
    if is_long:
        assert len(soak.history.faults) >= 200
        assert sum(len(each) for each in soak.server_history.revisions.values()) >= 100_000
        for what in ("resumes in the middle of a batch", "re-lists", "resumes after a pause"):
            assert soak.counts[what] >= 20, str(soak)
        assert soak.counts["of these, noticed by keep-alive"] >= 20, str(soak)


async def test_watches_lose_nothing_while_leaders_fail(open_soak: Opened, *, is_long: bool) -> None:
    async with open_soak(3) as soak:
        await soak.run(faults_for(soak.etcd.version, 3, soak.seed, is_long=is_long))

    print(f"\n{soak}")
    assert soak.violations == [], str(soak)
    assert min(soak.in_flight) > 0


async def take_over_at_the_header(
    reader: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    """The classic mistake: the header of the first response has the store's revision."""
    stream = await create(reader, connection, since, deadline)
    if reader.is_open:
        reader.position = max(reader.position, stream.created.header.revision)
    return stream


async def take_over_one_later(
    reader: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    stream = await create(reader, connection, since, deadline)
    reader.position += reader.is_open
    return stream


async def take_over_one_earlier(
    reader: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    stream = await create(reader, connection, since, deadline)
    reader.position -= reader.is_open
    reader._last.change = None  # otherwise it detects the difference and reports it
    return stream


async def take_over_without_one_event(
    reader: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    """Drop the last event of the first message, which may be one of several of its revision."""
    stream: Any = await create(reader, connection, since, deadline)
    read = stream.read

    async def read_less() -> Any:
        stream.read = read
        response = await read()
        del response.events[-1:]
        return response

    if reader.is_open:
        stream.read = read_less
    return stream


create = WatchReader._create
PLANTED: Final = {
    take_over_at_the_header: {Rule.LOST_EVENT},
    take_over_one_later: {Rule.LOST_EVENT},
    take_over_one_earlier: {Rule.DUPLICATE_EVENT},
    take_over_without_one_event: {Rule.LOST_EVENT, Rule.SPLIT_REVISION, Rule.WRONG_PREVIOUS},
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
async def test_the_soak_finds_a_planted_fault(
    open_soak: Opened, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    """Otherwise the soak would prove nothing."""
    monkeypatch.setattr(WatchReader, "_create", fault)
    async with open_soak(1) as soak:
        soak.wait_limit = 2
        await soak.run([refuse, CUT, refuse, CUT])

    assert {violation.rule for violation in soak.violations} & PLANTED[fault], str(soak)
