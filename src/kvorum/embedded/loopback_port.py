"""A TCP port of this machine that nobody else gets."""

import socket
import sys


class LoopbackPort:
    """A free port of 127.0.0.1, chosen by the kernel and held until it is closed.

    It is held by a socket that is bound but does not listen: who connects is refused, and the
    kernel gives the port to nobody who asks for any, nor to an outgoing connection. On Linux a
    server may bind it all the same, as long as both set SO_REUSEADDR (Go does); so there it stays
    held while the server runs, dies and starts again, and no other process can come in between.
    Elsewhere it must be let go before the server starts.

    Attributes:
        number: the port.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def __str__(self) -> str:
        return f"127.0.0.1:{self.number}"

    def lend(self) -> None:
        """Make way for a server that is about to bind it."""
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Give the port back. Idempotent."""
        self._socket.close()
