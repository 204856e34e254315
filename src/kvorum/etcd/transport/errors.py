"""The meaning of the driver's errors: one table.

A call ends in one of four ways: answered, refused (nothing was applied), not sent (no connection
was made, nothing was applied), or *open*: the request may have been applied, or may still be. An
open read is retried; an open write is an `OutcomeUnknownError`. What the table does not list is
open.

A refusal has a cause. The request: every server would refuse it. The member: another server may
accept it, so the client leaves this one and sends the request there. Or the member for now (it is
overloaded, or has no leader): another one is asked, and this one stays connected, since it has
answered. A refused request was not applied, with one exception that the table names.

Texts decide where they are definite: `etcd grpc-proxy` forwards them with code UNKNOWN, and codes
changed between versions. Otherwise codes decide. Sources: etcd's `api/v3rpc/rpctypes/error.go`
(variables `ErrGRPC…`) and where it returns them (named in the row if it matters), raft's `raft.go`,
and gRPC core's `http_client_filter.cc`.
"""

import asyncio
import re
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Final, NamedTuple, Protocol

import anyio.lowlevel

from kvorum.errors import (
    AuthenticationError,
    ClientClosedError,
    FutureRevisionError,
    HistoryLostError,
    InvalidResourceError,
    KvorumError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    ServerError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport._rpc import AioRpcError, StatusCode
from kvorum.observer import Call

__all__ = [
    "STATUS",
    "BehindError",
    "Call",
    "Cause",
    "TokenRefusedError",
    "UnfitRequestError",
    "cause_of",
    "error_for",
    "error_for_cancel_reason",
    "is_cancelled",
    "mapped_errors",
    "no_answer",
]


# The reason for not sending a request. It says nothing about the server.
NOT_SENT: Final = "not sent: the deadline had passed"


class HeldError(UnavailableError):
    """An observer held a request for too long. It was not sent; the server is not to blame."""


class TokenRefusedError(AuthenticationError):
    """The server did not accept the token, and did nothing. Retry with a new token."""


class BehindError(UnavailableError):
    """A server answered at a lower revision than was seen before.

    It is behind, or its store was restored.

    Attributes:
        known: the revision that had been seen.
        found: the one that it answered with.
    """

    def __init__(self, endpoint: str, *, known: int, found: int) -> None:
        self.known = known
        self.found = found
        super().__init__(
            endpoint, f"it answered at revision {found}, after revision {known} had been seen"
        )


class UnfitRequestError(KvorumError):
    """No server may be sent this batch any more. Nothing was done; its callers retry alone."""

    def __init__(self) -> None:
        super().__init__("the servers that are left may not be sent this batch")


STATUS: Final = Call("status", "the server")


# From a call, the endpoint, and the server's words.
_Meaning = Callable[[Call, str, str], KvorumError]


def _permission(call: Call, _endpoint: str, _detail: str) -> KvorumError:
    return PermissionDeniedError(f"{call.operation} {call.subject}")


def _too_large(call: Call, _endpoint: str, detail: str) -> KvorumError:
    # gRPC names its limit: "larger than max (2097182 vs. 2097152)". etcd does not.
    named = re.search(r"vs\. (\d+)", detail)
    return ResourceTooLargeError(
        call.subject, limit=int(named[1]) if named else None, detail=detail
    )


def _not_done(_call: Call, endpoint: str, detail: str) -> KvorumError:
    return UnavailableError(endpoint, detail)


def _no_etcd(_call: Call, endpoint: str, detail: str) -> KvorumError:
    return UnavailableError(endpoint, f"it does not serve etcd's API: {detail}")


def _token(_call: Call, _endpoint: str, detail: str) -> KvorumError:
    return TokenRefusedError(detail)


def _invalid(call: Call, _endpoint: str, detail: str) -> KvorumError:
    return InvalidResourceError(call.subject, detail)


# What an operator does about it; all others list again.
_ADVICE: Final = {
    "compact": "nothing is left to discard before it",
    "hash": "ask for a revision above the last compaction",
}


def _compacted(call: Call, _endpoint: str, _detail: str) -> KvorumError:
    return HistoryLostError(revision=call.revision, advice=_ADVICE.get(call.operation))


def _future(call: Call, endpoint: str, _detail: str) -> KvorumError:
    # A hash is of one member, which may lag. All else asks for what the cluster has agreed on.
    return FutureRevisionError(
        revision=call.revision, endpoint=endpoint if call.operation == "hash" else ""
    )


def _server_error(name: str) -> _Meaning:
    return lambda _call, _endpoint, detail: ServerError(name, detail)


class Cause(Enum):
    """What a failed call is evidence of."""

    REQUEST = "the request: another server would refuse it, too"
    MEMBER = "the member: it did nothing, another server may accept the request"
    BUSY = "the member for now: it answers, did nothing, and another server may accept the request"
    OPEN = "the server or the network: the call lost its answer"
    DEADLINE = "the deadline of the call: no evidence about the server unless it was long"


class _Row(NamedTuple):
    """A refusal: the first row that fits counts.

    Attributes:
        text: a part of the server's words; "" fits all.
        meaning: makes the error to raise.
        cause: what the refusal is evidence of.
        code: the code that it must have; None if the text alone decides.
    """

    text: str
    meaning: _Meaning
    cause: Cause
    code: StatusCode | None = None


_REQUEST: Final = Cause.REQUEST
_MEMBER: Final = Cause.MEMBER
_BUSY: Final = Cause.BUSY

_REFUSALS: Final = (
    # --- the member: it cannot do it, and did nothing; some only for now ---
    # gRPC core: the call never got a connection.
    _Row("failed to connect to all addresses", _not_done, _MEMBER, StatusCode.UNAVAILABLE),
    _Row("DNS resolution failed", _not_done, _MEMBER, StatusCode.UNAVAILABLE),
    # gRPC core, http_client_filter.cc: an HTTP proxy answered in place of a gRPC server. With these
    # codes it forwarded nothing. A request with 502 to 504 may have been forwarded, and is open.
    _Row("http2 header with status: 401", _no_etcd, _MEMBER),
    _Row("http2 header with status: 403", _no_etcd, _MEMBER),
    _Row("http2 header with status: 404", _no_etcd, _MEMBER),
    _Row("http2 header with status: 429", _not_done, _MEMBER),
    # ErrGRPCNoLeader: v3rpc/interceptor.go, before the handler.
    _Row("etcdserver: no leader", _not_done, _BUSY),
    _Row("etcdserver: not leader", _not_done, _BUSY),  # ErrGRPCNotLeader
    # ErrGRPCNotCapable: interceptor.go; the member is starting.
    _Row("etcdserver: not capable", _not_done, _MEMBER),
    # ErrGRPCNotSupportedForLearner: interceptor.go. UNAVAILABLE before 3.6, FAILED_PRECONDITION
    # since.
    _Row("rpc not supported for learner", _not_done, _MEMBER),
    # raft.ErrProposalDropped: without a leader, or while leadership is transferred. `Step` returns
    # it before it appends or forwards anything.
    _Row("raft proposal dropped", _not_done, _BUSY),
    # ErrGRPCRequestTooManyRequests: v3_server.go, processInternalRaftRequestOnce, before the
    # proposal.
    _Row("etcdserver: too many requests", _not_done, _BUSY),
    # --- the request ---
    _Row(
        "required revision has been compacted",
        _compacted,
        _REQUEST,
    ),
    _Row(
        "is a future revision",
        _future,
        _REQUEST,
    ),
    _Row("too large lease TTL", _invalid, _REQUEST),  # ErrGRPCLeaseTTLTooLarge
    # ErrGRPCLeaseNotFound, ErrGRPCLeaseExist
    _Row("requested lease not found", lambda *_: LeaseNotFoundError(), _REQUEST),
    _Row("etcdserver: lease already exists", _server_error("FAILED_PRECONDITION"), _REQUEST),
    _Row("etcdserver: permission denied", _permission, _REQUEST),  # ErrGRPCPermissionDenied
    # Alarm, Status and others return the errors of server/auth/store.go unchanged: code UNKNOWN,
    # "auth: …".
    _Row("auth: permission denied", _permission, _REQUEST),  # auth.ErrPermissionDenied
    # ErrGRPCInvalidAuthToken, auth.ErrInvalidAuthToken
    _Row("invalid auth token", _token, _REQUEST),
    _Row("user name is empty", _token, _REQUEST),  # ErrGRPCUserEmpty, auth.ErrUserEmpty
    _Row("revision of auth store is old", _token, _REQUEST),  # ErrGRPCAuthOldRevision
    # auth.ErrAuthOldRevision, where etcd does not map it
    _Row("revision in header is old", _token, _REQUEST),
    _Row(
        "authentication failed, invalid user",
        lambda _call, _, detail: AuthenticationError(detail),
        _REQUEST,
    ),
    # ErrGRPCAuthNotEnabled
    _Row("authentication is not enabled", _server_error("FAILED_PRECONDITION"), _REQUEST),
    _Row("etcdserver: request is too large", _too_large, _REQUEST),  # ErrGRPCRequestTooLarge
    # ErrGRPCEmptyKey and the like
    _Row("etcdserver: key is not provided", _invalid, _REQUEST),
    _Row("etcdserver: key not found", _invalid, _REQUEST),
    _Row("etcdserver: value is provided", _invalid, _REQUEST),
    _Row("etcdserver: lease is provided", _invalid, _REQUEST),
    _Row("etcdserver: too many operations in txn request", _invalid, _REQUEST),
    _Row("etcdserver: duplicate key given in txn request", _invalid, _REQUEST),
    _Row("etcdserver: invalid sort option", _invalid, _REQUEST),
    _Row("etcdserver: invalid client api version", _invalid, _REQUEST),
    # ErrGRPCNoSpace. The one refusal that may have been applied: in apply/quota.go, quotaApplierV3
    # applies the write that crosses the quota, and then answers this. A read can tell.
    _Row("database space exceeded", lambda _call, _, detail: StorageFullError(detail), _REQUEST),
    # ErrGRPCCorrupt: the alarm is in the log, so every member refuses.
    _Row("etcdserver: corrupt cluster", _server_error("DATA_LOSS"), _REQUEST),
    # --- by code, where the text is not definite ---
    # gRPC, on either side
    _Row("larger than max", _too_large, _REQUEST, StatusCode.RESOURCE_EXHAUSTED),
    _Row("", _permission, _REQUEST, StatusCode.PERMISSION_DENIED),
    _Row("", _token, _REQUEST, StatusCode.UNAUTHENTICATED),
    _Row("", _invalid, _REQUEST, StatusCode.INVALID_ARGUMENT),
    _Row("", _server_error("FAILED_PRECONDITION"), _REQUEST, StatusCode.FAILED_PRECONDITION),
    # An etcd that lacks one method (grpc-go: "unknown method X for service etcdserverpb.Y") differs
    # from an endpoint that lacks the service, which is not etcd.
    _Row("unknown method", _server_error("UNIMPLEMENTED"), _REQUEST, StatusCode.UNIMPLEMENTED),
    _Row("", _no_etcd, _MEMBER, StatusCode.UNIMPLEMENTED),
)


def error_for(error: AioRpcError, call: Call, endpoint: str) -> KvorumError:
    """Return Kvorum's error for a failed call. Raise it `from` the driver's."""
    code, detail = error.code(), error.details() or "no details"
    row = _row_of(code, detail)
    return (
        row.meaning(call, endpoint, detail)
        if row
        else no_answer(call, endpoint, f"{code.name}: {detail}")
    )


def error_for_cancel_reason(reason: str, call: Call, endpoint: str) -> KvorumError:
    """Return the error for a watch that was refused: etcd gives a reason there, but no code."""
    row = _row_of(None, reason)
    return (
        row.meaning(call, endpoint, reason)
        if row
        else ServerError("UNKNOWN", f"the watch was ended: {reason or 'no reason'}")
    )


def cause_of(error: KvorumError) -> Cause | None:
    """Return what an error is evidence of; None if the driver did not cause it."""
    driver = error.__cause__
    if not isinstance(driver, AioRpcError):
        return None
    code = driver.code()
    row = _row_of(code, driver.details() or "")
    if row is not None:
        return row.cause
    return Cause.DEADLINE if code is StatusCode.DEADLINE_EXCEEDED else Cause.OPEN


def _row_of(code: StatusCode | None, detail: str) -> _Row | None:
    for row in _REFUSALS:
        if (row.code is None or row.code is code) and row.text in detail:
            return row
    return None


def no_answer(call: Call, endpoint: str, reason: str) -> KvorumError:
    """Return the error for a call that was sent and not answered."""
    if call.writes:
        return OutcomeUnknownError(f"{call.subject} ({call.operation})", reason)
    return UnavailableError(endpoint, reason)


class HasState(Protocol):
    """Where a call is sent: a server."""

    @property
    def address(self) -> str:
        """`host:port`."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether the client has closed its channels."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """The error that they were closed for; None if the user closed the client."""
        ...


class mapped_errors:  # noqa: N801 - used as a function
    """A block that raises Kvorum's errors for the driver's, and tells cancellations apart.

    A class, since it is entered for every call: faster than a generator.
    """

    __slots__ = ("_call", "_cancellations", "_server")

    def __init__(self, call: Call, server: HasState) -> None:
        self._call = call
        self._server = server
        self._cancellations = 0

    async def __aenter__(self) -> None:
        self._cancellations = _cancellations()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            return
        # The driver's frames refer to the call, and so to its channel. An error that is kept must
        # not keep those.
        del traceback
        if isinstance(exc, rpc.AioRpcError):
            exc.__traceback__ = None
            raise error_for(exc, self._call, self._server.address) from exc
        # The channel was closed before the call had started, or before its request was sent.
        if isinstance(exc, rpc.UsageError | asyncio.InvalidStateError):
            raise _caused(self._not_started(), exc)
        if isinstance(exc, rpc.InternalError):  # gRPC's core rejected a part of a call under way
            raise no_answer(self._call, self._server.address, f"INTERNAL: {exc}") from exc
        if isinstance(exc, asyncio.CancelledError):
            # grpc.aio cancels the calls of a channel that is closed. A task that cleans up after
            # it was cancelled still counts that cancellation, which does not concern this call.
            if _cancellations() <= self._cancellations:
                exc.__traceback__ = None
                raise _caused(self._cut_short(), exc)
            # grpc.aio replaces the error that cancelled it with its own, which anyio does not
            # recognise as that of its scope. If there is a scope, it cancels again, at this
            # checkpoint.
            await anyio.lowlevel.checkpoint_if_cancelled()

    def _not_started(self) -> KvorumError:
        if self._server.is_closed:
            return ClientClosedError.closed(self._server.failure)
        return UnavailableError(self._server.address, "its channel was replaced")

    def _cut_short(self) -> KvorumError:
        if not self._server.is_closed:
            return no_answer(self._call, self._server.address, "its channel was replaced")
        if self._call.writes:
            return no_answer(self._call, self._server.address, "the client was closed")
        return ClientClosedError.closed(self._server.failure)


def _cancellations() -> int:
    """Return how many cancellations the current task has received.

    One that it will receive at its next await does not count.
    """
    task = asyncio.current_task()
    if task is None:
        return 0
    count = task.cancelling()
    if count and getattr(task, "_must_cancel", False):  # asyncio has no public sign of it
        return count - 1
    return count


def _caused(error: KvorumError, cause: BaseException) -> KvorumError:
    """Return an error with its cause, unless it has one."""
    error.__cause__ = error.__cause__ or cause
    return error


def is_cancelled() -> bool:
    """Return whether a CancelledError is about the current task, not about a call it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
