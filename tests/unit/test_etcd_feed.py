"""What a watch makes of single events of etcd's; streams of them are in the suite of the port."""

import pytest

from kvorum.errors import HistoryLostError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.feed import _DELETE, Feed
from kvorum.keyspace import KeySpace
from kvorum.storage import Change, Entry


def event(*, deleted: bool = False, created: int = 5) -> rpc.Event:
    made = rpc.Event()
    made.kv.key, made.kv.mod_revision, made.kv.create_revision, made.kv.version = b"/lab/a", 9, created, 2
    if deleted:
        made.type = _DELETE
    return made


def feed() -> Feed:
    return Feed(KeySpace("lab"), "", None)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_previous_value_that_was_compacted_is_lost_history_and_not_a_wrong_event(deleted: bool) -> None:
    """etcd leaves it out without an error; whether the change is an addition could not be told any more."""
    with pytest.raises(HistoryLostError) as caught:
        feed()._change(event(deleted=deleted))

    assert caught.value.revision == 9


def test_a_creation_has_no_previous_value() -> None:
    assert feed()._change(event(created=9)) == Change("a", 9, Entry("a", b"", 9, 9, 2), None)
