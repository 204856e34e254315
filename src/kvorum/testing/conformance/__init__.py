"""The suite that every backend has to pass."""

from kvorum.testing.conformance.store import OpenStore, Store
from kvorum.testing.conformance.suite import StorageConformance

__all__ = [
    "OpenStore",
    "StorageConformance",
    "Store",
]
