"""The meaning of the driver's errors: the whole table, for reads and for writes."""

from collections.abc import Callable

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

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
from kvorum.etcd.transport.errors import (
    Call,
    Cause,
    TokenRefusedError,
    cause_of,
    error_for,
    error_for_cancel_reason,
    no_answer,
)

ENDPOINT = "localhost:2379"
READ = Call("range", "/lab/lab-workers/a", revision=7)
WRITE = Call("put", "/lab/lab-workers/a", writes=True)

both = pytest.mark.parametrize("call", [READ, WRITE], ids=["read", "write"])

# The same for a read and a write: the server (or gRPC on this side) refused, so nothing was
# applied. The texts are those of etcd's rpctypes/error.go and of gRPC.
REFUSED = [
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: Connection refused",
        UnavailableError,
    ),
    ("UNAVAILABLE", "DNS resolution failed for nowhere:2379: not found", UnavailableError),
    ("UNAVAILABLE", "etcdserver: no leader", UnavailableError),
    ("DATA_LOSS", "etcdserver: corrupt cluster", ServerError),
    ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", HistoryLostError),
    (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision is a future revision",
        FutureRevisionError,
    ),
    ("NOT_FOUND", "etcdserver: requested lease not found", LeaseNotFoundError),
    ("PERMISSION_DENIED", "etcdserver: permission denied", PermissionDeniedError),
    ("PERMISSION_DENIED", "", PermissionDeniedError),
    ("UNAUTHENTICATED", "etcdserver: invalid auth token", TokenRefusedError),
    ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", TokenRefusedError),
    ("UNKNOWN", "auth: revision in header is old", TokenRefusedError),
    ("UNKNOWN", "auth: invalid auth token", TokenRefusedError),
    ("UNKNOWN", "auth: permission denied", PermissionDeniedError),
    (
        "INVALID_ARGUMENT",
        "etcdserver: authentication failed, invalid user ID or password",
        AuthenticationError,
    ),
    ("INVALID_ARGUMENT", "etcdserver: user name is empty", TokenRefusedError),
    ("INVALID_ARGUMENT", "etcdserver: request is too large", ResourceTooLargeError),
    ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", InvalidResourceError),
    ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", InvalidResourceError),
    ("INVALID_ARGUMENT", "etcdserver: key is not provided", InvalidResourceError),
    (
        "RESOURCE_EXHAUSTED",
        "trying to send message larger than max (2097182 vs. 2097152)",
        ResourceTooLargeError,
    ),
    (
        "RESOURCE_EXHAUSTED",
        "grpc: received message larger than max (2097182 vs. 2097152)",
        ResourceTooLargeError,
    ),
    ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StorageFullError),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", UnavailableError),
    ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled", ServerError),
    ("UNIMPLEMENTED", "unknown method RangeStream for service etcdserverpb.KV", ServerError),
    ("UNIMPLEMENTED", "unknown service etcdserverpb.KV", UnavailableError),
    ("UNIMPLEMENTED", "Method not found!", UnavailableError),
    ("UNIMPLEMENTED", "Received http2 header with status: 404", UnavailableError),
    ("PERMISSION_DENIED", "Received http2 header with status: 403", UnavailableError),
    ("UNAUTHENTICATED", "Received http2 header with status: 401", UnavailableError),
    ("UNKNOWN", "raft proposal dropped", UnavailableError),
    ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner", UnavailableError),
    ("UNAVAILABLE", "etcdserver: rpc not supported for learner", UnavailableError),
    ("FAILED_PRECONDITION", "etcdserver: not capable", UnavailableError),
    ("FAILED_PRECONDITION", "etcdserver: not leader", UnavailableError),
]

# Another member may accept these; this one cannot, and did nothing.
OF_THE_MEMBER = {
    "failed to connect",
    "DNS resolution failed",
    "unknown service",
    "Method not found!",
    "http2 header with status: 4",
    "not supported for learner",
    "not capable",
}
OF_THE_MEMBER_FOR_NOW = {"no leader", "not leader", "too many requests", "raft proposal dropped"}

# These leave a call open: it may have been applied, or may still be.
OPEN = [
    ("UNAVAILABLE", "Socket closed"),
    ("UNAVAILABLE", "recvmsg:Connection reset by peer"),
    ("UNAVAILABLE", "GOAWAY received"),
    ("UNAVAILABLE", "etcdserver: request timed out"),
    ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure"),
    ("UNAVAILABLE", "etcdserver: leader changed"),
    ("UNAVAILABLE", "etcdserver: unhealthy cluster"),
    ("UNAVAILABLE", "etcdserver: server stopped"),
    ("UNAVAILABLE", "Received http2 header with status: 502"),
    ("UNAVAILABLE", "Received http2 header with status: 504"),
    ("UNKNOWN", "etcdserver: request timed out"),
    ("UNKNOWN", "etcdserver: leader changed"),
    ("UNKNOWN", "etcdserver: server stopped"),
    ("UNAVAILABLE", ""),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
    ("CANCELLED", "Locally cancelled by application!"),
    ("UNKNOWN", "Stream removed"),
    ("INTERNAL", "Received RST_STREAM with error code 2"),
    ("ABORTED", ""),
    ("DATA_LOSS", "something else"),
    ("ALREADY_EXISTS", ""),
    ("NOT_FOUND", "something else"),
    ("UNKNOWN", "something else"),
    ("OUT_OF_RANGE", "something else"),
    ("RESOURCE_EXHAUSTED", "something else"),
]


def rpc_error(code: str, detail: str | None) -> AioRpcError:
    return AioRpcError(grpc.StatusCode[code], Metadata(), Metadata(), details=detail)


# --- the table ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("code", "detail", "meaning"), REFUSED)
def test_a_refusal_means_the_same_for_reads_and_writes(
    code: str, detail: str, meaning: type[KvorumError], call: Call
) -> None:
    error = error_for(rpc_error(code, detail), call, ENDPOINT)

    assert type(error) is meaning


@both
@pytest.mark.parametrize(
    ("detail", "meaning"), [row[1:] for row in REFUSED if row[1].startswith("etcdserver")]
)
def test_a_refusal_is_known_by_its_words_whatever_the_code(
    detail: str, meaning: type[KvorumError], call: Call
) -> None:
    """etcd's own proxy forwards each refusal with code UNKNOWN."""
    assert type(error_for(rpc_error("UNKNOWN", detail), call, ENDPOINT)) is meaning


@pytest.mark.parametrize(("code", "detail"), [row[:2] for row in REFUSED])
def test_a_refusal_is_of_the_request_or_of_the_member(code: str, detail: str) -> None:
    """Of the member, maybe for now only: another one is asked. Of the request.

    Every one would say the same.
    """
    driver = rpc_error(code, detail)
    error = error_for(driver, WRITE, ENDPOINT)
    error.__cause__ = driver

    expected = Cause.MEMBER if any(words in detail for words in OF_THE_MEMBER) else Cause.REQUEST
    if any(words in detail for words in OF_THE_MEMBER_FOR_NOW):
        expected = Cause.BUSY
    assert cause_of(error) is expected
    assert isinstance(error, UnavailableError) == (expected is not Cause.REQUEST)


@pytest.mark.parametrize(("code", "detail"), OPEN)
def test_a_deadline_is_told_from_a_failure(code: str, detail: str) -> None:
    """A caller's deadline is no evidence about the server."""
    driver = rpc_error(code, detail)
    error = error_for(driver, WRITE, ENDPOINT)
    error.__cause__ = driver

    assert cause_of(error) is (Cause.DEADLINE if code == "DEADLINE_EXCEEDED" else Cause.OPEN)


def test_an_error_that_no_call_made_is_no_evidence() -> None:
    assert cause_of(UnavailableError(ENDPOINT, "the deadline has passed")) is None


@pytest.mark.parametrize(("code", "detail"), OPEN)
def test_a_write_without_an_answer_has_an_unknown_outcome(code: str, detail: str) -> None:
    error = error_for(rpc_error(code, detail), WRITE, ENDPOINT)

    assert isinstance(error, OutcomeUnknownError)
    assert error.subject == "/lab/lab-workers/a (put)"
    assert error.reason == f"{code}: {detail or 'no details'}"


@pytest.mark.parametrize(("code", "detail"), OPEN)
def test_a_read_without_an_answer_may_be_retried(code: str, detail: str) -> None:
    error = error_for(rpc_error(code, detail), READ, ENDPOINT)

    assert isinstance(error, UnavailableError)
    assert error.endpoint == "localhost:2379"
    assert error.reason == f"{code}: {detail or 'no details'}"


@both
@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
@pytest.mark.parametrize("detail", ["words that no server says", "", None])
def test_every_code_has_a_meaning(code: grpc.StatusCode, detail: str | None, call: Call) -> None:
    """What the table does not list is open: never "nothing happened" by default."""
    error = error_for(rpc_error(code.name, detail), call, ENDPOINT)

    listed = {"PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
    if code.name == "UNIMPLEMENTED":  # not etcd: this endpoint did nothing
        assert type(error) is UnavailableError
        return
    open_end_of_call = OutcomeUnknownError if call.writes else UnavailableError
    assert isinstance(error, KvorumError)
    assert isinstance(error, open_end_of_call) == (code.name not in listed)


# --- what the errors carry ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (
            error_for(
                rpc_error("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted"),
                READ,
                ENDPOINT,
            ),
            {"revision": 7},
        ),
        (
            error_for(
                rpc_error(
                    "OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision"
                ),
                READ,
                ENDPOINT,
            ),
            {"revision": 7},
        ),
        (
            error_for(
                rpc_error("PERMISSION_DENIED", "etcdserver: permission denied"), WRITE, ENDPOINT
            ),
            {"operation": "put /lab/lab-workers/a"},
        ),
        (
            error_for(
                rpc_error("INVALID_ARGUMENT", "etcdserver: request is too large"), WRITE, ENDPOINT
            ),
            {"subject": "/lab/lab-workers/a", "size": None, "limit": None},
        ),
        (
            error_for(
                rpc_error("UNAVAILABLE", "failed to connect to all addresses"), WRITE, ENDPOINT
            ),
            {"endpoint": "localhost:2379", "reason": "failed to connect to all addresses"},
        ),
        (
            error_for(
                rpc_error("INVALID_ARGUMENT", "etcdserver: key is not provided"), WRITE, ENDPOINT
            ),
            {"subject": "/lab/lab-workers/a", "problems": ("etcdserver: key is not provided",)},
        ),
        (
            error_for(
                rpc_error("FAILED_PRECONDITION", "etcdserver: lease already exists"),
                WRITE,
                ENDPOINT,
            ),
            {"detail": "etcdserver: lease already exists"},
        ),
    ],
)
def test_an_error_carries_what_the_call_was_about(
    error: KvorumError, attributes: dict[str, object]
) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes


def test_a_watch_that_ends_for_another_reason_tells_a_code_of_grpc_and_the_reason() -> None:
    """etcd gives a reason there, and no code."""
    error = error_for_cancel_reason("the disk is on fire", READ, ENDPOINT)

    assert isinstance(error, ServerError)
    assert error.code in grpc.StatusCode.__members__
    assert "the disk is on fire" in error.detail


@pytest.mark.parametrize("code", ["FAILED_PRECONDITION"])
def test_a_server_error_tells_the_code_by_its_name(code: str) -> None:
    """`ServerError.code` is documented as the name of gRPC's status code."""
    error = error_for(rpc_error(code, "etcdserver: authentication is not enabled"), WRITE, ENDPOINT)

    assert isinstance(error, ServerError)
    assert error.code == code


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: no_answer(WRITE, ENDPOINT, "the stream broke"),
            "the outcome of writing /lab/lab-workers/a (put) is unknown",
        ),
        (
            lambda: no_answer(READ, ENDPOINT, "the stream broke"),
            "etcd at localhost:2379 is unavailable: the stream broke",
        ),
    ],
)
def test_a_call_that_lost_its_answer_is_open(make: Callable[[], KvorumError], text: str) -> None:
    assert str(make()).startswith(text)


def test_missing_details_are_reported_as_missing() -> None:
    error = error_for(rpc_error("UNAVAILABLE", None), READ, ENDPOINT)

    assert str(error) == "etcd at localhost:2379 is unavailable: UNAVAILABLE: no details"
