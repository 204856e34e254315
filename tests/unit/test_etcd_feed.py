"""What a watch makes of single events of etcd's; streams of them are in the suite of the port."""

import pytest

from kvorum.errors import HistoryLostError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch.history import DELETE
from kvorum.etcd.watch.reader import WatchReader
from kvorum.storage.keyspace import KeySpace
from kvorum.storage.values import Change, Entry


def event(*, deleted: bool = False, created: int = 5) -> rpc.Event:
    made = rpc.Event()
    made.kv.key, made.kv.mod_revision, made.kv.create_revision, made.kv.version = (
        b"/lab/a",
        9,
        created,
        2,
    )
    if deleted:
        made.type = DELETE
    return made


def feed() -> WatchReader:
    return WatchReader(KeySpace("lab"), "", None)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_previous_value_that_was_compacted_is_lost_history_and_not_a_wrong_event(
    deleted: bool,
) -> None:
    """etcd leaves it out without an error.

    Whether the change is an addition could not be told any more.
    """
    with pytest.raises(HistoryLostError) as caught:
        feed()._change(event(deleted=deleted))

    assert caught.value.revision == 9


def test_a_creation_has_no_previous_value() -> None:
    assert feed()._change(event(created=9)) == Change("a", 9, Entry("a", b"", 9, 9, 2), None)


def test_a_store_that_is_away_for_hours_is_asked_again_within_a_second() -> None:
    """After a thousand attempts, a wait that doubles each time would be no number any more, and the reader die."""
    away = feed()
    for breaks in (0, 1, 10, 1_100, 1_000_000):
        away._breaks = breaks
        assert 0 <= away._wait() <= 1


def test_an_attempt_to_take_over_may_take_longer_each_time_up_to_the_timeout_of_a_call() -> None:
    away = feed()
    patience = []
    for breaks in (1, 2, 3, 1_100):
        away._breaks = breaks
        patience.append(away._patience(5.0))

    assert patience == [2, 4, 5, 5]
    assert away._patience(0.5) == 0.5
