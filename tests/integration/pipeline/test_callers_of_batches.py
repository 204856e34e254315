"""Each caller has a deadline of its own, and may give up at any time."""

import asyncio

import anyio
import pytest
from tests.integration.pipeline.batching import Requests, all_of, until_waiting

import kvorum
from kvorum import (
    ClientClosedError,
    EmbeddedEtcd,
    Entry,
    Operation,
    OutcomeUnknownError,
    UnavailableError,
)
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)


async def test_a_call_that_is_cancelled_before_it_is_sent_is_never_sent(
    client: kvorum.Client, proxy: FaultProxy, store: kvorum.StorageBackend
) -> None:
    proxy.hold("requests")
    in_flight = [
        asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(2)
    ]
    await asyncio.sleep(0)
    more = [asyncio.ensure_future(client.backend.set(f"n{number}", b"1")) for number in range(10)]
    await proxy.wait(lambda now: now.held > 0)
    await until_waiting(client, 10)
    for call in more[::2]:
        call.cancel()
    await asyncio.sleep(0)
    await proxy.heal()
    answers = await all_of(*in_flight, *more)

    assert [type(answer) for answer in answers[2:]] == [asyncio.CancelledError, int] * 5
    assert await store.keys("n*") == [f"n{number}" for number in range(1, 10, 2)]


async def test_a_call_that_is_cancelled_after_it_was_sent_disturbs_no_other(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    for _ in range(20):
        calls = [asyncio.ensure_future(client.backend.get(f"k{number}")) for number in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for call in calls[1::2]:
            call.cancel()
        answers = await all_of(*calls)
        assert [answer for answer in answers[::2] if answer is not None] == []
    assert proxy.statistics().cuts == 0


async def test_cancelled_batches_of_reads_do_not_stop_the_server(kvorum_etcd: EmbeddedEtcd) -> None:
    """Some versions crash when a read-only transaction is cancelled, and are sent none."""
    requests = Requests()
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        for _ in range(10):
            async with kvorum.connect(etcd.url, observer=requests) as client:
                await client.backend.set("a", b"1")
                for _ in range(30):
                    calls = [
                        asyncio.ensure_future(client.backend.get(f"k{number}"))
                        for number in range(100)
                    ]
                    await requests.until_planned("reads")
                    for call in calls:
                        call.cancel()
                lasting = [
                    asyncio.ensure_future(client.backend.get(f"k{number}")) for number in range(100)
                ]
                # Leave with a batch in flight, which the client then cancels.
                await requests.until_planned("reads")
            await all_of(*lasting)

        async with kvorum.connect(etcd.url) as client:
            assert await client.backend.get("a") is not None


async def test_a_write_that_is_cancelled_while_it_waits_for_a_server_is_never_applied(
    client: kvorum.Client,
    proxy: FaultProxy,
    requests: Requests,
    store: kvorum.StorageBackend,
) -> None:
    """Also if it waits in a batch: what another client writes afterwards stays."""
    for number in range(5):
        await proxy.refuse()
        proxy.cut()
        calls = [
            asyncio.ensure_future(client.backend.set(f"k{n}", b"old"))
            for n in range(1 + 5 * (number % 2))
        ]
        await requests.until_failed()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await store.commit([Operation.put(f"k{n}", b"new") for n in range(len(calls))])
        await proxy.heal()
        await client.backend.get("a")  # it is there again

        values = {entry.value for entry in (await store.list("k")).entries}
        assert values == {b"new"}


async def test_each_caller_has_a_deadline_of_its_own(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """An impatient caller gives up; the others get their answers."""

    async def impatient() -> Entry | None:
        with kvorum.deadline(0.3):
            return await client.backend.get("b")

    await client.backend.set("a", b"1")
    proxy.hold("replies")
    patient = [asyncio.ensure_future(client.backend.get("a")) for _ in range(10)]
    await asyncio.sleep(0)
    (error,) = await all_of(impatient())
    assert isinstance(error, UnavailableError)
    await proxy.heal()

    found = await all_of(*patient)
    assert [entry.value for entry in found] == [b"1"] * 10


async def test_a_write_that_waits_past_its_deadline_was_not_sent(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """So the error says that nothing happened."""

    async def impatient(number: int) -> int:
        with kvorum.deadline(0.3):
            return await client.backend.create(f"k{number}", b"1")

    proxy.hold("requests")
    in_flight = [
        asyncio.ensure_future(client.backend.set(f"n{number}", b"1")) for number in range(20)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    errors = await all_of(*map(impatient, range(3)))
    assert [type(error) for error in errors] == [UnavailableError] * 3
    await proxy.heal()

    await all_of(*in_flight)
    assert await client.backend.keys("k*") == []


async def test_a_call_whose_deadline_has_passed_already_is_not_sent(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """The error says that nothing was done, whatever else is in flight."""
    with kvorum.deadline(0.05):
        await anyio.sleep(0.06)
        calls = [
            asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(20)
        ]
    answers = await all_of(*calls)

    assert {type(answer) for answer in answers} == {UnavailableError}
    assert await client.backend.keys("k*") == []
    assert proxy.statistics().cuts == 0


async def test_closing_the_client_ends_the_calls_that_wait(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    proxy.hold("requests")
    writes = [
        asyncio.ensure_future(client.backend.create(f"k{number}", b"1")) for number in range(50)
    ]
    reads = [asyncio.ensure_future(client.backend.get(f"k{number}")) for number in range(50)]
    await proxy.wait(lambda now: now.held > 0)
    await client.aclose()

    answers = await all_of(*writes, *reads)
    assert {type(answer) for answer in answers[:50]} <= {ClientClosedError, OutcomeUnknownError}
    assert {type(answer) for answer in answers[50:]} == {ClientClosedError}


async def test_calls_fail_when_the_senders_have_ended(kvorum_etcd: EmbeddedEtcd) -> None:
    """Somebody else's mistake ends all tasks of a client.

    Nobody waits then for a sender that is not there.
    """

    async def fail() -> None:
        raise ZeroDivisionError

    outcomes: list[object] = []

    async def use() -> None:
        async with kvorum.connect(kvorum_etcd.url) as client:
            await all_of(
                *(client.backend.get(f"k{number}") for number in range(300))
            )  # both senders are there
            client.connection.supervisor.spawn(fail, name="a mistake")
            assert client.connection.supervisor._main is not None
            await asyncio.wait([client.connection.supervisor._main])
            outcomes.extend(
                await all_of(*(client.backend.get(f"k{number}") for number in range(10)))
            )

    with pytest.raises(ExceptionGroup) as caught:
        await use()
    assert caught.group_contains(ZeroDivisionError)
    assert {type(outcome) for outcome in outcomes} == {ClientClosedError}
