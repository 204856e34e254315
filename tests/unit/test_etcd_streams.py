"""On which connection a further watch is put."""

import itertools

from kvorum.etcd.transport.streams import LIMIT, MOST, Streams, StreamSlot


def placed(number: int) -> tuple[Streams[str], list[StreamSlot[str]]]:
    streams: Streams[str] = Streams()
    made = (f"further {count}" for count in itertools.count(1))
    return streams, [streams.place("first", lambda: next(made)) for _ in range(number)]


def test_watches_share_a_connection_until_it_may_be_full() -> None:
    streams, places = placed(LIMIT + 1)

    assert {place.channel for place in places[:-1]} == {"first"}
    assert (places[-1].channel, places[-1].others) == ("further 1", 0)
    assert streams.total == LIMIT + 1


def test_a_further_connection_is_closed_with_its_last_watch_and_the_first_one_stays() -> None:
    streams, places = placed(LIMIT + 2)

    assert places[-1].leave() is None
    assert places[-2].leave() == "further 1"
    assert places[-2].leave() is None
    assert [place.leave() for place in places[:LIMIT]] == [None] * LIMIT
    assert (streams.total, streams.further) == (0, [])


def test_a_place_that_was_given_up_is_used_again() -> None:
    streams, places = placed(LIMIT)
    places[7].leave()

    assert streams.place("first", lambda: "further").channel == "first"


def test_a_watch_can_be_put_apart_from_all_others() -> None:
    streams, _ = placed(1)

    assert streams.place("first", lambda: "further", alone=True).channel == "further"


def test_the_number_of_connections_is_bounded_and_then_the_emptiest_is_used() -> None:
    streams: Streams[int] = Streams()
    streams.limit = 1
    numbers = itertools.count(1)
    places = [streams.place(0, lambda: next(numbers)) for _ in range(2 * (MOST + 1))]

    assert len({place.channel for place in places}) == MOST + 1
    assert {place.others for place in places} == {0, 1}
