"""Which calls share a batch: the rules hold on drawn queues, and catch planners that break them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.etcd.pipeline.batch import Batch, Limit, halves_of, plan_batch
from kvorum.etcd.pipeline.calls import AnyCall, PutCall, ReadCall
from kvorum.etcd.transport import _rpc as rpc

Planner: TypeAlias = Callable[[Sequence[AnyCall], Limit], tuple[Batch, list[AnyCall]]]
KEYS = [b"a", b"b", b"c", b"d"]


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Futures belong to one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def pending(key: bytes, *, writes: bool, is_done: bool = False, size: int = 10) -> AnyCall:
    request = rpc.PutRequest(key=key, value=bytes(size))
    call = PutCall(key, 0.0, size, request=request) if writes else ReadCall(key, 0.0, size)
    call.outcome = asyncio.get_event_loop_policy().get_event_loop().create_future()
    if is_done:
        call.outcome.cancel()
    return call


calls = st.builds(
    pending,
    st.sampled_from(KEYS),
    writes=st.booleans(),
    is_done=st.just(value=False) | st.booleans(),
    size=st.just(9),
)
queues = st.lists(calls, max_size=12)
limits = st.builds(Limit, st.integers(1, 6), st.sampled_from([50, 200, 10_000]))


def broken_rules(plan: Planner, waiting: Sequence[AnyCall], limit: Limit) -> set[str]:
    """Return what is wrong with what a planner makes of a queue."""
    alive = [call for call in waiting if not call.is_done]
    now, later = plan(waiting, limit)
    sent = [call for group in now.values() for call in group]
    found = set()
    if Counter(map(id, [*sent, *(call for call in later if not call.is_done)])) != Counter(
        map(id, alive)
    ):
        found.add("a call is lost, doubled, or was over")
    writes = Counter(call.key for call in sent if call.is_write)
    reads = {call.key for call in sent if not call.is_write}
    if any(number > 1 for number in writes.values()) or writes.keys() & reads:
        found.add("a key is written, and touched by another one")
    places = {id(call): place for place, call in enumerate(waiting)}
    for call in sent:
        passed = [
            each for each in later if each.key == call.key and places[id(each)] < places[id(call)]
        ]
        if any(not each.is_done for each in passed):
            found.add("a call overtakes another one of its key")
    if len(now) > limit.operations or (
        len(now) > 1 and sum(group[0].size for group in now.values()) > limit.size
    ):
        found.add("it is too large")
    if [places[id(call)] for call in later] != sorted(places[id(call)] for call in later):
        found.add("the order is lost")
    if not now and alive:
        found.add("nothing is sent although something may be")
    return found


@given(queues, limits)
def test_a_plan_keeps_the_rules(waiting: list[AnyCall], limit: Limit) -> None:
    assert broken_rules(plan_batch, waiting, limit) == set()


@given(queues)
def test_what_has_room_and_no_conflict_leaves_at_once(waiting: list[AnyCall]) -> None:
    now, later = plan_batch(waiting, Limit())

    writes = {call.key for call in waiting if call.is_write and not call.is_done}
    assert {call.key for call in later} <= writes
    assert set(now) == {call.key for call in waiting if not call.is_done}


def test_reads_of_one_key_are_one_operation() -> None:
    waiting = [pending(b"a", writes=False) for _ in range(500)]

    now, later = plan_batch(waiting, Limit(operations=1))

    assert now == {b"a": waiting}
    assert not later


def test_one_that_is_too_large_for_a_batch_goes_by_itself() -> None:
    small, large, other = (
        pending(key, writes=True, size=size) for key, size in ((b"a", 1), (b"b", 10**6), (b"c", 1))
    )

    assert plan_batch([small, large, other], Limit()) == ({b"a": [small]}, [large, other])
    assert plan_batch([large, other], Limit()) == ({b"b": [large]}, [other])


def test_a_batch_is_halved_in_order() -> None:
    batch = batch_of(1, 2, 3, 4, 5)

    first, second = halves_of(batch)
    assert [*first, *second] == list(batch)
    assert (len(first), len(second)) == (2, 3)


# --- planners that break a rule -------------------------------------------------------------------


def without_the_rule_of_keys(
    waiting: Sequence[AnyCall], limit: Limit
) -> tuple[Batch, list[AnyCall]]:
    """Batch the next calls, whatever they touch."""
    alive = [call for call in waiting if not call.is_done]
    now: Batch = {}
    for call in alive[: limit.operations]:
        now.setdefault(call.key, []).append(call)
    return now, alive[limit.operations :]


def overtaking(waiting: Sequence[AnyCall], limit: Limit) -> tuple[Batch, list[AnyCall]]:
    now, later = plan_batch(list(reversed(waiting)), limit)
    return now, list(reversed(later))


def losing(waiting: Sequence[AnyCall], limit: Limit) -> tuple[Batch, list[AnyCall]]:
    now, later = plan_batch(waiting, limit)
    return now, later[1:]


def sending_what_is_over(waiting: Sequence[AnyCall], limit: Limit) -> tuple[Batch, list[AnyCall]]:
    over = next((call for call in waiting if call.is_done), None)
    now, later = plan_batch(waiting, limit)
    return (now if over is None else {over.key: [over]} | now), later


def greedy(waiting: Sequence[AnyCall], _limit: Limit) -> tuple[Batch, list[AnyCall]]:
    return plan_batch(waiting, Limit(10**6, 10**9))


def idle(waiting: Sequence[AnyCall], _limit: Limit) -> tuple[Batch, list[AnyCall]]:
    return {}, list(waiting)


@pytest.mark.parametrize(
    ("plan", "rule"),
    [
        (without_the_rule_of_keys, "a key is written, and touched by another one"),
        (overtaking, "a call overtakes another one of its key"),
        (losing, "a call is lost, doubled, or was over"),
        (sending_what_is_over, "a call is lost, doubled, or was over"),
        (greedy, "it is too large"),
        (idle, "nothing is sent although something may be"),
    ],
)
def test_a_planner_that_breaks_a_rule_is_found_out(plan: Planner, rule: str) -> None:
    found: set[str] = set()

    @given(queues, limits)
    def draw(waiting: list[AnyCall], limit: Limit) -> None:
        found.update(broken_rules(plan, waiting, limit))

    draw()
    assert rule in found


def batch_of(*sizes: int) -> Batch:
    return {
        b"%d" % number: [pending(b"", writes=True, size=size)] for number, size in enumerate(sizes)
    }


def test_a_limit_is_half_of_what_was_refused_however_often() -> None:
    """Two batches may be refused at once."""
    many, large = batch_of(*[9] * 100), batch_of(*[10_000] * 98)

    assert Limit().halve_operations(many).halve_operations(many).operations == 50
    assert Limit().halve_bytes(large).halve_bytes(large).size == 98 * 10_064 // 2
    assert Limit().halve_operations(batch_of(9, 9)).operations == 1
    assert Limit().halve_bytes(batch_of(9, 9)).size == 65_536


def test_a_value_that_is_most_of_a_batch_does_not_lower_the_limit() -> None:
    """The batch may have been refused for this one alone."""
    assert Limit().halve_bytes(batch_of(9, 9, 900_000)) == Limit()
