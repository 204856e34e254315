"""A port that is held until a server binds it, and while the server is down."""

import socket
import sys
from collections.abc import Iterator

import pytest

from kvorum.embedded.loopback_port import LoopbackPort


@pytest.fixture
def port() -> Iterator[LoopbackPort]:
    port = LoopbackPort()
    yield port
    port.close()


def listen(number: int, *, reuse: bool) -> socket.socket:
    server = socket.socket()
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        server.bind(("127.0.0.1", number))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def test_who_connects_to_a_held_port_is_refused(port: LoopbackPort) -> None:
    """A client of a server that is down must see that, and not wait."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port.number), timeout=5)


def test_the_kernel_gives_a_held_port_to_no_other_process(port: LoopbackPort) -> None:
    """Neither to another holder. (Two hundred others must all differ.)"""
    with pytest.raises(OSError, match="in use"):
        listen(port.number, reuse=False)
    others = [LoopbackPort() for _ in range(200)]
    numbers = {other.number for other in others}
    for other in others:
        other.close()

    assert len(numbers) == 200
    assert port.number not in numbers


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere it is let go before the server starts"
)
def test_a_server_binds_a_held_port_and_binds_it_again_later(port: LoopbackPort) -> None:
    for _ in range(2):
        with (
            listen(port.number, reuse=True),
            socket.create_connection(("127.0.0.1", port.number), timeout=5),
        ):
            pass


def test_a_closed_port_is_free(port: LoopbackPort) -> None:
    port.close()
    port.close()

    listen(port.number, reuse=False).close()
