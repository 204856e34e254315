"""A test that takes `client` or `target` runs on both stores; what it says about resources is the same on either."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import kvorum

# What looks at the calls that go to etcd has nothing to look at in memory.
ETCD_ONLY = frozenset({"requests", "small_pages"})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        stores = ["etcd"] if ETCD_ONLY.intersection(metafunc.fixturenames) else ["etcd", "memory"]
        metafunc.parametrize("target", stores, indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> str:
    """The URL of a store of the test's own."""
    return "memory://" if request.param == "memory" else request.getfixturevalue("kvorum_url")


@pytest.fixture
async def client(target: str) -> AsyncIterator[kvorum.Client]:
    """An open client on a store of the test's own."""
    async with kvorum.connect(target) as client:
        yield client


@pytest.fixture
def compact(client: kvorum.Client, compact: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
    """Forget all history before a revision."""
    backend = client.backend
    return backend.compact if isinstance(backend, kvorum.MemoryStorageBackend) else compact


@pytest.fixture
def watchers(client: kvorum.Client, watchers: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[int]]:
    """Count the watches that the store serves, whosever they are."""
    backend = client.backend
    if not isinstance(backend, kvorum.MemoryStorageBackend):
        return watchers

    async def count() -> int:
        return backend.open_watches

    return count
