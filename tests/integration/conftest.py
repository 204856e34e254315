"""A test that takes `client` or `store_url` runs on both stores.

What it says about resources is the same on either.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import kvorum

# What looks at the calls that go to etcd has nothing to look at in memory.
ETCD_ONLY = frozenset({"requests", "small_pages"})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store_url" in metafunc.fixturenames:
        stores = ["etcd"] if ETCD_ONLY.intersection(metafunc.fixturenames) else ["etcd", "memory"]
        metafunc.parametrize("store_url", stores, indirect=True)


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of a store of the test's own."""
    on_etcd: str = "" if request.param == "memory" else request.getfixturevalue("kvorum_url")
    return on_etcd or "memory://"


@pytest.fixture
async def client(store_url: str) -> AsyncIterator[kvorum.Client]:
    """An open client on a store of the test's own."""
    async with kvorum.connect(store_url) as client:
        yield client


@pytest.fixture
def compact(
    client: kvorum.Client, request: pytest.FixtureRequest
) -> Callable[[int], Awaitable[None]]:
    """Forget all history before a revision."""
    backend = client.backend
    if isinstance(backend, kvorum.MemoryStorageBackend):
        return backend.compact
    on_etcd: Callable[[int], Awaitable[None]] = request.getfixturevalue("compact_etcd")
    return on_etcd


@pytest.fixture
def watchers(client: kvorum.Client, request: pytest.FixtureRequest) -> Callable[[], Awaitable[int]]:
    """Count the watches that the store serves, whosever they are."""
    backend = client.backend
    if not isinstance(backend, kvorum.MemoryStorageBackend):
        on_etcd: Callable[[], Awaitable[int]] = request.getfixturevalue("watchers_of_etcd")
        return on_etcd

    async def count() -> int:
        return backend.open_watches

    return count
