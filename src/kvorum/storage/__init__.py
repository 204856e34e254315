"""The port to a store: bytes, revisions, leases and changes; no resource types."""

from kvorum.storage.checks import check_lost, check_operations, has_expected_value, may_match
from kvorum.storage.keyspace import MAX_KEY_SIZE, KeyPattern, KeySpace
from kvorum.storage.lease_ids import any_id, id_for, is_for
from kvorum.storage.port import HasBackend, StorageBackend, StorageWatch, WatchStatistics
from kvorum.storage.values import (
    MAX_OPERATIONS,
    MAX_REQUEST_SIZE,
    Change,
    Entry,
    Operation,
    Page,
    Selection,
)

__all__ = [
    "MAX_KEY_SIZE",
    "MAX_OPERATIONS",
    "MAX_REQUEST_SIZE",
    "Change",
    "Entry",
    "HasBackend",
    "KeyPattern",
    "KeySpace",
    "Operation",
    "Page",
    "Selection",
    "StorageBackend",
    "StorageWatch",
    "WatchStatistics",
    "any_id",
    "check_lost",
    "check_operations",
    "has_expected_value",
    "id_for",
    "is_for",
    "may_match",
]
