"""The client: one per process, opened once, used by any number of tasks."""

from contextlib import suppress
from types import TracebackType
from typing import Literal, Self, TypeVar

import anyio

from kvorum.arguments import check_type, short_repr
from kvorum.embedded import EmbeddedEtcd
from kvorum.errors import ClientClosedError, ConfigurationError, PermissionDeniedError
from kvorum.etcd import (
    DEFAULT_POLICIES,
    Admin,
    Connection,
    EtcdStorageBackend,
    Pipeline,
    Policies,
    Session,
    health_of,
)
from kvorum.health import Health
from kvorum.memory import MemoryStorageBackend
from kvorum.observer import SILENT, Observer, checked_observer
from kvorum.repository import Checkpoint, Repository
from kvorum.resources import AnyResource
from kvorum.runtime import Owner
from kvorum.settings import EtcdSettings
from kvorum.storage import StorageBackend

R = TypeVar("R", bound=AnyResource)


def connect(
    target: str | EtcdSettings | StorageBackend | None = None,
    *,
    settings: EtcdSettings | None = None,
    observer: Observer | None = None,
    policies: Policies = DEFAULT_POLICIES,
) -> "Client":
    """Return a client. It opens when it is entered: `async with kvorum.connect(…) as client`.

    No I/O is done before that, and no event loop is needed.

    Args:
        target: where the resources are. A URL: `etcd://host[:port][,host[:port]…][/prefix]`
            (`etcds://` with TLS); `embedded://[/folder]`, an etcd server that the client starts and
            stops, with its data in the folder, or else thrown away at the end; or `memory://`, a
            `MemoryStorageBackend` of the client's own. Or an `EtcdSettings`. Or a storage backend,
            which the client opens and closes. By default the environment: `EtcdSettings.from_env`.
        settings: everything that a URL does not say, such as the timeout and the page size.
        observer: receives reports from a client on etcd. A store in memory sends no requests, so
            there it receives none.
        policies: limits and waits of the client's parts. For tests.

    Raises:
        ConfigurationError: the target cannot be read, or something is missing.
    """
    check_type("policies", policies, Policies)
    observer = checked_observer(observer)
    if settings is not None:
        check_type("settings", settings, EtcdSettings)
        if isinstance(target, EtcdSettings):
            raise ConfigurationError("the settings are given twice: as target and as settings")
    if isinstance(target, StorageBackend):
        if settings is not None or observer is not SILENT:
            what = "settings" if settings is not None else "observer"
            raise ConfigurationError(
                f"a storage backend cannot take the {what} any more: give them where the backend is"
                " made, or pass a URL or settings as the target"
            )
        return Client(EtcdSettings(), target, policies=policies)
    if target is None:
        target = settings or EtcdSettings.from_env()
    if isinstance(target, EtcdSettings):
        return _on_etcd(target, observer, policies)
    if not isinstance(target, str):
        raise ConfigurationError(
            f"connect takes a URL, an EtcdSettings or a storage backend, not {short_repr(target)}"
        )
    scheme, _, rest = target.partition("://")
    base = settings or EtcdSettings()
    match scheme:
        case "memory":
            return Client(base, _memory(rest, base), policies=policies)
        case "embedded":
            return _on_etcd(base, observer, policies, EmbeddedEtcd(data_dir=rest or None))
        case _:
            return _on_etcd(EtcdSettings.from_url(target, base=settings), observer, policies)


def _memory(rest: str, settings: EtcdSettings) -> MemoryStorageBackend:
    if rest:
        raise ConfigurationError(
            f"memory:// takes nothing behind it, not {rest!r}: each client has a store of its own"
        )
    return MemoryStorageBackend(
        max_value_size=settings.max_value_size, page_size=settings.page_size
    )


def _on_etcd(
    settings: EtcdSettings,
    observer: Observer,
    policies: Policies,
    embedded: EmbeddedEtcd | None = None,
) -> "Client":
    if embedded is None:
        settings.check()
    session = Session(settings, embedded=embedded, observer=observer, policies=policies)
    return Client(settings, EtcdStorageBackend(session, settings.prefix), policies=policies)


class Client:
    """A store, opened and closed as a whole, and its repositories. `connect` returns one.

    Enter it once. Then any number of tasks of the same event loop may use it, and any of them may
    close it. Repositories may be made before it is open.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        backend: StorageBackend,
        *,
        policies: Policies = DEFAULT_POLICIES,
    ) -> None:
        check_type("settings", settings, EtcdSettings)
        check_type("backend", backend, StorageBackend)
        check_type("policies", policies, Policies)
        self._settings = settings
        self._backend = backend
        self._session = backend.session if isinstance(backend, EtcdStorageBackend) else None
        self._policies = policies
        self._state: Literal["not open", "opening", "open", "closed"] = "not open"
        self._is_released = anyio.Event()
        self._opening: anyio.CancelScope | None = None
        self._owner: Owner | None = None  # None until the client is entered

    def __repr__(self) -> str:
        session, state = self._session, self._state
        if session is None:
            return f"<Client {type(self._backend).__name__} [{state}]>"
        if state == "open" and session.has_failed:
            return f"<Client {','.join(session.settings.endpoints)} [failed]>"
        return f"<Client {','.join(session.settings.endpoints)} [{state}]>"

    @property
    def settings(self) -> EtcdSettings:
        """What the client was made with, and the endpoints of its embedded server once it runs."""
        return self._settings if self._session is None else self._session.settings

    def repository(self, resource_type: type[R]) -> Repository[R]:
        """Return a repository of the resources of a class.

        Raises:
            ConfigurationError: the class is not a `Resource[Spec, Status]`, or declares no kind.
        """
        return Repository(self, resource_type)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the checkpoint of a consumer, which keeps in the store what was handled.

        See `Checkpoint`.
        """
        return Checkpoint(self, name)

    async def ping(self) -> float:
        """Make the smallest call there is; return the seconds until it was answered.

        Raises:
            UnavailableError: no server answers.
            ClientClosedError: the client is not open.
        """
        backend, started = self.backend, anyio.current_time()
        with suppress(PermissionDeniedError):  # an answer, too
            await backend.count("ping")
        return anyio.current_time() - started

    async def health(self) -> Health:
        """Return the state of the store. A server that does not answer is a finding, not an error.

        Raises:
            ClientClosedError: the client is not open.
        """
        return Health() if self._session is None else await health_of(self._session.connection)

    @property
    def admin(self) -> Admin:
        """What operators ask of etcd.

        Raises:
            ConfigurationError: the client is not on etcd. Its methods also raise
                `ClientClosedError`, if the client is not open.
        """
        return Admin(self.session)

    @property
    def backend(self) -> StorageBackend:
        """The store as bytes and revisions: in etcd, the keys under the prefix of the settings.

        Raises:
            ClientClosedError: the client was not entered yet. Once it is closed, the backend's
                methods raise it.
        """
        if self._state in {"not open", "opening"}:
            raise ClientClosedError.not_open()
        if self._owner is None:  # closed before it was entered, so the backend was left as it was
            raise ClientClosedError.closed()
        self._owner.check()
        return self._backend

    @property
    def session(self) -> Session:
        """What the client owns if it is on etcd.

        Raises:
            ConfigurationError: the client is not on etcd.
        """
        if self._session is None:
            raise ConfigurationError(
                f"{self!r} has no connection to etcd: it keeps its resources elsewhere"
            )
        return self._session

    @property
    def connection(self) -> Connection:
        """The open connection to etcd: an escape hatch for calls that Kvorum does not offer.

        Raises:
            ClientClosedError: the client is not open.
            ConfigurationError: the client is not on etcd.
        """
        return self.session.connection

    @property
    def pipeline(self) -> Pipeline:
        """What batches concurrent calls: an escape hatch, for its statistics.

        Raises:
            ClientClosedError: the client is not open.
            ConfigurationError: the client is not on etcd.
        """
        return self.session.pipeline

    def _check_owner(self) -> None:
        """Refuse a process or an event loop that the client was not opened in."""
        if self._owner is not None:
            self._owner.check()

    async def __aenter__(self) -> Self:
        """Open the store. If that fails nothing stays open, and the client is closed for good.

        Raises:
            UnavailableError: no server answers within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server rejects the user.
            ConfigurationError: a certificate, a key or the password cannot be read.
            EmbeddedEtcdError: the embedded server did not start.
            ClientClosedError: the client was entered before, or gRPC is in use in a parent process.
        """
        if self._state != "not open":
            raise ClientClosedError("a client is entered once; connect again for another")
        if self._session is not None:
            self._session.check_process()  # first: what follows needs a running event loop
        self._state = "opening"
        self._owner = Owner()
        try:
            with anyio.CancelScope() as self._opening:
                await self._backend.open()
            if self._state != "opening":  # another task has closed the client meanwhile
                raise ClientClosedError.closed()
        except BaseException:
            self._state = "closed"
            await self._release()
            raise
        self._state = "open"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client. Watches and calls under way end with `ClientClosedError`.

        Idempotent, and from any task. A second call waits for the first.

        Raises:
            ClientClosedError: the client was opened on another event loop, or before a fork, and
                cannot be closed from here.
        """
        self._check_owner()
        state, self._state = self._state, "closed"
        if state == "open":
            await self._release()
        elif state == "not open":  # it has opened nothing, and a backend may be the user's
            self._is_released.set()
        elif self._opening is not None:  # the task that enters the client releases what it opened
            self._opening.cancel()
        await self._is_released.wait()

    async def _release(self) -> None:
        try:
            with anyio.move_on_after(self._policies.close_timeout, shield=True):
                await self._backend.aclose()
        finally:
            self._is_released.set()
