"""Every error that Kvorum raises, told apart by what the caller can do about it.

All of them derive from `KvorumError`. Each carries its facts as attributes and builds its message
from them, so that handlers need not parse text. No error of the driver gets out:
`kvorum.etcd.connection` maps them all, in one table.
"""

from typing import Any, ClassVar, Self


class KvorumError(Exception):
    """The root of the tree. Catch it to catch whatever Kvorum raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses build their message from keyword arguments, so the default (call the class with
        # `args`) cannot work; errors do travel between processes (multiprocessing, test runners).
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[KvorumError], args: tuple[object, ...], state: dict[str, object]
) -> KvorumError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


# --- the request was wrong: change it -------------------------------------------------------------


class ConfigurationError(KvorumError, ValueError):
    """A URL, an environment variable or an option cannot be used. Nothing was opened."""


class InvalidResourceError(KvorumError, ValueError):
    """The resource, its name or the request breaks a rule. Nothing was sent.

    Attributes:
        subject: what is wrong, as `lab-workers/worker-001`.
        problems: every rule that is broken, one sentence each.
    """

    def __init__(self, subject: str, problems: str | list[str] | tuple[str, ...]) -> None:
        self.subject = subject
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__(f"{subject}: {'; '.join(self.problems)}")


class InvalidSelectorError(KvorumError, ValueError):
    """A label or field selector cannot be read.

    Attributes:
        selector: the text.
        position: where it stops making sense, counted from 0.
        reason: what was expected there.
    """

    def __init__(self, selector: str, position: int, reason: str) -> None:
        self.selector = selector
        self.position = position
        self.reason = reason
        super().__init__(f"selector {selector!r}, at position {position}: {reason}")


class ResourceTooLargeError(KvorumError, ValueError):
    """The resource is larger than etcd (or the limit that was set) takes. Nothing was written.

    Attributes:
        subject: which resource or key.
        size: in bytes; None if only the server knows.
        limit: in bytes; None if only the server knows. etcd takes requests of 1.5 MiB unless it was
            set otherwise, and does not say.
        detail: the server's words, if it was the server that refused.
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


# --- the state was another: look again ------------------------------------------------------------


class NotFoundError(KvorumError, LookupError):
    """There is no such resource.

    Attributes:
        subject: which one, as `lab-workers/worker-001`.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"{subject} does not exist")


class AlreadyExistsError(KvorumError):
    """A resource of that name exists already; it was left as it is.

    Attributes:
        subject: which one.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"{subject} exists already")


class ConflictError(KvorumError):
    """Somebody else was faster, or a precondition does not hold. Nothing was written: read again and retry.

    Attributes:
        subject: which resource.
        expected: what the caller relied on: a resource version, or a uid.
        current: the resource as it is now (an `Entry` from a storage backend), read together with
            the refusal; None if it is gone.
        recurred: whether it is at the expected version, but with another value than was read there:
            the store was put back to an older state, and has come to that version again.
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
            else "it is another now"
            if current is not None
            else "it is gone"
        )
        self.recurred: bool = found == expected
        if self.recurred:
            now = "it has another value there now, so the store was put back to an older state"
        super().__init__(
            f"{subject}: expected {what} {expected}, but {now}; read it again and retry"
        )


class HistoryLostError(KvorumError):
    """The revision asked for has been compacted away: list again and go on from there.

    Attributes:
        revision: the revision that was asked for; 0 if unknown.
        compact_revision: the oldest revision that is still there, as far as the server said; else
            0.
        continuation: if it was a list that went on page by page: what it can go on with
            (`continue_from`) at the revision of now. Its pages then do not show one state: what was
            changed in between may be missing, or there twice. None for everything else.
        reason: what keeps it from being used, if it was not compacted: the store was put back to an
            older state, or what a key held before is further back than a watch looks, or takes too
            long to read.
    """

    def __init__(
        self,
        *,
        revision: int = 0,
        compact_revision: int = 0,
        continuation: str | None = None,
        reason: str = "",
    ) -> None:
        self.revision = revision
        self.reason = reason
        self.compact_revision = compact_revision
        self.continuation = continuation
        asked = f"revision {revision}" if revision else "the revision asked for"
        oldest = f" (the oldest is {compact_revision})" if compact_revision else ""
        resume = (
            ", or with `continuation`, knowing that it is another revision" if continuation else ""
        )
        what = f"cannot be used: {reason}" if reason else f"has been compacted{oldest}"
        super().__init__(f"the history at {asked} {what}; list again and go on from there{resume}")


class FutureRevisionError(KvorumError, ValueError):
    """The revision asked for has not been reached. Is it from another cluster, or from before a restored backup?

    Attributes:
        revision: the revision that was asked for.
        current: the store's revision; 0 if unknown.
    """

    def __init__(self, *, revision: int, current: int = 0) -> None:
        self.revision = revision
        self.current = current
        store = f"the store is at {current}" if current else "the store is behind it"
        super().__init__(f"revision {revision} has not been reached: {store}")


class StaleReadError(FutureRevisionError):
    """A server answered at an older revision than one that was seen before. The answer was not believed.

    Either the server is behind, which happens with etcd before 3.4.42, 3.5.28 and 3.6.9: upgrade
    it. Or the store was put back to an older state, as from a backup: then connect again, and read
    again whatever was read before.

    Attributes:
        endpoint: which server.
        revision: the revision that was seen before.
        current: the one that it answered with.
    """

    def __init__(self, endpoint: str, *, revision: int, current: int) -> None:
        self.endpoint = endpoint
        self.revision = revision
        self.current = current
        KvorumError.__init__(
            self,
            f"etcd at {endpoint} answered at revision {current}, after revision {revision} had been seen: it is behind "
            "(etcd before 3.4.42, 3.5.28 and 3.6.9 may be: upgrade), or the store was put back to an older state, as "
            "from a backup (then connect again, and read again what was read before)",
        )


class LeaseNotFoundError(KvorumError, LookupError):
    """The lease has expired or was revoked. Nothing was written.

    Attributes:
        lease: its id; 0 if unknown.
    """

    def __init__(self, lease: int = 0) -> None:
        self.lease = lease
        super().__init__(
            f"lease {lease:x} does not exist (any more)" if lease else "the lease does not exist"
        )


class CorruptResourceError(KvorumError):
    """The stored bytes are not a resource of this kind.

    Attributes:
        key: the key, as etcd knows it.
        revision: the mod_revision of the value.
        reason: what is wrong, with its JSON path.
        name: what its key calls it: with `namespace`, what `Repository.delete` takes to remove it
            (`corrupt=True`).
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


def without_frames(error: CorruptResourceError) -> CorruptResourceError:
    """Drop the tracebacks of an error that is kept, and of what has caused it.

    Their frames hold the bytes.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += each.__cause__, each.__context__
    return error


# --- the server or the way to it: wait, or ask an operator ----------------------------------------


class UnavailableError(KvorumError):
    """The server was not reached, or did not answer in time. Nothing was changed: try again later.

    Attributes:
        endpoint: where it was looked for.
        reason: what happened.
    """

    _problem: ClassVar[str] = "is unavailable"

    def __init__(self, endpoint: str, reason: str) -> None:
        self.endpoint = endpoint
        self.reason = reason
        super().__init__(f"etcd at {endpoint} {self._problem}: {reason}")


class TlsError(UnavailableError):
    """No secure connection can be made: a certificate or a setting of one side has to change, waiting does not help.

    Attributes:
        endpoint: which server.
        reason: whose certificate, and what is wrong with it.
    """

    _problem = "cannot be reached securely"


class AnotherClusterError(KvorumError):
    """All servers belong to another cluster than the one that the client was opened on. Nothing was done there.

    A name or port was given to another cluster, or this one was made anew, as from a backup: check
    the endpoints. If they are right, connect again, and read again what was read before: revisions
    do not carry over.

    Attributes:
        endpoint: the server that answered last.
        expected: the id of the cluster that the client was opened on.
        found: the id that it answered with.
    """

    def __init__(self, endpoint: str, *, expected: int, found: int) -> None:
        self.endpoint = endpoint
        self.expected = expected
        self.found = found
        super().__init__(
            f"etcd at {endpoint} belongs to another cluster: its id is {found:x}, the client was opened on "
            f"{expected:x}; check the endpoints, or connect again if the cluster was made anew"
        )


class OutcomeUnknownError(KvorumError):
    """The write may have been applied, or may still be: nobody can tell from here. Read before you write again.

    Attributes:
        subject: what was written.
        reason: what happened to the call.
        operations: what was to be written, as `Operation`s of the storage port; empty if that was
            no keys. With them `StorageBackend.settle` can find out later.
        since: a revision that the store had reached before the write was sent; 0 if none was known.
            What is found at this revision was not written by it.
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
    """The server's quota is used up (alarm NOSPACE). Reads and deletes go on; writes need an operator first.

    Attributes:
        detail: the server's words.
    """

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(
            f"etcd takes no more writes: {detail}; compact, defragment and disarm the alarm"
        )


class ServerError(KvorumError):
    """The server refused a request for a reason that Kvorum has no name for.

    Attributes:
        code: gRPC's status code by name.
        detail: the server's words.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"etcd answered {code}: {detail}")


class PermissionDeniedError(KvorumError):
    """The user may not do that. Ask an operator for the role.

    Attributes:
        operation: what was tried, as `put /lab/lab-workers/worker-001`.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"permission denied: {operation}")


class AuthenticationError(KvorumError):
    """The server wants a user, or does not accept this one."""


class ClientClosedError(KvorumError):
    """The client is not open: `async with` was not entered yet, or has been left."""

    @classmethod
    def not_open(cls) -> Self:
        """Say that `async with` was never entered."""
        return cls("the client is not open; use it inside `async with client:`")

    @classmethod
    def closed(cls, failure: BaseException | None = None) -> Self:
        """Say that the client was closed.

        With a failure that it was closed for that, which is the error's cause.
        """
        if failure is None:
            return cls("the client has been closed")
        error = cls(
            f"the client has been closed, since a task of its own failed: {type(failure).__name__}: {failure}"
        )
        error.__cause__ = failure
        return error

    @classmethod
    def on_another_loop(cls) -> Self:
        """Say that it is open, but not for whoever runs this."""
        return cls(
            "the client was opened on another event loop; connect on this one, or hand the work to that one"
        )

    @classmethod
    def in_another_process(cls) -> Self:
        """Say that a fork has not taken the connection along."""
        return cls(
            "the client was opened before this process was forked off; fork before connecting, or spawn"
        )

    @classmethod
    def where_grpc_was_inherited(cls) -> Self:
        """Say that this process can have no client at all."""
        return cls(
            "this process was forked off while a client was open, and gRPC does not survive that; fork before "
            "connecting, or spawn"
        )


class InternalError(KvorumError):
    """Kvorum made a mistake: please report it, with the traceback of its cause. Only what it names has ended.

    Attributes:
        subject: what has ended, as `the watch of /lab/lab-workers/`.
        reason: the mistake, in Python's words.
    """

    def __init__(self, subject: str, reason: Exception) -> None:
        self.subject = subject
        self.reason: str = repr(reason)
        super().__init__(
            f"{subject} has ended by a mistake of Kvorum's: {self.reason}; please report it"
        )


class EmbeddedEtcdError(KvorumError):
    """The embedded etcd could not be found, started or stopped. The message says what to do."""
