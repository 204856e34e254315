"""One server of the cluster: its address, and two channels to it.

Two channels, because lists must not starve watches on the same TCP connection, nor watches lists;
and because the channel of the calls has wide windows, with which an unread watch would cost
megabytes.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

import anyio

from kvorum.deadlines import now
from kvorum.errors import (
    ClientClosedError,
    KvorumError,
    ResourceTooLargeError,
    UnavailableError,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport import fork
from kvorum.etcd.transport.certificates import Certificates
from kvorum.etcd.transport.errors import (
    NOT_SENT,
    Call,
    HeldError,
    error_for,
    mapped_errors,
    no_answer,
)
from kvorum.etcd.transport.policies import DEFAULTS, StreamLimits
from kvorum.etcd.transport.streams import Streams, StreamSlot
from kvorum.etcd.transport.tokens import Metadata
from kvorum.etcd.transport.versions import Version
from kvorum.observer import SILENT, Observer
from kvorum.storage import MAX_REQUEST_SIZE

Request = TypeVar("Request", bound="rpc.Message")
Response = TypeVar("Response", bound="rpc.Answer")
Method: TypeAlias = Callable[["Channel"], rpc.Unary[Request, Response]]

# Each option was measured against the failure named beside it.
_OPTIONS: Final = MappingProxyType(
    {
        # A stopped server is noticed within 12 s: after 6 s of silence it is pinged, and has 6 s to
        # answer. A shorter pause ends no call. (The second option sets the latter;
        # `grpc.keepalive_timeout_ms` has no effect in the versions of gRPC that were tried.) etcd
        # answers pings more frequent than every 5 s with GOAWAY, and forbids them on a connection
        # without calls.
        "grpc.keepalive_time_ms": 6_000,
        "grpc.http2.ping_timeout_ms": 6_000,
        "grpc.keepalive_permit_without_calls": 0,
        # Otherwise gRPC sends two pings, and then one a minute while it sends no data, as on a
        # watch.
        "grpc.http2.max_pings_without_data": 0,
        # The bandwidth probe sends pings of its own with nearly every call. Each would be timed
        # like that, so a pause would end calls the sooner the more there are. So windows are fixed.
        "grpc.http2.bdp_probe": 0,
        # Reconnects within a second after an outage of any length. The second option is how long an
        # attempt may take: with less than two round trips a server on a long link is never reached.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 2_000,
        "grpc.max_reconnect_backoff_ms": 1_000,
        # A name is resolved again with each attempt to connect, not only every 30 s: a replaced
        # container or virtual machine often keeps its name and changes its address.
        "grpc.dns_min_time_between_resolutions_ms": 1_000,
        # `http_proxy` and the like in the environment are for the web; endpoints are connected to
        # directly.
        "grpc.enable_http_proxy": 0,
        # Lists and catch-ups easily exceed gRPC's default of 4 MiB.
        "grpc.max_receive_message_length": -1,
        # Otherwise two channels to one address share a connection.
        "grpc.use_local_subchannel_pool": 1,
    }
)
# Answers are read at once, so a wide window costs nothing and speeds up long lists on a long link.
# An unread watch holds as much as fits its window: 64 KiB by default.
_CALL_OPTIONS: Final = MappingProxyType({**_OPTIONS, "grpc.http2.lookahead_bytes": 4 * 1024 * 1024})

_READY: Final = rpc.ChannelConnectivity.READY


class Channel:
    """A gRPC channel with etcd's services. It connects with its first call."""

    def __init__(
        self,
        address: str,
        options: Mapping[str, int],
        certificates: Certificates | None,
        server_name: str | None,
    ) -> None:
        fork.check()
        given: list[tuple[str, int | str]] = list(options.items())
        if certificates is None:
            self._channel = rpc.insecure_channel(address, options=given)
        else:
            if server_name is not None:
                given.append(("grpc.ssl_target_name_override", server_name))
            self._channel = rpc.secure_channel(address, certificates.credentials(), options=given)
        self.kv: rpc.KVStub = rpc.KVStub(self._channel)
        self.lease: rpc.LeaseStub = rpc.LeaseStub(self._channel)
        self.maintenance: rpc.MaintenanceStub = rpc.MaintenanceStub(self._channel)
        self.cluster: rpc.ClusterStub = rpc.ClusterStub(self._channel)
        self.auth: rpc.AuthStub = rpc.AuthStub(self._channel)
        self.watch: rpc.WatchStub = rpc.WatchStub(self._channel)
        self._calls = 0  # under way
        self._idle: anyio.Event | None = None  # set when there are none, if that is waited for

    @property
    def is_connected(self) -> bool:
        """Whether it is connected, as far as gRPC knows."""
        return self._channel.get_state() is _READY

    def begin_call(self) -> None:
        """Count a call that is about to be made; `end_call` when it is done."""
        self._calls += 1

    def end_call(self) -> None:
        """Count a call as done."""
        self._calls -= 1
        if self._idle is not None and not self._calls:
            self._idle.set()

    async def until_idle(self) -> None:
        """Wait until no call is under way. Each ends at its deadline; watches do not count."""
        while self._calls:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def aclose(self) -> None:
        """Close it; calls under way are cancelled. Idempotent. Does not yield to other tasks.

        gRPC's own grace period is never used: if that is cancelled, the channel stays half closed
        and its sockets stay open.
        """
        await self._channel.close()
        fork.note_channel_closed()


class Server:
    """One server. Its `Cluster` prepares it before it is used.

    Attributes:
        address: `host:port`.
        version: the version it reported last; None if it was not asked.
        is_ready: whether it has answered since it was last left. `refresh_ready` updates it.
        is_suspect: whether a stream was lost since then, with its connection.
        preparing: held while the server is prepared.
        certificates: those that its channels were made with.
        is_closed: whether the client has closed it.
        is_forgotten: whether the cluster has no such member any more.
        streams: its watches.
        failure: the error that it was closed for; None if the user closed it.
    """

    def __init__(
        self,
        address: str,
        server_name: str | None,
        observer: Observer = SILENT,
        limits: StreamLimits = DEFAULTS.streams,
    ) -> None:
        self.address: str = address
        self.version: Version | None = None
        self.is_ready: bool = False
        self.is_suspect: bool = False
        self.preparing: anyio.Lock = anyio.Lock()
        self.certificates: Certificates | None = None
        self.is_closed: bool = False
        self.is_forgotten: bool = False
        self.streams: Streams[Channel] = Streams(limits)
        self.failure: BaseException | None = None
        self._server_name = server_name
        self._observer = observer
        self._channels: tuple[Channel, Channel] | None = None

    def __repr__(self) -> str:
        return (
            f"<Server {self.address} [{'ready' if self.is_ready else 'not ready'}, {self.version}]>"
        )

    @property
    def is_open(self) -> bool:
        """Whether it has channels."""
        return self._channels is not None

    def refresh_ready(self) -> bool:
        """Update `is_ready`, by whether the connection was lost since, and return it.

        Once that connection is seen to be lost, the server is not ready any more: the next call
        reconnects, possibly to another server. That one has to be prepared before other calls pass.
        """
        if self.is_ready and (self._channels is None or not self._channels[0].is_connected):
            self.is_ready = False
        return self.is_ready

    @property
    def calls(self) -> Channel:
        """The channel of the calls."""
        if self._channels is None:
            raise self._unopened()
        return self._channels[0]

    @property
    def watches(self) -> Channel:
        """The first channel of the watches. There are further ones if it cannot take all."""
        if self._channels is None:
            raise self._unopened()
        return self._channels[1]

    def slot_for_watch(self, *, alone: bool = False) -> StreamSlot[Channel]:
        """Find a slot for another watch; with `alone`, on a channel that has no other."""

        def make() -> Channel:
            return Channel(self.address, _OPTIONS, self.certificates, self._server_name)

        return self.streams.place(self.watches, make, alone=alone)

    def open(
        self, certificates: Certificates | None, *, replace: bool = False
    ) -> tuple[Channel, ...]:
        """Make channels with these certificates, unless it has some. Return those replaced, open.

        Args:
            certificates: those to use; None without TLS.
            replace: make new channels in any case.

        Raises:
            UnavailableError: the cluster has no such member any more. Nothing would close them.
        """
        self.check()
        if self._channels is not None and certificates == self.certificates and not replace:
            return ()
        replaced = (*(self._channels or ()), *self.streams.take_further())
        self.certificates = certificates
        self._channels = (
            Channel(self.address, _CALL_OPTIONS, certificates, self._server_name),
            Channel(self.address, _OPTIONS, certificates, self._server_name),
        )
        return replaced

    def has_watches_on(self, channel: Channel) -> bool:
        """Return whether new watches may use a channel."""
        return channel is self.watches or channel in self.streams.further

    def open_calls(self) -> tuple[Channel, ...]:
        """Replace the channel of the calls. Return the replaced one, still open."""
        calls, watches = self.calls, self.watches
        self._channels = (
            Channel(self.address, _CALL_OPTIONS, self.certificates, self._server_name),
            watches,
        )
        return (calls,)

    def open_watches(self) -> tuple[Channel, ...]:
        """Replace the channels of the watches. Return the replaced ones, still open."""
        calls, watches = self.calls, self.watches
        self._channels = (
            calls,
            Channel(self.address, _OPTIONS, self.certificates, self._server_name),
        )
        return (watches, *self.streams.take_further())

    def forget(self) -> tuple[Channel, ...]:
        """Record that the cluster has no such member any more. Return its channels, still open.

        It gets no others.
        """
        self.is_forgotten = True
        channels, self._channels, self.is_ready = self._channels or (), None, False
        return (*channels, *self.streams.take_further())

    async def aclose(self, failure: BaseException | None = None) -> None:
        """Close and drop its channels. Calls under way end with an error, caused by `failure`.

        Idempotent.
        """
        self.is_closed, self.failure = True, self.failure or failure
        channels, self._channels = (*(self._channels or ()), *self.streams.take_further()), None
        for channel in channels:
            await channel.aclose()

    async def call(
        self,
        channel: Channel,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        metadata: Metadata = (),
    ) -> Response:
        """Make a call on one of its channels, which is not closed before the call has ended.

        Raises:
            UnavailableError: nothing was done, according to the table in `errors`.
            OutcomeUnknownError: a write may have been applied.
            KvorumError: the server refused.
        """
        # The observer is not called in the mapping, which takes the driver's errors for outcomes.
        observer, is_answered = self._observer, False
        is_observed = observer is not SILENT
        channel.begin_call()
        try:
            if is_observed:
                await self._before(call, request, deadline)
            async with mapped_errors(call, self):
                seconds = deadline - now()
                if seconds <= 0:
                    raise self.not_asked()
                answer = await method(channel)(request, timeout=seconds, metadata=metadata)
                is_answered = True
            return await self._after(call, answer, deadline) if is_observed else answer
        except KvorumError as exc:
            # Not by a local name: the error's traceback holds this frame.
            raise self._reported(exc, call, request) from exc.__cause__
        except asyncio.CancelledError:
            if not is_answered:
                observer.request_cancelled(call, self.address)
            raise
        finally:
            channel.end_call()
            del channel  # an error that is kept keeps this frame, but must not keep the channel

    def _reported(self, error: KvorumError, call: Call, request: "rpc.Message") -> KvorumError:
        """Return the error of a call, after the observer was told of it."""
        error = _with_size(error, call, request)
        self._observer.request_failed(call, self.address, error)
        return error

    async def _before(self, call: Call, request: "rpc.Message", deadline: float) -> None:
        """Let the observer hold or refuse a request, until its deadline at most.

        Raises:
            HeldError: the deadline passed meanwhile, or the connection was lost. What was decided
                about the request (its form, its token, the identity of the server) may not hold on
                another connection, so it is not sent.
        """
        was_ready = self.refresh_ready()
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                await self._observer.before_request(call, self.address, request)
        except rpc.AioRpcError as exc:  # the observer answers for the server
            raise error_for(exc, call, self.address) from exc
        if scope.cancelled_caught:
            raise HeldError(self.address, "an observer held the request until its deadline")
        if was_ready and not self.refresh_ready():
            raise HeldError(
                self.address, "its connection was lost while an observer held a request"
            )

    async def _after(self, call: Call, answer: Response, deadline: float) -> Response:
        """Let the observer hold an answer, or lose it.

        Raises:
            OutcomeUnknownError: it lost the answer to a write, or held it until the deadline. It
                cannot refuse what the server has done: a refusal would be retried.
        """
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                await self._observer.after_request(call, self.address, answer)
        except rpc.AioRpcError as exc:
            raise error_for(exc, call, self.address) from exc
        except UnavailableError as exc:
            raise no_answer(call, self.address, exc.reason) from exc
        if scope.cancelled_caught:
            held = HeldError(self.address, "an observer held the answer until the deadline")
            raise no_answer(call, self.address, held.reason) from held
        return answer

    def not_asked(self) -> UnavailableError:
        """Return the error for a call whose deadline passed before it was sent."""
        return UnavailableError(self.address, NOT_SENT)

    def check(self) -> None:
        """Raise if it was forgotten while a call was about to be sent.

        Raises:
            UnavailableError: it was.
        """
        if self.is_forgotten:
            raise self._forgotten()

    def _forgotten(self) -> UnavailableError:
        return UnavailableError(self.address, "the cluster has no such member any more")

    def _unopened(self) -> Exception:
        if self.is_closed:
            return ClientClosedError.closed(self.failure)
        if self.is_forgotten:
            return self._forgotten()
        return AssertionError("a server is opened before it is used")  # see Connection


def _with_size(error: KvorumError, call: Call, request: "rpc.Message") -> KvorumError:
    """Return the error with the size of a request that is too large; any other one as it is."""
    if not isinstance(error, ResourceTooLargeError):
        return error
    size, limit = request.ByteSize(), error.limit
    # A server with a smaller limit of its own does not say which.
    if limit is None and size > MAX_REQUEST_SIZE:
        limit = MAX_REQUEST_SIZE
    return ResourceTooLargeError(call.subject, size=size, limit=limit, detail=error.detail)


async def flush() -> None:
    """Wait until grpc.aio has delivered what it still has for this event loop.

    Cancelled calls send a last message through a queue that all loops of the process share. One
    that arrives after its loop was closed raises `RuntimeError: Event loop is closed` in the loop
    that reads the queue then, for example in the next test. One more call, at the end of the queue,
    drains it.
    """
    channel = Channel("127.0.0.1:1", {"grpc.enable_http_proxy": 0}, None, None)
    try:
        await channel.maintenance.Status(rpc.StatusRequest(), timeout=0.005)
    except rpc.AioRpcError:
        pass  # expected: nothing listens there
    finally:
        await channel.aclose()
