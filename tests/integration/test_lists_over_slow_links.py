"""Lists whose pages would not arrive in time.

Smaller ones do, and all of them show one revision.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from typing_extensions import override

import kvorum
from kvorum import EtcdSettings, Observer, Operation, UnavailableError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.page_sizes import MAX_PAGE
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.anyio

VALUE = bytes(20_000)


class Limits(Observer):
    """Records how many keys each request of a list asks for.

    Attributes:
        asked: these numbers.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []

    @override
    async def before_request(self, call: Call, _endpoint: str, message: Any, /) -> None:
        request = message
        if isinstance(message, rpc.RangeRequest) and request.range_end and not request.count_only:
            self.asked.append(request.limit)


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def asked(limits: Limits) -> list[int]:
    """How many keys each request of a list asked for."""
    return limits.asked


@asynccontextmanager
async def linked(
    client: kvorum.Client, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[tuple[kvorum.Client, FaultProxy]]:
    """Connect to the server of a client through a proxy, to the same keys."""
    async with FaultProxy(client.settings.endpoints[0]) as proxy:
        given = EtcdSettings(endpoints=(proxy.endpoint,), prefix=client.settings.prefix, **settings)
        async with kvorum.connect(given, observer=limits or Limits()) as linked:
            yield linked, proxy


async def fill(backend: kvorum.StorageBackend, number: int, value: bytes = VALUE) -> int:
    revision = 0
    for start in range(0, number, 50):
        names = [f"many/{place:04}" for place in range(start, min(start + 50, number))]
        revision = await backend.commit([Operation.put(name, value) for name in names])
    return revision


async def test_a_list_that_is_too_much_for_one_call_on_a_slow_link_arrives_in_pages_of_one_revision(
    kvorum_client: kvorum.Client, limits: Limits, asked: list[int]
) -> None:
    """A page of 1000 keys was asked for again and again, until the deadline.

    Unavailable for ever.
    """
    revision = await fill(kvorum_client.backend, 1000)

    async with (
        linked(kvorum_client, limits, timeout=1.5) as (client, proxy),
        anyio.create_task_group() as group,
    ):

        async def write() -> None:
            await proxy.wait(lambda now: now.replies > 17_000_000)  # some pages have arrived
            await kvorum_client.backend.delete("many/0999")
            await kvorum_client.backend.set("many/1000", b"late")

        proxy.throttle(10_000_000, "replies")
        group.start_soon(write)
        started = anyio.current_time()
        page = await client.backend.list("many/")
        assert (
            anyio.current_time() - started > 1.5
        )  # more than a call may take, else this shows nothing

    assert [entry.key for entry in page.entries] == [f"many/{place:04}" for place in range(1000)]
    assert page.revision == revision
    assert page.remaining == 0
    assert await kvorum_client.backend.exists("many/1000")
    assert asked[0] == 1000  # nothing is known yet
    assert len(asked) < 60


async def test_a_list_of_which_nothing_arrived_makes_the_next_one_ask_for_less(
    kvorum_client: kvorum.Client, limits: Limits, asked: list[int]
) -> None:
    """A link may be so slow that what the first request has set off fills it until the deadline."""
    await fill(kvorum_client.backend, 100)
    failures, page = 0, None

    async with linked(kvorum_client, limits, timeout=0.5) as (client, proxy):
        proxy.throttle(1_000_000, "replies")
        with anyio.fail_after(10):
            while page is None:
                try:
                    page = await client.backend.list("many/", limit=50)
                except UnavailableError:
                    failures += 1

    assert page is not None
    assert 0 < failures < 8
    assert len(page.entries) == 50
    assert page.remaining == 50
    assert asked[0] == 50
    assert max(asked[-5:]) < 25


async def test_a_list_of_a_server_that_is_silent_ends_at_its_deadline(
    kvorum_client: kvorum.Client,
) -> None:
    """Smaller pages are asked for within the deadline, not after it."""
    async with linked(kvorum_client, timeout=0.5) as (client, proxy):
        proxy.hold("replies")
        for deadline in (0.5, 0.2):
            started = anyio.current_time()
            with pytest.raises(UnavailableError), kvorum.deadline(deadline):
                await client.backend.list("many/")
            assert anyio.current_time() - started < deadline + 0.4


async def test_a_page_that_is_slow_and_arrives_within_the_deadline_is_not_lost(
    kvorum_client: kvorum.Client,
) -> None:
    """Latency is no reason to give up: it is the same for a small page."""
    await fill(kvorum_client.backend, 3)

    async with linked(kvorum_client, timeout=1.0) as (client, proxy):
        proxy.delay(0.7, "replies")
        page = await client.backend.list("many/")

    assert len(page.entries) == 3


async def test_pages_of_large_values_are_cut_by_their_bytes(
    kvorum_client: kvorum.Client, limits: Limits, asked: list[int]
) -> None:
    size = 200_000
    for start in range(0, 100, 5):
        await kvorum_client.backend.commit(
            [Operation.put(f"many/{place:04}", bytes(size)) for place in range(start, start + 5)]
        )
    async with linked(kvorum_client, limits, page_size=20) as (client, _):
        page = await client.backend.list("many/")
        assert len(page.entries) == 100
        assert asked == [20, 20, 20, 20, 20]  # 4 MB each
    asked.clear()

    async with linked(kvorum_client, limits, page_size=60) as (client, _):
        page = await client.backend.list("many/")

    assert len(page.entries) == 100
    assert asked[0] == 60  # nothing is known yet
    assert max(asked[1:]) * size <= MAX_PAGE


async def test_pages_of_small_values_take_no_more_requests_than_before(
    kvorum_client: kvorum.Client, limits: Limits, asked: list[int]
) -> None:
    await fill(kvorum_client.backend, 2000, bytes(900))
    async with linked(kvorum_client, limits) as (client, _):
        assert len((await client.backend.list("many/")).entries) == 2000
        assert len((await client.backend.list("many/", limit=1)).entries) == 1
        assert len((await client.backend.list("many/")).entries) == 2000

    assert asked == [1000, 1000, 1, 1000, 1000]


async def test_a_list_that_is_cancelled_leaves_no_request_behind(
    kvorum_client: kvorum.Client,
) -> None:
    async with linked(kvorum_client, timeout=2.0) as (client, proxy):
        proxy.hold("replies")
        with anyio.move_on_after(1.0) as scope:  # by then smaller pages are asked for, too
            await client.backend.list("many/")
        assert scope.cancelled_caught
        await proxy.heal()

        assert (await client.backend.list("many/")).entries == []
