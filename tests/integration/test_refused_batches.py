"""A call that is refused costs its owner.

Those that were under way with it go together all the same.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any

import anyio
import pytest

import kvorum
from kvorum import (
    EmbeddedEtcd,
    EtcdSettings,
    LeaseNotFoundError,
    Operation,
    OutcomeUnknownError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.pipeline.queue_policy import QueueLimits
from kvorum.etcd.pipeline.refused_keys import RefusalLimits
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.errors import Call
from kvorum.testing import FaultProxy

DEADLINE = 20
GONE = 12345  # a lease that nobody has granted

pytestmark = pytest.mark.timeout(120)


async def all_of(*calls: Awaitable[Any]) -> list[Any]:
    """Make calls at once; return what each returned or raised."""
    with anyio.fail_after(DEADLINE):
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest.fixture
async def client(kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    """A client whose batches of writes are admitted already.

    Old servers are asked for their alarms first.
    """
    async with kvorum.connect(kvorum_url, settings=EtcdSettings(timeout=DEADLINE)) as client:
        await warmed_up(client)
        yield client


async def warmed_up(client: kvorum.Client) -> None:
    with anyio.fail_after(DEADLINE):
        while True:
            before = client.pipeline.statistics()
            await asyncio.gather(
                *(client.backend.set(f"warm-{number}", b"") for number in range(10))
            )
            now = client.pipeline.statistics()
            if now.write_requests - before.write_requests < now.writes - before.writes:
                return


async def test_one_refused_write_among_many_is_found_in_few_requests(client: kvorum.Client) -> None:
    before = client.pipeline.statistics()
    answers = await all_of(
        *(client.backend.create(f"k{number}", b"1") for number in range(60)),
        client.backend.set("poison", b"1", lease=GONE),
        *(client.backend.create(f"n{number}", b"1") for number in range(39)),
    )

    assert [type(answer) for answer in answers] == [int] * 60 + [LeaseNotFoundError] + [int] * 39
    assert client.pipeline.statistics().write_requests - before.write_requests < 25
    assert await client.backend.count("") == 10 + 99


async def test_who_repeats_what_is_refused_undoes_nobodys_batch(client: kvorum.Client) -> None:
    """It goes by itself from the second time on."""
    is_over = False

    async def poison() -> None:
        while not is_over:
            with suppress(LeaseNotFoundError):
                await client.backend.set("poison", b"1", lease=GONE)

    async def work(number: int, revision: int) -> None:
        for _ in range(20):
            revision = await client.backend.compare_and_swap(f"k{number}", b"2", expected=revision)

    revisions = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(100)))
    poisoned = asyncio.ensure_future(poison())
    before = client.pipeline.statistics()
    answers = await all_of(*(work(number, revision) for number, revision in enumerate(revisions)))
    now = client.pipeline.statistics()
    is_over = True
    await all_of(poisoned)

    assert answers == [None] * 100
    assert now.write_requests - before.write_requests < 0.2 * 2_000


async def test_who_repeats_refused_calls_for_many_keys_waits_behind_itself(
    client: kvorum.Client,
) -> None:
    """Its calls have requests of their own.

    While it makes one round of them the others make many.
    """
    is_over, rounds = False, 0

    async def poison(number: int) -> None:
        nonlocal rounds
        while not is_over:
            with suppress(LeaseNotFoundError):
                await client.backend.set(f"poison-{number}", b"1", lease=GONE)
            rounds += 1

    async def work(number: int) -> None:
        for count in range(20):
            await client.backend.set(f"k{number}", b"%d" % count)

    poisoned = [asyncio.ensure_future(poison(number)) for number in range(300)]
    with anyio.fail_after(DEADLINE):
        while (
            len(client.pipeline._refused.until) < 300 or client.pipeline.statistics().waiting < 250
        ):
            await client.backend.get("nothing")
    before = rounds
    answers = await all_of(*(work(number) for number in range(16)))
    made = rounds - before
    is_over = True
    await all_of(*poisoned)

    assert answers == [None] * 16
    assert (
        made < 300
    )  # 320 writes; each waited for up to 300 refused calls when they stood in one queue


async def test_writes_of_a_key_that_was_refused_follow_each_other_also_beside_the_others(
    client: kvorum.Client,
) -> None:
    """They wait elsewhere; but which of them comes first stays as it was asked for."""
    await all_of(*(client.backend.set(f"k{number}", b"1", lease=GONE) for number in range(20)))
    calls = [client.backend.set(f"k{number % 20}", b"%d" % number) for number in range(200)]
    revisions = await all_of(*calls, client.backend.set("beside", b"1"))

    for number in range(20):
        of_one_key = revisions[number:200:20]
        assert of_one_key == sorted(set(of_one_key))
    assert client.pipeline._writes.is_idle


async def test_calls_aside_end_with_their_deadlines_and_with_the_client(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix="aside", timeout=DEADLINE)
        async with kvorum.connect(settings) as client:
            await warmed_up(client)
            await all_of(
                *(client.backend.set(f"k{number}", b"1", lease=GONE) for number in range(20))
            )
            proxy.hold("replies")
            first = asyncio.ensure_future(client.backend.set("first", b"1"))
            await asyncio.sleep(0)
            with kvorum.deadline(0.2):
                hurried = [
                    asyncio.ensure_future(client.backend.set(f"k{number}", b"1"))
                    for number in range(10)
                ]
            patient = [
                asyncio.ensure_future(client.backend.set(f"k{number}", b"1"))
                for number in range(10, 20)
            ]
            in_time = await all_of(*hurried)
            assert client.pipeline.statistics().waiting >= 8
        answers = await all_of(first, *patient)

    assert {type(answer) for answer in in_time} <= {OutcomeUnknownError, UnavailableError}
    assert {type(answer) for answer in answers} <= {OutcomeUnknownError, kvorum.ClientClosedError}


async def test_several_refused_writes_leave_the_others_done(client: kvorum.Client) -> None:
    answers = await all_of(
        *(
            client.backend.set(f"k{number}", b"1", lease=0 if number % 3 else GONE)
            for number in range(90)
        )
    )

    assert [type(answer) for answer in answers] == [
        int if number % 3 else LeaseNotFoundError for number in range(90)
    ]


async def test_a_call_that_is_not_refused_any_more_goes_with_others_again(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_of(*(client.backend.set(f"k{number}", b"1", lease=GONE) for number in range(20)))
    refused = client.pipeline._refused
    monkeypatch.setattr(refused, "_limits", RefusalLimits(duration=0.0))
    refused.until.update(dict.fromkeys(refused.until, 0.0))
    before = client.pipeline.statistics()
    answers = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(20)))

    assert {type(answer) for answer in answers} == {int}
    assert client.pipeline.statistics().write_requests - before.write_requests < 10
    assert len(client.pipeline._refused.until) <= 1  # the first one found nobody to go with


async def test_what_was_refused_is_forgotten_before_it_grows(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.pipeline._refused, "_limits", RefusalLimits(keys=5))
    await all_of(*(client.backend.set(f"k{number}", b"1", lease=GONE) for number in range(20)))

    assert len(client.pipeline._refused.until) == 5


async def test_no_write_of_a_batch_for_which_there_was_no_room_is_sent_again(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd applies the write that crosses the quota, and answers that there is no room all the same."""
    once, sent = client.connection.once, []

    async def full(method: Any, request: Any, call: Call, deadline: float) -> Any:
        answer = await once(method, request, call, deadline)
        if call.operation == "batch of" and call.writes:
            sent.append(call)
            raise StorageFullError("etcdserver: mvcc: database space exceeded")
        return answer

    async def alone(*_: object, **__: object) -> Any:
        raise AssertionError("sent again")

    first = asyncio.ensure_future(client.backend.set("first", b"1"))
    await asyncio.sleep(0)
    monkeypatch.setattr(client.connection, "once", full)
    calls = [
        asyncio.ensure_future(client.pipeline.put(put_of(client, number))) for number in range(20)
    ]
    await asyncio.sleep(0)
    monkeypatch.setattr(client.connection, "send", alone)
    answers = await all_of(first, *calls)

    assert isinstance(answers[0], int)
    assert sent
    assert {type(answer) for answer in answers[1:]} <= {StorageFullError, int}
    refused = [answer for answer in answers[1:] if isinstance(answer, StorageFullError)]
    assert refused
    assert len({id(answer) for answer in refused}) == len(refused)
    assert not client.pipeline._quota.has_room


def put_of(client: kvorum.Client, number: int) -> Any:
    return rpc.PutRequest(key=f"/{client.settings.prefix}/full-{number}".encode(), value=b"1")


# --- deadlines ------------------------------------------------------------------------------------


async def test_a_long_deadline_counts_also_for_those_who_go_together(
    kvorum_etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers take longer than the timeout, and come before the deadline of those who wait for them."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = EtcdSettings(
            endpoints=(proxy.endpoint,), prefix="long-deadlines", timeout=DEADLINE
        )
        async with kvorum.connect(settings) as client:
            await warmed_up(client)
            monkeypatch.setattr(client.pipeline, "_timeout", 0.4)
            monkeypatch.setattr(client.pipeline._sender, "_timeout", 0.4)
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


async def test_who_waits_long_for_a_server_that_is_silent_keeps_nobody_else_waiting(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """After the usual time others are sent, to a server that answers."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        endpoints = (proxy.endpoint, kvorum_etcd.endpoints[0])
        settings = EtcdSettings(endpoints=endpoints, prefix="long-deadlines", timeout=1)
        async with kvorum.connect(settings) as client:
            cluster = client.connection.cluster
            if cluster.current.address != proxy.endpoint:
                cluster.leave(cluster.current)
            await warmed_up(client)
            assert cluster.current.address == proxy.endpoint
            proxy.hold("requests")
            with kvorum.deadline(DEADLINE):
                patient = [
                    asyncio.ensure_future(client.backend.set(f"k{n}", b"1")) for n in range(20)
                ]
            await proxy.wait(lambda now: now.held > 0)
            await anyio.sleep(
                0.5
            )  # so that these are still waiting when the usual time of those has passed
            answers = await all_of(*(client.backend.set(f"n{n}", b"1") for n in range(20)))
            assert not any(call.done() for call in patient)
            assert cluster.current.address != proxy.endpoint
            await proxy.heal()
            late = await all_of(*patient)

    assert {type(answer) for answer in (*answers, *late)} == {int}


async def test_requests_that_take_long_are_not_sent_without_end(
    kvorum_etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = EtcdSettings(
            endpoints=(proxy.endpoint,), prefix="long-deadlines", timeout=DEADLINE
        )
        async with kvorum.connect(settings) as client:
            await warmed_up(client)
            monkeypatch.setattr(client.pipeline._sender, "_timeout", 0.1)
            monkeypatch.setattr(client.pipeline._reads, "_limits", QueueLimits(overdue=2))
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
