"""What etcd says about a key, in the words of the port."""

from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import Entry, KeySpace


def entry_of(keys: KeySpace, kv: rpc.KeyValue, key: str | None = None) -> Entry:
    """Return a key-value pair of etcd's as an entry of the backend that has these keys.

    Of `key`, if that is known.
    """
    return Entry(
        keys.relative(kv.key) if key is None else key,
        kv.value,
        kv.mod_revision,
        kv.create_revision,
        kv.version,
        kv.lease,
    )
