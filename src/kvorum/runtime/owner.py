"""What a client belongs to: one process, and one event loop."""

import asyncio
import os

from kvorum.errors import ClientClosedError

_process = object()  # replaced in each child: comparing it needs no system call


def _after_fork() -> None:
    global _process  # noqa: PLW0603 - one for each process
    _process = object()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


class Owner:
    """The process and the event loop in which this object was made."""

    __slots__ = ("_loop", "_process")

    def __init__(self) -> None:
        self._process = _process
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Refuse any other process or event loop: calls would never end there.

        The process is checked first: a child may run the loop of its parent, which is the same
        object there.

        Raises:
            ClientClosedError: the caller runs in another process or on another event loop.
        """
        if self._process is not _process:
            raise ClientClosedError.in_another_process()
        running = asyncio._get_running_loop()  # noqa: SLF001 - documented, and does not raise
        if running is not self._loop and running is not None:
            raise ClientClosedError.on_another_loop()
