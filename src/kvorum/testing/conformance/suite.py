"""The conformance suite for storage backends: derive from `StorageConformance`."""

from collections.abc import AsyncIterator

import pytest

from kvorum.storage import StorageBackend
from kvorum.testing.conformance.arguments import ArgumentsConformance
from kvorum.testing.conformance.commits import CommitsConformance
from kvorum.testing.conformance.leases import LeasesConformance
from kvorum.testing.conformance.reading import ReadingConformance
from kvorum.testing.conformance.sequences import SequencesConformance
from kvorum.testing.conformance.store import Compact, OpenStore, Store, Watchers
from kvorum.testing.conformance.watch_ends import WatchEndsConformance
from kvorum.testing.conformance.watching import WatchingConformance
from kvorum.testing.conformance.writing import WritingConformance


@pytest.mark.anyio
class StorageConformance(
    ArgumentsConformance,
    ReadingConformance,
    WritingConformance,
    CommitsConformance,
    LeasesConformance,
    WatchingConformance,
    WatchEndsConformance,
    SequencesConformance,
):
    """The contract of `kvorum.storage`, as tests.

    Derive from it, name the class `Test…`, and provide a way to open a store::

        class TestMyBackend(kvorum.testing.StorageConformance):
            @pytest.fixture
            def open_store(self) -> kvorum.testing.OpenStore:
                return MyStore.open

    The tests run under anyio's pytest plugin on asyncio, whatever the project's own `anyio_backend`
    is; override that fixture in the class to choose the event loop.
    """

    # anyio's own fixture includes trio, which Kvorum does not support. Its scope is the session, so
    # that async fixtures of any scope may depend on it.
    @pytest.fixture(scope="session")
    @classmethod
    def anyio_backend(cls) -> str:
        """The event loop of the tests."""
        return "asyncio"

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Return a callable that opens an empty store. Each test calls it at least once."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a fixture `open_store`; see StorageConformance"
        )

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[Store]:
        """An empty store for this test."""
        async with open_store() as store:
            yield store

    @pytest.fixture
    def backend(self, store: Store) -> StorageBackend:
        """The backend under test."""
        return store.backend

    @pytest.fixture
    def compact(self, store: Store) -> Compact:
        """Compact the history before a revision."""
        return store.compact

    @pytest.fixture
    def watchers(self, store: Store) -> Watchers:
        """Return the number of watches that the store serves."""
        return store.watchers
