"""Concurrent calls share requests, and each of them is answered as if it were alone."""

from typing import Any

import pytest
from tests.integration.pipeline.batching import Requests, all_of, nothing

import kvorum
from kvorum import (
    AlreadyExistsError,
    ConflictError,
    EmbeddedEtcd,
    Entry,
    EtcdSettings,
    LeaseNotFoundError,
    Operation,
    UnavailableError,
)
from kvorum.observer import Call

pytestmark = pytest.mark.timeout(120)


async def test_sequential_calls_are_sent_as_they_are(
    client: kvorum.Client, requests: Requests
) -> None:
    """An idle pipeline adds nothing: no wait, and no transaction around a single call."""
    before, planned = client.pipeline.statistics(), len(requests.planned)
    requests.sent.clear()
    for number in range(5):
        await client.backend.set("a", b"%d" % number)
        await client.backend.get("a")

    now = client.pipeline.statistics()
    assert len(requests.planned) == planned
    assert [call.operation for call in requests.sent if call.subject.endswith("/a")] == [
        "put",
        "read",
    ] * 5
    assert (now.reads - before.reads, now.read_requests - before.read_requests) == (5, 5)
    assert (now.writes - before.writes, now.write_requests - before.write_requests) == (5, 5)


async def test_concurrent_reads_share_requests_and_each_gets_its_own_key(
    client: kvorum.Client,
) -> None:
    store = client.backend
    await store.commit([Operation.put(f"k{number}", b"%d" % number) for number in range(0, 100, 2)])
    before = client.pipeline.statistics()

    found = await all_of(*(store.get(f"k{number}") for number in range(100)))

    values = [entry.value if isinstance(entry, Entry) else entry for entry in found]
    assert values == [None if number % 2 else b"%d" % number for number in range(100)]
    now = client.pipeline.statistics()
    assert now.reads - before.reads == 100
    assert now.read_requests - before.read_requests <= 5


async def test_concurrent_writes_share_requests_and_each_gets_its_own_answer(
    client: kvorum.Client,
) -> None:
    """Applied writes share one revision; refused ones get the current entry."""
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


async def test_writes_of_one_key_are_applied_in_the_order_of_their_calls(
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
    """A mod_revision that has passed never returns, so a swap that waits for it cannot apply."""
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


async def test_a_bug_fails_the_calls_of_its_batch_and_no_others(
    client: kvorum.Client, requests: Requests
) -> None:
    async def spoil(call: Call, answer: Any) -> None:
        if call.operation == "batch":
            del answer.responses[:]

    requests.after = spoil
    found = await all_of(*(client.backend.get(f"k{number}") for number in range(10)))
    requests.after = nothing

    assert {type(answer) for answer in found[1:]} == {UnavailableError}
    assert isinstance(found[1].__cause__, ValueError | LookupError)

    assert await all_of(*(client.backend.get(f"k{number}") for number in range(10))) == [None] * 10


@pytest.mark.parametrize("at", ["before", "after"])
async def test_what_an_observer_raises_about_a_batch_each_of_its_callers_gets(
    client: kvorum.Client, requests: Requests, at: str
) -> None:
    async def fail(call: Call, _message: object) -> None:
        if call.operation == "batch" and call.writes:
            raise ZeroDivisionError("of the observer")

    setattr(requests, at, fail)
    found = await all_of(*(client.backend.set(f"k{number}", b"1") for number in range(10)))
    setattr(requests, at, nothing)

    assert {type(answer) for answer in found[1:]} == {ZeroDivisionError}
    assert found[1].__notes__ == [f"raised by the observer, in Requests.{at}_request"]
    stored = await all_of(*(client.backend.exists(f"k{number}") for number in range(1, 10)))
    assert stored == [at == "after"] * 9


async def test_batches_are_reported_to_the_observer(
    client: kvorum.Client, requests: Requests
) -> None:
    requests.planned.clear()
    requests.answered.clear()
    await all_of(*(client.backend.get(f"k{number % 10}") for number in range(50)))

    assert sum(size for kind, size in requests.planned if kind == "reads") == 49  # one goes alone
    assert requests.planned == requests.answered
    assert requests.failed == []


async def test_a_refused_batch_is_reported_with_its_error(
    client: kvorum.Client, requests: Requests
) -> None:
    writes = [client.backend.set(f"k{number}", b"", lease=12345) for number in range(10)]
    await all_of(*writes)

    kind, _, error = requests.failed[0]
    assert kind == "writes"
    assert isinstance(error, LeaseNotFoundError)
