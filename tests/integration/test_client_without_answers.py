"""A client whose server is absent, silent, slow, paused, dead, or not etcd."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest
from tests.clients import (
    DEADLINE,
    USES,
    InFlight,
    anext_of,
    connections_to,
    short_timeout,
)
from tests.waiting import tasks_here, until

import kvorum
from kvorum import (
    ClientClosedError,
    EmbeddedEtcd,
    EtcdSettings,
    OutcomeUnknownError,
    UnavailableError,
)


def port_of_listener(listener: anyio.abc.Listener[Any]) -> int:
    return int(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - that is not Django's


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that no process listens on, or can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server that the test may pause and kill, of the same version as the session's."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


async def test_a_port_without_a_listener_is_an_error_within_the_timeout_that_leaves_nothing(
    free_port: int,
) -> None:
    """Not at once: the server may be about to start."""
    started = time.monotonic()
    client = kvorum.connect(kvorum.EtcdSettings(endpoints=(f"127.0.0.1:{free_port}",), timeout=1.0))
    before = tasks_here()

    with pytest.raises(UnavailableError) as caught:
        async with client:
            pytest.fail("it cannot be entered")

    assert time.monotonic() - started < 2
    assert caught.value.endpoint == f"127.0.0.1:{free_port}"
    assert f"127.0.0.1:{free_port}" in str(caught.value)
    assert "[closed]" in repr(client)
    await until(lambda: tasks_here() <= before and connections_to(free_port) == 0)
    with pytest.raises(ClientClosedError):
        await client.backend.get("a")


async def test_a_name_that_no_host_has_is_an_error_in_time() -> None:
    started = time.monotonic()

    with pytest.raises(UnavailableError):
        await kvorum.connect(
            EtcdSettings(endpoints=("no-such-host.invalid:2379",), timeout=2)
        ).__aenter__()

    assert time.monotonic() - started < 4


async def test_a_server_that_says_nothing_is_an_error_within_the_timeout() -> None:
    """It accepts the connection, as a wrong port may, or a proxy whose server is gone."""

    async def say_nothing(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    await stream.receive()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = port_of_listener(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, say_nothing)
            started = time.monotonic()
            with pytest.raises(UnavailableError):
                await kvorum.connect(
                    EtcdSettings(endpoints=(f"127.0.0.1:{port}",), timeout=0.5)
                ).__aenter__()
            elapsed = time.monotonic() - started
            group.cancel_scope.cancel()

    assert elapsed < 2


async def test_a_server_on_a_long_link_is_reached(kvorum_etcd: EmbeddedEtcd) -> None:
    """A round trip of 0.3 s is a distant server, not an outage, and leaves most of the timeout."""
    host, _, port = kvorum_etcd.endpoints[0].partition(":")

    async def pass_on(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream) -> None:
        with contextlib.suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
        ):
            while True:
                data = await source.receive()
                await anyio.sleep(0.15)
                await target.send(data)

    async def relay(near: anyio.abc.SocketStream) -> None:
        async with (
            near,
            await anyio.connect_tcp(host, int(port)) as far,
            anyio.create_task_group() as group,
        ):
            group.start_soon(pass_on, near, far)
            await pass_on(far, near)
            group.cancel_scope.cancel()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        slow = port_of_listener(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, relay)
            try:
                async with kvorum.connect(
                    EtcdSettings(endpoints=(f"127.0.0.1:{slow}",), prefix="test")
                ) as client:
                    await client.backend.get("a")
            finally:
                group.cancel_scope.cancel()


async def test_a_server_that_is_no_etcd_is_an_error_at_once() -> None:
    async def say_something_else(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = port_of_listener(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, say_something_else)
            started = time.monotonic()
            with pytest.raises(UnavailableError):
                await kvorum.connect(
                    EtcdSettings(endpoints=(f"127.0.0.1:{port}",), timeout=5)
                ).__aenter__()
            elapsed = time.monotonic() - started
            group.cancel_scope.cancel()

    assert elapsed < 5.5


# --- a server that stops --------------------------------------------------------------------------


async def test_a_paused_server_is_unavailable_to_reads_and_leaves_writes_unknown(
    server: EmbeddedEtcd,
) -> None:
    async with short_timeout(server) as client:
        store = client.backend
        await store.set("a", b"1")
        await server.pause()
        started = time.monotonic()
        outcomes = await asyncio.gather(
            *(use(store) for use in USES.values()), return_exceptions=True
        )
        elapsed = time.monotonic() - started
        await server.resume()

        # Writes of one key wait for each other, so only one was sent: the others did nothing.
        sent, may_wait = {"set", "revoke"}, {"create", "swap", "delete", "commit"}
        for name, outcome in zip(USES, outcomes, strict=True):
            expected = OutcomeUnknownError if name in sent else UnavailableError
            assert type(outcome) is expected or (
                name in may_wait and type(outcome) is OutcomeUnknownError
            ), name
        assert 0.4 < elapsed < 2


async def test_a_client_resumes_when_a_paused_server_does(server: EmbeddedEtcd) -> None:
    async with short_timeout(server) as client:
        store = client.backend
        watch = store.watch("")
        await watch.open()
        await server.pause()
        with pytest.raises(OutcomeUnknownError) as caught:
            await store.set("a", b"1")
        await server.resume()

        assert "/test/a" in caught.value.subject
        second = await store.set("b", b"2")  # and the first may have been applied, before or after
        with anyio.fail_after(DEADLINE):
            while (await anext(watch))[0].revision < second:
                pass
        assert await store.exists("b")


async def test_closing_a_client_waits_for_no_paused_server(server: EmbeddedEtcd) -> None:
    in_flight = InFlight()
    client = await short_timeout(server, timeout=60, observer=in_flight).__aenter__()
    await client.backend.watch("").open()
    in_flight.clear()
    await server.pause()
    opening = asyncio.create_task(anext_of(client.backend.watch("")))
    await in_flight.until("read")
    started = time.monotonic()
    await client.aclose()

    assert time.monotonic() - started < 2
    assert isinstance(await opening, ClientClosedError)


async def test_a_watch_on_a_paused_server_can_be_closed_at_once(server: EmbeddedEtcd) -> None:
    in_flight = InFlight()
    async with short_timeout(server, timeout=60, observer=in_flight) as client:
        opened = client.backend.watch("")
        await opened.open()
        in_flight.clear()
        await server.pause()
        opening = client.backend.watch("")
        waiting = asyncio.create_task(anext_of_ended(opening))
        await in_flight.until("read")
        with anyio.fail_after(2):
            await opened.aclose()
            await opening.aclose()
            assert await waiting == "ended"


async def test_a_dead_server_is_unavailable_and_its_watches_wait_for_it(
    server: EmbeddedEtcd,
) -> None:
    async with short_timeout(server, timeout=1) as client:
        store = client.backend
        watch = store.watch("")
        await watch.open()
        await server.kill()

        with anyio.fail_after(DEADLINE):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await anext(watch)
            with pytest.raises(UnavailableError):
                await store.get("a")
            with pytest.raises(UnavailableError):  # not unknown: there is no connection to send on
                await store.set("a", b"1")
            with pytest.raises(UnavailableError):
                await store.watch("").open()


async def test_a_client_outlives_a_restart_of_the_server(server: EmbeddedEtcd) -> None:
    async with short_timeout(server, timeout=5) as client:
        store = client.backend
        first = await store.set("a", b"1")
        watch = store.watch("")
        await watch.open()
        await server.kill()
        await server.restart()

        with anyio.fail_after(3):  # reconnecting is tried every second at least
            second = await store.set("a", b"2")
            async with store.watch("", since=first) as another:
                shown = [await anext(watch), await anext(another)]
        for (change,) in shown:
            assert change.revision == second
            assert change.previous is not None
            assert change.previous.value == b"1"


async def anext_of_ended(watch: kvorum.StorageWatch) -> str:
    try:
        await anext(watch)
    except StopAsyncIteration:
        return "ended"
    return "not ended"
