"""Many writes of one key wait for each other only, and each costs as much as if there were few."""

import asyncio

import pytest
from tests.integration.pipeline.batching import DEADLINE, all_of

import kvorum
from kvorum import ConflictError, UnavailableError

pytestmark = pytest.mark.timeout(120)


async def test_a_thousand_writes_of_one_key_are_applied_in_order(
    kvorum_client: kvorum.Client,
) -> None:
    with kvorum.deadline(DEADLINE):
        revisions = await all_of(
            *(kvorum_client.backend.set("a", b"%d" % number) for number in range(1_000))
        )

    assert revisions == sorted(set(revisions))
    entry = await kvorum_client.backend.get("a")
    assert entry is not None
    assert entry.value == b"999"


async def test_writes_of_other_keys_pass_those_that_wait_for_their_turn(
    kvorum_client: kvorum.Client,
) -> None:
    store = kvorum_client.backend
    with kvorum.deadline(DEADLINE):
        busy = [asyncio.ensure_future(store.set("a", b"%d" % number)) for number in range(500)]
        await asyncio.sleep(0)
        others = await all_of(*(store.create(f"k{number}", b"1") for number in range(100)))

        assert {type(answer) for answer in others} == {int}
        assert sum(call.done() for call in busy) < 400
        await all_of(*busy)


async def test_cancelled_writes_leave_the_line_of_their_key(
    kvorum_client: kvorum.Client,
) -> None:
    """The first, in the middle, the last, and whole lines.

    Those behind them have their turn all the same.
    """
    store = kvorum_client.backend
    calls = [
        asyncio.ensure_future(store.set(f"k{number % 5}", b"%d" % number)) for number in range(100)
    ]
    await asyncio.sleep(0)
    gone = {*range(10), 42, 43, *range(3, 100, 5), 99}
    for number in gone:
        calls[number].cancel()
    answers = await all_of(*calls)
    again = await all_of(*(store.set(f"k{number}", b"again") for number in range(5)))

    kept = [answer for number, answer in enumerate(answers) if number not in gone]
    assert {type(answer) for answer in (*kept, *again)} == {int}
    assert kvorum_client.pipeline.statistics().waiting == 0


async def test_a_write_whose_deadline_passes_in_line_was_not_sent(
    kvorum_client: kvorum.Client,
) -> None:
    store = kvorum_client.backend

    async def impatient() -> int:
        with kvorum.deadline(0.02):
            return await store.set("a", b"late")

    with kvorum.deadline(DEADLINE):
        before = [asyncio.ensure_future(store.set("a", b"%d" % number)) for number in range(200)]
        late = [asyncio.ensure_future(impatient()) for _ in range(20)]
        after = [asyncio.ensure_future(store.set("a", b"after")) for _ in range(20)]
        outcomes = await all_of(*late)
        answers = await all_of(*before, *after)

    assert {type(outcome) for outcome in outcomes} == {UnavailableError}
    assert answers == sorted(set(answers))
    assert (await store.count("")) == 1


async def test_swaps_in_a_line_that_can_never_apply_are_not_sent(
    kvorum_client: kvorum.Client,
) -> None:
    store = kvorum_client.backend
    first = await store.set("a", b"0")
    before = kvorum_client.pipeline.statistics()
    calls = []
    for number in range(50):
        calls += [
            store.set("a", b"%d" % number),
            store.compare_and_swap("a", b"swap", expected=first),
        ]
    answers = await all_of(*calls)

    put, swapped = answers[::2], answers[1::2]
    assert put == sorted(set(put))
    assert {type(answer) for answer in swapped} == {ConflictError}
    now = kvorum_client.pipeline.statistics()
    assert now.writes - before.writes <= 52
