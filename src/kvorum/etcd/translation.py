"""The border to the driver: what comes across it is an error of Kvorum's, or this task's own cancellation."""

import asyncio
from types import TracebackType
from typing import Protocol

import anyio.lowlevel

from kvorum.errors import ClientClosedError, KvorumError, UnavailableError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.faults import Call, meaning_of, open_end


class HasState(Protocol):
    """What a call goes to: a server."""

    @property
    def address(self) -> str:
        """`host:port`."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether its channels were closed by us."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """What they were closed for, if that was not asked for."""
        ...


class Translated:
    """A block in which the driver's errors are raised as Kvorum's, and cancellations as what they are.

    A class, since this is around every call.
    """

    __slots__ = ("_call", "_server")

    def __init__(self, call: Call, server: HasState) -> None:
        self._call = call
        self._server = server

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            return
        # Frames of the driver's refer to the call, and so to its channel; who keeps an error must not keep those.
        del traceback
        if isinstance(exc, rpc.AioRpcError):
            exc.__traceback__ = None
            raise meaning_of(exc, self._call, self._server.address) from exc
        # A call that was about to start as the channel was closed, or whose request was about to be sent.
        if isinstance(exc, rpc.UsageError | asyncio.InvalidStateError):
            error = self._not_started()
            raise error from error.__cause__ or exc
        if isinstance(exc, rpc.InternalError):  # gRPC's core did not take a part of a call that had begun
            raise open_end(self._call, self._server.address, f"INTERNAL: {exc}") from exc
        if isinstance(exc, asyncio.CancelledError):
            if not is_cancelled():  # grpc.aio cancels the calls of a channel that is closed
                exc.__traceback__ = None
                error = self._cut_short()
                raise error from error.__cause__ or exc
            # grpc.aio raises an error of its own in place of the one that cancelled it, and anyio would not know its
            # scope's again. If there is such a scope it cancels once more, at this checkpoint.
            await anyio.lowlevel.checkpoint_if_cancelled()

    def _not_started(self) -> KvorumError:
        if self._server.is_closed:
            return ClientClosedError.closed(self._server.failure)
        return UnavailableError(self._server.address, "its channel was replaced")

    def _cut_short(self) -> KvorumError:
        if not self._server.is_closed:
            return open_end(self._call, self._server.address, "its channel was replaced")
        if self._call.writes:
            return open_end(self._call, self._server.address, "the client was closed")
        return ClientClosedError.closed(self._server.failure)


def is_cancelled() -> bool:
    """Tell whether a CancelledError is about the current task, rather than about a call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
