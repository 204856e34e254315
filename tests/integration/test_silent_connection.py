"""One connection to a server is silent, as after a lost route, and its other ones live."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute, SocketStream

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, UnavailableError

pytestmark = pytest.mark.timeout(60)


class Relay:
    """Passes connections on to a server. The oldest one can be silenced.

    Attributes:
        endpoint: where it listens.
        is_silent: whether the oldest connection passes nothing on.
    """

    def __init__(self, upstream: str) -> None:
        self.endpoint = ""
        self.is_silent = False
        self._upstream = upstream
        self._accepted = 0

    async def pass_on(self, near: SocketStream) -> None:
        host, _, port = self._upstream.partition(":")
        is_oldest, self._accepted = self._accepted == 0, self._accepted + 1

        async def copy(source: ByteStream, target: ByteStream) -> None:
            with contextlib.suppress(
                anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
            ):
                while True:
                    data = await source.receive()
                    if not (is_oldest and self.is_silent):
                        await target.send(data)

        async with (
            near,
            await anyio.connect_tcp(host, int(port)) as far,
            anyio.create_task_group() as group,
        ):
            group.start_soon(copy, near, far)
            await copy(far, near)
            group.cancel_scope.cancel()


@asynccontextmanager
async def relays_to(etcd: EmbeddedEtcd) -> AsyncIterator[dict[str, Relay]]:
    """Put a relay before each member; return them by their endpoints."""
    relays: dict[str, Relay] = {}
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        for upstream in etcd.endpoints:
            relay = Relay(upstream)
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            await stack.enter_async_context(listener)
            port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
            relay.endpoint = f"127.0.0.1:{port}"
            relays[relay.endpoint] = relay
            group.start_soon(listener.serve, relay.pass_on)
        try:
            yield relays
        finally:
            group.cancel_scope.cancel()


@pytest.mark.parametrize("members", [1, 3])
async def test_calls_with_short_deadlines_get_a_new_connection_when_theirs_is_silent(
    kvorum_etcd: EmbeddedEtcd, members: int
) -> None:
    """The server answers on the connection of the watches, so it is no reason to leave it."""
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=members) as etcd,
        relays_to(etcd) as relays,
        kvorum.connect(EtcdSettings(endpoints=tuple(relays), timeout=3)) as client,
    ):
        await client.backend.set("a", b"1")
        endpoint = client.connection.endpoint
        relays[endpoint].is_silent = True
        found = None
        with anyio.fail_after(6):
            while found is None:
                with contextlib.suppress(UnavailableError), kvorum.deadline(0.5):
                    found = await client.backend.get("a")

        assert client.connection.endpoint == endpoint


async def test_a_read_on_a_silent_connection_is_answered_on_a_new_one(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd,
        relays_to(etcd) as relays,
        kvorum.connect(EtcdSettings(endpoints=tuple(relays), timeout=3)) as client,
    ):
        await client.backend.set("a", b"1")
        relays[client.connection.endpoint].is_silent = True

        assert await client.backend.get("a") is not None
