"""The writes of a key wait in a line of their own.

Checked against the plain rule, and by the steps that it takes.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.etcd.pipeline.batch import Pending, Unanswered
from kvorum.etcd.pipeline.key_order import KeyOrder
from kvorum.etcd.transport import _rpc as rpc

KEYS = [b"a", b"b", b"c"]


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Futures belong to one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def write(key: bytes, expected: int = 0) -> Pending[Any]:
    call: Pending[Any] = Pending(key, 0.0, rpc.PutRequest(key=key), 0, expected)
    call.outcome = asyncio.get_event_loop_policy().get_event_loop().create_future()
    return call


steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "give up", "end"]),
        st.sampled_from(KEYS),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(steps)
def test_each_key_has_one_turn_at_a_time_and_its_writes_follow_each_other(
    steps: list[tuple[str, bytes, int]],
) -> None:
    """Held against a plain list for each key, whose first has its turn."""
    turns = KeyOrder()
    lines: dict[bytes, list[Pending[Any]]] = {key: [] for key in KEYS}
    for step, key, number in steps:
        line = lines[key]
        if step == "come":
            call = write(key)
            assert turns.admit(call) is (not line)
            line.append(call)
        elif step == "give up" and len(line) > 1:
            gone = line[1 + number % (len(line) - 1)]
            assert gone.outcome is not None
            gone.outcome.cancel()
        elif step == "end" and line:
            line[:] = [call for call in line[1:] if not call.is_over]
            assert turns.end(key) is (line[0] if line else None)
    standing = [call for line in lines.values() for call in line[1:]]
    assert {id(call) for call in turns} >= {id(call) for call in standing}
    assert turns.standing == len(list(turns))


def test_a_key_is_free_again_when_the_last_turn_has_ended() -> None:
    turns = KeyOrder()
    assert turns.admit(write(b"a"))
    assert turns.end(b"a") is None
    assert turns.end(b"a") is None

    assert turns.admit(write(b"a"))


def test_turns_behind_which_nobody_stands_end_at_once() -> None:
    """The keys of the others are returned, and nothing is done about them yet."""
    turns, second = KeyOrder(), write(b"a")
    for call in (write(b"a"), write(b"b"), second):
        turns.admit(call)

    assert turns.end_free([b"a", b"b", b"c"]) == [b"a"]
    assert turns.end(b"a") is second
    assert turns.end_free([b"a"]) == []
    assert turns.admit(write(b"a"))
    assert turns.admit(write(b"b"))


def test_a_swap_at_a_revision_that_has_passed_is_not_sent() -> None:
    """It never comes back; what is at that revision, at none, or at a later one has its turn."""
    stale, put, current = write(b"a", 4), write(b"a"), write(b"a", 5)
    turns = KeyOrder()
    for call in (write(b"a"), stale, put, current, write(b"b", 4)):
        turns.admit(call)

    assert turns.end(b"a", 5) is put
    assert stale.outcome is not None
    assert stale.outcome.result() is Unanswered.SUPERSEDED
    assert turns.end(b"a", 5) is current


class Counted(Pending[Any]):
    """A call that counts how often anybody looks at it."""

    looks: int = 0

    @property
    def is_over(self) -> bool:
        self.looks += 1
        return super().is_over


def test_nobody_looks_at_those_who_stand_behind() -> None:
    """Many writes of one key cost each of them a step when it comes, and one when it has its turn."""
    turns = KeyOrder()
    calls = [Counted(b"a", 0.0, rpc.PutRequest(key=b"a")) for _ in range(1_000)]
    for call in calls:
        turns.admit(call)
    for _ in calls:
        turns.end(b"a", 7)

    assert {call.looks for call in calls[1:]} == {1}
