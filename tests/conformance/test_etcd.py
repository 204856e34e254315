"""The conformance suite on etcd, and tests of etcd only."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import kvorum
from kvorum import Operation
from kvorum.testing import OpenStore, StorageConformance, Store


class EtcdStore(Store):
    def __init__(
        self,
        backend: kvorum.StorageBackend,
        deployment: Any,
        count: Callable[[kvorum.EmbeddedEtcd], Awaitable[int]],
    ) -> None:
        self._backend = backend
        self._deployment = deployment
        self._count = count

    @property
    def backend(self) -> kvorum.StorageBackend:
        return self._backend

    async def compact(self, revision: int) -> None:
        async with kvorum.connect(self._deployment.operator) as client:
            await client.admin.compact(revision)

    async def watchers(self) -> int:
        return await self._count(self._deployment.etcd)


class TestEtcdStorageBackend(StorageConformance):
    """On each deployment: see `conftest`."""

    @pytest.fixture
    def open_store(
        self, deployment: Any, count_watchers: Callable[[kvorum.EmbeddedEtcd], Awaitable[int]]
    ) -> OpenStore:
        @asynccontextmanager
        async def open_etcd() -> AsyncIterator[Store]:
            async with kvorum.connect(deployment.user) as client:
                backend = kvorum.EtcdStorageBackend(
                    client, f"{client.settings.prefix}/{uuid.uuid4()}"
                )
                yield EtcdStore(backend, deployment, count_watchers)

        return open_etcd


async def test_a_slow_reader_of_a_long_backlog_has_a_bounded_buffer(
    kvorum_client: kvorum.Client,
) -> None:
    """The server keeps unread changes: 100,000 cost the client a few thousand."""
    backend = kvorum_client.backend
    start = await backend.set("a", b"")
    limiter = anyio.Semaphore(64)

    async def write(number: int) -> None:
        async with limiter:
            await backend.commit([Operation.create(f"k{number}-{n}", b"") for n in range(20)])

    await asyncio.gather(*(write(number) for number in range(5_000)))

    buffered: list[int] = []
    shown: list[int] = []
    async with backend.watch("", since=start) as watch:
        with anyio.fail_after(60):
            while len(shown) < 5_000:
                changes = await anext(watch)
                assert len(changes) == 20
                shown.append(changes[0].revision)
                if len(shown) % 10 == 0:
                    found = re.search(r"(\d+) buffered", repr(watch))
                    assert found is not None
                    buffered.append(int(found[1]))
                    await asyncio.sleep(0)  # let the reader buffer ahead

    assert shown == sorted(set(shown))
    assert max(buffered) <= 1_000 + 1_000 * 20  # a message of etcd has up to 1000 revisions
    assert max(buffered) > 0
