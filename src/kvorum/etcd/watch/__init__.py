"""Streams of changes, and the history of keys."""

from kvorum.etcd.watch.history import DELETE, first_change
from kvorum.etcd.watch.watch import EtcdStorageWatch

__all__ = [
    "DELETE",
    "EtcdStorageWatch",
    "first_change",
]
