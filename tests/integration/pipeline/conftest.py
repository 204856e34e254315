"""Clients whose writes are batched already, behind a proxy."""

from collections.abc import AsyncIterator

import pytest
from tests.integration.pipeline.batching import Requests, behind, warm_up

import kvorum
from kvorum import EmbeddedEtcd
from kvorum.etcd.policies import Policies
from kvorum.testing import FaultProxy


@pytest.fixture
def store(kvorum_client: kvorum.Client) -> kvorum.StorageBackend:
    """The store, past the proxy."""
    return kvorum_client.backend


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
def prefix(kvorum_url: str) -> str:
    return kvorum_url.rpartition("/")[2]


@pytest.fixture
def requests() -> Requests:
    """The requests of `client`."""
    return Requests()


@pytest.fixture
def policies() -> Policies:
    """The limits and waits of `client`; parametrize a test with others."""
    return Policies()


@pytest.fixture
async def client(
    proxy: FaultProxy, prefix: str, requests: Requests, policies: Policies
) -> AsyncIterator[kvorum.Client]:
    """A client behind the proxy, of the same prefix, whose writes are batched already."""
    settings = behind(proxy.endpoint, prefix)
    async with kvorum.connect(settings, observer=requests, policies=policies) as client:
        await warm_up(client)
        yield client
