"""Deadlines for blocks of calls."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

import kvorum
from kvorum import ConfigurationError, EtcdSettings, OutcomeUnknownError, UnavailableError
from kvorum.testing import FaultProxy


@pytest.fixture
async def proxy(kvorum_etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy, kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    """A client with a timeout of a minute."""
    prefix = kvorum_url.rpartition("/")[2]
    async with kvorum.connect(
        EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=60)
    ) as client:
        yield client


async def seconds_of(call: object, error: type[kvorum.KvorumError]) -> float:
    started = anyio.current_time()
    with pytest.raises(error):
        await call  # type: ignore[misc]  # a coroutine, whatever it returns
    return anyio.current_time() - started


async def test_calls_in_a_block_share_its_deadline(
    proxy: FaultProxy, client: kvorum.Client
) -> None:
    await client.backend.set("a", b"1")
    proxy.mute()
    started = anyio.current_time()
    with kvorum.deadline(0.3):
        await seconds_of(client.backend.get("a"), UnavailableError)
        # No time was left for this one.
        assert await seconds_of(client.backend.get("a"), UnavailableError) < 0.1

    assert 0.3 <= anyio.current_time() - started < 2


async def test_a_write_that_is_not_answered_by_then_is_unknown(
    proxy: FaultProxy, client: kvorum.Client
) -> None:
    first = await client.backend.set("a", b"1")
    proxy.mute()
    with kvorum.deadline(0.3):
        swap = client.backend.compare_and_swap("a", b"2", expected=first)
        assert await seconds_of(swap, OutcomeUnknownError) < 2


async def test_a_call_after_the_deadline_sends_nothing(
    proxy: FaultProxy, client: kvorum.Client
) -> None:
    with kvorum.deadline(0.01):
        await anyio.sleep(0.02)
        before = proxy.statistics().requests
        await seconds_of(client.backend.set("a", b"1"), UnavailableError)

    assert proxy.statistics().requests == before
    assert not await client.backend.exists("a")


async def test_the_earliest_deadline_counts(proxy: FaultProxy, client: kvorum.Client) -> None:
    await client.backend.set("a", b"1")
    proxy.mute()
    with kvorum.deadline(0.2), kvorum.deadline(60):
        assert await seconds_of(client.backend.get("a"), UnavailableError) < 2


async def test_a_task_that_starts_in_the_block_has_its_deadline(
    proxy: FaultProxy, client: kvorum.Client
) -> None:
    await client.backend.set("a", b"1")
    proxy.mute()
    with kvorum.deadline(0.2):
        task = asyncio.create_task(client.backend.get("a"))
    assert await seconds_of(task, UnavailableError) < 2


async def test_a_deadline_limits_the_opening_of_a_watch_and_not_its_events(
    proxy: FaultProxy, client: kvorum.Client, kvorum_client: kvorum.Client
) -> None:
    with kvorum.deadline(0.2):
        watch = client.backend.watch("")
        await watch.open()
    await anyio.sleep(0.3)  # longer than the deadline
    await kvorum_client.backend.set("a", b"1")
    (change,) = await anext(watch)
    assert change.key == "a"
    await watch.aclose()

    proxy.mute()
    with kvorum.deadline(0.2):
        assert await seconds_of(client.backend.watch("").open(), UnavailableError) < 2


async def test_a_deadline_may_be_later_than_the_timeout_of_the_client(
    kvorum_etcd: kvorum.EmbeddedEtcd,
) -> None:
    async with (
        FaultProxy(kvorum_etcd.endpoints[0]) as proxy,
        kvorum.connect(EtcdSettings(endpoints=(proxy.endpoint,), timeout=0.2)) as client,
    ):
        await client.backend.set("a", b"1")
        proxy.delay(0.3)
        await seconds_of(client.backend.get("a"), UnavailableError)
        with kvorum.deadline(20):
            assert await client.backend.exists("a")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
async def test_an_invalid_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="more than 0"), kvorum.deadline(seconds):
        pass
