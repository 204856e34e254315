"""A test that takes `client` or `store_url` runs on both stores.

What it says about resources is the same on either.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from tests.kinds import Task
from tests.rigs import Newer, NewRig, Older, OldRig
from tests.waiting import tasks_here, until

import kvorum
from kvorum import Repository
from kvorum.observer import Call, Observer
from kvorum.testing import FaultProxy

# Fixtures that look at the requests to etcd; the store in memory has none.
ETCD_ONLY = frozenset({"requests", "small_pages"})


class RequestLog(Observer):
    """Every request to etcd, by its operation, except those that a client makes by itself."""

    def __init__(self) -> None:
        self.made: list[str] = []

    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        del endpoint, message
        if call.operation not in {"status", "members"}:
            self.made.append(call.operation)


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
def request_log() -> RequestLog:
    return RequestLog()


@pytest.fixture
def requests(request_log: RequestLog) -> list[str]:
    """The operations of the requests that `client` has sent; a test clears it before it acts."""
    return request_log.made


@pytest.fixture
async def client(store_url: str, request_log: RequestLog) -> AsyncIterator[kvorum.Client]:
    """An open client on a store of the test's own."""
    async with kvorum.connect(store_url, observer=request_log) as client:
        yield client


@pytest.fixture
def store(client: kvorum.Client) -> kvorum.StorageBackend:
    return client.backend


@pytest.fixture
def tasks(client: kvorum.Client) -> Repository[Task]:
    return client.repository(Task)


@pytest.fixture
async def small_pages(
    client: kvorum.Client, request_log: RequestLog
) -> AsyncIterator[Repository[Task]]:
    """A repository that reads 10 keys with each request."""
    settings = msgspec.structs.replace(client.settings, page_size=10)
    async with kvorum.connect(settings, observer=request_log) as small:
        yield small.repository(Task)


@pytest.fixture
async def etcd(kvorum_etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[kvorum.EmbeddedEtcd]:
    """A server of the test's own, which it may stop, fill or put back."""
    async with kvorum.EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


@pytest.fixture
async def proxy(etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    """A proxy in front of that server."""
    async with FaultProxy(etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def direct(etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[kvorum.Client]:
    """A client of that server, beside the proxy."""
    async with kvorum.connect(f"{etcd.url}/lab") as client:
        yield client


@pytest.fixture
def compact(
    client: kvorum.Client, request: pytest.FixtureRequest
) -> Callable[[int], Awaitable[None]]:
    """Compact the history before a revision."""
    backend = client.backend
    if isinstance(backend, kvorum.MemoryStorageBackend):
        return backend.compact
    on_etcd: Callable[[int], Awaitable[None]] = request.getfixturevalue("compact_etcd")
    return on_etcd


@pytest.fixture
def watchers(client: kvorum.Client, request: pytest.FixtureRequest) -> Callable[[], Awaitable[int]]:
    """Count the watches that the store serves, of all clients."""
    backend = client.backend
    if not isinstance(backend, kvorum.MemoryStorageBackend):
        on_etcd: Callable[[], Awaitable[int]] = request.getfixturevalue("watchers_of_etcd")
        return on_etcd

    async def count() -> int:
        return backend.open_watches

    return count


@pytest.fixture
async def older(kvorum_url: str) -> AsyncIterator[Older]:
    """The rigs as the older program sees them, on etcd."""
    async with kvorum.connect(kvorum_url) as client:
        yield client.repository(OldRig)


@pytest.fixture
async def newer_client(kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    """The client of the newer program."""
    async with kvorum.connect(kvorum_url) as client:
        yield client


@pytest.fixture
def newer(newer_client: kvorum.Client) -> Newer:
    """The rigs as the newer program sees them."""
    return newer_client.repository(NewRig)


@pytest.fixture
async def nothing_left(
    client: kvorum.Client, watchers: Callable[[], Awaitable[int]]
) -> AsyncIterator[None]:
    """Check that the test leaves no watcher on the server, and no task of the open client here."""
    before = tasks_here()
    yield

    async def is_nothing_left() -> bool:
        return await watchers() == 0 and tasks_here() <= before

    await until(is_nothing_left)
    assert "[open]" in repr(client)
