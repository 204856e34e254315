"""Calls that are under way together ride together, and each of them is answered as if it had been alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

import kvorum
from kvorum import (
    AlreadyExistsError,
    ClientClosedError,
    ConflictError,
    EmbeddedEtcd,
    Entry,
    EtcdSettings,
    KvorumError,
    LeaseNotFoundError,
    Operation,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    ServerTls,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.backend import EtcdStorageBackend
from kvorum.etcd.pipeline.calls import AnyCall
from kvorum.etcd.pipeline.pipeline import Pipeline
from kvorum.etcd.pipeline.queue import BatchQueue
from kvorum.etcd.pipeline.queue_policy import QueueLimits
from kvorum.etcd.pipeline.quota import Quota, QuotaTiming
from kvorum.etcd.transport import _rpc as rpc
from kvorum.testing import (
    FaultProxy,
    History,
    RecordingBackend,
    Rule,
    Workload,
    check_revisions,
    read_server_history,
    run_trial,
)

DEADLINE = 20

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def store(kvorum_client: kvorum.Client) -> kvorum.StorageBackend:
    return kvorum_client.backend


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy, kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    """A client behind the proxy, of the same prefix, whose batches of writes are admitted already."""
    settings = EtcdSettings(
        endpoints=(proxy.endpoint,), prefix=kvorum_url.rpartition("/")[2], timeout=DEADLINE
    )
    async with kvorum.connect(settings) as client:
        await warmed_up(client)
        yield client


async def warmed_up(client: kvorum.Client) -> None:
    """Write at once until the pipeline batches writes.

    Old servers are asked for their alarms first.
    """
    before = client.pipeline.statistics()
    with anyio.fail_after(DEADLINE):
        while True:
            await asyncio.gather(
                *(client.backend.set(f"warm-{number}", b"") for number in range(10))
            )
            now = client.pipeline.statistics()
            if now.write_requests - before.write_requests < now.writes - before.writes:
                return
            before = now


async def all_of(*calls: Awaitable[Any]) -> list[Any]:
    """Make calls at once; return what each returned or raised."""
    with anyio.fail_after(DEADLINE):
        return await asyncio.gather(*calls, return_exceptions=True)


async def waiting_for(client: kvorum.Client, number: int) -> None:
    """Wait until so many calls wait to be sent."""
    with anyio.fail_after(DEADLINE):
        while client.pipeline.statistics().waiting != number:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


def limit_waiting(client: kvorum.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for queue in (client.pipeline._reads, client.pipeline._writes):
        monkeypatch.setattr(queue, "_limits", QueueLimits(waiting=10))


# --- riding together ------------------------------------------------------------------------------


async def test_calls_one_after_the_other_are_sent_as_they_are(
    kvorum_client: kvorum.Client, store: kvorum.StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle pipeline adds nothing: no wait, and no transaction around a single call."""
    monkeypatch.setattr(BatchQueue, "join", None)
    for number in range(5):
        await store.set("a", b"%d" % number)
        await store.get("a")

    now = kvorum_client.pipeline.statistics()
    assert (now.reads, now.read_requests, now.writes, now.write_requests) == (5, 5, 5, 5)


async def test_reads_ride_together_and_each_gets_its_own_key(client: kvorum.Client) -> None:
    store = client.backend
    await store.commit([Operation.put(f"k{number}", b"%d" % number) for number in range(0, 100, 2)])
    before = client.pipeline.statistics()

    found = await all_of(*(store.get(f"k{number}") for number in range(100)))

    values = [entry.value if isinstance(entry, Entry) else entry for entry in found]
    assert values == [None if number % 2 else b"%d" % number for number in range(100)]
    now = client.pipeline.statistics()
    assert now.reads - before.reads == 100
    assert now.read_requests - before.read_requests <= 5


async def test_writes_ride_together_and_each_gets_its_own_answer(client: kvorum.Client) -> None:
    """One revision for those that are applied; those that are refused see what there is."""
    store = client.backend
    there = await store.commit([Operation.put(f"k{number}", b"old") for number in range(60)])
    before = client.pipeline.statistics()

    answers = await all_of(
        *(store.compare_and_swap(f"k{number}", b"new", expected=there) for number in range(20)),
        *(
            store.compare_and_swap(f"k{number}", b"new", expected=there - 1)
            for number in range(20, 40)
        ),
        *(store.create(f"k{number}", b"new") for number in range(40, 50)),
        *(store.create(f"new-{number}", b"new") for number in range(10)),
        *(store.delete(f"k{number}") for number in range(50, 60)),
        *(store.set(f"set-{number}", b"new") for number in range(10)),
    )

    swapped, refused, there_already, created, deleted, put = (
        answers[:20],
        answers[20:40],
        answers[40:50],
        answers[50:60],
        answers[60:70],
        answers[70:],
    )
    now = {entry.key: entry for entry in (await store.list("")).entries}
    assert [now[f"k{number}"].mod_revision for number in range(20)] == swapped
    assert all(
        isinstance(error, ConflictError) and error.current == now[f"k{20 + n}"]
        for n, error in enumerate(refused)
    )
    assert [type(error) for error in there_already] == [AlreadyExistsError] * 10
    assert [now[f"new-{number}"].mod_revision for number in range(10)] == created
    assert [(change.key, change.previous.value) for change in deleted] == [
        (f"k{n}", b"old") for n in range(50, 60)
    ]
    assert [now[f"set-{number}"].mod_revision for number in range(10)] == put
    assert len({*swapped, *created, *put}) < 10
    sent = client.pipeline.statistics()
    assert sent.write_requests - before.write_requests <= 10


async def test_gets_of_one_key_that_wait_together_are_one_operation(client: kvorum.Client) -> None:
    revision = await client.backend.set("a", b"1")
    before = client.pipeline.statistics()

    found = await all_of(*(client.backend.get("a") for _ in range(1_000)))

    assert {entry.mod_revision for entry in found} == {revision}
    assert client.pipeline.statistics().reads - before.reads <= 5


async def test_writes_of_one_key_follow_each_other_as_they_were_asked_for(
    client: kvorum.Client,
) -> None:
    revisions = await all_of(*(client.backend.set("a", b"%d" % number) for number in range(100)))

    assert revisions == sorted(set(revisions))
    entry = await client.backend.get("a")
    assert entry is not None
    assert entry.value == b"99"


async def test_of_swaps_at_one_revision_one_is_sent_and_the_others_read_what_it_wrote(
    client: kvorum.Client,
) -> None:
    """A mod_revision that has passed never comes back, so what still waits for it cannot be applied."""
    first = await client.backend.set("a", b"0")
    before = client.pipeline.statistics()

    answers = await all_of(
        *(client.backend.compare_and_swap("a", b"%d" % n, expected=first) for n in range(100))
    )

    (applied,) = [answer for answer in answers if isinstance(answer, int)]
    entry = await client.backend.get("a")
    conflicts = [answer for answer in answers if isinstance(answer, ConflictError)]
    assert entry is not None
    assert entry.mod_revision == applied
    assert [conflict.current for conflict in conflicts] == [entry] * 99
    now = client.pipeline.statistics()
    assert now.writes - before.writes <= 3
    assert now.reads - before.reads <= 5


async def test_a_pipeline_that_is_off_sends_each_call_by_itself(
    kvorum_etcd: EmbeddedEtcd, kvorum_url: str
) -> None:
    settings = EtcdSettings(
        endpoints=kvorum_etcd.endpoints, prefix=kvorum_url.rpartition("/")[2], pipeline=False
    )
    async with kvorum.connect(settings) as client:
        await all_of(*(client.backend.set(f"k{number}", b"") for number in range(50)))
        await all_of(*(client.backend.get(f"k{number}") for number in range(50)))

        now = client.pipeline.statistics()
    assert (now.reads, now.read_requests, now.writes, now.write_requests) == (50, 50, 50, 50)


# --- neighbours -----------------------------------------------------------------------------------


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
        await warmed_up(client)
        answers = await all_of(
            *(client.backend.set(f"k{number}", bytes(100)) for number in range(20)),
            client.backend.set("large", bytes(30_000)),
            *(client.backend.create(f"n{number}", bytes(100)) for number in range(20)),
        )

    assert [type(answer) for answer in answers] == [int] * 20 + [ResourceTooLargeError] + [int] * 20


async def test_a_caller_that_goes_away_before_its_call_was_sent_takes_it_back(
    client: kvorum.Client, proxy: FaultProxy, store: kvorum.StorageBackend
) -> None:
    proxy.hold("requests")
    under_way = [
        asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(2)
    ]
    await asyncio.sleep(0)
    more = [asyncio.ensure_future(client.backend.set(f"n{number}", b"1")) for number in range(10)]
    await proxy.wait(lambda now: now.held > 0)
    await waiting_for(client, 10)
    for call in more[::2]:
        call.cancel()
    await asyncio.sleep(0)
    await proxy.heal()
    answers = await all_of(*under_way, *more)

    assert [type(answer) for answer in answers[2:]] == [asyncio.CancelledError, int] * 5
    assert await store.keys("n*") == [f"n{number}" for number in range(1, 10, 2)]


async def test_a_caller_that_goes_away_after_its_call_was_sent_disturbs_nobody(
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
    """Some versions die when the caller of a read-only transaction goes away.

    Those are not sent any.
    """
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        for _ in range(10):
            async with kvorum.connect(etcd.url) as client:
                await client.backend.set("a", b"1")
                for _ in range(30):
                    calls = [
                        asyncio.ensure_future(client.backend.get(f"k{number}"))
                        for number in range(100)
                    ]
                    await asyncio.sleep(0.001)
                    for call in calls:
                        call.cancel()
                lasting = [
                    asyncio.ensure_future(client.backend.get(f"k{number}")) for number in range(100)
                ]
                await asyncio.sleep(
                    0.001
                )  # leave with a batch under way, which the client then cancels
            await all_of(*lasting)

        async with kvorum.connect(etcd.url) as client:
            assert await client.backend.get("a") is not None


async def test_a_write_that_was_cancelled_before_it_was_sent_never_comes(
    client: kvorum.Client, proxy: FaultProxy, store: kvorum.StorageBackend
) -> None:
    """Also if it waits in a batch, or for a server: what somebody else writes afterwards stays."""
    for number in range(5):
        await proxy.refuse()
        proxy.cut()
        calls = [
            asyncio.ensure_future(client.backend.set(f"k{n}", b"old"))
            for n in range(1 + 5 * (number % 2))
        ]
        await anyio.sleep(0.1)  # they wait for a server
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await store.commit([Operation.put(f"k{n}", b"new") for n in range(len(calls))])
        await proxy.heal()
        await client.backend.get("a")  # it is there again

        values = {entry.value for entry in (await store.list("k")).entries}
        assert values == {b"new"}


async def test_a_mistake_of_ours_comes_out_of_the_calls_that_it_happened_to(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends no other calls, and no watches."""
    with monkeypatch.context() as patch:
        patch.setattr("kvorum.etcd.pipeline.sender.answers_to_reads", lambda *_, **__: 1 / 0)
        found = await all_of(*(client.backend.get(f"k{number}") for number in range(10)))
    assert {type(answer) for answer in found[1:]} == {UnavailableError}
    assert isinstance(found[1].__cause__, ZeroDivisionError)

    assert await all_of(*(client.backend.get(f"k{number}") for number in range(10))) == [None] * 10


# --- deadlines and limits -------------------------------------------------------------------------


async def test_each_caller_has_a_deadline_of_its_own(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """The impatient one in the middle gives up; the others get their answers."""

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
    """So that nothing happened is known, and said."""

    async def impatient(number: int) -> int:
        with kvorum.deadline(0.3):
            return await client.backend.create(f"k{number}", b"1")

    proxy.hold("requests")
    under_way = [
        asyncio.ensure_future(client.backend.set(f"n{number}", b"1")) for number in range(20)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    errors = await all_of(*map(impatient, range(3)))
    assert [type(error) for error in errors] == [UnavailableError] * 3
    await proxy.heal()

    await all_of(*under_way)
    assert await client.backend.keys("k*") == []


async def test_a_call_whose_deadline_has_passed_already_is_not_sent(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """Nothing was done, whoever else is under way; and that is said."""
    with kvorum.deadline(0.05):
        await anyio.sleep(0.06)
        calls = [
            asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(20)
        ]
    answers = await all_of(*calls)

    assert {type(answer) for answer in answers} == {UnavailableError}
    assert await client.backend.keys("k*") == []
    assert proxy.statistics().cuts == 0


async def test_a_few_do_not_wait_long_for_a_batch_of_many(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """There is room for another request, and the batch may take its time."""
    await client.backend.commit(
        [Operation.put(f"k{number}", bytes(10_000)) for number in range(100)]
    )
    proxy.hold("replies")
    many = [asyncio.ensure_future(client.backend.get(f"k{number}")) for number in range(100)]
    await proxy.wait(lambda now: now.held > 100_000)
    before = client.pipeline.statistics().read_requests
    one = asyncio.ensure_future(client.backend.get("a"))
    with anyio.fail_after(DEADLINE):
        while client.pipeline.statistics().read_requests == before:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    await proxy.heal()

    assert await all_of(one) == [None]
    assert len(await all_of(*many)) == 100


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

        assert await write() > 30  # those that were refused went singly
        await write()
        assert await write() < 20


async def test_a_queue_that_is_full_lets_callers_wait_for_room(
    client: kvorum.Client, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_waiting(client, monkeypatch)
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


async def test_writes_that_wait_for_room_keep_their_order(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_waiting(client, monkeypatch)

    revisions = await all_of(*(client.backend.set("a", b"%d" % number) for number in range(100)))

    assert revisions == sorted(revisions)


async def test_who_waits_for_room_comes_in_when_all_in_the_queue_have_given_up(
    client: kvorum.Client, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_waiting(client, monkeypatch)
    proxy.hold("requests")
    under_way = asyncio.ensure_future(client.backend.set("a", b"0"))
    await proxy.wait(lambda now: now.held > 0)
    waiting = [
        asyncio.ensure_future(client.backend.set("a", b"%d" % number)) for number in range(15)
    ]
    await waiting_for(client, 15)
    await asyncio.sleep(0)  # a sender looks at the queue, in which nothing can be sent
    for each in waiting[:10]:
        each.cancel()
    await asyncio.sleep(0)
    await proxy.heal()

    assert {type(answer) for answer in await all_of(under_way, *waiting[10:])} == {int}


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


# --- lost answers ---------------------------------------------------------------------------------


async def test_of_a_batch_whose_answer_is_lost_the_outcome_of_each_write_is_found_out(
    client: kvorum.Client, proxy: FaultProxy, store: kvorum.StorageBackend
) -> None:
    """All were applied. The swaps are sent again as their own fences.

    Others are known by their tokens, or unknown.
    """
    there = await store.commit([Operation.put(f"k{number}", b"old") for number in range(40)])
    token = b'{"metadata":{"writeToken":"%d"}}'
    proxy.drop("replies")
    calls = [
        *(
            client.backend.compare_and_swap(f"k{n}", token % n, expected=there, unique=True)
            for n in range(20)
        ),
        *(client.backend.create(f"n{n}", token % n, unique=True) for n in range(10)),
        *(client.backend.set(f"plain-{n}", b"anybody's") for n in range(10)),
    ]
    pending = asyncio.gather(*calls, return_exceptions=True)
    await proxy.wait(lambda now: now.dropped > 0)
    with anyio.fail_after(DEADLINE):
        while await store.count("plain-") < 1:  # noqa: ASYNC110 - another client's write
            await anyio.sleep(0.01)
    await proxy.heal()
    with anyio.fail_after(DEADLINE):
        answers = await pending

    now = {entry.key: entry for entry in (await store.list("")).entries}
    assert [now[f"k{n}"].mod_revision for n in range(20)] == answers[:20]
    assert [now[f"n{n}"].mod_revision for n in range(10)] == answers[20:30]
    assert {type(answer) for answer in answers[30:]} <= {OutcomeUnknownError, int}
    assert any(isinstance(answer, OutcomeUnknownError) for answer in answers[30:])
    assert {now[f"k{n}"].version for n in range(20)} == {2}


async def test_a_batch_that_found_no_server_is_left_to_its_callers(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """They try again until their deadlines, each by itself."""
    store = client.backend
    await proxy.refuse()
    proxy.cut()
    calls = [asyncio.ensure_future(store.get(f"k{number}")) for number in range(50)]
    await anyio.sleep(0.2)  # some attempts fail
    await proxy.heal()

    assert await all_of(*calls) == [None] * 50


# --- what a version cannot be trusted with --------------------------------------------------------


@pytest.fixture
async def guarded(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(
        binary=kvorum_etcd.binary, arguments=["--auth-token=simple", "--bcrypt-cost=4"]
    ) as etcd:
        yield etcd


async def test_what_a_role_does_not_allow_is_refused_however_much_rides_together(
    guarded: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    """Nested transactions pass by the check of roles on the servers tested here.

    There, writes are not batched.
    """
    async with kvorum.connect(guarded.url) as client:
        roles = roles_of(client)
        await roles.add_role("owner", readwrite="/lab/mine/")
        await roles.add_user("alice", "a secret", "owner")
        await roles.enable("another secret")
    settings = EtcdSettings(
        endpoints=guarded.endpoints, prefix="lab", user="alice", password="a secret"
    )
    async with kvorum.connect(settings) as alice:
        store = alice.backend
        written = await all_of(
            *(store.set(f"{'other' if n % 2 else 'mine'}/{n}", b"1") for n in range(100))
        )
        created = await all_of(
            *(store.create(f"{'other' if n % 2 else 'mine'}/c{n}", b"1") for n in range(100))
        )
        found = await all_of(
            *(store.get(f"{'other' if n % 2 else 'mine'}/{n}") for n in range(100))
        )

    assert [type(answer) for answer in written] == [int, PermissionDeniedError] * 50
    assert [type(answer) for answer in created] == [int, PermissionDeniedError] * 50
    assert [type(answer) for answer in found] == [Entry, PermissionDeniedError] * 50


async def test_who_has_no_user_is_refused_once_users_are_checked_however_much_rides_together(
    guarded: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    """Also if the pipeline is full at that moment, and the server checks nothing within nested transactions."""
    async with (
        kvorum.connect(guarded.url) as client,
        kvorum.connect(f"{guarded.url}/lab") as nobody,
    ):
        await warmed_up(nobody)
        await roles_of(client).enable("a secret")
        written = await all_of(*(nobody.backend.set(f"k{number}", b"1") for number in range(100)))
        created = await all_of(
            *(nobody.backend.create(f"c{number}", b"1") for number in range(100))
        )
        found = await all_of(*(nobody.backend.get(f"warm-{number % 10}") for number in range(100)))

    assert all(
        isinstance(answer, kvorum.AuthenticationError) for answer in (*written, *created, *found)
    )


async def test_who_is_a_user_by_a_certificate_may_not_do_more_by_riding_together(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any], tmp_path: Path
) -> None:
    """Such a client has neither a name nor a password, but is somebody all the same."""
    ca = trustme.CA()
    files = {}
    for name, issued in {
        "server": ca.issue_cert("127.0.0.1"),
        "alice": ca.issue_cert("a", common_name="alice"),
    }.items():
        files[name] = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(files[name][0])
        issued.private_key_pem.write_to_path(files[name][1])
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ServerTls(*files["server"], str(tmp_path / "ca.pem"))
    flags = ["--auth-token=simple", "--bcrypt-cost=4"]
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=tls, arguments=flags) as etcd:
        settings = EtcdSettings(
            endpoints=etcd.endpoints,
            prefix="lab",
            cacert=str(tmp_path / "ca.pem"),
            cert=files["alice"][0],
            key=files["alice"][1],
        )
        async with kvorum.connect(settings) as client:
            roles = roles_of(client)
            await roles.add_role("owner", readwrite="/lab/mine/")
            await roles.add_user("alice", "a secret", "owner")
            await roles.enable("another secret")
        async with kvorum.connect(settings) as alice:
            store = alice.backend
            written = await all_of(
                *(store.create(f"{'other' if n % 2 else 'mine'}/{n}", b"1") for n in range(40))
            )
            found = await all_of(
                *(store.get(f"{'other' if n % 2 else 'mine'}/{n}") for n in range(40))
            )

    assert [type(answer) for answer in written] == [int, PermissionDeniedError] * 20
    assert [type(answer) for answer in found] == [Entry, PermissionDeniedError] * 20


async def test_batches_of_writes_do_not_pass_by_the_quota(
    kvorum_etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is nested is not counted by the servers tested here.

    So one write of a period goes by itself.
    """
    quota = 16 * 1024 * 1024
    arguments = [f"--quota-backend-bytes={quota}"]
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments) as etcd,
        kvorum.connect(etcd.url, settings=EtcdSettings(timeout=DEADLINE)) as client,
    ):
        monkeypatch.setattr(client.pipeline._quota, "_timing", QuotaTiming(period=0.1))
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
            # From now on nothing is taken, however much rides together.
            while not await is_alarmed(client):  # noqa: ASYNC110 - nobody tells
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


async def test_a_burst_waits_for_the_answer_whether_there_is_room_and_rides_together(
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
    """Let it be as if nothing had been written for a while."""
    quota = client.pipeline._quota
    quota._due = quota._fresh_until = 0.0


@pytest.fixture
def silence(client: kvorum.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers whether there is room, after a pause."""

    async def ask(_: object) -> rpc.AlarmResponse:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(client.pipeline._quota, "_ask", ask)
    pause(client)


@pytest.mark.usefixtures("silence")
async def test_a_burst_whose_question_is_not_answered_goes_singly(client: kvorum.Client) -> None:
    if not client.pipeline._admission.capabilities.guard_quota:
        return  # nobody asks
    before = client.pipeline.statistics()
    written = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(20)))
    later = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(20)))

    assert [type(answer) for answer in [*written, *later]] == [int] * 40
    now = client.pipeline.statistics()
    assert now.write_requests - before.write_requests == now.writes - before.writes == 40


@pytest.mark.usefixtures("silence")
async def test_a_burst_that_may_not_wait_for_the_answer_was_not_sent(client: kvorum.Client) -> None:
    if not client.pipeline._admission.capabilities.guard_quota:
        return  # nobody asks
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


async def test_calls_end_when_the_senders_have(kvorum_etcd: EmbeddedEtcd) -> None:
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


async def test_a_server_whose_alarms_cannot_be_asked_for_gets_no_batches_of_writes(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not client.pipeline._admission.capabilities.guard_quota:
        return  # it counts them
    monkeypatch.setattr(Quota, "has_room", False)
    before = client.pipeline.statistics()
    await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(50)))

    now = client.pipeline.statistics()
    assert now.write_requests - before.write_requests == now.writes - before.writes == 50


async def test_writes_that_wait_when_there_is_no_more_room_are_sent_by_themselves(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """They do not ride after all; nor do they wait for those who come now, and pass by."""
    if not client.pipeline._admission.capabilities.guard_quota:
        return  # it counts them
    proxy.hold("requests")
    calls = [asyncio.ensure_future(client.backend.set(f"k{number}", b"1")) for number in range(50)]
    await proxy.wait(lambda now: now.held > 0)
    client.pipeline._quota.note_full()
    calls += [asyncio.ensure_future(client.backend.set(f"n{number}", b"1")) for number in range(50)]
    await asyncio.sleep(0)
    await proxy.heal()

    assert [type(answer) for answer in await all_of(*calls)] == [int] * 100


# --- the same semantics ---------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [True, False])
async def test_a_busy_pipeline_is_found_right(
    kvorum_etcd: EmbeddedEtcd, kvorum_url: str, *, pipeline: bool
) -> None:
    settings = EtcdSettings(
        endpoints=kvorum_etcd.endpoints,
        prefix=kvorum_url.rpartition("/")[2],
        timeout=DEADLINE,
        pipeline=pipeline,
    )
    async with kvorum.connect(settings) as client:
        verdict = await run_trial(
            kvorum_etcd.endpoints[0],
            [client],
            Workload(operations=5_000, clients=64, keys=20, seed=1),
        )
        now = client.pipeline.statistics()

    assert verdict.is_right, str(verdict)
    assert (now.read_requests < now.reads / 2) is pipeline


async def late_reads(
    etcd: EmbeddedEtcd, client: kvorum.Client, proxy: FaultProxy, writer: kvorum.Client
) -> set[Rule]:
    """Ask for a key while an answer about it, older than a write, is on its way.

    Return the rules that were broken.
    """
    history = History()
    start = await writer.backend.set("start", b"")
    reading = [RecordingBackend(client.backend, history, f"reader-{number}") for number in range(4)]
    writing = RecordingBackend(writer.backend, history, "writer")
    await writing.set(
        "a", b"%d" % start + bytes(10_000)
    )  # so much that its answer is known by its size
    proxy.hold("replies")
    calls = [asyncio.ensure_future(reading[0].get("b"))]
    await proxy.wait(lambda now: now.held > 0)
    held = proxy.statistics().held
    calls += [
        asyncio.ensure_future(reading[1].get("a")),
        asyncio.ensure_future(reading[2].get("c")),
    ]
    await proxy.wait(lambda now: now.held > held + 10_000)
    await writing.set("a", b"new %d" % start)
    calls.append(asyncio.ensure_future(reading[3].get("a")))
    await asyncio.sleep(0)
    await proxy.heal()
    await all_of(*calls)
    server_history = await read_server_history(
        etcd.endpoints[0], writer.settings.prefix, since=start
    )
    return {violation.rule for violation in check_revisions(history, server_history)}


async def test_a_read_that_joins_one_that_was_sent_is_found_out(
    kvorum_etcd: EmbeddedEtcd,
    client: kvorum.Client,
    proxy: FaultProxy,
    kvorum_client: kvorum.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer may be older than the question. A planted fault: the checkers have to see it."""
    assert await late_reads(kvorum_etcd, client, proxy, kvorum_client) == set()
    join = BatchQueue.join

    async def join_what_was_sent(self: BatchQueue, call: AnyCall) -> Any:
        for batch in self._in_flight:
            for other in batch.get(call.key, ()):
                if not call.is_write and other.outcome is not None and not other.is_over:
                    return await asyncio.shield(other.outcome)
        return await join(self, call)

    monkeypatch.setattr(BatchQueue, "join", join_what_was_sent)
    assert await late_reads(kvorum_etcd, client, proxy, kvorum_client) == {Rule.STALE_READ}


async def skewed(etcd: EmbeddedEtcd, client: kvorum.Client) -> set[Rule]:
    """Let two at a time check what the other one writes; return the rules that were broken."""
    history = History()
    start = await client.backend.set("start", b"")
    store = RecordingBackend(client.backend, history, "c")

    async def write(key: str, other: str, value: bytes) -> None:
        with suppress(ConflictError):
            await store.commit(
                [Operation.put(key, value), Operation.check(other, expected=at[other])]
            )

    for number in range(20):
        at = {key: await store.set(key, b"%d-%s" % (number, key.encode())) for key in "ab"}
        # The first one keeps the pipeline busy, so that the others can ride together.
        await asyncio.gather(
            store.set("c", b"%d" % number),
            write("a", "b", b"a%d" % number),
            write("b", "a", b"b%d" % number),
        )
    server_history = await read_server_history(
        etcd.endpoints[0], client.settings.prefix, since=start
    )
    return {violation.rule for violation in check_revisions(history, server_history)}


async def test_transactions_that_ride_with_what_they_compare_are_found_out(
    kvorum_etcd: EmbeddedEtcd, kvorum_client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write skew: within a batch each compares the state before it.

    The planted fault lets several keys ride.
    """
    await warmed_up(kvorum_client)
    assert await skewed(kvorum_etcd, kvorum_client) == set()

    async def send_together(
        self: EtcdStorageBackend,
        pipeline: Pipeline,
        request: rpc.TxnRequest,
        operations: list[Operation],
    ) -> tuple[rpc.TxnResponse, int]:
        return await pipeline.txn(self._keys.full(operations[0].key), request)

    monkeypatch.setattr(EtcdStorageBackend, "_send", send_together)
    assert Rule.WRITE_SKEW in await skewed(kvorum_etcd, kvorum_client)
