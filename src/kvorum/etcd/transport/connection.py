"""The calls to etcd. Each has a deadline, and raises no error of the driver.

A request that did nothing is retried until its deadline, on another server if there is one. A
write that may have been applied is not: see `kvorum.etcd.outcomes`.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeAlias

import anyio
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from kvorum.deadlines import deadline_of, now
from kvorum.errors import (
    ClientClosedError,
    HistoryLostError,
    KvorumError,
    OutcomeUnknownError,
    PermissionDeniedError,
    StaleReadError,
    UnavailableError,
)
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.cluster import Cluster
from kvorum.etcd.transport.diagnosis import tls_error_of
from kvorum.etcd.transport.errors import (
    NOT_SENT,
    STATUS,
    BehindError,
    Call,
    UnfitRequestError,
    mapped_errors,
)
from kvorum.etcd.transport.opening import find_server
from kvorum.etcd.transport.page_sizes import PageSizes
from kvorum.etcd.transport.policies import DEFAULTS, TransportPolicies
from kvorum.etcd.transport.pulse import HedgedRead
from kvorum.etcd.transport.reports import guarded
from kvorum.etcd.transport.server import Channel, Method, Request, Response, Server
from kvorum.etcd.transport.streams import StreamSlot
from kvorum.etcd.transport.versions import Version, format_version
from kvorum.observer import SILENT, Observer
from kvorum.runtime import raised_alone
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)

_SEARCHES: Final = 4  # at a time; the others wait until their deadlines

# Whether the servers known by now may be sent a request. It is asked just before the sending.
Fits: TypeAlias = Callable[[], bool]


class Connection:
    """Calls to etcd. `open` it on the event loop that uses it; any number of tasks may.

    Attributes:
        settings: what it was made with.
        supervisor: runs its tasks.
        observer: receives reports.
        policies: times and limits.
        cluster: the servers.
        page_sizes: how large the pages of lists may be.
        searches: admits a few searches of many reads each. When the store is full, each write needs
            one.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        supervisor: Supervisor,
        observer: Observer = SILENT,
        policies: TransportPolicies = DEFAULTS,
    ) -> None:
        self.settings: EtcdSettings = settings
        self.supervisor: Supervisor = supervisor
        self.observer: Observer = guarded(observer)
        self.policies: TransportPolicies = policies
        self.cluster: Cluster = Cluster(settings, supervisor, self.observer, policies)
        self.page_sizes: PageSizes = PageSizes(settings.page_size, settings.timeout)
        self.searches: anyio.Semaphore = anyio.Semaphore(_SEARCHES)
        self._state = "not open"
        self._has_warned = False  # that the user may not list the members

    def __repr__(self) -> str:
        return f"<Connection {self.endpoint} [{self._state}, etcd {format_version(self.version)}]>"

    @property
    def endpoint(self) -> str:
        """The server that the next call goes to."""
        return self.cluster.current.address

    @property
    def revision(self) -> int:
        """The highest revision seen in an answer. Later writes are above it."""
        return self.cluster.floor.revision

    @property
    def version(self) -> Version:
        """The lowest version of the servers asked so far, as (3, 5, 1); (0, 0, 0) if none."""
        return self.cluster.version

    async def open(self) -> None:
        """Find a server that answers, read its version, authenticate. If that fails, close.

        Raises:
            UnavailableError: no server answered within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server does not accept the user.
            ConfigurationError: a certificate, key or password cannot be read.
        """
        try:
            await find_server(self.cluster, self.settings)
            if self.settings.discover_interval is not None:
                await self._discover()
                self.supervisor.spawn(
                    self._keep_discovering, self.settings.discover_interval, name="kvorum-discovery"
                )
        except BaseException:
            with anyio.move_on_after(1, shield=True):
                await self.aclose()
            raise
        self._state = "open"

    async def aclose(self) -> None:
        """Close the channels; calls under way end with an error. Idempotent."""
        self._state = "closed"
        await self.cluster.aclose()

    # --- calls: one method each, all with a deadline ------------------------------------------

    async def range(
        self,
        request: rpc.RangeRequest,
        subject: str,
        *,
        revision: int = 0,
        deadline: float | None = None,
    ) -> rpc.RangeResponse:
        """Read a key or a range of keys; `subject` and `revision` are for messages."""
        call = Call("read", subject, revision=revision)
        return await self.send(lambda channel: channel.kv.Range, request, call, deadline)

    async def txn(
        self, request: rpc.TxnRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.TxnResponse:
        """Run a transaction that may write."""
        call = Call("transaction", subject, writes=True)
        return await self.send(lambda channel: channel.kv.Txn, request, call, deadline)

    async def once(
        self,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        fits: Fits | None = None,
    ) -> Response:
        """Send a batch of calls, without retries: each of its callers retries by itself.

        If the server is prepared, the request is sent without yielding to other tasks first. If it
        turns out to be dead, reads are sent to the others until one answers, as single ones are.

        Raises:
            UnfitRequestError: what `fits` told had changed before it could be sent.
        """
        return await self._attempt(method, request, call, deadline, fits)

    async def lease_grant(self, request: rpc.LeaseGrantRequest) -> rpc.LeaseGrantResponse:
        """Grant a lease. Retried like a read: a lease whose grant got no answer ends by itself."""
        return await self.send(
            lambda channel: channel.lease.LeaseGrant, request, Call("grant", "a lease")
        )

    async def lease_revoke(
        self, request: rpc.LeaseRevokeRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.LeaseRevokeResponse:
        """Revoke a lease, and so delete its keys."""
        call = Call("revoke", subject, writes=True)
        return await self.send(lambda channel: channel.lease.LeaseRevoke, request, call, deadline)

    async def lease_time_to_live(
        self, request: rpc.LeaseTimeToLiveRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.LeaseTimeToLiveResponse:
        """Ask for the remaining time and the keys of a lease. The time is -1 if it has ended."""
        return await self.send(
            lambda channel: channel.lease.LeaseTimeToLive,
            request,
            Call("inspect", subject),
            deadline,
        )

    async def compact(self, request: rpc.CompactionRequest) -> None:
        """Forget history. Retried like a read, since doing it twice changes nothing.

        If the reply was lost, the server tells the second request that the history is compacted:
        that is what the first one has done, or another one since.

        Raises:
            HistoryLostError: it was compacted before the first request.
        """
        requests = 0

        def method(channel: Channel) -> rpc.Unary[rpc.CompactionRequest, rpc.CompactionResponse]:
            nonlocal requests
            requests += 1
            return channel.kv.Compact

        try:
            await self.send(
                method, request, Call("compact", "the history", revision=request.revision)
            )
        except HistoryLostError:
            if requests == 1:
                raise

    async def alarms(self, request: rpc.AlarmRequest) -> rpc.AlarmResponse:
        """Ask for the alarms of the cluster."""
        return await self.send(
            lambda channel: channel.maintenance.Alarm, request, Call("alarms", "the cluster")
        )

    async def status(self, server: Server) -> rpc.StatusResponse:
        """Ask one server for its state. Raises like `ask`."""
        return await self.ask(
            server, lambda channel: channel.maintenance.Status, rpc.StatusRequest(), STATUS
        )

    async def ask(
        self,
        server: Server,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float | None = None,
    ) -> Response:
        """Send a request to one server, without retries."""
        if deadline is None:
            deadline = deadline_of(self.settings.timeout)
        await self.cluster.channels.open(server)
        server.refresh_ready()  # before a call that may connect it
        try:
            return await self.cluster.call(server, method, request, call, deadline)
        except UnavailableError as exc:
            raise await self._explained(exc) from exc.__cause__

    async def discover(self) -> None:
        """Read the member list; add unknown members and drop discovered ones that are gone.

        The read is linearizable from etcd 3.5 on: by the list of a member that lags, those that
        joined would be dropped.
        """
        call, request = Call("members", "the cluster"), rpc.MemberListRequest(linearizable=True)
        answer = await self.send(lambda channel: channel.cluster.MemberList, request, call)
        self.cluster.update_members(answer)

    async def _discover(self) -> None:
        """Discover members. In some versions only root may; that is logged once."""
        try:
            await self.discover()
        except PermissionDeniedError as exc:
            if not self._has_warned:
                _log.warning("members are not discovered: the user may not list them: %s", exc)
            self._has_warned = True

    async def _keep_discovering(self, interval: float) -> None:
        while True:
            await anyio.sleep(interval)
            try:
                await self._discover()
            except ClientClosedError:
                return
            except KvorumError as exc:
                _log.warning("etcd's member list could not be read: %s", exc)
            except Exception:  # noqa: BLE001 - a background task must not end the client
                _log.exception("etcd's member list could not be read")

    async def watch_call(
        self, deadline: float, *, alone: bool = False
    ) -> tuple[Server, rpc.Stream[rpc.WatchRequest, rpc.WatchResponse], StreamSlot[Channel]]:
        """Start a stream for a watch.

        The caller has to cancel the stream, which ends it on the server, and then `release` the
        slot. Nothing else does.

        Args:
            deadline: when the server has to be ready.
            alone: whether to use a connection without other watches.

        Raises:
            UnavailableError: the current server is unavailable; retry for the next one.
        """
        cluster, server, started = self.cluster, self.cluster.current, now()
        try:
            if not cluster.is_prepared(server):
                await cluster.prepare(server, deadline)
            if self.settings.tls and not server.watches.is_connected:
                await cluster.channels.open(server)
        except UnavailableError as exc:
            cluster.judge(server, exc, started=started, deadline=deadline)
            raise
        slot = server.slot_for_watch(alone=alone)
        try:
            # The channel may have been closed meanwhile.
            async with mapped_errors(Call("watch", "keys"), server):
                return server, slot.channel.watch.Watch(metadata=cluster.tokens.metadata), slot
        except BaseException:
            self.release(slot)
            raise

    def release(self, slot: StreamSlot[Channel]) -> None:
        """Give back the slot of a watch. A connection that is unused now is closed. Idempotent."""
        unused = slot.release()
        if unused is not None:
            with suppress(ClientClosedError):  # then all channels are closed
                self.cluster.channels.close_later(unused)

    # --- one call -----------------------------------------------------------------------------

    async def send(
        self,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float | None = None,
    ) -> Response:
        """Send a request, and retry it until it is answered or the deadline passes.

        A write that may have been applied is not retried.

        Args:
            method: finds the method to call on a channel.
            request: what it is called with.
            call: how errors describe it, and whether it may write.
            deadline: on the event loop's clock; by default `timeout` from now.
        """
        if deadline is None:
            deadline = deadline_of(self.settings.timeout)
        try:
            return await self._send_until(method, request, call, deadline)
        except BehindError as exc:
            raise StaleReadError(
                exc.endpoint, revision=exc.known, current=exc.found
            ) from exc.__cause__
        except UnavailableError as exc:
            raise await self._explained(exc) from exc.__cause__

    async def _explained(self, error: UnavailableError) -> UnavailableError:
        """Explain an error of TLS: certificates expire while clients run."""
        if "TSI_" not in error.reason:  # gRPC's name for its TLS; other errors cost no extra time
            return error
        return await tls_error_of(error.endpoint, self.settings) or error

    async def _send_until(
        self,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        fits: Fits | None = None,
    ) -> Response:
        """Retry until there is an answer, or the deadline has passed. Only what did nothing.

        If the last attempt came too late to be sent, the error says why the one before it failed.
        """
        try:
            return await self._attempt(method, request, call, deadline, fits)
        except UnavailableError as exc:
            if anyio.current_time() >= deadline:
                raise
            failed = (exc.endpoint, exc.reason)  # not the error, which holds the frames of callers
        tries = AsyncRetrying(
            retry=retry_if_exception_type(UnavailableError),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_before_delay(deadline - anyio.current_time()),
            reraise=True,
        )

        async def attempt() -> Response:
            nonlocal failed
            try:
                return await self._attempt(method, request, call, deadline, fits)
            except UnavailableError as exc:
                if exc.reason == NOT_SENT:
                    raise UnavailableError(*failed) from None
                failed = (exc.endpoint, exc.reason)
                raise

        return await raised_alone(tries(attempt))

    async def _attempt(
        self,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        fits: Fits | None = None,
    ) -> Response:
        """Send once, to the current server; a read also to others if that turns out to be dead."""
        cluster, server, started = self.cluster, self.cluster.current, now()
        try:
            if not cluster.is_prepared(server):
                await cluster.prepare(server, deadline)
            if fits is not None and not fits():
                raise UnfitRequestError
            if call.writes or len(cluster.servers) == 1:
                return await cluster.call(server, method, request, call, deadline)
            again = partial(self._send_until, method, request, call, deadline, fits)
            is_large = bool(getattr(request, "range_end", b""))
            read = HedgedRead(server.address, method, again, is_large)
            return await self._read(server, read, request, call, deadline)
        except (UnavailableError, OutcomeUnknownError) as exc:
            cluster.judge(server, exc, started=started, deadline=deadline)
            raise

    async def _read(
        self,
        server: Server,
        read: HedgedRead[Response],
        request: "rpc.Message",
        call: Call,
        deadline: float,
    ) -> Response:
        """Read from a server; if it turns out to be dead, from another one as well."""
        pulse = self.cluster.pulse_of(server)
        pulse.enter(read)
        try:
            return await self.cluster.call(server, read.bind, request, call, deadline)
        except UnavailableError:
            if read.refusal is not None:
                raise read.refusal from read.refusal.__cause__
            if read.answer is None:
                raise
            return read.answer
        finally:
            pulse.leave(read)
