"""How long a watch waits before it resumes, and how long an attempt may take."""

from hypothesis import given
from hypothesis import strategies as st

from kvorum.etcd.watch import WatchTiming


@given(st.integers(0, 1_000_000))
def test_a_store_that_is_away_for_hours_is_asked_at_least_every_second(breaks: int) -> None:
    """After a thousand attempts, a wait that doubles each time would overflow a float."""
    timing = WatchTiming()

    assert 0 < timing.wait_after(breaks) <= timing.wait_after(breaks + 1) <= 1


def test_an_attempt_to_resume_may_take_longer_each_time_up_to_the_timeout_of_a_call() -> None:
    timing = WatchTiming(first_attempt=2.0)

    assert [timing.attempt_after(breaks, 5.0) for breaks in (1, 2, 3, 1_100)] == [2, 4, 5, 5]
    assert timing.attempt_after(1, 0.5) == 0.5
