"""What an error of the driver means to a user of Kvorum: one table.

A call ends in one of four ways: with an answer, refused (the server said no, nothing was applied), not sent (no
connection was ever made, nothing was applied), or *open*: the request may have been applied, or may still be. For a
read, "open" means no more than "try again"; for a write it is `OutcomeUnknownError`. What the table does not list is
open.

Source of the codes and texts: etcd's api/v3rpc/rpctypes/error.go, and gRPC's status codes.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from kvorum.errors import (
    AuthenticationError,
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
from kvorum.etcd._rpc import AioRpcError, StatusCode


class TokenRefusedError(AuthenticationError):
    """The token is not taken (any more). Nothing was done; who has another can try again."""


class Call(NamedTuple):
    """What was tried, in the words of a message.

    Attributes:
        operation: as `put`.
        subject: the key, prefix or lease, as etcd knows it.
        writes: whether it may change something.
        revision: the revision that a read asked for; 0 if none.
    """

    operation: str
    subject: str
    writes: bool = False
    revision: int = 0


MAX_REQUEST_SIZE: Final = 1_572_864  # of etcd (`--max-request-bytes`), unless it is set otherwise

_Meaning = Callable[[Call, str, str], KvorumError]  # of a call, at an endpoint, with the server's words


def _permission(call: Call, _endpoint: str, _detail: str) -> KvorumError:
    return PermissionDeniedError(f"{call.operation} {call.subject}")


def _too_large(call: Call, _endpoint: str, detail: str) -> KvorumError:
    # gRPC names its limit: "larger than max (2097182 vs. 2097152)". etcd does not.
    named = re.search(r"vs\. (\d+)", detail)
    return ResourceTooLargeError(call.subject, limit=int(named[1]) if named else None, detail=detail)


def _not_done(_call: Call, endpoint: str, detail: str) -> KvorumError:
    return UnavailableError(endpoint, detail)


def _token(_call: Call, _endpoint: str, detail: str) -> KvorumError:
    return TokenRefusedError(detail)


def _invalid(call: Call, _endpoint: str, detail: str) -> KvorumError:
    return InvalidResourceError(call.subject, detail)


_REFUSALS: Final[tuple[tuple[StatusCode, str, _Meaning], ...]] = (
    # code, part of the text ("" fits all), what it means; the first that fits counts
    (StatusCode.UNAVAILABLE, "failed to connect to all addresses", _not_done),
    (StatusCode.UNAVAILABLE, "DNS resolution failed", _not_done),
    (StatusCode.UNAVAILABLE, "etcdserver: no leader", _not_done),  # asked before the request is looked at: `hasleader`
    (StatusCode.OUT_OF_RANGE, "has been compacted", lambda call, *_: HistoryLostError(revision=call.revision)),
    (StatusCode.OUT_OF_RANGE, "future revision", lambda call, *_: FutureRevisionError(revision=call.revision)),
    (StatusCode.OUT_OF_RANGE, "too large lease TTL", _invalid),
    (StatusCode.NOT_FOUND, "lease not found", lambda *_: LeaseNotFoundError()),
    (StatusCode.PERMISSION_DENIED, "permission denied", _permission),
    (StatusCode.PERMISSION_DENIED, "", _permission),
    (StatusCode.UNAUTHENTICATED, "auth token", _token),
    (StatusCode.UNAUTHENTICATED, "", _token),
    (StatusCode.INVALID_ARGUMENT, "user name is empty", _token),
    (StatusCode.INVALID_ARGUMENT, "revision of auth store is old", _token),
    (StatusCode.UNKNOWN, "revision in header is old", _token),
    (StatusCode.INVALID_ARGUMENT, "authentication failed", lambda _call, _, detail: AuthenticationError(detail)),
    (StatusCode.INVALID_ARGUMENT, "request is too large", _too_large),
    (StatusCode.INVALID_ARGUMENT, "", _invalid),
    (StatusCode.RESOURCE_EXHAUSTED, "larger than max", _too_large),
    (StatusCode.RESOURCE_EXHAUSTED, "database space exceeded", lambda _call, _, detail: StorageFullError(detail)),
    (StatusCode.RESOURCE_EXHAUSTED, "too many requests", _not_done),
    (StatusCode.FAILED_PRECONDITION, "", lambda _call, _, detail: ServerError("FAILED_PRECONDITION", detail)),
    (StatusCode.UNIMPLEMENTED, "", lambda _call, _, detail: ServerError("UNIMPLEMENTED", detail)),
    (StatusCode.DATA_LOSS, "corrupt cluster", lambda _call, _, detail: ServerError("DATA_LOSS", detail)),
)


def meaning_of(error: AioRpcError, call: Call, endpoint: str) -> KvorumError:
    """Return the error of Kvorum's that a failed call stands for; raise it `from` the driver's."""
    code, detail = error.code(), error.details() or "no details"
    for refused, text, meaning in _REFUSALS:
        if code is refused and text in detail:
            return meaning(call, endpoint, detail)
    return open_end(call, endpoint, f"{code.name}: {detail}")


def meaning_of_reason(reason: str, call: Call, endpoint: str) -> KvorumError:
    """Return the error for a watch that was refused: etcd gives a reason in words there, and no code."""
    for _, text, meaning in _REFUSALS:
        if text and text in reason:
            return meaning(call, endpoint, reason)
    return ServerError("the end of the watch", reason or "no reason")


def open_end(call: Call, endpoint: str, reason: str) -> KvorumError:
    """Return the error for a call that was sent and got no answer."""
    if call.writes:
        return OutcomeUnknownError(f"{call.subject} ({call.operation})", reason)
    return UnavailableError(endpoint, reason)
