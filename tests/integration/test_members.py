"""Writes are batched only if every member is known to apply them the same way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
import trustme
from aetcd import rpc

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Observer, ServerTls
from kvorum.embedded.loopback_port import LoopbackPort
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport import MembersTiming, TransportPolicies
from kvorum.etcd.transport.members import version_by_http
from kvorum.etcd.transport.versions import Version, format_version
from kvorum.observer import Call
from kvorum.testing import FaultProxy

# The second checks roles within a batch; the third counts it towards the quota, too.
OLD, CHECKS, COUNTS = (3, 5, 16), (3, 5, 30), (3, 5, 33)

pytestmark = pytest.mark.timeout(120)


class Told(Observer):
    """Changes what members tell, and remembers what the client has read.

    Attributes:
        versions: by endpoint, what a member tells in place of its version.
        refused: the type of a request about the members that is refused, and with what.
        is_holding: whether requests about the members are never sent.
        read: what the client has accepted.
        told: how often a member has told its version.
        answered: set when all members have; None to hold no answer.
        let_through: lets those answers through.
        balanced: the endpoint where the member answers which told its version first.
        member: the id of that one.
        lists: when the list of members was requested.
        asked: requests about the members, as type and endpoint.
    """

    def __init__(self) -> None:
        self.versions: dict[str, Version] = {}
        self.refused: tuple[type, kvorum.KvorumError] | None = None
        self.is_holding = False
        self.balanced: str | None = None
        self.member = 0
        self.lists: list[float] = []
        self.asked: set[tuple[type, str]] = set()
        self.read: list[Sequence[Version | None]] = []
        self.told = 0
        self.answered: anyio.Event | None = None
        self.let_through = anyio.Event()
        self._changed = anyio.Event()

    async def before_request(self, call: Call, endpoint: str, message: object) -> None:
        if call.operation != "members":
            return
        self.asked.add((type(message), endpoint))
        if isinstance(message, rpc.MemberListRequest) and message.linearizable:
            self.lists.append(anyio.current_time())
        if self.is_holding:
            await anyio.sleep_forever()
        if self.refused and isinstance(message, self.refused[0]):
            raise self.refused[1]

    async def after_request(self, call: Call, endpoint: str, answer: Any) -> None:
        if isinstance(answer, rpc.StatusResponse) and call.operation == "members":
            self.member = self.member or answer.header.member_id
            if endpoint == self.balanced:
                answer.header.member_id = self.member
            version = self.versions.get(endpoint)
            if version is not None:
                answer.version = format_version(version)
            self.told += 1
            if self.answered is not None and self.told > 1:  # the first member is asked twice
                if self.told == 1 + len(self.versions):
                    self.answered.set()
                await self.let_through.wait()

    def members_read(self, versions: Sequence[Version | None]) -> None:
        self.read.append(versions)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def until(self, versions: Sequence[Version | None]) -> None:
        """Wait until the client has read these versions of the members, in any order."""
        with anyio.fail_after(20):
            while not self.read or Counter(self.read[-1]) != Counter(versions):
                await self._changed.wait()


class Cluster:
    """A cluster with users, whose members tell the versions that a test wants to hear."""

    def __init__(self, etcd: EmbeddedEtcd, told: Told) -> None:
        self.etcd = etcd
        self.told = told
        self.tell(CHECKS)
        self.client = self.connect(MembersTiming())

    def connect(self, timing: MembersTiming, endpoint: str | None = None) -> kvorum.Client:
        """Return a client of the first member, or at that endpoint."""
        settings = EtcdSettings(
            endpoints=(endpoint or self.etcd.endpoints[0],),
            prefix="lab",
            user="root",
            password="a secret",
            timeout=20,
        )
        policies = Policies(transport=TransportPolicies(members=timing))
        return kvorum.connect(settings, observer=self.told, policies=policies)

    def tell(self, version: Version, *, only: int | None = None) -> None:
        """Have all members tell that version, or one of them."""
        for endpoint in self.etcd.endpoints if only is None else [self.etcd.endpoints[only]]:
            self.told.versions[endpoint] = version

    async def until_read(self) -> None:
        """Wait until the client knows what the members tell."""
        await self.told.until(list(self.told.versions.values()))


async def batches(client: kvorum.Client) -> bool:
    """Write concurrently; return whether that took fewer requests than writes."""
    before = client.pipeline.statistics()
    await asyncio.gather(*(client.backend.create(f"{before.writes}-{n}", b"1") for n in range(50)))
    now = client.pipeline.statistics()
    return now.write_requests - before.write_requests < now.writes - before.writes


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def cluster(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any], told: Told
) -> AsyncIterator[Cluster]:
    flags = ["--bcrypt-cost=4", "--auth-token=simple"]
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, members=3, arguments=flags) as etcd:
        async with kvorum.connect(etcd.url) as client:
            await roles_of(client).enable("a secret")
        yield Cluster(etcd, told)


async def test_a_user_s_writes_are_batched_if_every_member_checks(cluster: Cluster) -> None:
    cluster.tell(COUNTS)
    async with cluster.client:
        await cluster.until_read()
        assert await batches(cluster.client)


async def test_a_user_s_writes_are_not_batched_if_a_member_it_never_talks_to_does_not_check(
    cluster: Cluster,
) -> None:
    """That member would apply what the others refuse.

    The client has to know all members, not just those that it has asked.
    """
    cluster.tell(OLD, only=2)
    async with cluster.client:
        await cluster.until_read()
        assert not await batches(cluster.client)


async def test_a_user_s_writes_are_not_batched_while_a_member_cannot_be_asked(
    cluster: Cluster, told: Told
) -> None:
    """It may come back as another version, and then apply what it has missed."""
    cluster.tell(COUNTS)
    await cluster.etcd.kill(2)
    async with cluster.client:
        await told.until([COUNTS, COUNTS, None])
        assert not await batches(cluster.client)


async def test_members_are_read_again_after_a_new_connection(cluster: Cluster) -> None:
    cluster.tell(COUNTS)
    async with cluster.client as client:
        await cluster.until_read()
        cluster.tell(OLD, only=1)  # it was restarted
        client.connection.cluster.leave(client.connection.cluster.current)
        await client.backend.get("a")

        assert not await batches(client)
        await cluster.until_read()
        assert not await batches(client)


async def test_an_answer_from_before_a_change_of_the_members_is_discarded(
    cluster: Cluster, told: Told
) -> None:
    cluster.tell(COUNTS)
    told.answered = anyio.Event()
    async with cluster.client as client:
        with anyio.fail_after(5):
            await told.answered.wait()
        client.connection.cluster.on_change()
        cluster.tell(OLD)
        told.let_through.set()
        await cluster.until_read()

    assert told.read == [[OLD] * 3]


async def test_an_answer_about_the_members_counts_for_a_limited_time(
    cluster: Cluster, told: Told
) -> None:
    """Without further answers, a member may have changed since."""
    cluster.tell(COUNTS)
    async with cluster.connect(MembersTiming(fresh=0)) as client:
        await cluster.until_read()
        told.is_holding = True
        assert not await batches(client)


async def test_members_are_not_read_without_a_pause(kvorum_url: str, told: Told) -> None:
    """However often connections are replaced: that happens most where there is trouble already."""
    async with kvorum.connect(kvorum_url, observer=told) as client:
        with anyio.fail_after(10):
            while len(told.lists) < 2:
                client.connection.cluster.on_change()
                await anyio.sleep(0.01)

    assert told.lists[1] - told.lists[0] > 0.9


async def test_writes_of_a_user_that_may_not_list_the_members_are_not_batched(
    cluster: Cluster, told: Told
) -> None:
    told.refused = rpc.MemberListRequest, kvorum.PermissionDeniedError("members of the cluster")
    async with cluster.client:
        await told.until([])
        assert not await batches(cluster.client)


# --- proxies and balancers ------------------------------------------------------------------------


@asynccontextmanager
async def grpc_proxy(etcd: EmbeddedEtcd, folder: Path, *, advertise: str) -> AsyncIterator[str]:
    """Run etcd's own proxy in front of the first member; yield its address."""
    port = LoopbackPort()
    port.lend()
    process = await asyncio.create_subprocess_exec(
        *(etcd.binary, "grpc-proxy", "start", f"--endpoints={etcd.endpoints[0]}"),
        *(f"--listen-addr={port}", f"--advertise-client-url={advertise.format(port=port)}"),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield str(port)
    finally:
        process.kill()
        await process.wait()
        port.close()


async def test_a_user_s_writes_are_not_batched_behind_a_proxy_that_lists_itself_only(
    cluster: Cluster, told: Told, tmp_path: Path
) -> None:
    """Its list has no member, so the version of the one behind it is not that of all."""
    async with grpc_proxy(cluster.etcd, tmp_path, advertise="{port}") as address:
        told.versions = {address: COUNTS}
        async with cluster.connect(MembersTiming(), address) as client:
            await told.until([])
            assert not await batches(client)


async def test_members_are_known_through_a_proxy_that_passes_their_list_on(
    cluster: Cluster, told: Told, tmp_path: Path
) -> None:
    cluster.tell(COUNTS)
    async with grpc_proxy(cluster.etcd, tmp_path, advertise="") as address:
        told.versions[address] = COUNTS
        async with cluster.connect(MembersTiming(), address) as client:
            await told.until([COUNTS] * 3)
            assert await batches(client)


async def test_a_version_is_that_of_the_member_which_has_told_it(
    cluster: Cluster, told: Told
) -> None:
    """Behind a balancer that need not be the member which has answered before."""
    cluster.tell(COUNTS)
    told.balanced = cluster.etcd.endpoints[1]
    async with cluster.client as client:
        await told.until([COUNTS, COUNTS, None])
        assert not await batches(client)


async def test_a_version_that_root_alone_is_told_counts_at_a_member_s_own_address(
    kvorum_etcd: EmbeddedEtcd, told: Told
) -> None:
    """It is read on another connection, which leads to that member too."""
    told.refused = rpc.StatusRequest, kvorum.PermissionDeniedError("a test")
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd,
        FaultProxy(etcd.endpoints[0]) as balancer,
        kvorum.connect(EtcdSettings(endpoints=(balancer.endpoint,)), observer=told) as client,
    ):
        await told.until([client.connection.version] * 3)


async def test_a_version_that_root_alone_is_told_does_not_count_at_another_address(
    kvorum_etcd: EmbeddedEtcd, told: Told
) -> None:
    """Another connection to a balancer may lead to another member."""
    told.refused = rpc.StatusRequest, kvorum.PermissionDeniedError("a test")
    nowhere = ["--advertise-client-urls=http://127.0.0.1:1"]
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3, arguments=nowhere) as etcd,
        kvorum.connect(EtcdSettings(endpoints=etcd.endpoints), observer=told),
    ):
        await told.until([None] * 3)


# --- addresses ------------------------------------------------------------------------------------


class OtherServer(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """A server at an address that a member advertises by mistake.

    It accepts no token, and remembers its calls.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.calls.append(handler_call_details.method)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, _request: bytes, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")


def advertising(kvorum_etcd: EmbeddedEtcd, address: str) -> EmbeddedEtcd:
    """A server that advertises an address which is not its own."""
    arguments = [f"--advertise-client-urls=http://{address}", "--auth-token=simple"]
    return EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments)


async def test_the_password_does_not_go_to_an_address_that_a_member_advertises(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any], told: Told
) -> None:
    """It may lead to any server, such as another one on `localhost`."""
    other, server = OtherServer(), grpc.aio.server()
    server.add_generic_rpc_handlers((other,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with advertising(kvorum_etcd, address) as etcd:
        async with kvorum.connect(etcd.url) as client:
            await roles_of(client).enable("a secret")
        told.refused = rpc.StatusRequest, kvorum.UnavailableError(address, "a test")
        settings = EtcdSettings(endpoints=etcd.endpoints, user="root", password="a secret")
        async with kvorum.connect(settings, observer=told) as client:
            await told.until([None])
            assert await client.backend.set("a", b"1")
    await server.stop(0)

    assert {*other.calls} == {"/etcdserverpb.Cluster/MemberList"}


async def test_an_address_where_another_cluster_answers_tells_nothing_of_a_member(
    kvorum_etcd: EmbeddedEtcd, told: Told
) -> None:
    other = kvorum_etcd.endpoints[0]
    async with advertising(kvorum_etcd, other) as etcd:
        told.refused = rpc.StatusRequest, kvorum.UnavailableError(etcd.endpoints[0], "a test")
        async with kvorum.connect(etcd.url, observer=told):
            await told.until([None])

    assert (rpc.MemberListRequest, other) in told.asked
    assert (rpc.StatusRequest, other) not in told.asked


async def test_the_versions_of_all_members_are_known_from_one_of_them(
    kvorum_etcd: EmbeddedEtcd, told: Told
) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd,
        kvorum.connect(EtcdSettings(endpoints=etcd.endpoints[:1]), observer=told) as client,
    ):
        await told.until([client.connection.version] * 3)


async def test_a_member_that_advertises_an_unusable_address_is_known_by_the_one_in_the_settings(
    kvorum_etcd: EmbeddedEtcd, told: Told
) -> None:
    """As `localhost`, or a container's address: nothing may answer there, or another server."""
    async with (
        advertising(kvorum_etcd, "127.0.0.1:1") as etcd,
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(EtcdSettings(endpoints=(proxy.endpoint,)), observer=told) as client,
    ):
        await told.until([client.connection.version])


async def test_asking_leaves_nothing_behind_when_the_client_is_closed(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    before = asyncio.all_tasks()
    for _ in range(5):
        async with kvorum.connect(kvorum_etcd.url):
            await asyncio.sleep(0)

    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("tls", [False, True])
async def test_the_version_can_be_read_by_http_without_a_user(
    kvorum_etcd: EmbeddedEtcd, tmp_path: Path, *, tls: bool
) -> None:
    """By gRPC some versions tell it to root only. With TLS, a client shows its certificate."""
    server = None
    ca = trustme.CA()
    if tls:
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        issued = ca.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        server = ServerTls(
            str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), str(tmp_path / "ca.pem")
        )
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=server) as etcd:
        settings = EtcdSettings(endpoints=etcd.endpoints)
        if tls:
            cacert, cert, key = (str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key"))
            settings = EtcdSettings(endpoints=etcd.endpoints, cacert=cacert, cert=cert, key=key)
        async with kvorum.connect(settings) as client:
            with anyio.fail_after(5):
                assert (
                    await version_by_http(etcd.endpoints[0], settings) == client.connection.version
                )


async def test_what_answers_without_a_version_is_no_member() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 404 Not Found\r\n\r\nno such page")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="no version"):
            await version_by_http(f"127.0.0.1:{port}", EtcdSettings())
