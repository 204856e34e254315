"""Members that are found and forgotten while calls and questions are on their way to them."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
from aetcd import rpc

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Observer, PermissionDeniedError, UnavailableError
from kvorum.etcd.transport.cluster import Cluster
from kvorum.etcd.transport.server import Server
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(60)


class Found:
    """A client of one server, and a second address of it, which the member list names or not."""

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
        self.cluster.update_members(rpc.MemberListResponse(members=members))


class Gate(Observer):
    """Holds a server that is being prepared, once it is told which.

    Attributes:
        held: the endpoint.
        at: which request is held: one for a token, or the answer to one for the status.
    """

    def __init__(self) -> None:
        self.held: str | None = None
        self.at = "authenticate"
        self.came = anyio.Event()
        self.open = anyio.Event()

    async def before_request(self, call: Call, endpoint: str, _message: object) -> None:
        if call.operation == self.at == "authenticate":
            await self._hold(endpoint)

    async def after_request(self, call: Call, endpoint: str, _answer: object) -> None:
        if call.operation == self.at == "status":
            await self._hold(endpoint)

    async def _hold(self, endpoint: str) -> None:
        if endpoint == self.held:
            self.came.set()
            await self.open.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def settings(kvorum_etcd: EmbeddedEtcd, kvorum_url: str) -> EtcdSettings:
    """With a prefix of the test's own."""
    return EtcdSettings(
        endpoints=kvorum_etcd.endpoints, prefix=kvorum_url.rpartition("/")[2], timeout=5
    )


@pytest.fixture
async def client(settings: EtcdSettings, gate: Gate) -> AsyncIterator[kvorum.Client]:
    """A user's client, so that each server is asked for a token before it is used."""
    as_user = msgspec.structs.replace(settings, user="alice", password="a secret")
    async with kvorum.connect(as_user, observer=gate) as client:
        yield client


@pytest.fixture
async def found(
    client: kvorum.Client, gate: Gate, kvorum_etcd: EmbeddedEtcd
) -> AsyncIterator[Found]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        found = Found(client, proxy.endpoint)
        gate.held = found.server.address
        yield found


@pytest.mark.parametrize("at", ["authenticate", "status"])
async def test_a_call_whose_member_is_forgotten_before_it_is_sent_goes_to_another_one(
    client: kvorum.Client, found: Found, gate: Gate, at: str
) -> None:
    gate.at = at
    found.cluster.current = found.server
    call = asyncio.create_task(client.backend.set("a", b"1"))
    with anyio.fail_after(5):
        await gate.came.wait()
        found.forget()
        gate.open.set()
        await call

    assert not found.server.is_open
    assert not found.server.is_ready


async def test_a_member_that_is_forgotten_while_it_is_asked_ends_no_client(
    client: kvorum.Client, found: Found, gate: Gate
) -> None:
    found.cluster.pulse_of(found.server).ask()
    with anyio.fail_after(5):
        await gate.came.wait()
        found.forget()
        gate.open.set()
        async with found.server.preparing:
            pass
        await client.backend.set("a", b"1")

    assert client.connection.supervisor.failure is None
    assert not found.server.is_open


async def test_a_forgotten_member_gets_no_channels_again(found: Found) -> None:
    """Nothing would close them."""
    found.forget()
    with pytest.raises(UnavailableError, match="no such member any more"):
        await found.cluster.prepare(found.server, anyio.current_time() + 5)

    assert not found.server.is_open


class Mistaken(Observer):
    """Raises what no request should, in all requests of the background."""

    def __init__(self) -> None:
        self.is_on = False

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        if self.is_on and call.operation in {"status", "alarms", "members"}:
            raise ZeroDivisionError("a mistake of ours")


async def test_a_bug_in_a_background_task_is_logged_and_ends_no_client(
    settings: EtcdSettings, caplog: pytest.LogCaptureFixture
) -> None:
    mistaken = Mistaken()
    often = msgspec.structs.replace(settings, discover_interval=0.01)
    async with kvorum.connect(often, observer=mistaken) as client:
        mistaken.is_on = True
        cluster = client.connection.cluster
        cluster.pulse_of(cluster.current).ask()
        client.pipeline._quota.look()
        cluster.on_change()
        expected = {
            "background task kvorum-liveness failed",
            "background task kvorum-pipeline-alarms failed",
            "member list could not be read",
            "the members of the cluster could not be read",
        }
        with anyio.fail_after(5):
            while not all(words in caplog.text for words in expected):  # noqa: ASYNC110 - a log has no event
                await anyio.sleep(0.01)

        assert await client.backend.get("a") is None
    assert "ZeroDivisionError: a mistake of ours" in caplog.text


# --- the list -------------------------------------------------------------------------------------


class Lists(Observer):
    """Keeps the requests for the member list by discovery, and refuses them if asked to."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.requests: list[rpc.MemberListRequest] = []
        self.came_five_times = anyio.Event()
        self._refuse = refuse

    async def before_request(self, call: Call, _endpoint: str, message: object) -> None:
        if call != Call("members", "the cluster"):
            return
        self.requests.append(message)
        if len(self.requests) == 5:
            self.came_five_times.set()
        if self._refuse:
            raise PermissionDeniedError("members the cluster")


async def test_a_list_of_members_that_is_root_s_alone_keeps_no_client_from_opening(
    settings: EtcdSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """As some versions have it. That is logged once, however often the list is read."""
    often = msgspec.structs.replace(settings, discover_interval=0.01)
    lists = Lists(refuse=True)
    async with kvorum.connect(often, observer=lists) as client:
        assert await client.backend.get("a") is None
        with anyio.fail_after(5):
            await lists.came_five_times.wait()

    assert caplog.text.count("are not discovered") == 1


async def test_the_list_of_members_is_linearizable(kvorum_etcd: EmbeddedEtcd) -> None:
    """A member that lags has an older one, by which those that joined would be forgotten."""
    lists = Lists()
    settings = EtcdSettings(endpoints=kvorum_etcd.endpoints, discover_interval=60)
    async with kvorum.connect(settings, observer=lists):
        assert lists.requests[0].linearizable
