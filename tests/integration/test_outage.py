"""What calls raise when the server goes away."""

from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import msgspec
import pytest

import kvorum
from kvorum import EmbeddedEtcd


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server of the test's own."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--auth-token=simple"]) as etcd:
        yield etcd


async def test_calls_to_a_server_that_is_gone_did_nothing(server: EmbeddedEtcd) -> None:
    """No connection is made, so not even the outcome of a write is unknown."""
    async with kvorum.connect(server.url) as client:
        await client.backend.set("a", b"1")
        await server.kill()
        with pytest.raises(kvorum.KvorumError):  # this one notices
            await client.backend.get("a")

        with pytest.raises(kvorum.UnavailableError):
            await client.backend.get("a")
        with pytest.raises(kvorum.UnavailableError):
            await client.backend.set("a", b"2")


async def _ask(server: EmbeddedEtcd, method: str, **body: object) -> None:
    """Call etcd's JSON gateway."""
    host, _, port = server.endpoints[0].partition(":")
    content = msgspec.json.encode(body)
    head = f"POST /v3/{method} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    request = head.encode() + content
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(request)
        answer = b"".join([part async for part in stream])
    assert b" 200 " in answer.split(b"\r\n")[0], answer


async def test_a_server_that_requires_a_user_is_told_apart_from_an_unavailable_one(
    server: EmbeddedEtcd,
) -> None:
    async with kvorum.connect(server.url) as client:
        await _ask(server, "auth/user/add", name="root", password="secret")
        await _ask(server, "auth/user/grant", user="root", role="root")
        await _ask(server, "auth/enable")

        with pytest.raises(kvorum.AuthenticationError):
            await client.backend.get("a")
        with pytest.raises(kvorum.AuthenticationError):
            await client.backend.set("a", b"")
        # etcd 3.5 tells a watch less than 3.4: a user without a name has no permission.
        refusal = (kvorum.AuthenticationError, kvorum.PermissionDeniedError)
        with anyio.fail_after(4), pytest.raises(refusal):
            await client.backend.watch("").open()
