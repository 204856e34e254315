"""A connection that was lost while the client was idle.

Nothing passes on the next one before it has been looked at.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest

import kvorum
from kvorum import AnotherClusterError, EmbeddedEtcd, EtcdSettings, Observer
from kvorum.etcd.transport import TokenRefusedError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy, look: "Look", kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(settings_of(proxy, kvorum_url), observer=look) as client:
        yield client


def settings_of(proxy: FaultProxy, kvorum_url: str) -> EtcdSettings:
    prefix = kvorum_url.rpartition("/")[2]
    return EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=3)


class Look(Observer):
    """Keeps the answers to `Status` back, from `begin` to `end`."""

    def __init__(self) -> None:
        self.is_on = False
        self.came = anyio.Event()
        self.end = anyio.Event()

    def begin(self) -> None:
        self.is_on = True

    async def after_request(self, call: Call, _endpoint: str, _answer: object) -> None:
        if self.is_on and call.operation == "status":
            self.came.set()
            await self.end.wait()


@pytest.fixture
def look() -> Look:
    return Look()


async def lose(client: kvorum.Client, proxy: FaultProxy) -> None:
    """Cut the connection of an idle client."""
    proxy.cut()
    with anyio.fail_after(5):
        while client.connection.cluster.current.calls.is_connected:  # noqa: ASYNC110 - gRPC has no event
            await anyio.sleep(0.01)


async def test_no_write_gets_to_another_cluster_while_it_is_looked_at(
    client: kvorum.Client,
    proxy: FaultProxy,
    kvorum_etcd: EmbeddedEtcd,
    look: Look,
) -> None:
    await client.backend.set("mine", b"1")
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as other_cluster:
        proxy.redirect(other_cluster.endpoints[0])
        await lose(client, proxy)
        look.begin()
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
        async with kvorum.connect(other_cluster.url) as other:
            answer = await other.connection.range(
                rpc.RangeRequest(key=b"\0", range_end=b"\0"), "all"
            )
        assert [pair.key for pair in answer.kvs] == []


async def test_the_store_may_have_been_put_back_until_the_new_connection_was_looked_at(
    client: kvorum.Client, proxy: FaultProxy, look: Look
) -> None:
    await client.backend.set("a", b"0")
    revision = await client.backend.set("a", b"1")
    assert not client.backend.may_recur(revision)
    await lose(client, proxy)
    assert client.backend.may_recur(revision)

    look.begin()
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


# --- users ----------------------------------------------------------------------------------------


class Tokens(Observer):
    """Refuses the token of the first put, and loses the connection once the next one is fetched."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.after: Callable[[], Awaitable[None]] | None = None

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        self.sent.append(call.operation)
        if self.after is not None and call.operation == "put":
            raise TokenRefusedError("etcdserver: invalid auth token")

    async def after_authentication(self, _endpoint: str) -> None:
        if self.after is not None:
            after, self.after = self.after, None
            await after()


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
async def user(proxy: FaultProxy, tokens: Tokens, kvorum_url: str) -> AsyncIterator[kvorum.Client]:
    """A client of a user, at a server that does not check users."""
    settings = settings_of(proxy, kvorum_url)
    as_user = msgspec.structs.replace(settings, user="alice", password="a secret")
    async with kvorum.connect(as_user, observer=tokens) as client:
        yield client


async def test_fetching_a_token_does_not_pass_for_a_look_at_the_server(
    user: kvorum.Client, proxy: FaultProxy, tokens: Tokens
) -> None:
    """It is fetched on the same connection, and makes that."""
    revision = await user.backend.set("a", b"1")
    await lose(user, proxy)
    tokens.sent.clear()
    await user.backend.get("a")

    assert tokens.sent[0] == "authenticate"
    assert user.backend.may_recur(revision)  # it was read on an earlier connection


async def test_a_call_whose_token_was_refused_is_not_sent_again_on_a_connection_made_anew(
    user: kvorum.Client, proxy: FaultProxy, tokens: Tokens
) -> None:
    """Not before that has been looked at: it is retried, as what did nothing."""
    tokens.after = partial(lose, user, proxy)
    tokens.sent.clear()
    await user.backend.set("a", b"1")

    assert [operation for operation in tokens.sent if operation in {"put", "status"}] == [
        "put",
        "status",
        "put",
    ]
