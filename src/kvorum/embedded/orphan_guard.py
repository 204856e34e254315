"""The guard of a process group: ends the group and removes its folder once the parent has ended.

A script, not for import: `python -I -S orphan_guard.py PARENT [FOLDER]`. It leads the group that it
guards. Its standard input is a pipe whose other end only the parent holds. It imports nothing but
the standard library, so it starts fast and does not depend on the parent's import path.

Why a process and not PR_SET_PDEATHSIG: that exists on Linux only, fires when the *thread* that
started the server ends, needs code between fork and exec, and removes no folder. Why a group and
not process ids: every process that joins the group before the pipe closes is ended; none has to be
reported, and no id can have been reused.
"""

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

GRACE = 5.0  # seconds for a server to end after SIGTERM
DEATH = 1.0  # and after SIGKILL; then only a zombie may be left, which no process reaps


def main() -> None:
    """Wait for the parent to end, then end the group: gently only if its data is kept."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent, folder = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    # The pipe closes at once. But a process that the parent forked without exec also holds it and
    # may outlive the parent, so check every second whose child this is.
    while os.getppid() == parent and not select.select([0], [], [], 1.0)[0]:
        pass
    group = os.getpgrp()
    if os.fork():
        os._exit(0)
    # A leader cannot leave its group, its child can. What is in the group dies with it.
    os.setpgid(0, 0)
    if not folder:
        _send(group, signal.SIGTERM)
        _send(group, signal.SIGCONT)  # until it resumes, a stopped process handles only SIGKILL
        _until(lambda: _is_gone(group), GRACE)
    _send(group, signal.SIGKILL)
    _until(lambda: _is_gone(group), DEATH)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _send(group: int, number: int) -> bool:
    """Send a signal; tell whether there was a process to receive it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
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
