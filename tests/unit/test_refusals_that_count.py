"""What calls were refused for is remembered for a while, and not without end."""

from collections.abc import Callable

import pytest

from kvorum.errors import KvorumError, LeaseNotFoundError, PermissionDeniedError
from kvorum.etcd.pipeline.calls import AnyCall, PutCall, ReadCall, TxnCall
from kvorum.etcd.pipeline.refusals import RefusalLimits, Refusals
from kvorum.etcd.transport import _rpc as rpc

FORBIDDEN = PermissionDeniedError("a test")


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def read(key: bytes) -> AnyCall:
    return ReadCall(key, 1.0)


def put(key: bytes, lease: int = 0) -> AnyCall:
    request = rpc.PutRequest(key=key)
    request.lease = lease
    return PutCall(key, 1.0, request=request)


def swap(key: bytes, lease: int = 0) -> AnyCall:
    request = rpc.TxnRequest()
    step = request.success.add().request_put
    step.key, step.lease = key, lease
    request.failure.add().request_range.key = key
    return TxnCall(key, 1.0, request=request)


def test_a_refusal_is_forgotten_after_a_while(clock: Clock) -> None:
    refusals = Refusals(clock, RefusalLimits(duration=5.0))
    refusals.add(put(b"a"), FORBIDDEN)
    assert refusals.concern(put(b"a"))
    assert not refusals.concern(put(b"b"))

    clock.now = 5.0
    assert not refusals.concern(put(b"a"))
    assert not refusals.until


def test_what_is_refused_again_is_remembered_from_then_on(clock: Clock) -> None:
    refusals = Refusals(clock, RefusalLimits(duration=5.0))
    refusals.add(put(b"a"), FORBIDDEN)
    clock.now = 4.0
    refusals.add(put(b"a"), FORBIDDEN)
    clock.now = 8.0

    assert refusals.concern(put(b"a"))


def test_the_oldest_of_too_many_refusals_is_forgotten(clock: Clock) -> None:
    refusals = Refusals(clock, RefusalLimits(subjects=2))
    for key in (b"a", b"b", b"a", b"c"):
        refusals.add(put(key), FORBIDDEN)

    assert [refusals.concern(put(key)) for key in (b"a", b"b", b"c")] == [True, False, True]


@pytest.mark.parametrize("error", [FORBIDDEN, LeaseNotFoundError()])
def test_a_refused_write_is_no_refusal_of_reads(clock: Clock, error: KvorumError) -> None:
    refusals = Refusals(clock)
    refusals.add(put(b"a"), error)

    assert not refusals.concern(read(b"a"))


def test_a_refused_read_is_no_refusal_of_writes(clock: Clock) -> None:
    refusals = Refusals(clock)
    refusals.add(read(b"a"), FORBIDDEN)

    assert refusals.concern(read(b"a"))
    assert not refusals.concern(put(b"a"))


@pytest.mark.parametrize("write", [put, swap])
def test_a_lease_that_is_gone_concerns_the_calls_on_that_lease_only(
    clock: Clock, write: Callable[[bytes, int], AnyCall]
) -> None:
    refusals = Refusals(clock)
    refusals.add(write(b"a", 7), LeaseNotFoundError())

    assert refusals.concern(put(b"a", 7))
    assert refusals.concern(swap(b"b", 7))
    assert not refusals.concern(swap(b"a", 8))
    assert not refusals.concern(put(b"a"))


def test_a_lease_that_is_gone_without_a_name_concerns_the_key(clock: Clock) -> None:
    refusals = Refusals(clock)
    refusals.add(put(b"a"), LeaseNotFoundError())

    assert refusals.concern(put(b"a", 8))
