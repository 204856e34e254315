"""For those who write a storage backend: the suite that it has to pass. Needs the extra `testing`.

class TestMyBackend(kvorum.testing.StorageConformance):
@pytest.fixture
def open_store(self) -> kvorum.testing.OpenStore:
return MyStore.open
"""

from kvorum.testing.conformance import StorageConformance
from kvorum.testing.fault_proxy import FaultProxy, ProxyStatistics
from kvorum.testing.store import OpenStore, Store

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # The suite for backends
    "OpenStore",
    "StorageConformance",
    "Store",
    # Faults
    "FaultProxy",
    "ProxyStatistics",
]
