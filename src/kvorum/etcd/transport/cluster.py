"""The servers of a cluster: which one calls go to, and what must hold before a call is sent.

Calls go to one server for as long as it answers, and to the next one when it does not. Before
anything else is sent to a server, its version is read and the user's token is fetched.

A server is left on evidence about the server: it refused as a member (see `errors`), its connection
failed, it belongs to another cluster, it hangs. That a caller's deadline was short is no evidence;
the server is then asked whether it is alive.
"""

import logging
import random
from collections.abc import Callable
from functools import partial

import anyio

from kvorum.deadlines import now
from kvorum.errors import (
    AnotherClusterError,
    KvorumError,
    PermissionDeniedError,
    ServerError,
    UnavailableError,
)
from kvorum.etcd.supervisor import Coro, Supervisor
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.addresses import addresses_of
from kvorum.etcd.transport.channels import Channels
from kvorum.etcd.transport.errors import (
    STATUS,
    BehindError,
    Call,
    Cause,
    HeldError,
    TokenRefusedError,
    cause_of,
    no_answer,
)
from kvorum.etcd.transport.floor import Doubt, Floor
from kvorum.etcd.transport.liveness import Liveness
from kvorum.etcd.transport.policies import ClusterTiming, TransportPolicies
from kvorum.etcd.transport.pulse import Pulse
from kvorum.etcd.transport.server import Channel, Method, Request, Response, Server
from kvorum.etcd.transport.tokens import Metadata, Tokens
from kvorum.etcd.transport.versions import (
    ALL,
    FIRST_ROOT_ONLY_STATUS,
    Version,
    hazard_names,
    log_hazards,
    log_hidden_version,
    parse_version,
)
from kvorum.observer import Observer
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)


class Cluster:
    """The known servers of a cluster. Used on one event loop.

    Attributes:
        servers: all of them.
        current: the one that the next call goes to.
        version: the lowest version among the servers that were asked; (0, 0, 0) if none was.
        hazards: the names of the known issues that any of those versions has.
        tokens: the user's token.
        floor: the id of the cluster, and the highest revision seen.
        channels: opens and closes the channels of the servers.
        timing: when a server is given up.
        on_change: called when a member may have changed: a new connection was made, or a member
            was found or forgotten.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        supervisor: Supervisor,
        observer: Observer,
        policies: TransportPolicies,
    ) -> None:
        # In random order: otherwise all clients of a cluster would talk to the same member.
        endpoints = list(dict.fromkeys(settings.endpoints))
        addresses = random.sample(endpoints, len(endpoints))
        self.servers: list[Server] = [
            Server(address, settings.server_name, observer, policies.streams)
            for address in addresses
        ]
        self.current: Server = self.servers[0]
        self.version: Version = (0, 0, 0)
        self.hazards: frozenset[str] = ALL
        self.tokens: Tokens = Tokens(settings, policies.tokens)
        self.floor: Floor = Floor()
        self.channels: Channels = Channels(settings, supervisor)
        self.timing: ClusterTiming = policies.cluster
        self.on_change: Callable[[], None] = lambda: None
        self._joined_at = 0  # at least the revision of the store at the last connection
        self._configured = frozenset(addresses)
        self._foreign: set[Server] = set()
        self._settings = settings
        self._observer = observer
        self._policies = policies
        self._liveness = Liveness(self, supervisor)

    async def aclose(self) -> None:
        """Close the channels of all servers; calls under way end with an error. Idempotent."""
        self._liveness.close()
        await self.channels.aclose(self.servers)

    # --- the current server -------------------------------------------------------------------

    def leave(self, server: Server) -> None:
        """Record that a server is unusable for now; the next call goes to another, if any."""
        server.is_ready = False
        self.skip(server)

    def skip(self, server: Server) -> None:
        """Send the next call to another server, if any. This one stays ready: it has answered."""
        if server is self.current:
            index = self.servers.index(server)
            self.current = self.servers[(index + 1) % len(self.servers)]
            if self.current is not server:
                self._observer.server_left(server.address, self.current.address)

    def suspect(self, server: Server) -> None:
        """Leave a server whose stream was lost, and distrust its other connection, too.

        Without calls on it keep-alive does not run, and gRPC considers it connected for good.
        """
        server.is_suspect = True
        self.leave(server)

    def leave_dead(self, server: Server) -> None:
        """Leave a server that does not answer. If it is the only one, replace its channels."""
        if len(self.servers) == 1:
            self.channels.renew(server)
        self.leave(server)

    def renew_calls(self, server: Server, channel: Channel) -> None:
        """Replace a silent call channel of a server that answers on its other one."""
        self.channels.renew_calls(server, channel)

    def judge(self, server: Server, error: KvorumError, *, started: float, deadline: float) -> None:
        """Leave a server if a failed attempt is evidence about it.

        If that is not clear, ask the server in the background.

        Args:
            server: where the attempt was made.
            error: how it failed.
            started: when it began.
            deadline: how long it was allowed to take.
        """
        if isinstance(error, HeldError) or isinstance(error.__cause__, HeldError):
            return
        cause = cause_of(error)
        if cause in {Cause.MEMBER, Cause.OPEN} or now() - started >= self._settings.timeout:
            self.leave(server)
        elif cause is Cause.BUSY:  # asking each server again would add to the load
            self.skip(server)
        elif cause is not Cause.REQUEST and deadline > started and server is self.current:
            self.pulse_of(server).ask()

    def pulse_of(self, server: Server) -> Pulse:
        """Return what watches over the answers that a server owes."""
        return self._liveness.pulse_of(server)

    @property
    def metadata(self) -> Metadata:
        """What each call sends beside its request."""
        return self.tokens.metadata

    @property
    def share(self) -> float:
        """How many seconds one server may take to connect and get ready, so others get a turn."""
        timeout, number = self._settings.timeout, len(self.servers)
        if number == 1:
            return timeout
        return max(timeout / number, min(self.timing.least_share, timeout / 4))

    def attempt_time(self, deadline: float) -> float:
        """Return how many seconds a server may take for what another server could do as well."""
        left = deadline - now()
        return left if len(self.servers) == 1 else min(left, self.share)

    # --- before a server is used --------------------------------------------------------------

    def is_prepared(self, server: Server) -> bool:
        """Return whether a call can be sent at once.

        Not if the connection has to be made first: there may be another server at that address, of
        another version or cluster, and a connection takes the certificates that are on disk then.
        """
        return server.refresh_ready() and not self.tokens.is_due

    def may_recur(self, revision: int) -> bool:
        """Return whether the store may have reached a revision a second time.

        A store cannot be restored to an older state while a connection to it lasts.
        """
        return revision <= self._joined_at or not self.current.refresh_ready()

    async def prepare(self, server: Server, deadline: float) -> None:
        """Make sure that a server answers and is of this cluster; learn its version, get a token.

        A server that fails in its whole share of the time is left, or in two seconds if a
        connection to it was lost just now. A deadline that leaves less time is no evidence.

        Raises:
            UnavailableError: it does not answer, or is of another cluster.
            AuthenticationError: it does not accept the user.
        """
        left, share = deadline - now(), self.share
        timing = self.timing
        enough = timing.whole * (min(share, timing.suspect) if server.is_suspect else share)
        if left <= 0:
            raise server.not_asked()
        try:
            await self.prepare_within(server, left if len(self.servers) == 1 else min(left, share))
        except UnavailableError as exc:
            if left >= enough and exc.__cause__ is None and not isinstance(exc, BehindError):
                self.channels.renew(server)
                self.leave(server)
            raise

    async def prepare_within(self, server: Server, seconds: float) -> None:
        """Do as `prepare` does, and draw no conclusions if it fails."""
        with anyio.move_on_after(seconds):
            async with server.preparing:
                if not self.is_prepared(server):
                    await self._prepare(server, anyio.current_time() + seconds)
            return
        raise UnavailableError(server.address, f"no answer within {max(seconds, 0):.3g} s")

    async def _prepare(self, server: Server, deadline: float) -> None:
        await self.channels.open(server)
        server.refresh_ready()  # before the first call, which may connect it
        if self.tokens.has_user and (not self.tokens.token or self.tokens.is_due):
            await self.renew_token(server, self.tokens.token, deadline)
        if not server.refresh_ready():
            version = await self._version_of(server, deadline)
            server.check()  # it may have been forgotten in the meantime
            self._learn_version(server, version)
            server.is_ready, server.is_suspect = True, False
            self._foreign.discard(server)
            self._joined_at = self.floor.revision
            self._observer.server_taken(server.address, version)
            self.on_change()

    async def _version_of(self, server: Server, deadline: float) -> Version:
        try:
            status = await self.status(server, deadline)
            if status.isLearner:
                raise UnavailableError(
                    server.address, "it is a learner, which does not serve clients yet"
                )
            return parse_version(status.version)
        except PermissionDeniedError:
            log_hidden_version(server.address)
            return FIRST_ROOT_ONLY_STATUS
        except ServerError as exc:
            raise UnavailableError(
                server.address, f"it does not answer as etcd does: {exc}"
            ) from exc

    def _learn_version(self, server: Server, version: Version) -> None:
        if version != server.version:
            log_hazards(server.address, version)
        server.version = version
        versions = [each.version for each in self.servers if each.version is not None]
        self.version = min(versions)
        # Of all versions: a newer one may have an issue that an older one is free of.
        self.hazards = hazard_names(*versions)

    # --- one call -----------------------------------------------------------------------------

    async def status(self, server: Server, deadline: float) -> rpc.StatusResponse:
        """Ask a server for its state. A server without a leader refuses."""
        return await self.call(
            server,
            lambda channel: channel.maintenance.Status,
            rpc.StatusRequest(),
            STATUS,
            deadline,
        )

    async def call(
        self,
        server: Server,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
    ) -> Response:
        """Make a call as the user.

        A server that refuses the token has done nothing; the call is repeated with a new token.
        """
        # As they are before the request is sent: other tasks change them while it is under way.
        floor, token = self.floor, self.tokens.token
        known, was_ready = floor.revision, server.is_ready
        try:
            answer = await server.call(
                server.calls, method, request, call, deadline, self.tokens.metadata
            )
        except TokenRefusedError:
            if not self.tokens.has_user:
                raise
            send = partial(self._send, server, method, request, call, deadline)
            answer = await self._send_again(
                send, server, deadline, token, must_be_ready=was_ready or call.writes
            )
        header = answer.header
        revision = header.revision
        if (
            header.cluster_id != floor.cluster_id
            or revision < known
            or (revision == known and call.writes)
        ):
            self._check_answer(server, answer, call, known)
        elif revision > floor.revision:
            floor.revision = revision
        return answer

    async def _send(
        self,
        server: Server,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
    ) -> Response:
        return await server.call(
            server.calls, method, request, call, deadline, self.tokens.metadata
        )

    async def _send_again(
        self,
        send: Callable[[], Coro[Response]],
        server: Server,
        deadline: float,
        refused: str,
        *,
        must_be_ready: bool,
    ) -> Response:
        """Send with a new token, several times if need be.

        Fetching a token is slow, since passwords are hashed, and the list of users may change
        meanwhile. If the connection is lost meanwhile, the server has to be prepared first.
        """
        renewals = self.timing.renewals
        while True:
            await self.renew_token(server, refused, deadline)
            if must_be_ready and not server.refresh_ready():
                raise UnavailableError(server.address, "its connection was lost")
            refused, renewals = self.tokens.token, renewals - 1
            try:
                return await send()
            except TokenRefusedError:
                if renewals <= 0:
                    raise

    def _check_answer(self, server: Server, answer: "rpc.Answer", call: Call, known: int) -> None:
        """Refuse an answer that is not to be believed. The outcome of a write is then unknown."""
        doubt = self.floor.doubt(answer, known)
        if doubt is None:
            return
        self.leave(server)
        if doubt is Doubt.FOREIGN:
            raise self._foreign_error(server, answer.header, call)
        behind = BehindError(server.address, known=known, found=answer.header.revision)
        raise no_answer(call, server.address, behind.reason) if call.writes else behind

    def _foreign_error(self, server: Server, header: rpc.ResponseHeader, call: Call) -> KvorumError:
        words = self.floor.foreign_message(server.address, header)
        self._foreign.add(server)
        if call.writes or not self._foreign.issuperset(self.servers):
            return no_answer(call, server.address, words)
        # There is no other server left to wait for.
        expected, found = self.floor.cluster_id, header.cluster_id
        return AnotherClusterError(server.address, expected=expected, found=found)

    async def renew_token(self, server: Server, refused: str, deadline: float) -> None:
        """Authenticate, unless another task did so since that token was refused.

        Without a user it does nothing. It takes at most a server's share of the time, since all
        tasks wait for it.

        Raises:
            AuthenticationError: the server does not accept the user.
            UnavailableError: it did not answer in time, or is of another cluster; its token is
                ignored.
        """
        deadline = min(deadline, now() + self.share)

        async def authenticate(request: rpc.AuthenticateRequest) -> rpc.AuthenticateResponse:
            call = Call("authenticate", "a user")
            answer = await server.call(
                server.calls, lambda channel: channel.auth.Authenticate, request, call, deadline
            )
            if self.floor.is_foreign(answer.header):
                words = self.floor.foreign_message(server.address, answer.header)
                raise UnavailableError(server.address, words)
            return answer

        with anyio.move_on_after(deadline - now()):
            if await self.tokens.renew(refused, authenticate):
                await self._observer.after_authentication(server.address)
            return
        raise UnavailableError(server.address, "no authentication token in time")

    # --- discovery ----------------------------------------------------------------------------

    def update_members(self, answer: rpc.MemberListResponse) -> None:
        """Add unknown voting members, and forget those that the cluster no longer has.

        Servers from the settings are never forgotten: what members advertise may be of no use here
        (`localhost`, the address of a container).
        """
        urls = [
            url for member in answer.members if not member.isLearner for url in member.clientURLs
        ]
        addresses = addresses_of(urls, tls=self._settings.tls)
        for address in dict.fromkeys(addresses):
            if all(address != server.address for server in self.servers):
                self._add(address)
        kept = self._configured.union(addresses)
        for server in tuple(self.servers):
            if addresses and server.address not in kept:
                self._forget(server)
        self._liveness.adjust()

    def _add(self, address: str) -> None:
        _log.info("found another member of the cluster at %s", address)
        name, streams = self._settings.server_name, self._policies.streams
        self.servers.append(Server(address, name, self._observer, streams))
        self._observer.server_found(address)
        self.on_change()

    def _forget(self, server: Server) -> None:
        _log.info("the cluster no longer has a member at %s", server.address)
        self.leave(server)
        self.servers.remove(server)
        self._foreign.discard(server)
        self._liveness.forget(server)
        self.channels.retire(server.forget())
        self._observer.server_forgotten(server.address)
        self.on_change()
