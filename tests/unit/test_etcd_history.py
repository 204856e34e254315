"""The rules for reading history, on responses as etcd sends them."""

from itertools import groupby
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch.history import GapDetector, Reading


def event(revision: int, key: bytes = b"k") -> rpc.Event:
    return rpc.Event(kv=rpc.KeyValue(key=key, mod_revision=revision))


def response(*revisions: int, header: int = 1_000, fragment: bool = False) -> rpc.WatchResponse:
    return rpc.WatchResponse(
        header=rpc.ResponseHeader(revision=header),
        events=[event(each) for each in revisions],
        fragment=fragment,
    )


def revisions(news: list[Any]) -> list[tuple[int, int]]:
    """Tell how many events each revision has."""
    return [(revision, len(events)) for revision, events in news]


def test_the_revision_in_the_header_of_events_is_no_position() -> None:
    """During a catch-up it is the store's: resuming from it would lose everything in between."""
    reading = Reading(5)

    assert revisions(reading.take_new_revisions(response(6, 6, 7, header=900))) == [(6, 2), (7, 1)]
    assert reading.position == 7


def test_what_is_not_above_the_position_is_skipped_and_the_position_never_goes_back() -> None:
    reading = Reading(5)

    assert revisions(reading.take_new_revisions(response(4, 5, 5, 6))) == [(6, 1)]
    assert reading.take_new_revisions(response(3)) == []
    assert reading.take_new_revisions(response(header=4)) == []
    assert reading.position == 6


def test_a_notification_moves_the_position_to_its_revision_and_the_creation_does_not() -> None:
    reading = Reading(5)
    created = rpc.WatchResponse(header=rpc.ResponseHeader(revision=50), created=True)

    assert reading.take_new_revisions(created) == []
    assert revisions(reading.take_new_revisions(response(header=9))) == [(9, 0)]
    assert (reading.position, reading.first) == (9, 9)


def test_a_stream_from_the_beginning_does_not_start_now() -> None:
    assert Reading(0).first == 1


@given(st.lists(st.integers(1, 4), max_size=12), st.data())
def test_a_response_in_pieces_says_what_it_says_as_a_whole(
    sizes: list[int], data: st.DataObject
) -> None:
    """Each revision is whole, wherever the response is cut, even within a revision."""
    whole = [revision for revision, size in enumerate(sizes, start=11) for _ in range(size)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))) | {len(whole)})
    reading, shown = Reading(10), []
    for start, end in zip([0, *cuts], cuts, strict=False):
        shown += revisions(
            reading.take_new_revisions(response(*whole[start:end], fragment=end < len(whole)))
        )

    assert [each for each in shown if each[1]] == [
        (at, len([*those])) for at, those in groupby(whole)
    ]


def test_a_piece_whose_stream_broke_is_read_again() -> None:
    reading = Reading(10)

    assert revisions(reading.take_new_revisions(response(11, 12, fragment=True))) == [(11, 1)]
    reading.begin_stream()
    assert revisions(reading.take_new_revisions(response(11, 12, 12))) == [(12, 2)]


# --- servers that omit events without a sign ------------------------------------------------------


def test_an_idle_watch_is_checked_once_a_burst_and_shown_at_once() -> None:
    detector = GapDetector(0.0)
    for minute in range(1, 500):
        detector.count()
        assert not detector.may_have_gap
        assert detector.is_due(60.0 * minute)
        detector.start(60.0 * minute)
        detector.succeed()


def test_a_busy_watch_is_checked_once_for_many_responses() -> None:
    detector, checks = GapDetector(0.0), 0
    for _ in range(3_200):
        detector.count()
        if detector.is_due(0.5):
            checks += 1
            detector.start(0.5)
            detector.succeed()

    assert checks == 100


def test_what_follows_a_full_queue_waits_for_a_check_that_succeeds() -> None:
    """A failed check proves nothing, and no check proves responses that arrived after its start."""
    detector = GapDetector(0.0)
    for _ in range(GapDetector.QUEUE):
        detector.count()
    detector.start(1.0)  # and it fails
    before = detector.may_have_gap
    detector.count()
    assert (before, detector.may_have_gap) == (False, True)

    detector.start(2.0)
    detector.count()
    detector.succeed()
    assert detector.unproven == 1


def test_a_check_that_failed_is_not_repeated_at_each_response() -> None:
    """Each delays the reader, so there is one a second, and events arrive in between."""
    detector = GapDetector(0.0)
    for _ in range(40):
        detector.count()
    due = [detector.is_due(0.5)]
    detector.start(0.5)
    detector.fail(1.5)
    for _ in range(40):
        detector.count()
        due.append(detector.is_due(2.0))
    due.append(detector.is_due(2.5))

    assert due == [True, *[False] * 40, True]
