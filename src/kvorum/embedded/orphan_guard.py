"""The guard of a process group: ends the group, and removes its folder, when the process that started it is gone.

A script, not for import: `python -I -S orphan_guard.py PARENT [FOLDER]`. It leads the group that it
guards, and its standard input is a pipe that only the parent holds the other end of. It uses
nothing but the standard library, so that it starts fast and does not depend on the parent's import
path.

Why a process, and not PR_SET_PDEATHSIG: that one exists on Linux only, fires when the *thread* that
started the server ends, needs code between fork and exec, and removes no folder. Why a group, and
not process ids: whatever joins the group before the pipe closes is ended, there is nothing to
report and no id that could have been reused.
"""

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

GRACE = 5.0  # for a server that was asked to end
DEATH = 1.0  # for one that was killed; and then it may be a zombie that nobody reaps


def main() -> None:
    """Wait for the parent to go, then end the group.

    Gently if its data is kept, at once if it is removed anyway.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent, folder = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    # The pipe tells at once. But a process that the parent forked without exec holds the pipe too,
    # and may live on: so look every second whose child this is.
    while os.getppid() == parent and not select.select([0], [], [], 1.0)[0]:
        pass
    group = os.getpgrp()
    if os.fork():
        os._exit(0)
    os.setpgid(
        0, 0
    )  # a leader cannot leave its group, its child can; who is in the group dies with it
    if not folder:
        _send(group, signal.SIGTERM)
        _send(
            group, signal.SIGCONT
        )  # a stopped process gets no signal but SIGKILL before it goes on
        _until(lambda: _is_gone(group), GRACE)
    _send(group, signal.SIGKILL)
    _until(lambda: _is_gone(group), DEATH)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _send(group: int, number: int) -> bool:
    """Tell whether anybody was there to get the signal."""
    try:
        os.killpg(group, number)
    except (
        ProcessLookupError,
        PermissionError,
    ):  # the second is macOS's word for a group of zombies
        return False
    return True


def _is_gone(group: int) -> bool:
    return not _send(group, 0)


def _until(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
