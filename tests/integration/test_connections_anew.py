"""A connection that was lost while the client was idle.

Nothing passes on the next one before it has been looked at.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import kvorum
from kvorum import AnotherClusterError, EmbeddedEtcd, EtcdSettings
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.errors import Call, TokenRefusedError
from kvorum.etcd.transport.server import Server
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy, kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    settings = EtcdSettings(
        endpoints=(proxy.endpoint,), prefix=kvorum_url.rpartition("/")[2], timeout=3
    )
    async with kvorum.connect(settings) as client:
        yield client


class Look:
    """Keeps the answers to `Status` back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = anyio.Event()
        self.end = anyio.Event()
        right = Server.call

        async def call(server: Server, stub: Any, request: Any, call: Call, *rest: Any) -> Any:
            answer = await right(server, stub, request, call, *rest)
            if call.operation == "status":
                self.came.set()
                await self.end.wait()
            return answer

        monkeypatch.setattr(Server, "call", call)


async def lose(client: kvorum.Client, proxy: FaultProxy) -> None:
    """Cut the connection of an idle client."""
    proxy.cut()
    with anyio.fail_after(5):
        while client.connection.cluster.current.calls.is_connected:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)


async def test_no_write_gets_to_another_cluster_while_it_is_looked_at(
    client: kvorum.Client,
    proxy: FaultProxy,
    kvorum_etcd: EmbeddedEtcd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await client.backend.set("mine", b"1")
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as stranger:
        proxy.redirect(stranger.endpoints[0])
        await lose(client, proxy)
        look = Look(monkeypatch)
        calls: list[asyncio.Task[Any]] = [asyncio.create_task(client.backend.get("mine"))]
        with anyio.fail_after(5):
            await look.came.wait()
        assert client.connection.cluster.current.calls.is_connected
        calls += [
            asyncio.create_task(client.backend.set(f"{number}", b"2", unique=True))
            for number in range(10)
        ]
        await asyncio.wait(calls, timeout=0.2)
        look.end.set()
        ends = await asyncio.gather(*calls, return_exceptions=True)

        assert {type(end) for end in ends} <= {AnotherClusterError, kvorum.UnavailableError}
        async with kvorum.connect(stranger.url) as other:
            answer = await other.connection.range(
                rpc.RangeRequest(key=b"\0", range_end=b"\0"), "all"
            )
        assert [pair.key for pair in answer.kvs] == []


async def test_the_store_may_have_been_put_back_until_the_new_connection_was_looked_at(
    client: kvorum.Client, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.backend.set("a", b"0")
    revision = await client.backend.set("a", b"1")
    assert not client.backend.may_recur(revision)
    await lose(client, proxy)
    assert client.backend.may_recur(revision)

    look = Look(monkeypatch)
    call = asyncio.create_task(client.backend.get("a"))
    with anyio.fail_after(5):
        await look.came.wait()
    assert client.connection.cluster.current.calls.is_connected
    assert client.backend.may_recur(revision)
    look.end.set()
    await call
    assert client.backend.may_recur(revision)


async def test_a_question_for_its_health_does_not_pass_for_a_look_at_the_server(
    client: kvorum.Client, proxy: FaultProxy
) -> None:
    """It makes the connection, but nothing follows from it for calls."""
    revision = await client.backend.set("a", b"1")
    await lose(client, proxy)
    cluster = client.connection.cluster
    await client.connection.status(cluster.current)

    assert cluster.current.calls.is_connected
    assert client.backend.may_recur(revision)
    assert not cluster.is_prepared(cluster.current)
    await client.backend.get("a")
    assert cluster.is_prepared(cluster.current)


async def test_fetching_a_token_does_not_pass_for_a_look_at_the_server(
    client: kvorum.Client, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is due is fetched on the same connection, and makes it."""
    revision = await client.backend.set("a", b"1")
    cluster = client.connection.cluster
    monkeypatch.setattr(cluster.tokens, "has_user", True)
    cluster.tokens._ends = time.monotonic() + 0.05

    async def renew_token(server: Server, _refused: str, deadline: float) -> None:
        request = (
            rpc.StatusRequest()
        )  # in place of Authenticate, which makes the connection as well
        await server.calls.maintenance.Status(request, timeout=deadline - anyio.current_time())
        cluster.tokens._ends = float("inf")

    monkeypatch.setattr(cluster, "renew_token", renew_token)
    await lose(client, proxy)
    with anyio.fail_after(5):
        while not cluster.tokens.is_due:  # noqa: ASYNC110 - a clock
            await anyio.sleep(0.01)
    await client.backend.get("a")

    assert client.backend.may_recur(revision)  # it was read before the connection of now


async def test_a_call_whose_token_was_refused_is_not_sent_again_on_a_connection_made_anew(
    client: kvorum.Client, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before that has been looked at: it is tried again, as what did nothing."""
    cluster = client.connection.cluster
    monkeypatch.setattr(cluster.tokens, "has_user", True)
    monkeypatch.setattr(cluster.tokens, "token", "of before")
    sent: list[str] = []
    right = Server.call

    async def refuse_once(server: Server, stub: Any, request: Any, call: Any, *rest: Any) -> Any:
        sent.append(call.operation)
        if sent == ["put"]:
            raise TokenRefusedError("etcdserver: invalid auth token")
        return await right(server, stub, request, call, *rest)

    async def renew_token(*_: object) -> None:
        await lose(client, proxy)

    monkeypatch.setattr(Server, "call", refuse_once)
    monkeypatch.setattr(cluster, "renew_token", renew_token)
    await client.backend.set("a", b"1")

    assert [operation for operation in sent if operation in {"put", "status"}] == [
        "put",
        "status",
        "put",
    ]
