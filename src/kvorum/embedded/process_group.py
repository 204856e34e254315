"""Child processes that do not outlive this one, even if it is killed.

Nothing here belongs to an event loop. asyncio's subprocesses do, so only the loop that started them
could stop them, which does not suit a fixture of a test session. So processes are started by
`posix_spawn`, which takes about a millisecond and no `await`: no process ever runs unrecorded.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio

from kvorum.errors import EmbeddedEtcdError

_GUARD: Final = Path(__file__).with_name("orphan_guard.py")
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.02


class ChildProcess:
    """A running child, or one that has ended.

    Attributes:
        pid: its process id. The kernel does not reuse it before its end has been seen here.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._exit_code: int | None = None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        if self._exit_code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # other code in this process reaps all children
                self._exit_code = 0
            else:
                self._exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self._exit_code

    @property
    def is_paused(self) -> bool:
        """Whether SIGSTOP has stopped all its threads. On macOS always True before Python 3.13."""
        if self.exit_code is not None:
            return False
        if sys.platform == "darwin" and sys.version_info < (3, 13):
            return True
        return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def send(self, number: int) -> bool:
        """Send a signal; tell whether the process still ran."""
        if self.exit_code is not None:
            return False
        os.kill(self.pid, number)
        return True

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - it returns the outcome, it does not raise
        """Wait until the process has ended, at most `timeout` seconds; tell whether it has."""
        pause = _FIRST_PAUSE
        with anyio.move_on_after(timeout):
            while self.exit_code is None:
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return self.exit_code is not None


class ProcessGroup:
    """Processes that are ended together when this process has ended: see `orphan_guard`."""

    def __init__(self) -> None:
        self._guard: ChildProcess | None = None
        self._pipe: int | None = None

    def open(self, folder: Path | None) -> None:
        """Start the guard.

        Args:
            folder: what to remove after the processes have been ended; None: nothing, and they are
                ended gracefully.

        Raises:
            EmbeddedEtcdError: the guard did not start.
        """
        argv = [
            sys.executable,
            "-I",
            "-S",
            str(_GUARD),
            str(os.getpid()),
            *([str(folder)] if folder else []),
        ]
        reading, self._pipe = os.pipe()
        try:
            actions = [(os.POSIX_SPAWN_DUP2, reading, 0), *_output_to(Path(os.devnull))]
            self._guard = ChildProcess(_posix_spawn(argv, os.environ, actions, group=0))
        finally:
            os.close(reading)

    def spawn(self, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> ChildProcess:
        """Start a process in the group. Its output goes to `log`, which is truncated first.

        Raises:
            EmbeddedEtcdError: it did not start.
        """
        if self._guard is None:
            raise EmbeddedEtcdError("the process group is not open")
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        return ChildProcess(
            _posix_spawn(argv, environ, [nothing, *_output_to(log)], group=self._guard.pid)
        )

    async def aclose(self) -> None:
        """End the guard: no process is left to guard. Idempotent."""
        if self._guard is not None and self._guard.send(signal.SIGKILL):
            await self._guard.wait(1.0)
        self.abandon()

    def abandon(self) -> None:
        """Let the guard end what remains of the group, as if this process had ended.

        Idempotent. Never waits.
        """
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def _output_to(path: Path) -> list[tuple[int, int, str, int, int] | tuple[int, int, int]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return [(os.POSIX_SPAWN_OPEN, 1, str(path), flags, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]


def _posix_spawn(
    argv: Sequence[str],
    environ: Mapping[str, str],
    actions: Sequence[tuple[object, ...]],
    *,
    group: int,
) -> int:
    try:
        # Python ignores SIGPIPE; a child would inherit that.
        return os.posix_spawn(
            argv[0],
            list(argv),
            environ,
            file_actions=actions,
            setpgroup=group,
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as exc:
        raise EmbeddedEtcdError(f"{argv[0]!r} did not start: {exc}") from exc
