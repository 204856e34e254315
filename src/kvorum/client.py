"""The client: one per process, opened once, used by any number of tasks."""

from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

import anyio
import msgspec

from kvorum.arguments import shown
from kvorum.embedded import EmbeddedEtcd
from kvorum.errors import ClientClosedError, ConfigurationError, PermissionDeniedError
from kvorum.etcd.admin import health_of
from kvorum.etcd.backend import EtcdStorageBackend
from kvorum.etcd.pipeline import Pipeline
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import Connection, fork
from kvorum.health import Health
from kvorum.memory import MemoryStorageBackend
from kvorum.observer import SILENT, Observer
from kvorum.owner import Place
from kvorum.repository import Checkpoint, Repository
from kvorum.resources import AnyResource
from kvorum.settings import EtcdSettings
from kvorum.storage import StorageBackend

R = TypeVar("R", bound=AnyResource)

# Enough for a server of one's own that has to be killed; everything else is closed within
# milliseconds.
CLOSE_TIMEOUT: Final = 15.0


def connect(
    target: str | EtcdSettings | StorageBackend | None = None,
    *,
    settings: EtcdSettings | None = None,
    observer: Observer = SILENT,
) -> "Client":
    """Return a client; it opens when it is entered: `async with kvorum.connect(…) as client`.

    Args:
        target: where the resources are: `etcd://host[:port][,host[:port]…][/prefix]`;
            `embedded://[/folder]`: an etcd of the client's own, which keeps its data there, or
            throws them away; `memory://`: in a `MemoryStorageBackend` of the client's own, gone
            when it is closed; an `EtcdSettings`; a storage backend, which the client then closes
            when it is closed; or nothing: then the environment (`EtcdSettings.from_env`).
        settings: where all comes from that a URL does not say: timeout, page size …
        observer: receives reports from a client on etcd.

    Raises:
        ConfigurationError: the target cannot be read, or something is missing. No I/O is done
            before it is entered.
    """
    if isinstance(target, EtcdSettings | StorageBackend) and settings is not None:
        raise ConfigurationError("the settings were given twice: with the target and as settings")
    if isinstance(target, StorageBackend):
        return Client(EtcdSettings(), backend=target)
    if target is None:
        return _etcd(settings or EtcdSettings.from_env(), observer)
    if isinstance(target, EtcdSettings):
        return _etcd(target, observer)
    if not isinstance(target, str):
        raise ConfigurationError(
            f"connect takes a URL, an EtcdSettings or a storage backend, not {shown(target)}"
        )
    scheme, _, rest = target.partition("://")
    base = settings or EtcdSettings()
    if scheme == "memory":
        if rest:
            raise ConfigurationError(
                f"memory:// takes nothing behind it, not {rest!r}: each client has a store of its own"
            )
        return Client(
            base,
            backend=MemoryStorageBackend(
                max_value_size=base.max_value_size, page_size=base.page_size
            ),
        )
    if scheme == "embedded":
        return Client(base, embedded=EmbeddedEtcd(data_dir=rest or None), observer=observer)
    return _etcd(EtcdSettings.from_url(target, base=settings), observer)


def _etcd(settings: EtcdSettings, observer: Observer) -> "Client":
    settings.check()
    return Client(settings, observer=observer)


class Client:
    """A connection to a store, and what lives on it. Made by `connect`.

    Enter it once; then any number of tasks of the same event loop may use it, and any of them may
    close it. Repositories may be made on it before it is open.

    Attributes:
        settings: what it was made with.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        embedded: EmbeddedEtcd | None = None,
        backend: StorageBackend | None = None,
        observer: Observer = SILENT,
    ) -> None:
        self.settings: EtcdSettings = settings
        self._is_etcd = backend is None
        self._backend: StorageBackend = (
            EtcdStorageBackend(self, settings.prefix) if backend is None else backend
        )
        self._embedded = embedded
        self._observer = observer
        self._supervisor = Supervisor(self._fail)
        self._connection: Connection | None = None
        self._pipeline: Pipeline | None = None
        self._state: Literal["not open", "opening", "open", "failed", "closed"] = "not open"
        self._is_released = anyio.Event()
        self._opening: anyio.CancelScope | None = None
        self._place: Place | None = None  # that it was opened in

    def __repr__(self) -> str:
        store = ",".join(self.settings.endpoints) if self._is_etcd else type(self._backend).__name__
        return f"<Client {store} [{self._state}]>"

    def repository(self, resource_type: type[R]) -> Repository[R]:
        """Return a repository of the resources of a class.

        Raises:
            ConfigurationError: the class is no `Resource[Spec, Status]`, or declares no kind.
        """
        return Repository(self, resource_type)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the checkpoint of a consumer, which remembers in the store what it has handled.

        See `Checkpoint`.
        """
        return Checkpoint(self, name)

    async def ping(self) -> float:
        """Ask for nothing, and return the seconds until there was an answer.

        Raises:
            UnavailableError: nobody answers.
            ClientClosedError: the client is not open.
        """
        backend, started = self.backend, anyio.current_time()
        with suppress(PermissionDeniedError):  # an answer, too
            await backend.count("ping")
        return anyio.current_time() - started

    async def health(self) -> Health:
        """Return how the store is. A server that does not answer is a part of that, and no error.

        Raises:
            ClientClosedError: the client is not open.
        """
        return await health_of(self.connection) if self._is_etcd else Health()

    @property
    def backend(self) -> StorageBackend:
        """The store as bytes and revisions; in etcd, what is under the prefix of the settings.

        Raises:
            ClientClosedError: the client was not entered yet. Once it is closed, the backend's
                methods raise it.
        """
        if self._state in {"not open", "opening"}:
            raise ClientClosedError.not_open()
        if self._place is not None:  # else it was closed without having been entered
            self._place.check()
        return self._backend

    @property
    def connection(self) -> Connection:
        """The open connection to etcd.

        Raises:
            ClientClosedError: the client is not open.
            ConfigurationError: it is not on etcd.
        """
        if self._state != "open":
            is_over = self._state in {"failed", "closed"}
            raise self._supervisor.closed() if is_over else ClientClosedError.not_open()
        if self._place is not None:  # as it is of an open client
            self._place.check()
        if self._connection is None:
            raise ConfigurationError(
                f"{self!r} has no connection to etcd: it keeps its resources elsewhere"
            )
        return self._connection

    @property
    def pipeline(self) -> Pipeline:
        """What lets concurrent calls share requests. Raises like `connection`."""
        connection = self.connection
        assert self._pipeline is not None, f"it is made with {connection}"  # noqa: S101
        return self._pipeline

    def _check_owner(self) -> None:
        """Refuse a process or an event loop that the client was not opened in."""
        if self._place is not None:  # else it was never entered
            self._place.check()

    # --- opening and closing ---

    async def __aenter__(self) -> Self:
        """Connect. If that fails nothing stays open, and the client is closed for good.

        Raises:
            UnavailableError: nobody answers there, or not within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server does not accept the user.
            ConfigurationError: a certificate, a key or the password cannot be read.
            EmbeddedEtcdError: the client's own etcd did not start.
            ClientClosedError: the client has been entered before.
        """
        if self._state != "not open":
            raise ClientClosedError("a client is entered once; connect again for another")
        if self._is_etcd:
            fork.check()
        self._state = "opening"
        self._place = Place()
        try:
            with anyio.CancelScope() as self._opening:
                await self._open()
            if self._state != "opening":  # somebody has closed it in the meantime
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
        """Close the client: its watches end with `ClientClosedError`, and calls under way do.

        Idempotent, and from any task; whoever comes second waits for the first.

        Raises:
            ClientClosedError: it was opened on another event loop, or before a fork, and cannot be
                closed from here.
        """
        self._check_owner()
        state, self._state = self._state, "closed"
        if state in {"open", "failed"}:
            await self._release()
        elif self._opening is not None:  # whoever enters it releases what it has got so far
            self._opening.cancel()
        elif state == "not open":
            self._is_released.set()
        await self._is_released.wait()

    async def _open(self) -> None:
        if self._embedded is not None:
            await self._embedded.__aenter__()
            self.settings = msgspec.structs.replace(
                self.settings, endpoints=self._embedded.endpoints
            )
        if not self._is_etcd:
            return
        await self._supervisor.start()
        self._connection = Connection(self.settings, self._supervisor, self._observer)
        await self._connection.open()
        self._pipeline = Pipeline(self._connection)
        await self._pipeline.open()

    async def _fail(self) -> None:
        """End calls under way, since a task that they rest on is gone.

        All is released when the client is left.
        """
        if self._state == "open":
            self._state = "failed"
        if self._pipeline is not None:
            self._pipeline.close()
        if self._connection is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._connection.aclose()

    async def _release(self) -> None:
        """Undo `_open`, as far as it came, in reverse: what uses the connection goes first."""
        try:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                async with AsyncExitStack() as stack:
                    if self._embedded is not None:
                        stack.push_async_exit(self._embedded)
                    if self._connection is not None:
                        stack.push_async_callback(self._connection.aclose)
                    stack.push_async_callback(self._supervisor.aclose)
                    if self._pipeline is not None:
                        stack.callback(self._pipeline.close)
                    stack.push_async_callback(self._backend.aclose)
        finally:
            self._is_released.set()
