"""The conformance suite on the memory backend."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import kvorum
from kvorum.testing import OpenStore, StorageConformance, Store


class MemoryStore(Store):
    def __init__(self) -> None:
        self._backend = kvorum.MemoryStorageBackend()

    @property
    def backend(self) -> kvorum.StorageBackend:
        return self._backend

    async def compact(self, revision: int) -> None:
        await self._backend.compact(revision)

    async def watchers(self) -> int:
        return self._backend.open_watches


@asynccontextmanager
async def open_memory() -> AsyncIterator[Store]:
    store = MemoryStore()
    yield store
    await store.backend.aclose()


class TestMemoryStorageBackend(StorageConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return open_memory
