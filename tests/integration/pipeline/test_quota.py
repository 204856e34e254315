"""Batches of writes do not bypass the quota, though old servers do not count what is nested."""

import asyncio

import anyio
import pytest
from tests.integration.pipeline.batching import DEADLINE, Requests, all_of, guards_quota

import kvorum
from kvorum import (
    EmbeddedEtcd,
    EtcdSettings,
    KvorumError,
    PermissionDeniedError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.pipeline import QuotaTiming
from kvorum.etcd.policies import Policies
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)


async def test_batches_of_writes_do_not_bypass_the_quota(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """Some versions do not count what is nested. There, one write of each period is sent alone."""
    quota = 16 * 1024 * 1024
    arguments = [f"--quota-backend-bytes={quota}"]
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments) as etcd,
        kvorum.connect(
            etcd.url,
            settings=EtcdSettings(timeout=DEADLINE),
            policies=Policies(quota=QuotaTiming(period=0.1)),
        ) as client,
    ):
        full = asyncio.Event()
        written = 0

        async def write(writer: int) -> None:
            nonlocal written
            number = 0
            while not full.is_set():
                number += 1
                try:
                    await client.backend.create(f"k{writer}-{number}", bytes(5_000), unique=True)
                except StorageFullError:
                    full.set()
                else:
                    written += 1

        with anyio.fail_after(60):
            await asyncio.gather(*map(write, range(64)))
            # From now on nothing is taken, batched or not.
            while not await is_alarmed(client):  # noqa: ASYNC110 - it is not reported
                await anyio.sleep(0.01)
            await asyncio.gather(*(write_once(client, number) for number in range(64)))
            refused = await asyncio.gather(
                *(write_once(client, number) for number in range(64, 128))
            )

    assert 5_000 * written < 2 * quota
    assert set(refused) == {StorageFullError}


async def is_alarmed(client: kvorum.Client) -> bool:
    return "NOSPACE" in ((await client.health()).alarms or ())


async def write_once(client: kvorum.Client, number: int) -> type[BaseException] | None:
    try:
        await client.backend.create(f"late-{number}", b"1")
    except KvorumError as exc:
        return type(exc)
    return None


async def test_a_burst_waits_until_it_is_known_whether_there_is_room_and_is_batched(
    kvorum_client: kvorum.Client,
) -> None:
    """Nothing was written for a while, so nothing is known about it.

    To send all of them singly would cost far more.
    """
    written = await all_of(
        *(kvorum_client.backend.set(f"k{number}", b"1") for number in range(500))
    )

    assert {type(answer) for answer in written} == {int}
    assert kvorum_client.pipeline.statistics().write_requests < 20


def pause(client: kvorum.Client) -> None:
    """Make the last answer as old as after a while without writes."""
    quota = client.pipeline._quota
    quota._due = quota._fresh_until = 0.0


@pytest.fixture
def silence(client: kvorum.Client, requests: Requests) -> None:
    """After a pause, the question for alarms is not answered."""

    async def hold(call: Call, _message: object) -> None:
        if call.operation == "alarms":
            await anyio.sleep_forever()

    requests.before = hold
    pause(client)


@pytest.mark.usefixtures("silence")
async def test_a_burst_whose_question_is_not_answered_is_sent_call_by_call(
    client: kvorum.Client,
) -> None:
    if not guards_quota(client):
        pytest.skip("this version counts nested puts, so it is not asked for alarms")
    before = client.pipeline.statistics()
    written = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(20)))
    later = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(20)))

    assert [type(answer) for answer in [*written, *later]] == [int] * 40
    now = client.pipeline.statistics()
    assert now.write_requests - before.write_requests == now.writes - before.writes == 40


@pytest.mark.usefixtures("silence")
async def test_a_burst_that_may_not_wait_for_the_answer_was_not_sent(client: kvorum.Client) -> None:
    if not guards_quota(client):
        pytest.skip("this version counts nested puts, so it is not asked for alarms")
    with kvorum.deadline(0.25):  # less than they wait for the answer
        burst = [
            asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(10)
        ]
    outcomes = await all_of(*burst)

    assert [type(outcome) for outcome in outcomes] == [int, int] + [UnavailableError] * 8
    assert await client.backend.count("k") == 2


async def test_writes_of_one_key_that_come_after_a_pause_keep_their_order(
    client: kvorum.Client,
) -> None:
    for _ in range(200):
        pause(client)
        revisions = await all_of(*(client.backend.set("a", b"%d" % number) for number in range(6)))
        assert revisions == sorted(revisions)


async def test_a_server_whose_alarms_cannot_be_asked_for_gets_no_batches_of_writes(
    client: kvorum.Client, requests: Requests
) -> None:
    if not guards_quota(client):
        pytest.skip("this version counts nested puts, so it is not asked for alarms")

    async def refuse(call: Call, _message: object) -> None:
        if call.operation == "alarms":
            raise PermissionDeniedError("alarms")

    requests.before = refuse
    pause(client)
    before = client.pipeline.statistics()
    await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(50)))

    now = client.pipeline.statistics()
    assert now.write_requests - before.write_requests == now.writes - before.writes == 50


async def test_writes_that_wait_when_the_store_runs_full_are_sent_alone(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """They are not batched after all, nor do they wait for those that come later."""
    if not guards_quota(client):
        pytest.skip("this version counts nested puts, so it is not asked for alarms")
    proxy.hold("requests")
    calls = [asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(50)]
    await proxy.wait(lambda now: now.held > 0)
    client.pipeline._quota.note_full()
    calls += [asyncio.ensure_future(client.backend.set(f"n{number}", b"1")) for number in range(50)]
    await asyncio.sleep(0)
    await proxy.heal()

    assert [type(answer) for answer in await all_of(*calls)] == [int] * 100
