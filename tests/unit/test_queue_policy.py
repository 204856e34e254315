"""When a queue sends, and how much: the rules of `how_many`, checked on drawn values."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.etcd.pipeline.batch import Limit
from kvorum.etcd.pipeline.queue_policy import QueueLimits, Room, Wait, how_many

LIMITS = QueueLimits(worthwhile=32)


class State(NamedTuple):
    """What `how_many` looks at."""

    waiting: int = 10
    free_slots: int = 1
    in_flight: int = 0
    has_held: bool = False
    room: Room = Room.PLENTY
    operations: int = 100

    def decide(self) -> int | Wait:
        return how_many(
            waiting=self.waiting,
            free_slots=self.free_slots,
            in_flight=self.in_flight,
            has_held=self.has_held,
            room=self.room,
            limit=Limit(self.operations),
            limits=LIMITS,
        )


states = st.builds(
    State,
    waiting=st.integers(0, 300),
    free_slots=st.integers(-1, 4),
    in_flight=st.integers(0, 300),
    has_held=st.booleans(),
    room=st.sampled_from(Room),
    operations=st.integers(1, 100),
)


@given(states)
def test_a_request_holds_at_least_one_operation_and_no_more_than_the_server_takes(
    state: State,
) -> None:
    number = state.decide()

    assert isinstance(number, Wait) or 1 <= number <= state.operations


@given(states)
def test_nothing_is_sent_while_nothing_waits_or_no_slot_is_free(state: State) -> None:
    assert state._replace(waiting=0).decide() is Wait.CALL
    assert state._replace(waiting=1, free_slots=0).decide() is Wait.SLOT


@given(states)
def test_calls_that_have_waited_for_more_are_not_held_again(state: State) -> None:
    """So a few calls wait for a bounded time, however many are in flight."""
    assert state._replace(has_held=True).decide() is not Wait.MORE


@given(states)
def test_only_fewer_than_half_of_those_in_flight_wait_for_more(state: State) -> None:
    is_few = 2 * state.waiting < state.in_flight

    assert state.decide() is not Wait.MORE or is_few


@given(states)
def test_no_write_is_sent_before_it_is_known_whether_there_is_room(state: State) -> None:
    unknown, one = state._replace(room=Room.UNKNOWN), state._replace(room=Room.ONE)

    assert isinstance(unknown.decide(), Wait)
    assert isinstance(one.decide(), Wait) or one.decide() == 1


@given(states)
def test_all_that_wait_fit_into_the_free_slots_unless_the_server_takes_less(state: State) -> None:
    state = state._replace(room=Room.PLENTY, free_slots=max(1, state.free_slots))
    number = state.decide()

    assert (
        isinstance(number, Wait)
        or number == state.operations
        or number * state.free_slots >= state.waiting
    )


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        (State(waiting=20, free_slots=2), 32),  # so few are not split
        (State(waiting=90, free_slots=2), 45),
        (State(waiting=91, free_slots=2), 46),
        (State(waiting=500, free_slots=2), 100),
        (State(waiting=500, free_slots=2, operations=20), 20),
        (State(waiting=4, in_flight=9), Wait.MORE),
        (State(waiting=5, in_flight=9), 32),
        (State(waiting=4, in_flight=9, has_held=True), 32),
        (State(waiting=4, in_flight=9, room=Room.UNKNOWN), Wait.MORE),
        (State(room=Room.UNKNOWN), Wait.ROOM),
        (State(room=Room.ONE), 1),
    ],
)
def test_the_rules_by_example(state: State, decision: int | Wait) -> None:
    assert state.decide() == decision
