"""How much a request holds, and how many calls wait."""

import asyncio

import anyio
import pytest
from tests.integration.pipeline.batching import DEADLINE, Requests, all_of, until_waiting

import kvorum
from kvorum import EmbeddedEtcd, Entry, UnavailableError
from kvorum.etcd.pipeline import QueueLimits
from kvorum.etcd.policies import Policies
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)

ten_may_wait = pytest.mark.parametrize("policies", [Policies(queue=QueueLimits(waiting=10))])


async def test_a_few_do_not_wait_long_for_a_batch_of_many(
    client: kvorum.Client, requests: Requests
) -> None:
    """There is room for another request, and the batch may take its time."""
    are_held, is_sent, may_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold_many(call: Call, _message: object) -> None:
        if call.subject.endswith("/a"):
            is_sent.set()
        elif call.subject.endswith(" keys"):
            are_held.set()
            await may_go.wait()

    requests.before = hold_many
    many = [asyncio.ensure_future(client.backend.get(f"k{number}")) for number in range(100)]
    with anyio.fail_after(DEADLINE):
        await are_held.wait()
        await many[0]  # it was sent alone; its slot is free again
        one = asyncio.ensure_future(client.backend.get("a"))
        await is_sent.wait()
    assert not any(call.done() for call in many[1:])
    may_go.set()

    assert await all_of(one) == [None]
    assert await all_of(*many) == [None] * 100


async def test_a_server_that_takes_fewer_operations_gets_fewer(kvorum_etcd: EmbeddedEtcd) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--max-txn-ops=20"]) as etcd,
        kvorum.connect(etcd.url) as client,
    ):
        for _ in range(5):
            assert (
                await all_of(*(client.backend.get(f"k{number}") for number in range(100)))
                == [None] * 100
            )
        before = client.pipeline.statistics()
        await all_of(*(client.backend.get(f"k{number}") for number in range(100)))

        now = client.pipeline.statistics()
    assert now.read_requests - before.read_requests < 20


async def test_a_server_that_takes_smaller_requests_gets_smaller_ones(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--max-request-bytes=200000"]) as etcd,
        kvorum.connect(etcd.url) as client,
    ):

        async def write() -> int:
            """Write a megabyte; return in how many requests."""
            before = client.pipeline.statistics()
            answers = await all_of(
                *(client.backend.set(f"k{number}", bytes(5_000)) for number in range(200))
            )
            assert {type(answer) for answer in answers} == {int}
            return client.pipeline.statistics().write_requests - before.write_requests

        assert await write() > 30  # the refused calls were sent alone
        await write()
        assert await write() < 20


@ten_may_wait
async def test_calls_wait_for_room_when_the_queue_is_full(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    store = client.backend
    await store.set("a", b"1")

    found = await all_of(*(store.get(key) for key in ["a", "b"] * 100))

    assert [entry and entry.value for entry in found] == [b"1", None] * 100

    proxy.hold("requests")
    calls = [asyncio.ensure_future(store.get(f"k{number}")) for number in range(60)]
    await proxy.wait(lambda now: now.held > 0)

    async def impatient() -> Entry | None:
        with kvorum.deadline(0.2):
            return await store.get("a")

    (error,) = await all_of(impatient())
    assert isinstance(error, UnavailableError)
    assert client.pipeline.statistics().waiting >= 40
    await proxy.heal()
    assert await all_of(*calls) == [None] * 60
    assert client.pipeline.statistics().waiting == 0


@ten_may_wait
async def test_writes_that_wait_for_room_keep_their_order(client: kvorum.Client) -> None:

    revisions = await all_of(*(client.backend.set("a", b"%d" % number) for number in range(100)))

    assert revisions == sorted(revisions)


@ten_may_wait
async def test_calls_that_wait_for_room_are_sent_when_all_in_the_queue_have_given_up(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    proxy.hold("requests")
    in_flight = asyncio.ensure_future(client.backend.set("a", b"0"))
    await proxy.wait(lambda now: now.held > 0)
    waiting = [
        asyncio.ensure_future(client.backend.set("a", b"%d" % number)) for number in range(15)
    ]
    await until_waiting(client, 15)
    await asyncio.sleep(0)  # a sender looks at the queue, in which nothing can be sent
    for each in waiting[:10]:
        each.cancel()
    await asyncio.sleep(0)
    await proxy.heal()

    assert {type(answer) for answer in await all_of(in_flight, *waiting[10:])} == {int}
