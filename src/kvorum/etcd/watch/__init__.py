"""Streams of changes, and the history of keys."""

from kvorum.etcd.watch.history import first_change
from kvorum.etcd.watch.timing import WatchTiming
from kvorum.etcd.watch.watch import EtcdStorageWatch

__all__ = [
    "EtcdStorageWatch",
    "WatchTiming",
    "first_change",
]
