"""What all tests share."""

from collections.abc import Awaitable, Callable, Iterator
from http.client import HTTPConnection

import anyio
import anyio.to_thread
import msgspec
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

import kvorum

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio: grpc.aio knows no other."""
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Fail a test in which Kvorum's code blocks the event loop."""
    with blockbuster_ctx("kvorum") as guard:
        # grpc.aio joins its polling thread when the last channel of the process goes, which takes no time.
        guard.functions["threading.Lock.acquire"].can_block_in("threading.py", {"_wait_for_tstate_lock"})
        yield guard


# --- what neither the public API nor the storage port has a word for --------------------------------------------------


def _ask(endpoint: str, method: str, path: str, body: bytes = b"") -> str:
    """Talk to etcd's gateway for JSON, which shares the port with gRPC: the port has no word for these things."""
    connection = HTTPConnection(endpoint, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return text
    finally:
        connection.close()


@pytest.fixture
def compact_etcd(kvorum_etcd: kvorum.EmbeddedEtcd) -> Callable[[int], Awaitable[None]]:
    """Forget all history before a revision, in etcd."""

    async def run(revision: int) -> None:
        body = msgspec.json.encode({"revision": str(revision)})
        await anyio.to_thread.run_sync(_ask, kvorum_etcd.endpoints[0], "POST", "/v3/kv/compaction", body)

    return run


@pytest.fixture
def watchers_of_etcd(kvorum_etcd: kvorum.EmbeddedEtcd) -> Callable[[], Awaitable[int]]:
    """Count the watches that etcd serves, whosever they are."""

    async def run() -> int:
        text = await anyio.to_thread.run_sync(_ask, kvorum_etcd.endpoints[0], "GET", "/metrics")
        found = [line for line in text.splitlines() if line.startswith("etcd_debugging_mvcc_watcher_total ")]
        return int(float(found[0].split()[1]))

    return run
