"""Refusals of a member send the client to another one; a caller's short deadline does not."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, suppress

import anyio
import grpc
import pytest
from aetcd import rpc

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Observer, UnavailableError
from kvorum.deadlines import deadline_of
from kvorum.etcd.transport import _rpc
from kvorum.etcd.transport.errors import UnfitRequestError
from kvorum.observer import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(60)


class Stub(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """A server that reports its status, if told to, and refuses everything else.

    It counts requests.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.code = grpc.StatusCode.UNIMPLEMENTED
        self.detail = ""
        self.has_status = True
        self.refused = 0
        self.asked = Counter[str]()
        self.status = rpc.StatusResponse(version="3.5.16", leader=1)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.asked[handler_call_details.method.rpartition("/")[2]] += 1
        if self.has_status and handler_call_details.method.endswith("/Status"):
            return grpc.unary_unary_rpc_method_handler(self._tell)
        if handler_call_details.method.endswith("/Watch"):
            return grpc.stream_stream_rpc_method_handler(self._refuse_stream)
        if handler_call_details.method.endswith("/MemberList"):  # in the background
            return grpc.unary_unary_rpc_method_handler(self._abort)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _tell(self, _request: bytes, _context: object) -> bytes:
        return bytes(self.status.SerializeToString())

    async def _refuse(self, _request: bytes, context: grpc.aio.ServicerContext) -> None:
        self.refused += 1
        await self._abort(_request, context)

    async def _abort(self, _request: bytes, context: grpc.aio.ServicerContext) -> None:
        await context.abort(self.code, self.detail)

    async def _refuse_stream(
        self, _requests: object, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        await self._refuse(b"", context)
        yield b""


@pytest.fixture
async def stub(kvorum_client: kvorum.Client) -> AsyncIterator[Stub]:
    """It claims to be of the same cluster as etcd."""
    stub, server = Stub(), grpc.aio.server()
    stub.status.header.cluster_id = kvorum_client.connection.cluster.floor.cluster_id
    server.add_generic_rpc_handlers((stub,))
    stub.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield stub
    await server.stop(0)


def prefer(client: kvorum.Client, endpoint: str) -> None:
    """Send the next call there."""
    cluster = client.connection.cluster
    cluster.current = next(server for server in cluster.servers if server.address == endpoint)


REFUSALS = [
    (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: not capable"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"),
    (grpc.StatusCode.UNKNOWN, "raft proposal dropped"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    (grpc.StatusCode.UNIMPLEMENTED, "unknown service etcdserverpb.KV"),
]


@pytest.mark.parametrize(("code", "detail"), REFUSALS)
async def test_what_a_member_cannot_do_another_one_does(
    stub: Stub, kvorum_etcd: EmbeddedEtcd, code: grpc.StatusCode, detail: str
) -> None:
    """For reads, writes and watches: a refused request did nothing, so no outcome is unknown."""
    stub.code, stub.detail = code, detail
    settings = EtcdSettings(
        endpoints=(kvorum_etcd.endpoints[0], stub.endpoint), prefix="refusals", timeout=5
    )
    async with kvorum.connect(settings) as client:
        prefer(client, stub.endpoint)
        await client.backend.set("a", b"1")
        prefer(client, stub.endpoint)
        assert await client.backend.get("a") is not None
        prefer(client, stub.endpoint)
        async with client.backend.watch("") as watch:
            await client.backend.set("a", b"2")
            assert await anext(watch)

    assert stub.refused >= 3


@pytest.mark.parametrize(("code", "detail"), REFUSALS)
async def test_a_busy_member_is_skipped_and_need_not_be_prepared_again(
    stub: Stub, kvorum_etcd: EmbeddedEtcd, code: grpc.StatusCode, detail: str
) -> None:
    """Its refusal is an answer. One that cannot serve at all is prepared again before its use."""
    stub.code, stub.detail = code, detail
    is_busy = any(words in detail for words in ("no leader", "dropped", "too many requests"))
    settings = EtcdSettings(
        endpoints=(kvorum_etcd.endpoints[0], stub.endpoint), prefix="refusals", timeout=5
    )
    async with kvorum.connect(settings) as client:
        for number in range(4):
            prefer(client, stub.endpoint)
            await client.backend.set("a", f"{number}".encode())
            assert client.connection.endpoint == kvorum_etcd.endpoints[0]

    assert (stub.asked["Put"], stub.asked["Status"]) == ((4, 1) if is_busy else (4, 4))


async def test_overload_is_not_made_worse(stub: Stub) -> None:
    """The client adds no requests to those of its callers, and batches stay batches."""
    stub.code, stub.detail = grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"
    async with kvorum.connect(EtcdSettings(endpoints=(stub.endpoint,), timeout=5)) as client:
        with kvorum.deadline(0.5):
            calls = [client.backend.set(f"{number}", b"1") for number in range(20)]
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {UnavailableError}
        assert client.connection.cluster.current.is_ready

    assert stub.asked["Status"] == 1
    assert stub.asked["MemberList"] <= 2


async def test_a_learner_is_left_as_soon_as_it_reports_that_it_is_one(
    stub: Stub, kvorum_etcd: EmbeddedEtcd
) -> None:
    stub.status.isLearner = True
    settings = EtcdSettings(endpoints=(kvorum_etcd.endpoints[0], stub.endpoint), timeout=5)
    async with kvorum.connect(settings) as client:
        prefer(client, stub.endpoint)
        await client.backend.get("a")

    assert not stub.asked["Range"]


async def test_an_endpoint_that_is_not_etcd_keeps_no_client_from_opening(
    stub: Stub, kvorum_etcd: EmbeddedEtcd
) -> None:
    stub.has_status, stub.detail = False, "Method not found!"
    settings = EtcdSettings(endpoints=(stub.endpoint, kvorum_etcd.endpoints[0]), timeout=5)
    for _ in range(6):  # it starts with either
        async with kvorum.connect(settings) as client:
            await client.backend.get("a")

    assert stub.refused


async def test_a_refusal_by_all_members_ends_at_the_deadline(stub: Stub) -> None:
    stub.code, stub.detail = grpc.StatusCode.UNKNOWN, "raft proposal dropped"
    async with kvorum.connect(EtcdSettings(endpoints=(stub.endpoint,), timeout=0.5)) as client:
        with pytest.raises(UnavailableError, match="proposal dropped"):
            await client.backend.create("a", b"1")


# --- deadlines and slow servers -------------------------------------------------------------------


@pytest.fixture
async def proxies(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[list[FaultProxy]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(FaultProxy(kvorum_etcd.endpoints[0])) for _ in range(3)
        ]


def settings_of(proxies: list[FaultProxy], timeout: float) -> EtcdSettings:
    return EtcdSettings(
        endpoints=tuple(proxy.endpoint for proxy in proxies), prefix="slow", timeout=timeout
    )


@pytest.mark.parametrize("number", [1, 3])
async def test_a_spent_deadline_changes_nothing_for_others(
    proxies: list[FaultProxy], number: int
) -> None:
    """Nothing is sent, so it is no evidence about the server.

    No connection is replaced, and no watch is interrupted.
    """
    async with (
        kvorum.connect(settings_of(proxies[:number], 0.5)) as client,
        client.backend.watch("") as watch,
    ):
        await client.backend.set("a", b"1")
        assert await anext(watch)
        before, endpoint = (
            [proxy.statistics().accepted for proxy in proxies],
            client.connection.endpoint,
        )
        for _ in range(3):
            for _ in range(2):  # in a row
                with suppress(UnavailableError), kvorum.deadline(0.001):
                    await asyncio.sleep(0.005)
                    await client.backend.get("a")
            await client.backend.set("a", b"2")
            assert await anext(watch)

        assert client.connection.endpoint == endpoint
        assert [proxy.statistics().accepted for proxy in proxies] == before


async def test_a_short_deadline_does_not_make_the_client_leave_a_slow_server(
    proxies: list[FaultProxy],
) -> None:
    async with kvorum.connect(settings_of(proxies, 6)) as client:
        await client.backend.set("a", b"1")
        endpoint = client.connection.endpoint
        for proxy in proxies:
            proxy.delay(0.1)
        for _ in range(3):
            with suppress(UnavailableError), kvorum.deadline(0.05):
                await client.backend.get("a")
        assert await client.backend.get("a") is not None

        assert client.connection.endpoint == endpoint


async def test_short_deadlines_do_not_keep_the_client_at_a_server_that_hangs(
    proxies: list[FaultProxy],
) -> None:
    """No call waits long enough to tell, so the server is asked in the background."""
    async with kvorum.connect(settings_of(proxies, 1.5)) as client:
        await client.backend.set("a", b"1")
        hung = next(proxy for proxy in proxies if proxy.endpoint == client.connection.endpoint)
        hung.mute()
        with anyio.fail_after(10):
            while client.connection.endpoint == hung.endpoint:
                with suppress(UnavailableError), kvorum.deadline(0.05):
                    await client.backend.get("a")
                await asyncio.sleep(0)
        await hung.heal()


@pytest.mark.parametrize("how", ["delay", "throttle"])
async def test_a_late_answer_counts_with_several_servers_as_with_one(
    proxies: list[FaultProxy], how: str
) -> None:
    """It takes longer than a server's share of the deadline, and less than the deadline."""
    async with kvorum.connect(settings_of(proxies, 2.0)) as client:
        await client.backend.set("a", bytes(500_000))
        for proxy in proxies:
            if how == "delay":
                proxy.delay(1.2, "replies")
            else:
                proxy.throttle(400_000, "replies")
        started = anyio.current_time()
        page = await client.backend.list("")

        assert len(page.entries) == 1
        assert anyio.current_time() - started > 1
        for proxy in proxies:
            await proxy.heal()


async def test_a_read_from_a_server_that_hangs_is_answered_by_another_one(
    proxies: list[FaultProxy],
) -> None:
    async with kvorum.connect(settings_of(proxies, 3)) as client:
        await client.backend.set("a", b"1")
        hung = next(proxy for proxy in proxies if proxy.endpoint == client.connection.endpoint)
        hung.mute()
        started = anyio.current_time()
        async with asyncio.TaskGroup() as group:  # alone and in batches
            for number in range(8):
                group.create_task(client.backend.get(f"a{number}"))
        assert anyio.current_time() - started < 2.5
        assert client.connection.endpoint != hung.endpoint
        await hung.heal()


async def test_a_batch_is_not_sent_to_a_server_that_it_does_not_fit(
    stub: Stub, kvorum_etcd: EmbeddedEtcd
) -> None:
    """The request was made for the server that hangs."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = EtcdSettings(
            endpoints=(proxy.endpoint, stub.endpoint), prefix="versions", timeout=1.2
        )
        async with kvorum.connect(settings) as client:
            prefer(client, proxy.endpoint)
            await client.backend.set("a", b"1")
            prefer(client, proxy.endpoint)
            proxy.mute()
            with pytest.raises(UnfitRequestError):
                await client.connection.once(
                    lambda channel: channel.kv.Range,
                    _rpc.RangeRequest(key=b"a"),
                    Call("read", "a"),
                    deadline_of(1.2),
                    lambda: client.connection.endpoint == proxy.endpoint,
                )
            left = client.connection.endpoint
            await proxy.heal()

    assert left == stub.endpoint
    assert not stub.asked["Range"]


# --- opening --------------------------------------------------------------------------------------


async def test_opening_waits_for_a_server_that_is_still_starting(kvorum_etcd: EmbeddedEtcd) -> None:
    class Failed(Observer):
        def __init__(self) -> None:
            self.came = anyio.Event()

        def request_failed(self, _call: Call, _endpoint: str, _error: kvorum.KvorumError) -> None:
            self.came.set()

    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        await proxy.refuse()
        failed = Failed()

        async def start() -> None:
            await failed.came.wait()
            await proxy.heal()

        async with asyncio.TaskGroup() as group:
            group.create_task(start())
            settings = EtcdSettings(endpoints=(proxy.endpoint,), timeout=5)
            async with kvorum.connect(settings, observer=failed) as client:
                await client.backend.get("a")


async def test_opening_ends_at_its_deadline_however_many_servers_hang() -> None:
    """They accept connections and stay silent. The diagnosis of TLS takes no extra time."""
    with ExitStack() as stack:
        endpoints = []
        for _ in range(3):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            endpoints.append(f"127.0.0.1:{listener.getsockname()[1]}")
        started = anyio.current_time()
        with pytest.raises(UnavailableError):
            async with kvorum.connect(EtcdSettings(endpoints=tuple(endpoints), timeout=1)):
                pass

        assert anyio.current_time() - started < 2


async def test_found_members_that_are_gone_are_forgotten(kvorum_etcd: EmbeddedEtcd) -> None:
    """Servers from the settings stay in any case."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = EtcdSettings(endpoints=(proxy.endpoint,), discover_interval=60)
        async with kvorum.connect(settings) as client:
            cluster = client.connection.cluster
            stale = rpc.MemberListResponse(
                members=[{"clientURLs": [f"http://127.0.0.1:{n}"]} for n in range(1, 41)]
            )
            cluster.update_members(stale)
            assert len(cluster.servers) >= 41

            await client.connection.discover()

            found = {server.address for server in cluster.servers}
            assert found == {proxy.endpoint, kvorum_etcd.endpoints[0]}
            assert client.connection.endpoint in found
