"""What etcd says about a key, in the words of the port."""

from kvorum.etcd.entries import entry_of
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage.keyspace import KeySpace
from kvorum.storage.values import Entry


def test_an_entry_is_what_etcd_says_about_a_key() -> None:
    kv = rpc.KeyValue()
    kv.key = b"/lab-resource-manager/lab-workers/a"
    kv.value = b"{}"
    kv.mod_revision, kv.create_revision, kv.version, kv.lease = 9, 3, 4, 5

    entry = entry_of(KeySpace("lab-resource-manager"), kv)
    assert entry == Entry(
        "lab-workers/a", b"{}", mod_revision=9, create_revision=3, version=4, lease=5
    )
