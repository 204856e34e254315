"""The writes of a key wait for each other in a line of their own.

Checked against the plain rule, and by the number of looks that it takes.
"""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.etcd.pipeline.calls import PutCall, Unanswered
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


def write(key: bytes, expected: int = 0) -> PutCall:
    call = PutCall(key, 0.0, expected=expected, request=rpc.PutRequest(key=key))
    call.outcome = asyncio.get_event_loop_policy().get_event_loop().create_future()
    return call


steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "give up", "release"]),
        st.sampled_from(KEYS),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(steps)
def test_each_key_has_one_write_at_a_time_and_they_follow_each_other(
    steps: list[tuple[str, bytes, int]],
) -> None:
    """Compared with a plain list for each key, whose first write is the one that may be sent."""
    order = KeyOrder()
    lines: dict[bytes, list[PutCall]] = {key: [] for key in KEYS}
    for step, key, number in steps:
        line = lines[key]
        if step == "admit":
            call = write(key)
            assert order.admit(call) is (not line)
            line.append(call)
        elif step == "give up" and len(line) > 1:
            gone = line[1 + number % (len(line) - 1)]
            assert gone.outcome is not None
            gone.outcome.cancel()
        elif step == "release" and line:
            line[:] = [call for call in line[1:] if not call.is_done]
            assert order.release(key) is (line[0] if line else None)
    waiting = [call for line in lines.values() for call in line[1:]]
    assert {id(call) for call in order} >= {id(call) for call in waiting}
    assert order.waiting == len(list(order))


def test_a_key_is_free_again_when_its_last_write_is_done() -> None:
    order = KeyOrder()
    assert order.admit(write(b"a"))
    assert order.release(b"a") is None
    assert order.release(b"a") is None

    assert order.admit(write(b"a"))


def test_keys_behind_whose_write_no_other_waits_are_free_at_once() -> None:
    """The other keys are returned, and nothing is done about them yet."""
    order, second = KeyOrder(), write(b"a")
    for call in (write(b"a"), write(b"b"), second):
        order.admit(call)

    assert order.release_free([b"a", b"b", b"c"]) == [b"a"]
    assert order.release(b"a") is second
    assert order.release_free([b"a"]) == []
    assert order.admit(write(b"a"))
    assert order.admit(write(b"b"))


def test_a_swap_at_a_revision_that_has_passed_is_not_sent() -> None:
    """It can never apply. A call that expects that revision, a later one or none is sent."""
    stale, put, current = write(b"a", 4), write(b"a"), write(b"a", 5)
    order = KeyOrder()
    for call in (write(b"a"), stale, put, current, write(b"b", 4)):
        order.admit(call)

    assert order.release(b"a", 5) is put
    assert stale.outcome is not None
    assert stale.outcome.result() is Unanswered.SUPERSEDED
    assert order.release(b"a", 5) is current


class Counted(PutCall):
    """A call that counts how often it is looked at."""

    looks: int = 0

    @property
    def is_done(self) -> bool:
        self.looks += 1
        return super().is_done


def test_a_write_is_looked_at_once_while_it_waits() -> None:
    """Many writes of one key cost each of them one step on entry, and one when it is sent."""
    order = KeyOrder()
    request = rpc.PutRequest(key=b"a")
    calls = [Counted(b"a", 0.0, request=request) for _ in range(1_000)]
    for call in calls:
        order.admit(call)
    for _ in calls:
        order.release(b"a", 7)

    assert {call.looks for call in calls[1:]} == {1}
