"""etcd's key-value pairs and events as the entries and changes of the storage port."""

from typing import Final

from kvorum.errors import HistoryLostError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import Change, Entry, KeySpace

DELETE: Final = 1  # mvccpb.Event.DELETE


def first_of(answer: rpc.RangeResponse) -> rpc.KeyValue | None:
    """Return the key that a range of one key found; None if it does not exist."""
    kvs = answer.kvs
    return kvs[0] if kvs else None


def entry_of(keys: KeySpace, kv: rpc.KeyValue, key: str | None = None) -> Entry:
    """Return a key-value pair as an entry.

    Args:
        keys: the key space of the backend.
        kv: the pair.
        key: its key in that space, if the caller knows it.
    """
    return Entry(
        keys.relative(kv.key) if key is None else key,
        kv.value,
        kv.mod_revision,
        kv.create_revision,
        kv.version,
        kv.lease,
    )


def change_of(keys: KeySpace, event: rpc.Event) -> Change:
    """Return an event, read with its previous value, as a change.

    Raises:
        HistoryLostError: the previous value has been compacted. etcd then leaves it out, without
            an error.
    """
    kv, before = event.kv, event.prev_kv
    deleted = event.type == DELETE
    key = keys.relative(kv.key)
    # On a create the previous value is an empty message, not absent.
    previous = entry_of(keys, before, key) if before.mod_revision else None
    if previous is None and (deleted or kv.create_revision != kv.mod_revision):
        raise HistoryLostError(revision=kv.mod_revision)
    entry = None if deleted else entry_of(keys, kv, key)
    return Change(key, kv.mod_revision, entry, previous)
