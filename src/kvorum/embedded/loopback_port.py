"""A TCP port of this machine that no other process gets."""

import socket
import sys


class LoopbackPort:
    """A free port of 127.0.0.1, chosen by the kernel and held until it is closed.

    A socket holds it that is bound but does not listen: connections are refused, and the kernel
    gives the port neither to a process that asks for any port nor to an outgoing connection. On
    Linux a server may still bind it, as long as both set SO_REUSEADDR (Go does). So it stays held
    while the server runs, dies and restarts, and no other process can take it in between. On other
    systems it must be released before the server starts.

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
        """Let a server bind it now."""
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Release the port. Idempotent."""
        self._socket.close()
