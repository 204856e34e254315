"""One server of the cluster: its address, and two channels to it.

Two channels, because a stream of watches must not be starved by lists on the same TCP connection,
nor the other way round; and because the channel of the calls has wide windows, which would let a
watch that is not read cost megabytes.
"""

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
from kvorum.etcd.transport.errors import MAX_REQUEST_SIZE, Call, mapped_errors
from kvorum.etcd.transport.streams import Streams, StreamSlot
from kvorum.etcd.transport.tokens import Metadata
from kvorum.etcd.transport.versions import Version
from kvorum.observer import SILENT, Observer

Request = TypeVar("Request", bound="rpc.Message")
Response = TypeVar("Response", bound="rpc.Answer")
Method: TypeAlias = Callable[["Channel"], rpc.Unary[Request, Response]]

# A request that lost its quorum, a stopped server, an outage: each of these was measured without
# its option, too.
_OPTIONS: Final = MappingProxyType(
    {
        # A stopped server is noticed within 12 s: after 6 s of silence it is asked for a sign, and
        # has 6 s to give it. A pause of less than that ends no call. (What times this is the second
        # option; `grpc.keepalive_timeout_ms` has no effect in the versions of gRPC that were
        # tried.) etcd answers pings more frequent than every 5 s with GOAWAY, and forbids them on a
        # connection without calls.
        "grpc.keepalive_time_ms": 6_000,
        "grpc.http2.ping_timeout_ms": 6_000,
        "grpc.keepalive_permit_without_calls": 0,
        # Else gRPC sends two pings, and then one a minute for as long as it sends no data: as on a
        # watch.
        "grpc.http2.max_pings_without_data": 0,
        # The probe of the bandwidth sends pings of its own, with nearly every call; each would be
        # timed like that, and a pause would end calls the sooner the more of them there are. So
        # windows are fixed.
        "grpc.http2.bdp_probe": 0,
        # Back within a second after an outage, however long it was. The second is how long an
        # attempt may take: less than two round trips, and a server on a long link is never reached.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 2_000,
        "grpc.max_reconnect_backoff_ms": 1_000,
        # A name is looked up again as often as a connection is tried again, not every 30 s only:
        # what is replaced by another one of the same name (a container, a virtual machine) often
        # has another address.
        "grpc.dns_min_time_between_resolutions_ms": 1_000,
        # `http_proxy` and its like in the environment are meant for the web. What an endpoint says
        # is connected to.
        "grpc.enable_http_proxy": 0,
        # Lists and catch-ups pass gRPC's 4 MiB easily. What a client asks for it must be able to
        # take.
        "grpc.max_receive_message_length": -1,
        # Else gRPC lets two channels to one address share a connection.
        "grpc.use_local_subchannel_pool": 1,
    }
)
# An answer is read at once, so a wide window costs nothing, and lets long lists pass a long link. A
# watch that is not read holds what fits its window, 64 KiB unless set.
_CALL_OPTIONS: Final = MappingProxyType({**_OPTIONS, "grpc.http2.lookahead_bytes": 4 * 1024 * 1024})

_READY: Final = rpc.ChannelConnectivity.READY


class Channel:
    """A gRPC channel, and etcd's services on it. It connects with its first call."""

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

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection now, as far as it knows."""
        return self._channel.get_state() is _READY

    async def aclose(self) -> None:
        """Close it: calls under way are cancelled. Idempotent, and without giving way to another task.

        Never with gRPC's own period of grace: if that is cancelled the channel stays half closed,
        and its sockets open.
        """
        await self._channel.close()
        fork.ending()


class Server:
    """One server. Made by `Connection`, which prepares it before it is used.

    Attributes:
        address: `host:port`.
        version: what it said last; None if it has not been asked.
        is_ready: whether it has answered since it was last away. To know it of now, ask `stands`.
        is_suspect: whether a stream was lost since then, with its connection.
        preparing: held by whoever asks.
        certificates: what its channels were made with.
        is_closed: whether it was closed, by us.
        is_forgotten: whether the cluster has no such member any more.
        streams: its watches.
        failure: what it was closed for, if that was not asked for.
    """

    def __init__(self, address: str, server_name: str | None, observer: Observer = SILENT) -> None:
        self.address: str = address
        self.version: Version | None = None
        self.is_ready: bool = False
        self.is_suspect: bool = False
        self.preparing: anyio.Lock = anyio.Lock()
        self.certificates: Certificates | None = None
        self.is_closed: bool = False
        self.is_forgotten: bool = False
        self.streams: Streams[Channel] = Streams()
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

    def stands(self) -> bool:
        """Tell whether it is ready, by the connection that it has now.

        Once that is seen to be lost the server is not ready any more: the next call connects it
        anew, to what may be another server. No other call may pass before that one has said what it
        is.
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
        """The channel of the watches; there are further ones if it cannot take all."""
        if self._channels is None:
            raise self._unopened()
        return self._channels[1]

    def place_watch(self, *, alone: bool = False) -> StreamSlot[Channel]:
        """Find a channel for another watch; with `alone`, one that has no other."""

        def make() -> Channel:
            return Channel(self.address, _OPTIONS, self.certificates, self._server_name)

        return self.streams.place(self.watches, make, alone=alone)

    def open(self, certificates: Certificates | None, *, anew: bool = False) -> tuple[Channel, ...]:
        """Make channels with these certificates, unless there are; return those that they replace, still open.

        Args:
            certificates: what to make them with; None for no TLS.
            anew: make them whatever there is.

        Raises:
            UnavailableError: the cluster has no such member any more: who would close them?
        """
        self.check()
        if self._channels is not None and certificates == self.certificates and not anew:
            return ()
        replaced = (*(self._channels or ()), *self.streams.take_further())
        self.certificates = certificates
        self._channels = (
            Channel(self.address, _CALL_OPTIONS, certificates, self._server_name),
            Channel(self.address, _OPTIONS, certificates, self._server_name),
        )
        return replaced

    def has_watches_on(self, channel: Channel) -> bool:
        """Tell whether further watches may be put there."""
        return channel is self.watches or channel in self.streams.further

    def open_watches(self) -> tuple[Channel, ...]:
        """Make the channel of the watches anew; return those that it replaces, still open."""
        calls, watches = self.calls, self.watches
        self._channels = (
            calls,
            Channel(self.address, _OPTIONS, self.certificates, self._server_name),
        )
        return (watches, *self.streams.take_further())

    def forget(self) -> tuple[Channel, ...]:
        """Take note that the cluster has no such member; return its channels, still open.

        There will be no others.
        """
        self.is_forgotten = True
        channels, self._channels, self.is_ready = self._channels or (), None, False
        return (*channels, *self.streams.take_further())

    async def aclose(self, failure: BaseException | None = None) -> None:
        """Close its channels, and let go of them; calls under way end with an error, of this cause.

        Idempotent.
        """
        self.is_closed, self.failure = True, self.failure or failure
        channels, self._channels = (*(self._channels or ()), *self.streams.take_further()), None
        for channel in channels:
            await channel.aclose()

    async def call(
        self,
        stub: rpc.Unary[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        metadata: Metadata = (),
    ) -> Response:
        """Make a call of a stub of one of its channels.

        Raises:
            UnavailableError: nothing was done, as far as the table in `faults` can tell.
            OutcomeUnknownError: something may have been.
            KvorumError: the server's refusal, by its reason.
        """
        try:
            async with mapped_errors(call, self):
                await self._observer.before_request(call, self.address, request)
                seconds = deadline - now()
                if seconds <= 0:
                    raise self.not_asked()
                answer = await stub(request, timeout=seconds, metadata=metadata)
                await self._observer.after_request(call, self.address, answer)
                return answer
        except KvorumError as exc:
            error = _with_size(exc, call, request)
            self._observer.request_failed(call, self.address, error)
            if error is exc:
                raise
            raise error from exc.__cause__
        finally:
            del stub  # who keeps an error keeps this frame, and must not keep the channel

    def not_asked(self) -> UnavailableError:
        """Return the error for a call whose deadline has passed before it was sent."""
        return UnavailableError(
            self.address, "not asked: the deadline of the call had passed already"
        )

    def check(self) -> None:
        """Refuse to go on with a server that was forgotten while a call was about to go there.

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
    """Wait until grpc.aio has handed out what it still has for this event loop.

    Cancelled calls send a last message through a queue that all loops of the process share. Those
    that come after their loop was closed raise `RuntimeError: Event loop is closed` in whatever
    loop reads the queue then, as one test's calls in the loop of the next. A call that comes last
    in the queue has all of them before it.
    """
    channel = Channel("127.0.0.1:1", {"grpc.enable_http_proxy": 0}, None, None)
    try:
        await channel.maintenance.Status(rpc.StatusRequest(), timeout=0.005)
    except rpc.AioRpcError:
        pass  # it goes nowhere
    finally:
        await channel.aclose()
