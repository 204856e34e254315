"""The conformance suite for storage backends."""

from kvorum.testing.conformance.store import OpenStore, Store
from kvorum.testing.conformance.suite import StorageConformance

__all__ = [
    "OpenStore",
    "StorageConformance",
    "Store",
]
