"""A caller with a long deadline waits that long, and keeps no one else waiting."""

import asyncio

import anyio
import pytest
from tests.integration.pipeline.batching import DEADLINE, all_of, behind, opened, warm_up

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Operation, OutcomeUnknownError, UnavailableError
from kvorum.etcd.pipeline import QueueLimits
from kvorum.etcd.policies import Policies
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)


async def test_a_long_deadline_also_holds_for_batched_calls(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """The answers take longer than `timeout`, but arrive before the deadline of their callers."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = behind(proxy.endpoint, "long-deadlines", timeout=0.4)
        async with opened(settings, Policies()) as client:
            proxy.hold("replies")
            with kvorum.deadline(DEADLINE):
                patient = [
                    asyncio.ensure_future(client.backend.create(f"new-{n}", b"1"))
                    for n in range(20)
                ]
            (outcome,) = await all_of(client.backend.create("impatient", b"1"))
            (later,) = await all_of(client.backend.create("impatient", b"1"))
            assert not any(call.done() for call in patient)
            await proxy.heal()
            answers = await all_of(*patient)
            await client.backend.commit([Operation.delete(f"new-{n}") for n in range(20)])

    assert {type(answer) for answer in answers} == {int}
    assert {type(outcome), type(later)} <= {OutcomeUnknownError, UnavailableError}


async def test_a_patient_caller_on_a_silent_server_keeps_no_other_waiting(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """After `timeout` the calls of others are sent, to a server that answers."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        endpoints = (proxy.endpoint, kvorum_etcd.endpoints[0])
        settings = EtcdSettings(endpoints=endpoints, prefix="long-deadlines", timeout=1)
        async with kvorum.connect(settings) as client:
            cluster = client.connection.cluster
            if cluster.current.address != proxy.endpoint:
                cluster.leave(cluster.current)
            await warm_up(client)
            assert cluster.current.address == proxy.endpoint
            proxy.hold("requests")
            with kvorum.deadline(DEADLINE):
                patient = [
                    asyncio.ensure_future(client.backend.set(f"k{n}", b"1")) for n in range(20)
                ]
            await proxy.wait(lambda now: now.held > 0)
            with kvorum.deadline(DEADLINE):
                others = [client.backend.set(f"n{n}", b"1") for n in range(20)]
                answers = await all_of(*others)
            assert not any(call.done() for call in patient)
            assert cluster.current.address != proxy.endpoint
            await proxy.heal()
            late = await all_of(*patient)

    assert {type(answer) for answer in (*answers, *late)} == {int}


async def test_the_number_of_requests_that_take_long_is_limited(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = behind(proxy.endpoint, "long-deadlines", timeout=0.2)
        async with opened(settings, Policies(queue=QueueLimits(overdue=2))) as client:
            proxy.hold("replies")
            before = client.pipeline.statistics().read_requests
            with kvorum.deadline(DEADLINE):
                patient = [
                    asyncio.ensure_future(client.backend.get(f"none-{n}")) for n in range(1_000)
                ]
            await anyio.sleep(0.6)  # several times as long as it takes until another one is sent
            assert client.pipeline.statistics().read_requests - before <= 2 + 2
            await proxy.heal()
            answers = await all_of(*patient)
            with kvorum.deadline(DEADLINE):
                assert (
                    await all_of(*(client.backend.get(f"none-{n}") for n in range(1_000)))
                    == [None] * 1_000
                )
            assert client.pipeline._reads._senders <= 2 + 2

    assert answers == [None] * 1_000
