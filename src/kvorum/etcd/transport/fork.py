"""Whether gRPC works after a fork: it does not if it was active in the parent.

grpc.aio reads its queue in a thread, which the child does not have, and locks that other threads of
gRPC held at that moment are never released. A call in the child hangs, or crashes it. Once all
channels and calls of a process are gone, so is the thread, and a child can use gRPC.
"""

import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from kvorum.errors import ClientClosedError

_READER: Final = "(_poll_wrapper)"  # in the name of the thread that runs this function of grpc.aio
_THREADS: Final = ("event_engine", "lifeguard", "grpc_")  # names of the threads of gRPC's core
_MOMENT: Final = 2.0  # seconds after closing a channel in which a fork waits for gRPC's threads
_HANDLERS: Final = "GRPC_ENABLE_FORK_SUPPORT"


def _load_grpc() -> None:
    """Load gRPC without its own fork handlers, unless the environment asks for them.

    In a child they restart threads that poll what belongs to the parent, and crash. gRPC reads the
    variable while it is loaded; it is unset again for child processes.
    """
    is_set = _HANDLERS in os.environ
    os.environ.setdefault(_HANDLERS, "0")
    try:
        import_module("grpc")
    finally:
        if not is_set:
            del os.environ[_HANDLERS]


_load_grpc()

_grpc_was_active = False  # when the fork began
_is_inherited = False
_ends = 0.0  # how long to wait for threads of gRPC that are about to end


def note_channel_closed() -> None:
    """Record that a channel is being closed. After the last one, gRPC's threads end in a moment."""
    global _ends  # noqa: PLW0603 - of the process
    _ends = time.monotonic() + _MOMENT


def _before_fork() -> None:
    global _grpc_was_active  # noqa: PLW0603 - of the process
    _grpc_was_active = any(thread.name.endswith(_READER) for thread in threading.enumerate())
    if _grpc_was_active:
        return
    while (has_threads := _has_threads()) and time.monotonic() < _ends:
        time.sleep(0.001)
    # Threads of a synchronous channel do not count if its owner has asked for gRPC's own handlers.
    _grpc_was_active = has_threads and _HANDLERS not in os.environ


def _has_threads() -> bool:
    """Return whether gRPC's core runs threads in this process. Known on Linux only."""
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread has just ended
            if name.read_text().startswith(_THREADS):
                return True
    return False


def _after_fork() -> None:
    global _is_inherited  # noqa: PLW0603 - of the process
    _is_inherited = _grpc_was_active or _is_inherited


if hasattr(os, "register_at_fork"):  # nothing is forked on Windows
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def is_inherited() -> bool:
    """Return whether this process was forked while gRPC was active, so that it must not be used."""
    return _is_inherited


def check() -> None:
    """Refuse to use gRPC in a process that was forked while it was active.

    Raises:
        ClientClosedError: this is such a process.
    """
    if _is_inherited:
        raise ClientClosedError.where_grpc_was_inherited()
