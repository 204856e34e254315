"""A call that is refused does not fail the others of its batch."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from tests.integration.pipeline.batching import (
    DEADLINE,
    Requests,
    all_of,
    is_batch_of_writes,
    skip_unless_reads_are_transactions,
    warm_up,
)

import kvorum
from kvorum import (
    EmbeddedEtcd,
    EtcdSettings,
    LeaseNotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.pipeline import QueueLimits, RefusalLimits
from kvorum.etcd.pipeline.calls import PutCall
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport import _rpc as rpc
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)

GONE = 12345  # a lease that was never granted


def as_if_refused(client: kvorum.Client, *names: str) -> None:
    """Have the client believe that writes of these keys were refused a moment ago."""
    for name in names:
        key = f"/{client.settings.prefix}/{name}".encode()
        call = PutCall(key, 0.0, request=rpc.PutRequest(key=key))
        client.pipeline._refusals.add(call, PermissionDeniedError("a test"))


async def test_one_bad_write_does_not_fail_its_neighbours(client: kvorum.Client) -> None:
    """etcd refuses the whole transaction; each caller then gets what it would have got alone."""
    store = client.backend

    answers = await all_of(
        *(store.set(f"k{number}", b"1") for number in range(20)),
        store.create("a", b"1", lease=12345),
        store.set("b", b"1", lease=12345),
        *(store.create(f"n{number}", b"1") for number in range(20)),
    )

    assert [type(answer) for answer in answers] == [int] * 20 + [LeaseNotFoundError] * 2 + [
        int
    ] * 20
    assert await store.count("") == 10 + 40  # ten to warm up


async def test_one_write_that_the_server_finds_too_large_does_not_fail_its_neighbours(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--max-request-bytes=20000"]) as etcd,
        kvorum.connect(etcd.url) as client,
    ):
        await warm_up(client)
        answers = await all_of(
            *(client.backend.set(f"k{number}", bytes(100)) for number in range(20)),
            client.backend.set("large", bytes(30_000)),
            *(client.backend.create(f"n{number}", bytes(100)) for number in range(20)),
        )

    assert [type(answer) for answer in answers] == [int] * 20 + [ResourceTooLargeError] + [int] * 20


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


async def test_a_caller_that_repeats_what_is_refused_fails_no_batch_of_others(
    client: kvorum.Client,
) -> None:
    """From the second time on its calls go in no batch."""
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


async def test_a_caller_that_repeats_refused_calls_for_many_keys_waits_behind_itself(
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
                await client.backend.set(f"poison-{number}", b"1", lease=GONE + number)
            rounds += 1

    async def work(number: int) -> None:
        for count in range(20):
            await client.backend.set(f"k{number}", b"%d" % count)

    poisoned = [asyncio.ensure_future(poison(number)) for number in range(300)]
    with anyio.fail_after(DEADLINE):
        while (
            len(client.pipeline._refusals.until) < 300 or client.pipeline.statistics().waiting < 250
        ):
            await client.backend.get("nothing")
    before = rounds
    answers = await all_of(*(work(number) for number in range(16)))
    made = rounds - before
    is_over = True
    await all_of(*poisoned)

    assert answers == [None] * 16
    assert made < 300  # 320 writes: in one queue each would wait for up to 300 refused calls


async def test_writes_of_a_key_that_was_refused_keep_their_order(
    client: kvorum.Client,
) -> None:
    """They wait in another queue, but writes of one key keep their order."""
    as_if_refused(client, *(f"k{number}" for number in range(20)))
    calls = [client.backend.set(f"k{number % 20}", b"%d" % number) for number in range(200)]
    revisions = await all_of(*calls, client.backend.set("beside", b"1"))

    for number in range(20):
        of_one_key = revisions[number:200:20]
        assert of_one_key == sorted(set(of_one_key))
    assert client.pipeline._writes.is_idle


async def test_unbatched_calls_end_with_their_deadlines_and_with_the_client(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix="aside", timeout=DEADLINE)
        policies = Policies(queue=QueueLimits(unbatched_hold=60))
        async with kvorum.connect(settings, policies=policies) as client:
            await warm_up(client)
            as_if_refused(client, *(f"k{number}" for number in range(20)))
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


async def test_callers_that_were_all_refused_do_not_wait_for_each_other_on_a_slow_link(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """As those of a role that was taken away and is given back."""
    names = [f"k{number}" for number in range(200)]
    as_if_refused(client, *names)
    proxy.delay(0.05)  # two at a time would take ten seconds
    with kvorum.deadline(4):
        answers = await all_of(*(client.backend.set(name, b"1") for name in names))

    assert {type(answer) for answer in answers} == {int}


async def test_a_refused_write_leaves_the_reads_of_its_key_in_batches(
    client: kvorum.Client,
) -> None:
    await client.backend.set("hot", b"1")
    with suppress(LeaseNotFoundError):
        await client.backend.set("hot", b"2", lease=GONE)
    as_if_refused(client, "hot")
    before = client.pipeline.statistics()
    answers = await all_of(*(client.backend.get("hot") for _ in range(200)))
    now = client.pipeline.statistics()

    assert {answer.value for answer in answers} == {b"1"}
    assert now.read_requests - before.read_requests < 5


async def test_refused_reads_of_one_key_share_a_request_and_its_error(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    """Each of their callers gets an error of its own."""
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--bcrypt-cost=4"]) as etcd,
        kvorum.connect(etcd.url) as client,
    ):
        roles = roles_of(client)
        await roles.add_role("owner", readwrite="/lab/mine/")
        await roles.add_user("alice", "of alice", "owner")
        await roles.enable("a secret")
        settings = EtcdSettings(
            endpoints=etcd.endpoints, prefix="lab", user="alice", password="of alice"
        )
        async with kvorum.connect(settings) as alice:
            skip_unless_reads_are_transactions(alice)
            for _ in range(3):
                before = alice.pipeline.statistics()
                answers = await all_of(*(alice.backend.get("other") for _ in range(200)))
                now = alice.pipeline.statistics()

                assert {type(answer) for answer in answers} == {PermissionDeniedError}
                assert len({id(answer) for answer in answers}) == 200
                assert now.read_requests - before.read_requests < 5


async def test_callers_whose_leases_all_ended_at_once_go_on_in_batches(
    client: kvorum.Client,
) -> None:
    """Their keys are written again in a moment, on other leases: that is no refused call."""
    store = client.backend
    gone = await all_of(
        *(store.set(f"k{number}", b"1", lease=GONE + number) for number in range(200))
    )
    lease = await store.grant_lease(60)
    before = client.pipeline.statistics()
    answers = await all_of(*(store.set(f"k{number}", b"2", lease=lease) for number in range(200)))
    now = client.pipeline.statistics()

    assert {type(answer) for answer in gone} == {LeaseNotFoundError}
    assert {type(answer) for answer in answers} == {int}
    assert now.write_requests - before.write_requests < 20


@pytest.mark.parametrize("policies", [Policies(refusals=RefusalLimits(duration=0.0))])
async def test_calls_that_are_no_longer_refused_are_batched_again(
    client: kvorum.Client,
) -> None:
    as_if_refused(client, *(f"k{number}" for number in range(20)))
    before = client.pipeline.statistics()
    answers = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(20)))

    assert {type(answer) for answer in answers} == {int}
    assert client.pipeline.statistics().write_requests - before.write_requests < 10
    assert len(client.pipeline._refusals.until) <= 1  # the first one was sent alone


@pytest.mark.parametrize("policies", [Policies(refusals=RefusalLimits(subjects=5))])
async def test_the_number_of_refusals_that_count_is_limited(client: kvorum.Client) -> None:
    await all_of(
        *(client.backend.set(f"k{number}", b"1", lease=GONE + number) for number in range(20))
    )

    assert len(client.pipeline._refusals.until) == 5


async def test_no_write_of_a_batch_that_found_no_room_is_sent_again(
    client: kvorum.Client, requests: Requests
) -> None:
    """etcd applies the write that crosses the quota, and still answers that there is no room."""

    async def refuse(call: Call, _answer: object) -> None:
        if is_batch_of_writes(call):
            raise StorageFullError("etcdserver: mvcc: database space exceeded")

    requests.after = refuse
    before = len(requests.sent)
    answers = await all_of(*(client.pipeline.put(put_of(client, number)) for number in range(20)))

    sent = [call.operation for call in requests.sent[before:] if call.writes]
    assert sent.count("batch") > 0
    assert sent.count("put") == 1  # the first, which found an idle queue
    refused = [answer for answer in answers if isinstance(answer, StorageFullError)]
    assert {type(answer) for answer in answers} == {StorageFullError, int}
    assert len({id(answer) for answer in refused}) == len(refused)
    assert not client.pipeline._quota.has_room


def put_of(client: kvorum.Client, number: int) -> rpc.PutRequest:
    return rpc.PutRequest(key=f"/{client.settings.prefix}/full-{number}".encode(), value=b"1")
