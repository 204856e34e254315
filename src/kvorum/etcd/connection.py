"""The way to etcd: two channels, a deadline for each call, and no error of the driver past this point.

Two channels, because a stream of watches must not be starved by lists on the same TCP connection, nor the other way
round; and because the channel of the watches runs without gRPC's bandwidth probe, which would let a consumer that does
not read cost megabytes.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, TypeVar

import anyio
import anyio.lowlevel
from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from kvorum.errors import ClientClosedError, ConfigurationError, ServerError, UnavailableError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.faults import Call, meaning_of, open_end
from kvorum.etcd.versions import hazards_of
from kvorum.settings import EtcdSettings
from kvorum.supervisor import Supervisor

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")

# A request that lost its quorum, a stopped server, an outage: each of these was measured without its option, too.
_OPTIONS: Final = MappingProxyType(
    {
        # A stopped server is noticed within 12 s. etcd answers pings more frequent than every 5 s with GOAWAY, and
        # forbids them on a connection without calls.
        "grpc.keepalive_time_ms": 10_000,
        "grpc.http2.ping_timeout_ms": 2_000,
        "grpc.keepalive_permit_without_calls": 0,
        # Back within a second after an outage, however long it was. The second is how long an attempt may take: less
        # than two round trips, and a server on a long link is never reached.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 2_000,
        "grpc.max_reconnect_backoff_ms": 1_000,
        # Lists and catch-ups pass gRPC's 4 MiB easily. What a client asks for it must be able to take.
        "grpc.max_receive_message_length": -1,
        # Else gRPC lets two channels to one address share a connection.
        "grpc.use_local_subchannel_pool": 1,
    }
)
_WATCH_OPTIONS: Final = MappingProxyType({**_OPTIONS, "grpc.http2.bdp_probe": 0})


class HasConnection(Protocol):
    """What a backend is made on: a client, whose connection is there once it was entered."""

    @property
    def connection(self) -> "Connection":
        """The open connection.

        Raises:
            ClientClosedError: the client is not open.
        """
        ...


class Connection:
    """Calls to etcd. `open` it on the event loop that uses it; any number of tasks may.

    Attributes:
        settings: what it was made with.
        endpoint: the server that it talks to.
        version: of that server, as (3, 5, 1); (0, 0, 0) before it is open.
    """

    def __init__(self, settings: EtcdSettings, supervisor: Supervisor) -> None:
        _refuse_what_is_not_built(settings)
        self.settings: EtcdSettings = settings
        self.endpoint: str = settings.endpoints[0]
        self.version: tuple[int, int, int] = (0, 0, 0)
        self.supervisor: Supervisor = supervisor
        self._calls: rpc.Driver | None = None
        self._watches: rpc.Driver | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._calls is not None else "not open"
        return f"<Connection {self.endpoint} [{state}, etcd {'.'.join(map(str, self.version))}]>"

    async def open(self) -> None:
        """Open the channels and ask the server for its version. On failure nothing stays open.

        Raises:
            UnavailableError: nobody answers there, or not within the timeout.
        """
        try:
            self._calls = await self._driver(_OPTIONS)
            self._watches = await self._driver(_WATCH_OPTIONS)
            self.version = _version((await self.status()).version)
            for hazard in hazards_of(self.version):
                _log.warning("etcd %s at %s: %s", ".".join(map(str, self.version)), self.endpoint, hazard.consequence)
        except BaseException:
            with anyio.move_on_after(1, shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the channels; calls under way end with an error. Idempotent."""
        self._closed = True
        drivers, self._calls, self._watches = (self._calls, self._watches), None, None
        for driver in drivers:
            if driver is not None:
                await driver.close()
        if any(drivers):
            await self._flush()

    async def _flush(self) -> None:
        """Wait until grpc.aio has handed out what it still has for this event loop.

        Cancelled calls send a last message through a queue that all loops of the process share. Those that come after
        their loop was closed raise `RuntimeError: Event loop is closed` in whatever loop reads the queue then, as one
        test's calls in the loop of the next. A call that comes last in the queue has all of them before it.
        """
        driver = rpc.Driver(host="127.0.0.1", port=1, timeout=1, options={"grpc.enable_http_proxy": 0})
        await driver.connect()
        with suppress(rpc.AioRpcError):  # it goes nowhere
            await driver.maintenancestub.Status(rpc.StatusRequest(), timeout=0.005)
        await driver.close()

    # --- calls: one method each, all with a deadline ---

    async def range(self, request: rpc.RangeRequest, subject: str, *, revision: int = 0) -> rpc.RangeResponse:
        """Read a key or a range of keys; `subject` and `revision` are for messages."""
        call = Call(self.endpoint, "read", subject, revision=revision)
        return await self._send(self._open_driver().kvstub.Range, request, call)

    async def put(self, request: rpc.PutRequest, subject: str) -> rpc.PutResponse:
        """Write a key."""
        call = Call(self.endpoint, "put", subject, writes=True)
        return await self._send(self._open_driver().kvstub.Put, request, call)

    async def txn(self, request: rpc.TxnRequest, subject: str) -> rpc.TxnResponse:
        """Run a transaction that may write."""
        call = Call(self.endpoint, "transaction on", subject, writes=True)
        return await self._send(self._open_driver().kvstub.Txn, request, call)

    async def lease_grant(self, request: rpc.LeaseGrantRequest) -> rpc.LeaseGrantResponse:
        """Grant a lease. One whose grant got no answer ends by itself, so to try again is safe: it counts as a read."""
        call = Call(self.endpoint, "grant", "a lease")
        return await self._send(self._open_driver().leasestub.LeaseGrant, request, call)

    async def lease_revoke(self, request: rpc.LeaseRevokeRequest, subject: str) -> rpc.LeaseRevokeResponse:
        """Revoke a lease, and thereby remove its keys."""
        call = Call(self.endpoint, "revoke", subject, writes=True)
        return await self._send(self._open_driver().leasestub.LeaseRevoke, request, call)

    async def status(self) -> rpc.StatusResponse:
        """Ask a server for its state; once, whatever comes of it."""
        call = Call(self.endpoint, "status", self.endpoint)
        stub = self._open_driver().maintenancestub
        return await self._call(stub.Status, rpc.StatusRequest(), call, self.settings.timeout)

    async def alarms(self, request: rpc.AlarmRequest) -> rpc.AlarmResponse:
        """Ask for the alarms of the cluster; once, whatever comes of it."""
        call = Call(self.endpoint, "alarms", self.endpoint)
        return await self._call(self._open_driver().maintenancestub.Alarm, request, call, self.settings.timeout)

    def watch(self) -> rpc.Stream[rpc.WatchRequest, rpc.WatchResponse]:
        """Start a stream of watches of its own. Whoever asks for one cancels it: nothing else ends it on the server."""
        self._open_driver()
        assert self._watches is not None  # noqa: S101 - opened and closed together with the other
        # With `hasleader` a member that is cut off from the quorum ends the stream, rather than keep a silent one.
        return rpc.WatchStub(self._watches.channel).Watch(metadata=(("hasleader", "true"),))

    async def _driver(self, options: Mapping[str, int]) -> rpc.Driver:
        host, _, port = self.endpoint.rpartition(":")
        driver = rpc.Driver(host=host, port=int(port), timeout=self.settings.timeout, options=dict(options))
        await driver.connect()  # opens nothing yet: gRPC connects with the first call
        return driver

    def _open_driver(self) -> rpc.Driver:
        if self._calls is None:
            raise ClientClosedError.closed() if self._closed else ClientClosedError.not_open()
        return self._calls

    async def _send(self, method: rpc.Unary[Request, Response], request: Request, call: Call) -> Response:
        """Send until there is an answer, or the deadline has passed: what has done nothing may be sent again."""
        deadline = anyio.current_time() + self.settings.timeout
        try:
            return await self._call(method, request, call, self.settings.timeout)
        except UnavailableError:
            if anyio.current_time() >= deadline:
                raise
        tries = AsyncRetrying(
            retry=retry_if_exception_type(UnavailableError),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_before_delay(deadline - anyio.current_time()),
            reraise=True,
        )
        async for attempt in tries:
            with attempt:
                return await self._call(method, request, call, max(deadline - anyio.current_time(), 0.01))
        raise AssertionError("tenacity leaves its loop by an error only")

    async def _call(
        self, method: rpc.Unary[Request, Response], request: Request, call: Call, seconds: float
    ) -> Response:
        async with self.translated(call):
            return await method(request, timeout=seconds)

    def translated(self, call: Call) -> "_Translated":
        """Return a block in which the driver's errors are raised as Kvorum's, and cancellations as what they are."""
        return _Translated(self, call)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed


class _Translated:
    """See `Connection.translated`. A class, since this is around every call."""

    __slots__ = ("_call", "_connection")

    def __init__(self, connection: Connection, call: Call) -> None:
        self._connection = connection
        self._call = call

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, rpc.AioRpcError):
            raise meaning_of(exc, self._call) from exc
        if isinstance(exc, rpc.UsageError):  # a call that was about to start as the channel was closed
            raise ClientClosedError.closed() from exc
        if isinstance(exc, asyncio.CancelledError):
            if self._connection.is_closed and not is_cancelled():
                # grpc.aio cancels the calls of a channel that is closed. Nobody has cancelled this task.
                error = (
                    open_end(self._call, "the client was closed") if self._call.writes else ClientClosedError.closed()
                )
                raise error from exc
            # grpc.aio raises an error of its own in place of the one that cancelled it, and anyio would not know its
            # scope's again. If there is such a scope it cancels once more, at this checkpoint.
            await anyio.lowlevel.checkpoint_if_cancelled()


def is_cancelled() -> bool:
    """Tell whether a CancelledError is about the current task, rather than about a call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _version(text: str) -> tuple[int, int, int]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise ServerError("an unknown version", text)
    return int(found[1]), int(found[2]), int(found[3])


def _refuse_what_is_not_built(settings: EtcdSettings) -> None:
    """Say no, rather than connect in another way than was asked for."""
    asked = {
        "TLS": settings.tls or settings.cacert or settings.cert or settings.key,
        "authentication": settings.user or settings.password,
        "more than one endpoint": len(settings.endpoints) > 1,
    }
    if missing := [what for what, given in asked.items() if given]:
        raise ConfigurationError(f"this version of Kvorum cannot do {' and '.join(missing)} yet")
