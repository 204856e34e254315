"""The calls to etcd: each has a deadline, and no error of the driver gets past this point.

What did nothing is sent again until its deadline, to another server if there is one; what may have
been applied is not: see `kvorum.etcd.outcomes`.
"""

import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

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
    KvorumError,
    OutcomeUnknownError,
    PermissionDeniedError,
    StaleReadError,
    UnavailableError,
)
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.cluster import BehindError, Cluster
from kvorum.etcd.transport.diagnosis import tls_error_of
from kvorum.etcd.transport.errors import Call, mapped_errors
from kvorum.etcd.transport.page_sizes import PageSizes
from kvorum.etcd.transport.pulse import Owed
from kvorum.etcd.transport.server import Channel, Method, Request, Response, Server
from kvorum.etcd.transport.streams import StreamSlot
from kvorum.etcd.transport.versions import Version, text_of
from kvorum.observer import SILENT, Observer
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)

_SEARCHES: Final = 4  # under way at once; the others wait until their deadlines

Again: TypeAlias = Callable[[], Coroutine[Any, Any, Response]]


class Connection:
    """Calls to etcd. `open` it on the event loop that uses it; any number of tasks may.

    Attributes:
        settings: what it was made with.
        supervisor: what runs its tasks.
        observer: receives reports.
        cluster: the servers.
        page_sizes: how large the pages of lists may be.
        searches: admits a few searches of many reads each. When the store is full each write needs
            one.
    """

    def __init__(
        self, settings: EtcdSettings, supervisor: Supervisor, observer: Observer = SILENT
    ) -> None:
        self.settings: EtcdSettings = settings
        self.supervisor: Supervisor = supervisor
        self.observer: Observer = observer
        self.cluster: Cluster = Cluster(settings, supervisor, self.observer)
        self.page_sizes: PageSizes = PageSizes(settings.page_size, settings.timeout)
        self.searches: anyio.Semaphore = anyio.Semaphore(_SEARCHES)
        self._state = "not open"
        self._is_told = False  # that the user may not list the members

    def __repr__(self) -> str:
        return f"<Connection {self.endpoint} [{self._state}, etcd {text_of(self.version)}]>"

    @property
    def endpoint(self) -> str:
        """The server that the next call goes to."""
        return self.cluster.current.address

    @property
    def revision(self) -> int:
        """The highest revision of the store that an answer has told so far.

        What is written from now on is above it.
        """
        return self.cluster.floor.revision

    @property
    def version(self) -> Version:
        """The version of the servers, as (3, 5, 1): of those that were asked the lowest.

        (0, 0, 0) if none was.
        """
        return self.cluster.version

    async def open(self) -> None:
        """Find a server that answers, learn its version, and authenticate. On failure nothing stays open.

        Raises:
            UnavailableError: nobody answers, or not within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server does not accept the user.
            ConfigurationError: a certificate, key or password cannot be read.
        """
        try:
            await self.cluster.open()
            if self.settings.discover_interval is not None:
                await self._discover()
                self.supervisor.spawn(
                    self._keep_discovering, self.settings.discover_interval, name="discovery"
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

    # --- calls: one method each, all with a deadline ---

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

    async def put(
        self, request: rpc.PutRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.PutResponse:
        """Write a key."""
        return await self.send(
            lambda channel: channel.kv.Put, request, Call("put", subject, writes=True), deadline
        )

    async def txn(
        self, request: rpc.TxnRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.TxnResponse:
        """Run a transaction that may write."""
        call = Call("transaction on", subject, writes=True)
        return await self.send(lambda channel: channel.kv.Txn, request, call, deadline)

    async def once(
        self, method: Method[Request, Response], request: Request, call: Call, deadline: float
    ) -> Response:
        """Make a call for others: once, whatever comes of it, since each of them can go on by itself.

        To a server that is prepared it goes without giving way to another task first.
        """
        version = self.cluster.current.version

        async def again() -> Response:
            """Ask another server of the same version: the form of the request is made for it."""
            cluster = self.cluster
            if not cluster.is_prepared(cluster.current):
                await cluster.prepare(cluster.current, deadline)
            if cluster.current.version != version:
                raise UnavailableError(cluster.current.address, "it is of another version")
            return await self._attempt(method, request, call, deadline)

        return await self._attempt(method, request, call, deadline, again)

    async def lease_grant(self, request: rpc.LeaseGrantRequest) -> rpc.LeaseGrantResponse:
        """Grant a lease. One whose grant got no answer ends by itself, so to try again is safe.

        It counts as a read.
        """
        return await self.send(
            lambda channel: channel.lease.LeaseGrant, request, Call("grant", "a lease")
        )

    async def lease_revoke(
        self, request: rpc.LeaseRevokeRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.LeaseRevokeResponse:
        """Revoke a lease, and thereby remove its keys."""
        call = Call("revoke", subject, writes=True)
        return await self.send(lambda channel: channel.lease.LeaseRevoke, request, call, deadline)

    async def lease_time_to_live(
        self, request: rpc.LeaseTimeToLiveRequest, subject: str, *, deadline: float | None = None
    ) -> rpc.LeaseTimeToLiveResponse:
        """Ask how long a lease lasts, and which keys are on it.

        Of one that has ended the time is -1.
        """
        return await self.send(
            lambda channel: channel.lease.LeaseTimeToLive,
            request,
            Call("look at", subject),
            deadline,
        )

    async def compact(self, request: rpc.CompactionRequest) -> rpc.CompactionResponse:
        """Forget history. To do so twice changes nothing: it counts as a read."""
        return await self.send(
            lambda channel: channel.kv.Compact, request, Call("compact", "the history")
        )

    async def alarms(self, request: rpc.AlarmRequest) -> rpc.AlarmResponse:
        """Ask for the alarms of the cluster."""
        return await self.send(
            lambda channel: channel.maintenance.Alarm, request, Call("alarms", "the cluster")
        )

    async def status(self, server: Server) -> rpc.StatusResponse:
        """Ask one server for its state. Raises like `ask`."""
        call = Call("status", "the server")
        return await self.ask(
            server, lambda channel: channel.maintenance.Status, rpc.StatusRequest(), call
        )

    async def ask(
        self,
        server: Server,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float | None = None,
    ) -> Response:
        """Send a request to one server, once, whatever becomes of it."""
        if deadline is None:
            deadline = deadline_of(self.settings.timeout)
        await self.cluster.open_channels(server)
        server.stands()  # before a call that may connect it
        try:
            return await self.cluster.call(server, method, request, call, deadline)
        except UnavailableError as exc:
            raise await self._explained(exc) from exc.__cause__

    async def discover(self) -> None:
        """Take up members of the cluster that are not known yet, and forget those found before that it has no more.

        By a linearizable answer, from etcd 3.5 on: the list of a member that lags would forget
        those that joined.
        """
        call, request = Call("members", "the cluster"), rpc.MemberListRequest(linearizable=True)
        answer = await self.send(lambda channel: channel.cluster.MemberList, request, call)
        self.cluster.add(answer)

    async def _discover(self) -> None:
        """Take up members, unless the list is root's alone, as in some versions.

        That is logged once.
        """
        try:
            await self.discover()
        except PermissionDeniedError as exc:
            if not self._is_told:
                _log.warning(
                    "members of the cluster are not discovered, since the user may not list them: %s",
                    exc,
                )
            self._is_told = True

    async def _keep_discovering(self, interval: float) -> None:
        while True:
            await anyio.sleep(interval)
            try:
                await self._discover()
            except ClientClosedError:
                return
            except KvorumError as exc:
                _log.warning("the list of etcd's members could not be read: %s", exc)
            except Exception:  # noqa: BLE001 - a question in the background ends no client, whatever becomes of it
                _log.exception("the list of etcd's members could not be read")

    async def watch_call(
        self, deadline: float, *, alone: bool = False
    ) -> tuple[Server, rpc.Stream[rpc.WatchRequest, rpc.WatchResponse], StreamSlot[Channel]]:
        """Start a stream of watches. Whoever asks for one cancels it, and then gives up its place.

        Nothing else ends it on the server.

        Args:
            deadline: until when the server has to be ready.
            alone: whether to put it on a connection without others.

        Raises:
            UnavailableError: the server that it would go to is away; ask again for the next one.
        """
        cluster, server, started = self.cluster, self.cluster.current, now()
        try:
            if not cluster.is_prepared(server):
                await cluster.prepare(server, deadline)
            if self.settings.tls and not server.watches.is_connected:
                await cluster.open_channels(server)
        except UnavailableError as exc:
            cluster.judge(server, exc, started=started, deadline=deadline)
            raise
        place = server.place_watch(alone=alone)
        try:
            async with mapped_errors(
                Call("watch", "keys"), server
            ):  # the channel may have been closed since
                return server, place.channel.watch.Watch(metadata=cluster.tokens.metadata), place
        except BaseException:
            self.leave_place(place)
            raise

    def leave_place(self, place: StreamSlot[Channel]) -> None:
        """Give up the place of a watch. What is not used any more is closed."""
        unused = place.leave()
        if unused is not None:
            with suppress(ClientClosedError):  # then all are closed
                self.cluster.close_later(unused)

    # --- one call ---

    async def send(
        self,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float | None = None,
    ) -> Response:
        """Send a request until it is answered or the deadline passes.

        What may have been applied is not sent again.

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
        """Return what is wrong with TLS, if it is that: certificates expire while clients run."""
        if (
            "TSI_" not in error.reason
        ):  # so does gRPC call its TLS; no time is spent on anything else
            return error
        return await tls_error_of(error.endpoint, self.settings) or error

    async def _send_until(
        self, method: Method[Request, Response], request: Request, call: Call, deadline: float
    ) -> Response:
        """Send until there is an answer, or the deadline has passed.

        What has done nothing may be sent again.
        """
        try:
            return await self._attempt(method, request, call, deadline)
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
                return await self._attempt(method, request, call, deadline)
        raise AssertionError("tenacity leaves its loop by an error only")

    async def _attempt(
        self,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        again: "Again[Response] | None" = None,
    ) -> Response:
        """Send to the server of now.

        `again` is how to ask another one if this one turns out to be dead.
        """
        cluster, server, started = self.cluster, self.cluster.current, now()
        try:
            if not cluster.is_prepared(server):
                await cluster.prepare(server, deadline)
            if call.writes or len(cluster.servers) == 1:
                return await cluster.call(server, method, request, call, deadline)
            owed = Owed(method, again or partial(self._send_until, method, request, call, deadline))
            return await self._read(server, owed, request, call, deadline)
        except (UnavailableError, OutcomeUnknownError) as exc:
            cluster.judge(server, exc, started=started, deadline=deadline)
            raise

    async def _read(
        self,
        server: Server,
        owed: Owed[Response],
        request: "rpc.Message",
        call: Call,
        deadline: float,
    ) -> Response:
        """Read from a server that is watched over.

        If it turns out to be dead, another one is asked as well.
        """
        pulse = self.cluster.pulse_of(server)
        pulse.enter(owed)
        try:
            return await self.cluster.call(server, owed.on, request, call, deadline)
        except UnavailableError:
            if owed.answer is None:
                raise
            return owed.answer
        finally:
            pulse.leave(owed)
