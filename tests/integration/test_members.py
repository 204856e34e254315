"""What goes through the log of a cluster takes a form that each of its members is known to take."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
import trustme

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, ServerTls
from kvorum.etcd.transport.members import UNKNOWN, Known, Members, known_of, version_by_http
from kvorum.etcd.transport.versions import Version
from kvorum.testing import FaultProxy

OLD, CHECKS, COUNTS = (
    (3, 5, 16),
    (3, 5, 30),
    (3, 5, 33),
)  # the second checks roles in a batch, the third counts it, too

pytestmark = pytest.mark.timeout(120)


class Cluster:
    """A cluster with users, whose members tell the versions that a test wants to hear."""

    def __init__(self, etcd: EmbeddedEtcd) -> None:
        self.etcd = etcd
        self.versions: dict[str, Version] = dict.fromkeys(etcd.endpoints, CHECKS)
        self.client = kvorum.connect(self.settings)

    @property
    def settings(self) -> EtcdSettings:
        first = self.etcd.endpoints[:1]
        return EtcdSettings(
            endpoints=first, prefix="lab", user="root", password="a secret", timeout=20
        )

    async def batches(self) -> bool:
        """Write at once; tell whether it took fewer requests than writes."""
        before = self.client.pipeline.statistics()
        await asyncio.gather(
            *(self.client.backend.create(f"{before.writes}-{n}", b"1") for n in range(50))
        )
        now = self.client.pipeline.statistics()
        return now.write_requests - before.write_requests < now.writes - before.writes

    async def until_known(self, known: Known | None = None) -> None:
        await until(self.client, known or known_of(list(self.versions.values())))


async def until(client: kvorum.Client, known: Known) -> None:
    """Wait until a client knows this of the members."""
    members = client.pipeline._members
    with anyio.fail_after(20):
        while members.known != known or (known == UNKNOWN and not members._fresh_until):  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)


@pytest.fixture
async def cluster(
    kvorum_etcd: EmbeddedEtcd,
    roles_of: Callable[[kvorum.Client], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Cluster]:
    flags = ["--bcrypt-cost=4", "--auth-token=simple"]
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, members=3, arguments=flags) as etcd:
        async with kvorum.connect(etcd.url) as client:
            await roles_of(client).enable("a secret")
        cluster = Cluster(etcd)

        async def version_of(_: Members, server: Any, _deadline: float) -> Version:
            return cluster.versions[server.address]

        monkeypatch.setattr(Members, "_version_of", version_of)
        yield cluster


async def test_a_user_writes_together_if_every_member_checks(cluster: Cluster) -> None:
    cluster.versions = dict.fromkeys(cluster.versions, COUNTS)
    async with cluster.client:
        await cluster.until_known()
        assert await cluster.batches()


async def test_a_user_writes_singly_if_a_member_that_it_never_talks_to_does_not_check(
    cluster: Cluster,
) -> None:
    """That one would apply what the others refuse.

    The client has to know all of them, not those that it asked.
    """
    cluster.versions[cluster.etcd.endpoints[2]] = OLD
    async with cluster.client:
        await cluster.until_known()
        assert not await cluster.batches()


async def test_a_user_writes_singly_while_a_member_cannot_be_asked(cluster: Cluster) -> None:
    """It may come back as another version, and applies then what it has missed."""
    cluster.versions = dict.fromkeys(cluster.versions, COUNTS)
    await cluster.etcd.kill(2)
    async with cluster.client:
        await until(cluster.client, known_of([COUNTS, COUNTS, None]))
        assert not await cluster.batches()


async def test_members_are_asked_again_when_a_connection_was_made_anew(cluster: Cluster) -> None:
    cluster.versions = dict.fromkeys(cluster.versions, COUNTS)
    async with cluster.client:
        await cluster.until_known()
        cluster.versions[cluster.etcd.endpoints[1]] = OLD  # it was restarted
        server = cluster.client.connection.cluster.current
        cluster.client.connection.cluster.leave(server)
        await cluster.client.backend.get("a")

        assert not await cluster.batches()
        await cluster.until_known()
        assert not await cluster.batches()


async def test_what_was_known_does_not_count_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers any more: what may have happened in the meantime nobody knows."""
    cluster.versions = dict.fromkeys(cluster.versions, COUNTS)
    async with cluster.client:
        await cluster.until_known()
        members = cluster.client.pipeline._members

        async def ask() -> Known:
            await anyio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(members, "_ask", ask)
        members._fresh_until = 0.0
        assert not await cluster.batches()


async def test_members_are_not_asked_without_a_pause(
    kvorum_client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a connection is made anew: that happens most where there is trouble already."""
    members = kvorum_client.pipeline._members
    asked: list[float] = []
    ask = members._ask

    async def counted() -> Known:
        asked.append(anyio.current_time())
        return await ask()

    monkeypatch.setattr(members, "_ask", counted)
    with anyio.fail_after(10):
        while len(asked) < 2:
            members.forget()
            await anyio.sleep(0.01)

    assert asked[1] - asked[0] > 0.9


async def test_who_may_not_ask_for_the_members_writes_singly(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> Any:
        raise kvorum.PermissionDeniedError("members of the cluster")

    monkeypatch.setattr(Members, "_list", refuse)
    async with cluster.client:
        await cluster.until_known(UNKNOWN)
        assert not await cluster.batches()


class Stranger(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """A server at an address that a member advertises by mistake.

    It takes no token, and remembers its calls.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.calls.append(handler_call_details.method)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, _request: bytes, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")


async def test_the_password_does_not_go_to_an_address_that_a_member_advertises(
    cluster: Cluster,
) -> None:
    """It may lead to any server, such as another one on `localhost`."""
    stranger, server = Stranger(), grpc.aio.server()
    server.add_generic_rpc_handlers((stranger,))
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with cluster.client as client:
        await client.pipeline._members._ask_at(endpoint, 1, {}, anyio.current_time() + 5)
        assert await client.backend.set("a", b"1")
    await server.stop(0)

    assert {*stranger.calls} == {"/etcdserverpb.Cluster/MemberList"}


async def test_the_versions_of_all_members_are_known_from_one_of_them(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd,
        kvorum.connect(EtcdSettings(endpoints=etcd.endpoints[:1])) as client,
    ):
        await until(client, known_of([client.connection.version] * 3))


async def test_a_member_that_advertises_an_address_of_no_use_is_known_by_the_one_in_the_settings(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """As `localhost`, or a container's address: there may be nobody, or another server."""
    arguments = ["--advertise-client-urls=http://127.0.0.1:1"]
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments) as etcd,
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(EtcdSettings(endpoints=(proxy.endpoint,))) as client,
    ):
        await until(client, known_of([client.connection.version]))


async def test_an_address_where_another_cluster_answers_tells_nothing_of_a_member(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd, kvorum.connect(etcd.url) as client:
        versions: dict[int, Version] = {}
        await client.pipeline._members._ask_at(
            kvorum_etcd.endpoints[0], 1, versions, anyio.current_time() + 5
        )

    assert versions == {}


async def test_asking_leaves_nothing_behind_when_the_client_is_closed(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    before = asyncio.all_tasks()
    for _ in range(5):
        async with kvorum.connect(kvorum_etcd.url):
            await asyncio.sleep(0)

    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("tls", [False, True])
async def test_anybody_may_ask_for_the_version_by_http(
    kvorum_etcd: EmbeddedEtcd, tmp_path: Path, *, tls: bool
) -> None:
    """Some versions tell it to root alone by gRPC.

    Also where a client has to show a certificate.
    """
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
