"""Keys of refused calls are remembered for a while, and not without end."""

import pytest

from kvorum.etcd.pipeline.refused_keys import RefusalLimits, RefusedKeys


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_refused_key_is_forgotten_after_a_while(clock: Clock) -> None:
    refused = RefusedKeys(clock, RefusalLimits(duration=5.0))
    refused.add(b"a")
    assert refused.has(b"a")
    assert not refused.has(b"b")

    clock.now = 5.0
    assert not refused.has(b"a")
    assert not refused.until


def test_a_key_that_is_refused_again_is_remembered_from_then_on(clock: Clock) -> None:
    refused = RefusedKeys(clock, RefusalLimits(duration=5.0))
    refused.add(b"a")
    clock.now = 4.0
    refused.add(b"a")
    clock.now = 8.0

    assert refused.has(b"a")


def test_the_oldest_of_too_many_keys_is_forgotten(clock: Clock) -> None:
    refused = RefusedKeys(clock, RefusalLimits(keys=2))
    for key in (b"a", b"b", b"a", b"c"):
        refused.add(key)

    assert list(refused.until) == [b"a", b"c"]
