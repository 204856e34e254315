"""Where a client lives: one process, and one event loop."""

import asyncio
import os

from kvorum.errors import ClientClosedError

_process = object()  # another one in each child, so that a look at it is no call of the system


def _begin() -> None:
    global _process  # noqa: PLW0603 - there is one
    _process = object()


if hasattr(os, "register_at_fork"):  # nothing is forked on Windows
    os.register_at_fork(after_in_child=_begin)


class Place:
    """The process and the event loop that this is made in."""

    __slots__ = ("_loop", "_process")

    def __init__(self) -> None:
        self._process = _process
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Refuse any other process or event loop: there, calls would never end.

        The process first: a child may run the loop of its parent, which looks the same there.

        Raises:
            ClientClosedError: this is another one.
        """
        if self._process is not _process:
            raise ClientClosedError.in_another_process()
        running = asyncio._get_running_loop()  # noqa: SLF001 - documented, and does not raise
        if running is not self._loop and running is not None:
            raise ClientClosedError.on_another_loop()
