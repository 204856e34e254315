"""What the fault proxy does to bytes, fault by fault, between plain sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from kvorum.testing import FaultProxy
from kvorum.testing.faults.link import reset

DEADLINE = 5.0


class Server:
    """Accepts connections, and gives them to the test."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[SocketStream] = asyncio.Queue()

    async def accept(self) -> SocketStream:
        with anyio.fail_after(DEADLINE):
            return await self.connections.get()

    async def serve(self, stream: SocketStream) -> None:
        await self.connections.put(stream)
        await anyio.sleep_forever()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        yield server, f"127.0.0.1:{port}"
        group.cancel_scope.cancel()


class Pair:
    """Both ends of one connection through a proxy."""

    def __init__(self, proxy: FaultProxy, client: SocketStream, server: SocketStream) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server


async def connect(proxy: FaultProxy) -> SocketStream:
    host, _, port = proxy.endpoint.partition(":")
    return await anyio.connect_tcp(host, int(port))


@pytest.fixture
async def proxy(server: tuple[Server, str]) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server[1]) as proxy:
        yield proxy


@pytest.fixture
async def pair(proxy: FaultProxy, server: tuple[Server, str]) -> AsyncIterator[Pair]:
    async with await connect(proxy) as client, await server[0].accept() as there:
        yield Pair(proxy, client, there)


async def receive(stream: SocketStream, size: int) -> bytes:
    data = b""
    with anyio.fail_after(DEADLINE):
        while len(data) < size:
            data += await stream.receive(size - len(data))
    return data


async def receive_all(stream: SocketStream) -> tuple[bytes, str]:
    """Return all bytes until the end, and how the connection ended."""
    data = b""
    with anyio.fail_after(DEADLINE):
        while True:
            try:
                data += await stream.receive()
            except anyio.EndOfStream:
                return data, "end"
            except anyio.BrokenResourceError:
                return data, "reset"


async def comes_nothing(stream: SocketStream) -> bool:
    """Tell whether no byte arrives although everything that could deliver it has run."""
    with anyio.move_on_after(0.05):
        await stream.receive(1)
        return False
    return True


# --- without a fault ------------------------------------------------------------------------------


async def test_bytes_pass_in_both_directions_and_are_counted(pair: Pair) -> None:
    await pair.client.send(b"question")
    assert await receive(pair.server, 8) == b"question"
    await pair.server.send(b"answer!")
    assert await receive(pair.client, 7) == b"answer!"

    now = pair.proxy.statistics()
    assert (now.accepted, now.open_links, now.requests, now.replies, now.held, now.dropped) == (
        1,
        1,
        8,
        7,
        0,
        0,
    )


async def test_many_bytes_pass_in_their_order(pair: Pair) -> None:
    data = bytes(range(256)) * 20_000
    async with anyio.create_task_group() as group:
        group.start_soon(pair.client.send, data)

        assert await receive(pair.server, len(data)) == data


async def test_the_end_of_what_the_server_sends_reaches_the_client(pair: Pair) -> None:
    """A proxy that swallows it would make every test of a resumed watch pass."""
    await pair.server.send(b"last")
    await pair.server.send_eof()

    assert await receive_all(pair.client) == (b"last", "end")
    await pair.client.send(b"still here")  # the other direction is still open
    assert await receive(pair.server, 10) == b"still here"


async def test_the_end_of_what_the_client_sends_reaches_the_server(pair: Pair) -> None:
    await pair.client.send(b"last")
    await pair.client.send_eof()

    assert await receive_all(pair.server) == (b"last", "end")
    await pair.server.send(b"answer")
    assert await receive(pair.client, 6) == b"answer"


async def test_a_connection_that_ended_on_both_sides_is_gone(pair: Pair) -> None:
    await pair.client.aclose()
    assert (await receive_all(pair.server))[0] == b""
    await pair.server.aclose()

    with anyio.fail_after(DEADLINE):
        await pair.proxy.wait(lambda now: now.open_links == 0)


async def test_a_reset_reaches_the_other_side_as_one(pair: Pair) -> None:
    reset(pair.server)
    await pair.server.aclose()

    assert await receive_all(pair.client) == (b"", "reset")


async def test_a_server_that_is_not_there_ends_the_connection() -> None:
    with socket.socket() as unused:  # bound, but not listening
        unused.bind(("127.0.0.1", 0))
        async with (
            FaultProxy(f"127.0.0.1:{unused.getsockname()[1]}") as proxy,
            await connect(proxy) as client,
        ):
            assert (await receive_all(client))[0] == b""


# --- cut ------------------------------------------------------------------------------------------


async def test_a_cut_resets_both_sides_and_new_connections_pass(
    pair: Pair, server: tuple[Server, str]
) -> None:
    pair.proxy.cut()

    assert await receive_all(pair.client) == (b"", "reset")
    assert await receive_all(pair.server) == (b"", "reset")
    with anyio.fail_after(DEADLINE):
        assert (await pair.proxy.wait(lambda now: now.open_links == 0)).cuts == 1
    async with await connect(pair.proxy) as client, await server[0].accept() as there:
        await client.send(b"again")
        assert await receive(there, 5) == b"again"


@pytest.mark.parametrize("size", [0, 1, 5, 8])
async def test_a_cut_comes_after_exactly_so_many_bytes_of_a_request(pair: Pair, size: int) -> None:
    pair.proxy.cut_after(size, "requests")
    await pair.client.send(b"question and more")

    assert (await receive_all(pair.server))[0] == b"question"[:size]
    assert await receive_all(pair.client) == (b"", "reset")
    assert pair.proxy.statistics().requests == size


async def test_a_cut_after_bytes_counts_over_several_portions_and_happens_once(
    pair: Pair, server: tuple[Server, str]
) -> None:
    pair.proxy.cut_after(6, "replies")
    await pair.server.send(b"abc")
    assert await receive(pair.client, 3) == b"abc"
    await pair.server.send(b"defghi")
    assert (await receive_all(pair.client))[0] == b"def"

    async with await connect(pair.proxy) as client, await server[0].accept() as there:
        await there.send(b"0123456789")
        assert await receive(client, 10) == b"0123456789"


# --- slow -----------------------------------------------------------------------------------------


async def test_a_delay_makes_bytes_late_and_lets_as_many_pass(pair: Pair) -> None:
    pair.proxy.delay(0.2, "requests")
    started = anyio.current_time()
    for number in range(10):
        await pair.client.send(b"%d" % number)
        await asyncio.sleep(0.01)
    assert await receive(pair.server, 10) == b"0123456789"
    took = anyio.current_time() - started

    assert 0.2 <= took < 1  # ten delays one after the other would be 2 s
    await pair.server.send(b"at once")
    assert await receive(pair.client, 7) == b"at once"


async def test_a_throttle_lets_so_many_bytes_through_in_a_second(pair: Pair) -> None:
    pair.proxy.throttle(20_000)
    started = anyio.current_time()
    await pair.client.send(bytes(4_000))
    await receive(pair.server, 4_000)

    assert anyio.current_time() - started >= 0.2


# --- hold, drop, mute, refuse ---------------------------------------------------------------------


async def test_held_requests_arrive_later_and_in_their_order(pair: Pair) -> None:
    pair.proxy.hold("requests")
    await pair.client.send(b"first ")
    await pair.client.send(b"second")
    with anyio.fail_after(DEADLINE):
        await pair.proxy.wait(lambda now: now.held == 12)
    await pair.server.send(b"answer to nothing")
    assert await receive(pair.client, 17) == b"answer to nothing"
    assert await comes_nothing(pair.server)
    await pair.proxy.heal()

    assert await receive(pair.server, 12) == b"first second"


async def test_a_held_request_arrives_also_if_its_sender_is_gone(pair: Pair) -> None:
    """A write that its client gave up on, and that takes effect anyway."""
    pair.proxy.hold("requests")
    await pair.client.send(b"late")
    await pair.client.aclose()
    with anyio.fail_after(DEADLINE):
        await pair.proxy.wait(lambda now: now.held == 4)
    assert await comes_nothing(pair.server)
    await pair.proxy.heal()

    assert (await receive_all(pair.server))[0] == b"late"


async def test_dropped_replies_are_gone_while_requests_arrive(pair: Pair) -> None:
    pair.proxy.drop("replies")
    await pair.client.send(b"question")
    assert await receive(pair.server, 8) == b"question"
    await pair.server.send(b"answer")
    with anyio.fail_after(DEADLINE):
        assert (await pair.proxy.wait(lambda now: now.dropped == 6)).replies == 0
    assert await comes_nothing(pair.client)


async def test_dropped_requests_never_arrive_while_answers_pass(pair: Pair) -> None:
    pair.proxy.drop("requests")
    await pair.client.send(b"question")
    with anyio.fail_after(DEADLINE):
        assert (await pair.proxy.wait(lambda now: now.dropped == 8)).requests == 0
    await pair.server.send(b"answer")

    assert await receive(pair.client, 6) == b"answer"
    assert await comes_nothing(pair.server)


async def test_held_replies_arrive_later_and_the_end_after_them(pair: Pair) -> None:
    pair.proxy.hold("replies")
    await pair.server.send(b"answer")
    await pair.server.send_eof()
    await pair.client.send(b"question")
    assert await receive(pair.server, 8) == b"question"
    with anyio.fail_after(DEADLINE):
        await pair.proxy.wait(lambda now: now.held == 6)
    assert await comes_nothing(pair.client)
    await pair.proxy.heal()

    assert await receive_all(pair.client) == (b"answer", "end")


async def test_a_connection_that_has_lost_bytes_is_reset_and_others_are_not(
    pair: Pair, server: tuple[Server, str]
) -> None:
    async with await connect(pair.proxy) as other, await server[0].accept() as there:
        pair.proxy.drop("replies")
        await pair.server.send(b"lost")
        with anyio.fail_after(DEADLINE):
            await pair.proxy.wait(lambda now: now.dropped == 4)
        await pair.proxy.heal()

        assert await receive_all(pair.client) == (b"", "reset")
        await there.send(b"kept")
        assert await receive(other, 4) == b"kept"


async def test_a_mute_proxy_accepts_and_says_nothing(
    pair: Pair, server: tuple[Server, str]
) -> None:
    pair.proxy.mute()
    async with await connect(pair.proxy) as client:
        await client.send(b"hello")
        await pair.server.send(b"hello")
        assert await comes_nothing(client)
        assert await comes_nothing(pair.client)
        await pair.proxy.heal()

        async with await server[0].accept() as there:
            assert await receive(there, 5) == b"hello"
        assert await receive(pair.client, 5) == b"hello"


async def test_a_mute_connection_can_be_cut(proxy: FaultProxy) -> None:
    proxy.mute()
    async with await connect(proxy) as client:
        with anyio.fail_after(DEADLINE):
            await proxy.wait(lambda now: now.open_links == 1)
        proxy.cut()

        assert (await receive_all(client))[0] == b""


async def test_refused_connections_are_refused_until_it_is_healed_at_the_same_port(
    pair: Pair, server: tuple[Server, str]
) -> None:
    endpoint = pair.proxy.endpoint
    await pair.proxy.refuse()
    with pytest.raises(OSError, match="connection"):
        await connect(pair.proxy)
    await pair.client.send(b"open ones pass")
    assert await receive(pair.server, 14) == b"open ones pass"
    await pair.proxy.refuse()  # again: nothing
    await pair.proxy.heal()

    assert pair.proxy.endpoint == endpoint
    async with await connect(pair.proxy), await server[0].accept():
        pass


# --- bounds, and the end --------------------------------------------------------------------------


async def test_a_full_buffer_holds_the_sender_back(pair: Pair) -> None:
    pair.proxy.hold("requests")
    sent = 0
    with anyio.move_on_after(1):
        while True:
            await pair.client.send(bytes(65_536))
            sent += 65_536
    held = pair.proxy.statistics().held

    assert held < 2 << 20
    assert sent < 64 << 20
    await pair.proxy.heal()
    await receive(pair.server, sent)


async def test_leaving_the_proxy_ends_its_connections(server: tuple[Server, str]) -> None:
    async with FaultProxy(server[1]) as proxy:
        client = await connect(proxy)
        there = await server[0].accept()
        proxy.hold("requests")
        await client.send(b"never delivered")

    async with client, there:
        assert (await receive_all(client))[0] == b""
        assert (await receive_all(there))[0] == b""


async def test_its_state_shows(pair: Pair) -> None:
    assert repr(pair.proxy).startswith(f"<FaultProxy {pair.proxy.endpoint} for 127.0.0.1:")
    assert "1 open" in repr(pair.proxy)
