"""What a fork leaves of gRPC: nothing that works, if it was at work in the parent.

grpc.aio reads its queue in a thread, which the child does not have; and what other threads of gRPC
held at that moment is held for ever. A call there hangs, or ends the process. Once all channels and
calls of a process are gone, so is the thread, and a child can begin anew.
"""

import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from kvorum.errors import ClientClosedError

_READER: Final = (
    "(_poll_wrapper)"  # how Python names a thread that runs grpc.aio's function of that name
)
_THREADS: Final = ("event_engine", "lifeguard", "grpc_")  # how gRPC's core names its own
_MOMENT: Final = (
    2.0  # seconds after a channel was closed for which a fork waits for gRPC's threads to end
)
_HANDLERS: Final = "GRPC_ENABLE_FORK_SUPPORT"


def _load_grpc() -> None:
    """Load gRPC without its own handlers of forks, unless the environment asks for them.

    In a child they start threads again that poll what belongs to the parent, and crash. gRPC reads
    the variable as it is loaded, and no other process is to find it set.
    """
    is_set = _HANDLERS in os.environ
    os.environ.setdefault(_HANDLERS, "0")
    try:
        import_module("grpc")
    finally:
        if not is_set:
            del os.environ[_HANDLERS]


_load_grpc()

_was_at_work = False  # when the fork began
_is_inherited = False
_ends = 0.0  # when threads of gRPC that are about to end are waited for no longer


def ending() -> None:
    """Note that a channel is being closed: if it was the last, gRPC's threads end, in a moment."""
    global _ends  # noqa: PLW0603 - of the process
    _ends = time.monotonic() + _MOMENT


def _look() -> None:
    global _was_at_work  # noqa: PLW0603 - of the process
    _was_at_work = any(thread.name.endswith(_READER) for thread in threading.enumerate())
    if _was_at_work:
        return
    while (has_threads := _has_threads()) and time.monotonic() < _ends:
        time.sleep(0.001)
    # Not those of a synchronous channel whose owner has asked for gRPC's own handlers.
    _was_at_work = has_threads and _HANDLERS not in os.environ


def _has_threads() -> bool:
    """Tell whether gRPC's core runs threads here, as far as the system tells: Linux does."""
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            if name.read_text().startswith(_THREADS):
                return True
    return False


def _begin() -> None:
    global _is_inherited  # noqa: PLW0603 - of the process
    _is_inherited = _was_at_work or _is_inherited


if hasattr(os, "register_at_fork"):  # nothing is forked on Windows
    os.register_at_fork(before=_look, after_in_child=_begin)


def is_inherited() -> bool:
    """Tell whether this process was forked off while gRPC was at work, so that it must be left alone here."""
    return _is_inherited


def check() -> None:
    """Refuse to use gRPC in such a process.

    Raises:
        ClientClosedError: it is one.
    """
    if _is_inherited:
        raise ClientClosedError.where_grpc_was_inherited()
