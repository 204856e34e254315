"""On which connection a new watch is put."""

import itertools
from typing import Final

from kvorum.etcd.transport import StreamLimits, StreamSlot
from kvorum.etcd.transport.streams import Streams

LIMITS: Final = StreamLimits(streams=5, least=2, connections=3)


def placed(number: int) -> tuple[Streams[str], list[StreamSlot[str]]]:
    streams: Streams[str] = Streams(LIMITS)
    made = (f"further {count}" for count in itertools.count(1))
    return streams, [streams.place("first", lambda: next(made)) for _ in range(number)]


def test_watches_share_a_connection_until_it_may_be_full() -> None:
    streams, slots = placed(LIMITS.streams + 1)

    assert {slot.channel for slot in slots[:-1]} == {"first"}
    assert (slots[-1].channel, slots[-1].others) == ("further 1", 0)
    assert streams.total == LIMITS.streams + 1


def test_a_further_connection_is_closed_with_its_last_watch_and_the_first_one_stays() -> None:
    streams, slots = placed(LIMITS.streams + 2)

    assert slots[-1].release() is None
    assert slots[-2].release() == "further 1"
    assert slots[-2].release() is None
    assert [slot.release() for slot in slots[: LIMITS.streams]] == [None] * LIMITS.streams
    assert (streams.total, streams.further) == (0, [])


def test_a_released_slot_is_used_again() -> None:
    streams, slots = placed(LIMITS.streams)
    slots[2].release()

    assert streams.place("first", lambda: "further").channel == "first"


def test_a_watch_can_be_put_apart_from_all_others() -> None:
    streams, _ = placed(1)

    assert streams.place("first", lambda: "further", alone=True).channel == "further"


def test_the_number_of_connections_is_bounded_and_then_the_emptiest_is_used() -> None:
    streams: Streams[int] = Streams(StreamLimits(streams=1, connections=3))
    numbers = itertools.count(1)
    slots = [streams.place(0, lambda: next(numbers)) for _ in range(8)]

    assert len({slot.channel for slot in slots}) == 4
    assert {slot.others for slot in slots} == {0, 1}


def test_the_limit_is_lowered_to_what_a_connection_took_but_not_below_the_least() -> None:
    streams, _ = placed(0)
    streams.learn_limit(4)
    assert streams.limit == 4

    streams.learn_limit(1)
    assert streams.limit == LIMITS.least
    streams.take_further()
    assert streams.limit == LIMITS.streams
