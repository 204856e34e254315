"""A session with etcd: what a client opens once, and everything that lives until it is closed."""

from contextlib import AsyncExitStack
from typing import Literal, Protocol

import anyio
import msgspec

from kvorum.embedded import EmbeddedEtcd
from kvorum.errors import ClientClosedError
from kvorum.etcd.pipeline import Pipeline
from kvorum.etcd.policies import DEFAULT_POLICIES, Policies
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import Connection, fork
from kvorum.observer import SILENT, Observer
from kvorum.runtime import Owner
from kvorum.settings import EtcdSettings


class HasSession(Protocol):
    """A client on etcd."""

    @property
    def session(self) -> "Session":
        """The session that the client owns, open or not.

        Raises:
            ConfigurationError: the client is not on etcd.
        """
        ...


class Session:
    """Owns the tasks, the connection, the pipeline and, if there is one, the embedded server.

    It belongs to the process and the event loop that open it.

    Args:
        settings: where etcd is, and how to talk to it.
        embedded: a server to start first and to stop last; its endpoints replace those of the
            settings.
        observer: receives reports.
        policies: limits and waits.

    Attributes:
        settings: what the session was made with; with the endpoints of the embedded server once
            that runs.
        policies: what the session was made with.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        embedded: EmbeddedEtcd | None = None,
        observer: Observer = SILENT,
        policies: Policies = DEFAULT_POLICIES,
    ) -> None:
        self.settings: EtcdSettings = settings
        self.policies: Policies = policies
        self._embedded = embedded
        self._observer = observer
        self._supervisor = Supervisor(self._fail)
        self._stack = AsyncExitStack()  # what is open, in the order in which it was opened
        self._closing = anyio.Lock()
        self._state: Literal["not open", "opening", "open", "failed", "closed"] = "not open"
        # Set by `open`, and read only while the state is "open".
        self._owner: Owner
        self._connection: Connection
        self._pipeline: Pipeline

    def __repr__(self) -> str:
        return f"<Session {','.join(self.settings.endpoints)} [{self._state}]>"

    @property
    def has_failed(self) -> bool:
        """Whether a task of the session raised an error, which ended the session."""
        return self._state == "failed"

    @property
    def _has_ended(self) -> bool:
        return self._state in {"failed", "closed"}

    @property
    def connection(self) -> Connection:
        """The open connection.

        Raises:
            ClientClosedError: the session is not open, or belongs to another process or event loop.
        """
        if self._state != "open":
            raise self._not_usable()
        self._owner.check()
        return self._connection

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the open connection. Raises like `connection`."""
        if self._state != "open":
            raise self._not_usable()
        self._owner.check()
        return self._pipeline

    @staticmethod
    def check_process() -> None:
        """Refuse a process that was forked while gRPC was in use: gRPC does not work in it.

        Raises:
            ClientClosedError: this is such a process.
        """
        fork.check()

    async def open(self) -> None:
        """Start the embedded server, if there is one, and connect.

        Does nothing if the session is open. If it fails or is cancelled, call `aclose` to release
        what was opened so far.

        Raises:
            UnavailableError: no server answers within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server rejects the user.
            ConfigurationError: a certificate, a key or the password cannot be read.
            EmbeddedEtcdError: the embedded server did not start.
            ClientClosedError: the session was opened before, or gRPC is in use in a parent process.
        """
        if self._state == "open":
            return
        if self._state != "not open":
            raise ClientClosedError("a session is opened once")
        self.check_process()
        self._state = "opening"
        self._owner = Owner()
        if self._embedded is not None:
            await self._stack.enter_async_context(self._embedded)
            self.settings = msgspec.structs.replace(
                self.settings, endpoints=self._embedded.endpoints
            )
        connection = Connection(
            self.settings, self._supervisor, self._observer, self.policies.transport
        )
        # Closed in reverse: tasks end before the channels that they use.
        self._stack.push_async_callback(connection.aclose)
        self._stack.push_async_callback(self._supervisor.aclose)
        self._connection = connection
        await self._supervisor.start()
        await connection.open()
        self._pipeline = self._make_pipeline(connection)
        self._stack.callback(self._pipeline.close)
        await self._pipeline.open()
        if self._has_ended:  # meanwhile, by a failed task or by `aclose`
            raise self._not_usable()
        self._state = "open"

    def _make_pipeline(self, connection: Connection) -> Pipeline:
        policies = self.policies
        return Pipeline(
            connection, queue=policies.queue, quota=policies.quota, refusals=policies.refusals
        )

    async def aclose(self) -> None:
        """Release everything, in reverse order. Calls under way and watches end.

        Idempotent, and from any task. A second call waits for the first.

        Raises:
            ExceptionGroup: a task of the session raised an error. Everything is released all the
                same.
        """
        self._state = "closed"
        async with self._closing:
            await self._stack.aclose()

    async def _fail(self) -> None:
        """End the calls under way: a task that they depend on is gone."""
        if self._state == "open":
            self._pipeline.close()
        if not self._has_ended:
            self._state = "failed"
        with anyio.move_on_after(self.policies.close_timeout, shield=True):
            await self._connection.aclose()

    def _not_usable(self) -> ClientClosedError:
        if self._has_ended:
            return self._supervisor.closed()
        return ClientClosedError.not_open()
