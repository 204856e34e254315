"""For those who write a storage backend: the suite that it has to pass. Needs the extra `testing`.

class TestMyBackend(kvorum.testing.StorageConformance):
@pytest.fixture
def open_store(self) -> kvorum.testing.OpenStore:
return MyStore.open
"""

from kvorum.testing.conformance import StorageConformance
from kvorum.testing.store import OpenStore, Store

__all__ = ["OpenStore", "StorageConformance", "Store"]
