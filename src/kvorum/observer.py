"""Reports from a client while it works: for telemetry, and for tests.

Pass an `Observer` to `connect`; the client calls its methods at the moments they name.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, Final, NamedTuple

from kvorum.arguments import short_repr
from kvorum.errors import ConfigurationError, KvorumError


class Call(NamedTuple):
    """What a request is for, in the words that error messages use.

    Attributes:
        operation: of the keys: `read` (of one, or of a range), `put`, `transaction`, and `batch`,
            which carries the calls of several callers. Of a lease: `grant`, `inspect`, `revoke`. Of
            the cluster or a server: `authenticate`, `status`, `members` (also for the version of
            one), `alarms`, `compact`, `defragment`, `hash`.
        subject: the key, prefix or lease, as etcd knows it.
        writes: whether it may change keys. So it is False for what can be repeated as it is: to
            grant a lease, to compact, to defragment.
        revision: the revision that was asked for; 0 if none.
    """

    operation: str
    subject: str
    writes: bool = False
    revision: int = 0


class Observer:
    """Receives reports from a client. Each method does nothing; override those you need.

    A coroutine method is awaited at the point it names. While it waits, that request waits, until
    its deadline at most: then a request is not sent, and an answer is lost. So a test can hold or
    refuse a request; telemetry must return quickly.

    What a coroutine method raises, the request raises as it is, and does not retry: the call that
    it is for, each caller of a batch (in a group by `get_many` and the like), or the watch, which
    ends. If the request was the client's own, in the background, the error is logged. But a test
    can speak for the server, with a `KvorumError` or an error of the driver, which are treated as
    the outcome of the request, and reported by `request_failed`. What was done cannot be refused
    any more, so an `UnavailableError` about an answer loses it: the outcome of a write is unknown
    then.

    The other methods must not block. What they raise is logged, once for each method, and the
    client goes on.

    All methods run on the event loop of the client. Later versions may add methods. An `endpoint`
    is `host:port`. Keys and prefixes are passed; values, passwords and tokens are only in messages.

    A subclass is checked when it is defined. A method that cannot be called as it would be, or
    whose name is nearly that of another, raises `ConfigurationError`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _check_subclass(cls)

    # --- requests -----------------------------------------------------------------------------

    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        """Run before a request is sent. Retries and background requests are reported, too.

        Unless the observer raises, exactly one of `after_request`, `request_failed` and
        `request_cancelled` follows, in the same task and before the next request of that task. So
        what is kept in a context variable here is found there.

        Args:
            call: what the request is for.
            endpoint: where it is about to go.
            message: the request of the driver. Its type may change between versions.
        """

    async def after_request(self, call: Call, endpoint: str, answer: object, /) -> None:
        """Run when the answer has arrived, before the client uses it.

        Args:
            call: what the request was for.
            endpoint: where it went.
            answer: the response of the driver. Its type may change between versions.
        """

    def request_failed(self, call: Call, endpoint: str, error: KvorumError, /) -> None:
        """Report a request that was refused, was not sent, or lost its answer."""

    def request_cancelled(self, call: Call, endpoint: str, /) -> None:
        """Report a request whose task was cancelled while it waited for the answer.

        The caller gave up, or another server has answered first. A write may be applied.
        """

    # --- servers and users --------------------------------------------------------------------

    def server_taken(self, endpoint: str, version: tuple[int, int, int], /) -> None:
        """Report a server that answered, on a new connection, and is ready for calls."""

    def server_left(self, endpoint: str, successor: str, /) -> None:
        """Report that calls go to another server from now on."""

    def server_found(self, endpoint: str, /) -> None:
        """Report a member that discovery has added."""

    def server_forgotten(self, endpoint: str, /) -> None:
        """Report a server that the client dropped: the cluster has no such member any more."""

    def members_read(self, versions: Sequence[tuple[int, int, int] | None], /) -> None:
        """Report the versions of all members of the cluster.

        Args:
            versions: one for each member, None where it is unknown; empty if the list of members is
                unknown.
        """

    async def after_authentication(self, endpoint: str, /) -> None:
        """Run when a server has renewed the user's token, or turned out to check no users."""

    # --- batches ------------------------------------------------------------------------------

    def batch_planned(self, kind: str, size: int, waiting: int, /) -> None:
        """Report how many calls the next request takes along.

        Args:
            kind: `reads` or `writes`.
            size: how many calls the request carries.
            waiting: how many calls stay in the queue.
        """

    def batch_sent(self, kind: str, size: int, /) -> None:
        """Report a request that carried so many calls and was answered."""

    def batch_failed(self, kind: str, size: int, error: KvorumError, /) -> None:
        """Report a request that carried so many calls and failed.

        Calls that had no effect are retried: in smaller batches if one of them was refused, else
        each alone.
        """

    # --- watches ------------------------------------------------------------------------------

    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        """Run before a stream of changes is created on a server: for a watch, or for one change.

        Args:
            subject: the key or prefix, as etcd knows it.
            endpoint: where it is about to be created.
            revision: the first revision that the server is asked for.
            message: the request of the driver. Its type may change between versions.
        """

    def watch_opened(self, subject: str, endpoint: str, revision: int, /) -> None:
        """Report a watch that is open: it delivers all changes after a revision.

        Args:
            subject: the key or prefix, as etcd knows it.
            endpoint: where it was created.
            revision: the revision.
        """

    def watch_resumed(self, subject: str, endpoint: str, revision: int, /) -> None:
        """Report a watch that continues on a new stream, after that revision."""

    def watch_interrupted(self, subject: str, endpoint: str, error: KvorumError, /) -> None:
        """Report a watch that has lost its stream. It resumes, or raises the error."""

    def watch_received(self, subject: str, endpoint: str, message: object, /) -> None:
        """Report a response that a watch has received, before its changes are buffered.

        Args:
            subject: the key or prefix, as etcd knows it.
            endpoint: the server that sent it.
            message: the response of the driver. Its type may change between versions.
        """

    def watch_buffered(self, subject: str, changes: int, /) -> None:
        """Report how many changes wait for the consumer of a watch, after each response."""


SILENT: Final = Observer()  # for a client that has none


# --- checks ---------------------------------------------------------------------------------------

_NEAR: Final = 0.85  # how alike two names are of which one is taken for a misspelt other


def checked_observer(observer: object) -> Observer:
    """Return an observer that was passed by a user; a silent one for None.

    Raises:
        ConfigurationError: it is none.
    """
    if observer is None:
        return SILENT
    if isinstance(observer, Observer):
        return observer
    if isinstance(observer, type) and issubclass(observer, Observer):
        name = observer.__name__
        raise ConfigurationError(f"observer must be an instance, {name}(…), not the class {name}")
    raise ConfigurationError(
        f"observer must be an instance of a subclass of kvorum.Observer, not {short_repr(observer)}"
    )


def _check_subclass(cls: type[Observer]) -> None:
    methods: Mapping[str, Any] = vars(Observer)
    names = [name for name in methods if not name.startswith("_")]
    for name in names:
        given = getattr(cls, name)
        if isinstance(given, FunctionType) and given is not methods[name]:
            _check_method(f"{cls.__name__}.{name}", given, methods[name])
    for name, given in vars(cls).items():
        if name.startswith("_") or name in names or not isinstance(given, FunctionType):
            continue
        if near := difflib.get_close_matches(name, names, 1, _NEAR):
            raise ConfigurationError(
                f"{cls.__name__}.{name} overrides no method of kvorum.Observer, so it would never"
                f" be called: rename it to {near[0]}, or begin its name with an underscore"
            )


def _check_method(name: str, given: Any, method: Any) -> None:
    is_awaited = inspect.iscoroutinefunction(method)
    is_coroutine = any(map(inspect.iscoroutinefunction, (given, inspect.unwrap(given))))
    if is_awaited and not is_coroutine:
        raise ConfigurationError(f"{name} must be defined by `async def`: the client awaits it")
    if is_coroutine and not is_awaited:
        raise ConfigurationError(
            f"{name} must be defined by `def`, not by `async def`: the client does not await it"
        )
    wanted = inspect.signature(method)
    try:
        inspect.signature(given).bind(*wanted.parameters)
    except TypeError as exc:
        raise ConfigurationError(
            f"{name} must take {', '.join([*wanted.parameters][1:])}, by position: {exc}"
        ) from None
