"""Every error that Kvorum raises, distinguished by what the caller can do about it.

All derive from `KvorumError`. Each has its facts as attributes and builds its message from them, so
handlers need not parse text. The driver's errors never escape: `kvorum.etcd` maps them all, in one
table.
"""

from typing import Any, ClassVar, Self, TypeVar


class KvorumError(Exception):
    """The base of all errors that Kvorum raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses build their message from keyword arguments, so the default (call the class with
        # `args`) cannot work. Errors are pickled by multiprocessing and by test runners.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[KvorumError], args: tuple[object, ...], state: dict[str, object]
) -> KvorumError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


E = TypeVar("E", bound=KvorumError)


# --- the request was wrong: change it -------------------------------------------------------------


class ConfigurationError(KvorumError, ValueError):
    """A URL, an environment variable or an option is invalid. Nothing was opened."""


class InvalidResourceError(KvorumError, ValueError):
    """The resource, its name or the request breaks a rule. Nothing was sent.

    Attributes:
        subject: what is invalid, such as `lab-workers/worker-001`.
        problems: one sentence for each broken rule.
    """

    def __init__(self, subject: str, problems: str | list[str] | tuple[str, ...]) -> None:
        self.subject = subject
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__(f"{subject}: {'; '.join(self.problems)}")


class InvalidSelectorError(KvorumError, ValueError):
    """A label or field selector cannot be parsed.

    Attributes:
        selector: the text.
        position: of the error in the text, counted from 0.
        reason: what was expected there.
    """

    def __init__(self, selector: str, position: int, reason: str) -> None:
        self.selector = selector
        self.position = position
        self.reason = reason
        super().__init__(f"selector {selector!r}, at position {position}: {reason}")


class ResourceTooLargeError(KvorumError, ValueError):
    """The resource is larger than etcd (or a configured limit) allows. Nothing was written.

    Attributes:
        subject: which resource or key.
        size: in bytes; None if only the server knows.
        limit: in bytes; None if only the server knows. etcd's default is 1.5 MiB for a request; it
            does not report its setting.
        detail: the server's message, if the server rejected it.
    """

    def __init__(
        self, subject: str, *, size: int | None = None, limit: int | None = None, detail: str = ""
    ) -> None:
        self.subject = subject
        self.size = size
        self.limit = limit
        self.detail = detail
        measure = f"{size:,} bytes" if size is not None else "too many bytes"
        allowed = f", {limit:,} are allowed" if limit is not None else ""
        super().__init__(f"{subject} has {measure}{allowed}" + (f" ({detail})" if detail else ""))


# --- the state was different: read again ----------------------------------------------------------


class NotFoundError(KvorumError, LookupError):
    """The resource does not exist.

    Attributes:
        subject: which one, such as `lab-workers/worker-001`.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"{subject} does not exist")


class AlreadyExistsError(KvorumError):
    """A resource of that name already exists; it was not changed.

    Attributes:
        subject: which one.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"{subject} already exists")


class ConflictError(KvorumError):
    """Another write came first, or a precondition does not hold. Nothing was written; retry.

    Attributes:
        subject: which resource.
        expected: what the caller relied on: a resource version, or a uid.
        current: the resource as it is now (an `Entry` from a storage backend), read in the same
            transaction; None if it does not exist.
        recurred: whether it is at the expected version, but with another value than was read there:
            the store was restored to an older state and has reached that version a second time.
    """

    def __init__(
        self, subject: str, *, expected: int | str, current: Any = None, found: int | str = ""
    ) -> None:
        self.subject = subject
        self.expected = expected
        self.current = current
        what = "version" if isinstance(expected, int) else "uid"
        now = (
            f"it is at {found} now"
            if found
            else "it has been replaced"
            if current is not None
            else "it is gone"
        )
        self.recurred: bool = found == expected
        if self.recurred:
            now = "it has another value now, so the store was restored to an older state"
        super().__init__(
            f"{subject}: expected {what} {expected}, but {now}; read it again and retry"
        )


class HistoryLostError(KvorumError):
    """The requested revision has been compacted: list again and resume from there.

    Attributes:
        revision: the requested revision; 0 if unknown.
        compact_revision: the oldest revision that the server still has; 0 if it did not say.
        continuation: for a paged list, a `continue_from` that resumes it at the current revision.
            Its pages then do not show one state: resources changed in between may be missing or
            appear twice. None for everything else.
        reason: why the history cannot be used, if it was not compacted: the store was restored to
            an older state, or the previous value of a key is further back than a watch searches, or
            takes too long to read.

    Args:
        advice: for the message: what to do about it, if not to list again. It is then an operator's
            request that came too late.
    """

    def __init__(
        self,
        *,
        revision: int = 0,
        compact_revision: int = 0,
        continuation: str | None = None,
        reason: str = "",
        advice: str | None = None,
    ) -> None:
        self.revision = revision
        self.reason = reason
        self.compact_revision = compact_revision
        self.continuation = continuation
        asked = f"revision {revision}" if revision else "the requested revision"
        oldest = f" (the oldest is {compact_revision})" if compact_revision else ""
        resume = ", or with `continuation`, which reads at a newer revision" if continuation else ""
        what = f"cannot be used: {reason}" if reason else f"has been compacted{oldest}"
        if advice is not None:
            what = f"is already compacted{oldest}"
        todo = advice or f"list again and resume from there{resume}"
        super().__init__(f"the history at {asked} {what}; {todo}")


class FutureRevisionError(KvorumError, ValueError):
    """The requested revision is in the future: of another cluster, or from before a restore.

    Attributes:
        revision: the requested revision.
        current: the store's revision; 0 if unknown.
        endpoint: the member that has not reached it, if only that one was asked; else empty.
    """

    def __init__(self, *, revision: int, current: int = 0, endpoint: str = "") -> None:
        self.revision = revision
        self.current = current
        self.endpoint = endpoint
        who = f"etcd at {endpoint}" if endpoint else "the store"
        store = f"{who} is at {current}" if current else f"{who} is behind it"
        super().__init__(f"revision {revision} has not been reached: {store}")


class StaleReadError(FutureRevisionError):
    """A server answered at an older revision than one seen before. The answer was discarded.

    Either the server lags behind, which etcd before 3.4.42, 3.5.28 and 3.6.9 can do: upgrade it. Or
    the store was restored to an older state, for example from a backup: reconnect, and read again
    everything that was read before.

    Attributes:
        endpoint: which server.
        revision: the revision seen before.
        current: the revision of the answer.
    """

    def __init__(self, endpoint: str, *, revision: int, current: int) -> None:
        self.endpoint = endpoint
        self.revision = revision
        self.current = current
        KvorumError.__init__(
            self,
            f"etcd at {endpoint} answered at revision {current}, after revision {revision} had been"
            " seen: it lags behind (etcd before 3.4.42, 3.5.28 and 3.6.9 can: upgrade), or the"
            " store was restored to an older state, such as a backup (then reconnect, and read"
            " again what was read before)",
        )


class LeaseNotFoundError(KvorumError, LookupError):
    """The lease has expired or was revoked. Nothing was written.

    Attributes:
        lease: its id; 0 if unknown.
    """

    def __init__(self, lease: int = 0) -> None:
        self.lease = lease
        name = f"lease {lease:x}" if lease else "the lease"
        super().__init__(f"{name} does not exist, or has expired")


class CorruptResourceError(KvorumError):
    """The stored bytes are not a resource of this kind.

    Attributes:
        key: the full key in etcd.
        revision: the mod_revision of the value.
        reason: what is wrong, with its JSON path.
        name: the name in its key. `Repository.delete(name, namespace=…, corrupt=True)` removes it.
        namespace: the namespace in its key; None if the kind, or the key, has none.
    """

    def __init__(
        self, key: str, revision: int, reason: str, *, name: str = "", namespace: str | None = None
    ) -> None:
        self.key = key
        self.revision = revision
        self.reason = reason
        self.name = name
        self.namespace = namespace
        super().__init__(f"{key} at revision {revision} cannot be decoded: {reason}")


def without_frames(error: E) -> E:
    """Drop the tracebacks of an error and its causes: their frames keep alive what they hold."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += each.__cause__, each.__context__
    return error


# --- the server or the network: wait, or ask an operator ------------------------------------------


class UnavailableError(KvorumError):
    """The server was not reached, or did not answer in time. Nothing was changed: retry later.

    Attributes:
        endpoint: the server's address.
        reason: what happened.
    """

    _problem: ClassVar[str] = "is unavailable"

    def __init__(self, endpoint: str, reason: str) -> None:
        self.endpoint = endpoint
        self.reason = reason
        super().__init__(f"etcd at {endpoint} {self._problem}: {reason}")


class TlsError(UnavailableError):
    """No TLS connection is possible. Waiting does not help: fix a certificate or a setting.

    Attributes:
        endpoint: which server.
        reason: which side's certificate, and what is wrong with it.
    """

    _problem = "cannot be reached securely"


class AnotherClusterError(KvorumError):
    """All servers belong to another cluster than the one the client connected to first.

    Nothing was done there. A name or port was reassigned to another cluster, or this cluster was
    recreated, for example from a backup: check the endpoints. If they are right, reconnect, and
    read again everything that was read before: revisions of two clusters are unrelated.

    Attributes:
        endpoint: the server that answered last.
        expected: the id of the cluster the client connected to first.
        found: the id in the answer.
    """

    def __init__(self, endpoint: str, *, expected: int, found: int) -> None:
        self.endpoint = endpoint
        self.expected = expected
        self.found = found
        super().__init__(
            f"etcd at {endpoint} belongs to another cluster: its id is {found:x}, the client was"
            f" opened on {expected:x}; check the endpoints, or reconnect if the cluster was"
            " recreated"
        )


class OutcomeUnknownError(KvorumError):
    """The write may have been applied, or may still be. Read before you write again.

    Attributes:
        subject: what was written.
        reason: what happened to the call.
        operations: what was to be written, as `Operation`s of the storage port; empty if the call
            writes no keys. `StorageBackend.settle` can find out later with them.
        since: a revision that the store had reached before the write was sent; 0 if unknown.
            Whatever exists at this revision was not written by this call.
    """

    def __init__(
        self, subject: str, reason: str, operations: tuple[Any, ...] = (), since: int = 0
    ) -> None:
        self.subject = subject
        self.reason = reason
        self.operations = operations
        self.since = since
        super().__init__(
            f"the outcome of writing {subject} is unknown: {reason}; read before you write again"
        )


class StorageFullError(KvorumError):
    """The server's quota is used up (alarm NOSPACE). Reads and deletes still work.

    An operator has to make room before writes work again.

    Attributes:
        detail: the server's message.
    """

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(
            f"etcd accepts no more writes: {detail}; compact, defragment and disarm the alarm"
        )


class ServerError(KvorumError):
    """The server rejected a request for a reason that Kvorum has no error class for.

    Attributes:
        code: the name of gRPC's status code; `UNKNOWN` if etcd gave none, as when it ends a watch.
        detail: the server's message.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"etcd answered {code}: {detail}")


class PermissionDeniedError(KvorumError):
    """The user lacks the permission. Ask an operator for the role.

    Attributes:
        operation: what was attempted, such as `put /lab/lab-workers/worker-001`.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"permission denied: {operation}")


class AuthenticationError(KvorumError):
    """The server requires a user, or rejects this one."""


class ClientClosedError(KvorumError):
    """The client is not open: `async with` has not been entered yet, or has been left."""

    @classmethod
    def not_open(cls) -> Self:
        """Return the error of a client that was never entered."""
        return cls("the client is not open; use it inside `async with client:`")

    @classmethod
    def closed(cls, failure: BaseException | None = None) -> Self:
        """Return the error of a closed client; `failure`, if it was closed by one, is the cause."""
        if failure is None:
            return cls("the client has been closed")
        reason = f"{type(failure).__name__}: {failure}"
        error = cls(f"the client has been closed, since a task of its own failed: {reason}")
        error.__cause__ = failure
        return error

    @classmethod
    def on_another_loop(cls) -> Self:
        """Return the error of a client that is open on another event loop."""
        return cls(
            "the client was opened on another event loop; connect on this one, or hand the work"
            " to that one"
        )

    @classmethod
    def in_another_process(cls) -> Self:
        """Return the error of a client opened before a fork: connections do not survive one."""
        return cls(
            "the client was opened before this process was forked off; fork before connecting,"
            " or spawn"
        )

    @classmethod
    def where_grpc_was_inherited(cls) -> Self:
        """Return the error of a process that can have no client: it inherited a running gRPC."""
        return cls(
            "this process was forked off while a client was open, and gRPC does not survive that;"
            " fork before connecting, or spawn"
        )


class InternalError(KvorumError):
    """A bug in Kvorum. Please report it, with the traceback of its cause.

    Only what `subject` names has ended; everything else still works.

    Attributes:
        subject: what has ended, such as `the watch of /lab/lab-workers/`.
        reason: the `repr` of the exception.
    """

    def __init__(self, subject: str, reason: Exception) -> None:
        self.subject = subject
        self.reason: str = repr(reason)
        super().__init__(f"{subject} ended by a bug in Kvorum: {self.reason}; please report it")


class EmbeddedEtcdError(KvorumError):
    """The embedded etcd was not found, started or stopped. The message says what to do."""
