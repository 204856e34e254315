"""The observer of a client, as the client calls it: what it raises is its own, never the client's.

Reports must not raise; one that does is logged once, and the client goes on. What a coroutine
method raises is marked, so that it is not taken for a bug in Kvorum or for a lost answer.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from kvorum.errors import KvorumError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.observer import SILENT, Observer

_log = logging.getLogger(__name__)

_MARK: Final = "_kvorum_raised_by_observer"

_Hook: TypeAlias = Callable[..., Awaitable[None]]
_Report: TypeAlias = Callable[..., None]


def guarded(observer: Observer) -> Observer:
    """Return an observer that calls the methods which a given one overrides, and no others.

    If it overrides none, that is `SILENT`.
    """
    guard = Observer()
    methods: Mapping[str, Any] = vars(Observer)
    for name, method in methods.items():
        if name.startswith("_"):
            continue
        given = getattr(observer, name)
        if getattr(given, "__func__", None) is method:  # not overridden: it costs what it did
            continue
        described = f"{type(observer).__name__}.{name}"
        is_hook = inspect.iscoroutinefunction(method)
        vars(guard)[name] = _hook(given, described) if is_hook else _report(given, described)
    return guard if vars(guard) else SILENT


def is_of_observer(error: BaseException) -> bool:
    """Return whether an observer has raised an error that is not one of Kvorum's."""
    return hasattr(error, _MARK)


def _hook(method: _Hook, name: str) -> _Hook:
    async def hook(*args: object) -> None:
        try:
            await method(*args)
        except (KvorumError, rpc.AioRpcError):  # as if a server had answered so
            raise
        except Exception as exc:
            if not is_of_observer(exc):
                setattr(exc, _MARK, True)
                exc.add_note(f"raised by the observer, in {name}")
            raise

    return hook


def _report(method: _Report, name: str) -> _Report:
    has_raised = False

    def report(*args: object) -> None:
        nonlocal has_raised
        try:
            method(*args)
        except Exception:  # noqa: BLE001 - the observer's, and no reason to stop
            if not has_raised:
                has_raised = True
                _log.exception("observer %s raised; the client goes on and logs this once", name)

    return report
