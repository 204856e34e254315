"""How events of etcd become changes."""

import pytest

from kvorum.errors import HistoryLostError
from kvorum.etcd.entries import DELETE, change_of
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import Change, Entry, KeySpace

KEYS = KeySpace("lab")


def event(*, deleted: bool = False, created: int = 5) -> rpc.Event:
    made = rpc.Event()
    made.kv.key, made.kv.mod_revision = b"/lab/a", 9
    made.kv.create_revision, made.kv.version = created, 2
    if deleted:
        made.type = DELETE
    return made


@pytest.mark.parametrize("deleted", [False, True])
def test_a_previous_value_that_was_compacted_is_lost_history_and_not_a_wrong_change(
    deleted: bool,
) -> None:
    """etcd leaves it out without an error.

    The change could not be told from an addition any more.
    """
    with pytest.raises(HistoryLostError) as caught:
        change_of(KEYS, event(deleted=deleted))

    assert caught.value.revision == 9


def test_a_creation_has_no_previous_value() -> None:
    assert change_of(KEYS, event(created=9)) == Change("a", 9, Entry("a", b"", 9, 9, 2), None)
