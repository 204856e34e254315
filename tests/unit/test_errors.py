"""The tree of errors: what handlers can rely on without parsing text."""

import copy
import inspect
import pickle

import pytest

import kvorum
from kvorum import errors
from kvorum.errors import (
    AlreadyExistsError,
    AnotherClusterError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    CorruptResourceError,
    EmbeddedEtcdError,
    FutureRevisionError,
    HistoryLostError,
    InternalError,
    InvalidResourceError,
    InvalidSelectorError,
    KvorumError,
    LeaseNotFoundError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    ServerError,
    StaleReadError,
    StorageFullError,
    TlsError,
    UnavailableError,
)
from kvorum.storage.values import Entry, Operation

ENTRY = Entry("lab-workers/a", b"{}", mod_revision=9, create_revision=3, version=4)

# Each error with its message and its attributes.
EXAMPLES: list[tuple[KvorumError, str, dict[str, object]]] = [
    (KvorumError("anything"), "anything", {}),
    (ConfigurationError("no host"), "no host", {}),
    (
        InvalidResourceError("lab-workers/a", ["no name", "no track"]),
        "lab-workers/a: no name; no track",
        {"subject": "lab-workers/a", "problems": ("no name", "no track")},
    ),
    (
        InvalidSelectorError("a in", 4, "expected '('"),
        "selector 'a in', at position 4: expected '('",
        {"selector": "a in", "position": 4, "reason": "expected '('"},
    ),
    (
        ResourceTooLargeError("lab-workers/a", size=1_000_001, limit=1_000_000),
        "lab-workers/a has 1,000,001 bytes, 1,000,000 are allowed",
        {"subject": "lab-workers/a", "size": 1_000_001, "limit": 1_000_000},
    ),
    (
        ResourceTooLargeError("lab-workers/a", detail="etcdserver: request is too large"),
        "lab-workers/a has too many bytes (etcdserver: request is too large)",
        {"size": None, "limit": None},
    ),
    (NotFoundError("lab-workers/a"), "lab-workers/a does not exist", {"subject": "lab-workers/a"}),
    (
        AlreadyExistsError("lab-workers/a"),
        "lab-workers/a already exists",
        {"subject": "lab-workers/a"},
    ),
    (
        ConflictError("lab-workers/a", expected=7, current=ENTRY, found=9),
        "lab-workers/a: expected version 7, but it is at 9 now; read it again and retry",
        {"subject": "lab-workers/a", "expected": 7, "current": ENTRY},
    ),
    (
        ConflictError("lab-workers/a", expected=7, current=ENTRY),
        "lab-workers/a: expected version 7, but it has been replaced; read it again and retry",
        {"current": ENTRY},
    ),
    (
        ConflictError("lab-workers/a", expected="uid-1"),
        "lab-workers/a: expected uid uid-1, but it is gone; read it again and retry",
        {"expected": "uid-1", "current": None},
    ),
    (
        HistoryLostError(revision=7, compact_revision=20),
        (
            "the history at revision 7 has been compacted (the oldest is 20);"
            " list again and resume from there"
        ),
        {"revision": 7, "compact_revision": 20},
    ),
    (
        HistoryLostError(revision=7, continuation="x"),
        (
            "the history at revision 7 has been compacted; list again and resume from there, "
            "or with `continuation`, which reads at a newer revision"
        ),
        {"continuation": "x"},
    ),
    (
        HistoryLostError(),
        (
            "the history at the requested revision has been compacted;"
            " list again and resume from there"
        ),
        {"revision": 0, "compact_revision": 0},
    ),
    (
        FutureRevisionError(revision=7, current=5),
        "revision 7 has not been reached: the store is at 5",
        {"revision": 7, "current": 5},
    ),
    (
        FutureRevisionError(revision=7, endpoint="a:1"),
        "revision 7 has not been reached: etcd at a:1 is behind it",
        {"revision": 7, "endpoint": "a:1"},
    ),
    (
        HistoryLostError(revision=7, advice="ask for a later one"),
        "the history at revision 7 is already compacted; ask for a later one",
        {"revision": 7, "reason": ""},
    ),
    (
        StaleReadError("a:1", revision=7, current=5),
        (
            "etcd at a:1 answered at revision 5, after revision 7 had been seen: it lags behind "
            "(etcd before 3.4.42, 3.5.28 and 3.6.9 can: upgrade), or the store was restored to an "
            "older state, such as a backup (then reconnect, and read again what was read before)"
        ),
        {"endpoint": "a:1", "revision": 7, "current": 5},
    ),
    (
        AnotherClusterError("a:1", expected=0xAB, found=0xCD),
        (
            "etcd at a:1 belongs to another cluster: its id is cd, the client was opened on ab; "
            "check the endpoints, or reconnect if the cluster was recreated"
        ),
        {"endpoint": "a:1", "expected": 0xAB, "found": 0xCD},
    ),
    (
        FutureRevisionError(revision=7),
        "revision 7 has not been reached: the store is behind it",
        {"current": 0},
    ),
    (
        LeaseNotFoundError(0xC0FFEE),
        "lease c0ffee does not exist, or has expired",
        {"lease": 0xC0FFEE},
    ),
    (LeaseNotFoundError(), "the lease does not exist, or has expired", {"lease": 0}),
    (
        CorruptResourceError("lab-workers/a", 7, "Expected `int` - at `$.spec.cores`"),
        "lab-workers/a at revision 7 cannot be decoded: Expected `int` - at `$.spec.cores`",
        {"key": "lab-workers/a", "revision": 7, "reason": "Expected `int` - at `$.spec.cores`"},
    ),
    (
        UnavailableError("localhost:2379", "refused"),
        "etcd at localhost:2379 is unavailable: refused",
        {"endpoint": "localhost:2379", "reason": "refused"},
    ),
    (
        TlsError("localhost:2379", "unknown CA"),
        "etcd at localhost:2379 cannot be reached securely: unknown CA",
        {"endpoint": "localhost:2379", "reason": "unknown CA"},
    ),
    (
        OutcomeUnknownError("/lab/a (put)", "timed out", (Operation.put("a", b""),)),
        "the outcome of writing /lab/a (put) is unknown: timed out; read before you write again",
        {
            "subject": "/lab/a (put)",
            "reason": "timed out",
            "operations": (Operation.put("a", b""),),
        },
    ),
    (
        StorageFullError("database space exceeded"),
        (
            "etcd accepts no more writes: database space exceeded; "
            "compact, defragment and disarm the alarm"
        ),
        {},
    ),
    (
        ServerError("INTERNAL", "boom"),
        "etcd answered INTERNAL: boom",
        {"code": "INTERNAL", "detail": "boom"},
    ),
    (
        PermissionDeniedError("put /lab/a"),
        "permission denied: put /lab/a",
        {"operation": "put /lab/a"},
    ),
    (AuthenticationError("who are you?"), "who are you?", {}),
    (
        ClientClosedError.not_open(),
        "the client is not open; use it inside `async with client:`",
        {},
    ),
    (ClientClosedError.closed(), "the client has been closed", {}),
    (
        InternalError("the watch of /lab/", ValueError("no such thing")),
        (
            "the watch of /lab/ ended by a bug in Kvorum: ValueError('no such thing'); "
            "please report it"
        ),
        {"subject": "the watch of /lab/", "reason": "ValueError('no such thing')"},
    ),
    (EmbeddedEtcdError("no etcd in PATH"), "no etcd in PATH", {}),
]

ERRORS = [error for error, _, _ in EXAMPLES]


def test_the_examples_here_show_every_error_there_is() -> None:
    """A new error has to be added to the table above, and so gets all tests of this file."""
    defined = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }

    assert {type(error) for error in ERRORS} == defined


def test_every_exported_exception_is_a_kvorum_error() -> None:
    """`except KvorumError` catches everything that Kvorum raises."""
    exported = [value for name in kvorum.__all__ if inspect.isclass(value := getattr(kvorum, name))]

    assert [
        cls
        for cls in exported
        if issubclass(cls, BaseException) and not issubclass(cls, KvorumError)
    ] == []


def test_every_error_can_be_imported_from_the_top() -> None:
    assert {type(error).__name__ for error in ERRORS} <= set(kvorum.__all__)


@pytest.mark.parametrize(("error", "message", "attributes"), EXAMPLES)
def test_an_error_says_what_happened_in_words_and_attributes(
    error: KvorumError, message: str, attributes: dict[str, object]
) -> None:
    assert str(error) == message
    assert {name: getattr(error, name) for name in attributes} == attributes


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_survives_pickling_with_its_attributes(error: KvorumError) -> None:
    error.add_note("seen by the scheduler")

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes

        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_can_be_copied(error: KvorumError) -> None:
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (ConfigurationError, ValueError),
        (InvalidResourceError, ValueError),
        (InvalidSelectorError, ValueError),
        (ResourceTooLargeError, ValueError),
        (FutureRevisionError, ValueError),
        (NotFoundError, LookupError),
        (LeaseNotFoundError, LookupError),
    ],
)
def test_an_error_is_also_what_python_calls_it(
    error: type[KvorumError], base: type[Exception]
) -> None:
    """Code that does not know Kvorum (a form validator, a mapping's user) understands these."""
    assert issubclass(error, base)


def test_errors_that_ask_for_different_reactions_do_not_catch_each_other() -> None:
    """Each derives from the root alone: no handler for one catches another by accident.

    Except `TlsError`: a program that waits for a server may as well wait until its certificate is
    fixed. And `StaleReadError`: a store that was restored has not reached the revision either.
    """
    leaves = [
        type(error)
        for error in ERRORS
        if type(error) not in {KvorumError, TlsError, StaleReadError}
    ]

    assert all(cls.__mro__[1] is KvorumError for cls in leaves)


def test_a_single_problem_may_be_given_as_text() -> None:
    error = InvalidResourceError("lab-workers/a", "no name")

    assert error.problems == ("no name",)
