"""The backends that the suite of the storage port runs on, and the two things that a test needs beside the port.

Another backend joins by one more parameter of `backend`; no test may reach below the port.
"""

from collections.abc import Awaitable, Callable
from http.client import HTTPConnection

import anyio
import msgspec
import pytest

import kvorum


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


@pytest.fixture(params=["etcd"])
def backend(kvorum_client: kvorum.Client) -> kvorum.StorageBackend:
    return kvorum.EtcdStorageBackend(kvorum_client, kvorum_client.settings.prefix)


@pytest.fixture
def compact(kvorum_client: kvorum.Client) -> Callable[[int], Awaitable[None]]:
    """Forget all history before a revision."""

    async def run(revision: int) -> None:
        body = msgspec.json.encode({"revision": str(revision)})
        await anyio.to_thread.run_sync(_ask, kvorum_client.settings.endpoints[0], "POST", "/v3/kv/compaction", body)

    return run


@pytest.fixture
def watchers(kvorum_client: kvorum.Client) -> Callable[[], Awaitable[int]]:
    """Count the watches that the store serves, whosever they are."""

    async def run() -> int:
        text = await anyio.to_thread.run_sync(_ask, kvorum_client.settings.endpoints[0], "GET", "/metrics")
        found = [line for line in text.splitlines() if line.startswith("etcd_debugging_mvcc_watcher_total ")]
        return int(float(found[0].split()[1]))

    return run
