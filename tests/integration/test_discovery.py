"""Members that are found and forgotten while calls and questions are on their way to them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from aetcd import rpc

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, PermissionDeniedError, UnavailableError
from kvorum.etcd.transport.cluster import Cluster
from kvorum.etcd.transport.server import Server
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(60)


class Found:
    """A client of one server, and another address of that, which its cluster names as that of a member, or does not."""

    def __init__(self, client: kvorum.Client, address: str) -> None:
        self.cluster: Cluster = client.connection.cluster
        self._first, self._address = self.cluster.current.address, address
        self._name(self._first, self._address)
        self.server: Server = self.cluster.servers[1]

    def forget(self) -> None:
        self._name(self._first)
        assert self.server not in self.cluster.servers

    def _name(self, *addresses: str) -> None:
        members = [{"clientURLs": [f"http://{address}"]} for address in addresses]
        self.cluster.add(rpc.MemberListResponse(members=members))


@pytest.fixture
def settings(kvorum_etcd: EmbeddedEtcd, kvorum_url: str) -> EtcdSettings:
    """With a prefix of the test's own."""
    return EtcdSettings(
        endpoints=kvorum_etcd.endpoints, prefix=kvorum_url.rpartition("/")[2], timeout=5
    )


@pytest.fixture
async def client(settings: EtcdSettings) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(settings) as client:
        yield client


@pytest.fixture
async def found(client: kvorum.Client, kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[Found]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield Found(client, proxy.endpoint)


class Token:
    """A user's token that is being fetched."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = anyio.Event()
        self.end = anyio.Event()

        async def renew_token(*_: object) -> None:
            self.asked.set()
            await self.end.wait()

        monkeypatch.setattr(cluster.tokens, "has_user", True)
        monkeypatch.setattr(cluster, "renew_token", renew_token)


async def test_a_call_whose_member_is_forgotten_before_it_is_sent_goes_to_another_one(
    client: kvorum.Client, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    found.cluster.current = found.server
    token = Token(found.cluster, monkeypatch)
    call = asyncio.create_task(client.backend.set("a", b"1"))
    with anyio.fail_after(5):
        await token.asked.wait()
        found.forget()
        token.end.set()
        await call

    assert not found.server.is_open


async def test_a_member_that_is_forgotten_while_it_is_asked_ends_no_client(
    client: kvorum.Client, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = Token(found.cluster, monkeypatch)
    found.cluster.pulse_of(found.server).ask()
    with anyio.fail_after(5):
        await token.asked.wait()
        found.forget()
        token.end.set()
        while found.server.preparing.locked():  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)
        await client.backend.set("a", b"1")

    assert client.connection.supervisor.failure is None
    assert not found.server.is_open


async def test_a_forgotten_member_gets_no_channels_again(found: Found) -> None:
    """Nothing would close them."""
    found.forget()
    with pytest.raises(UnavailableError, match="no such member any more"):
        await found.cluster.prepare(found.server, anyio.current_time() + 5)

    assert not found.server.is_open


async def test_a_mistake_in_a_question_of_the_background_is_logged_and_ends_no_client(
    settings: EtcdSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> Any:
        raise ZeroDivisionError("a mistake of ours")

    async with kvorum.connect(msgspec.structs.replace(settings, discover_interval=0.01)) as client:
        cluster, quota = client.connection.cluster, client.pipeline._quota
        monkeypatch.setattr(cluster, "_is_alive", fail)
        monkeypatch.setattr(quota, "_ask", fail)
        monkeypatch.setattr(client.connection, "discover", fail)
        cluster.pulse_of(cluster.current).ask()
        quota.look()
        channel = type(cluster.current.calls)(settings.endpoints[0], {}, None, None)
        monkeypatch.setattr(channel, "aclose", fail)
        cluster.close_later(channel)
        with anyio.fail_after(5):
            while caplog.text.count("ZeroDivisionError: a mistake of ours") < 5:  # noqa: ASYNC110 - a log has no event
                await anyio.sleep(0.01)
        assert await client.backend.get("a") is None
        monkeypatch.undo()
        await channel.aclose()

    for words in (
        "look after a server",
        "kvorum-pipeline-alarms",
        "close a channel",
        "list of etcd's members",
    ):
        assert words in caplog.text


# --- the list -------------------------------------------------------------------------------------


async def test_a_list_of_members_that_is_root_s_alone_keeps_no_client_from_opening(
    settings: EtcdSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As some versions have it. That is logged once, however often the list is asked for."""
    asked = 0
    right = Server.call

    async def refuse(server: Server, stub: Any, request: Any, call: Any, *rest: Any) -> Any:
        nonlocal asked
        if isinstance(request, rpc.MemberListRequest) and call.subject == "the cluster":
            asked += 1
            raise PermissionDeniedError("members the cluster")
        return await right(server, stub, request, call, *rest)

    monkeypatch.setattr(Server, "call", refuse)
    async with kvorum.connect(msgspec.structs.replace(settings, discover_interval=0.01)) as client:
        assert await client.backend.get("a") is None
        with anyio.fail_after(5):
            while asked < 5:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.01)

    assert caplog.text.count("are not discovered") == 1


async def test_the_list_of_members_is_of_now(
    kvorum_etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that lags has an older one, by which those that joined would be forgotten."""
    asked: list[bool] = []
    right = Server.call

    async def note(server: Server, stub: Any, request: Any, *rest: Any) -> Any:
        if isinstance(request, rpc.MemberListRequest):
            asked.append(request.linearizable)
        return await right(server, stub, request, *rest)

    monkeypatch.setattr(Server, "call", note)
    async with kvorum.connect(EtcdSettings(endpoints=kvorum_etcd.endpoints, discover_interval=60)):
        assert asked[0]
