"""A small process that cleans up after its parent: kills what the parent has started, and removes its folder.

A parent that is killed cannot do so itself. Linux could send a signal to the children (PR_SET_PDEATHSIG), but that
comes when the *thread* that started them ends, other systems have nothing like it, and nobody would remove the folder.
So one mechanism everywhere: the guardian reads a pipe from its parent, which the kernel closes when the parent is gone,
however it went.
"""

import sys
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.abc

# Commands, a line each: `+PID` guard this process, `-PID` no more. At the end of the pipe: kill those left, and remove
# the folder, if one was given.
_PROGRAM: Final = """
import os, shutil, signal, sys
pids = set()
for line in sys.stdin:
    (pids.add if line[0] == "+" else pids.discard)(int(line[1:]))
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
if len(sys.argv) > 1:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class Guardian:
    """Kills processes, and removes a folder, when this process is gone.

    Args:
        folder: what to remove; None for nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._process: anyio.abc.Process | None = None

    async def start(self) -> None:
        """Begin to guard. A session of its own keeps Ctrl-C at the terminal from the guardian."""
        folder = [] if self._folder is None else [self._folder]
        self._process = await anyio.open_process(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *folder], stdout=None, stderr=None, start_new_session=True
        )

    async def guard(self, pid: int) -> None:
        """Kill that process if this one goes."""
        await self._tell(f"+{pid}\n")

    async def release(self, pid: int) -> None:
        """No more: it has ended, and its number may become another's."""
        await self._tell(f"-{pid}\n")

    async def aclose(self) -> None:
        """End the guardian; it does now what it would have done later. Idempotent."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            await process.stdin.aclose()
            await process.wait()

    async def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            await self._process.stdin.send(line.encode())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
