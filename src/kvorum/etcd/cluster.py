"""The servers of a cluster: which one calls go to now, and what has to be so before they do.

Calls go to one server for as long as it answers, and to the next one when it does not: it is asked for its version,
and the user's token is fetched, before anything else is sent there.
"""

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio

from kvorum.deadlines import deadline_of, now
from kvorum.errors import ClientClosedError, ConfigurationError, PermissionDeniedError, UnavailableError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.certificates import Certificates
from kvorum.etcd.diagnosis import cause_of
from kvorum.etcd.faults import Call, TokenRefusedError
from kvorum.etcd.server import Channel, Method, Request, Response, Server, flush
from kvorum.etcd.tokens import Tokens
from kvorum.etcd.versions import HAZARDS, OLDEST_THAT_TELLS_ROOT_ALONE, Version, hazards_of, text_of, version_of
from kvorum.settings import EtcdSettings, is_endpoint
from kvorum.supervisor import Supervisor

_log = logging.getLogger(__name__)

_RENEWALS: Final = 3  # of the token, for one call


class Cluster:
    """The servers that are known. `open` it on the event loop that uses it.

    Attributes:
        servers: all of them.
        current: the one that the next call goes to.
        version: the lowest of those that were asked; (0, 0, 0) before there is one.
        hazards: what one of those cannot be trusted with, by name.
        tokens: what tells them who the user is.
        on_change: called when a member may be another one than before: a connection was made anew, or a member found.
    """

    def __init__(self, settings: EtcdSettings, supervisor: Supervisor) -> None:
        # In a random order: else all clients of a cluster would talk to the same member.
        addresses = random.sample(settings.endpoints, len(settings.endpoints))
        self.servers: list[Server] = [Server(address, settings.server_name) for address in addresses]
        self.current: Server = self.servers[0]
        self.version: Version = (0, 0, 0)
        self.hazards: frozenset[str] = frozenset(hazard.name for hazard in HAZARDS)
        self.tokens: Tokens = Tokens(settings)
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._supervisor = supervisor
        self._is_closed = False

    async def open(self) -> None:
        """Find a server that answers.

        Raises:
            UnavailableError: none does, or not within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server does not accept the user.
            ConfigurationError: a certificate, key or password cannot be read.
        """
        deadline = deadline_of(self._settings.timeout)
        failures: list[UnavailableError] = []
        for _ in self.servers:
            server = self.current
            try:
                await self.prepare(server, deadline)
            except UnavailableError as exc:
                failures.append(await cause_of(server.address, self._settings) or exc)
                self.leave(server)
            else:
                return
        raise _all_of(failures)

    async def aclose(self) -> None:
        """Close the channels of all; calls under way end with an error. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for server in self.servers:
            await server.aclose()
        await flush()

    # --- which one ---

    def leave(self, server: Server) -> None:
        """Take note that a server did not answer: the next call goes to another one, if there is any."""
        server.is_ready = False
        if server is self.current:
            place = self.servers.index(server)
            self.current = self.servers[(place + 1) % len(self.servers)]

    def patience(self, deadline: float, *, writes: bool) -> float:
        """Return how many seconds a server may take: what was not sent, or changes nothing, can be tried elsewhere."""
        left = deadline - now()
        return left if writes or len(self.servers) == 1 else min(left, self._settings.timeout / len(self.servers))

    # --- before it is used ---

    def is_prepared(self, server: Server) -> bool:
        """Tell whether a call can go there at once. A connection that is to be made takes the certificates of now."""
        return server.is_ready and not self.tokens.is_due and (not self._settings.tls or server.calls.is_connected)

    async def prepare(self, server: Server, deadline: float) -> None:
        """See to it that a server answers, and that its version and the user's token are known.

        Raises:
            UnavailableError: it does not answer.
            AuthenticationError: it does not accept the user.
        """
        try:
            await self._prepare_within(server, self.patience(deadline, writes=False))
        except UnavailableError:
            if server.is_open and server.calls.is_connected:
                # Connected, and silent: it may be the connection that is dead, and not the server. The keep-alive would
                # find out, but runs during calls only.
                self._retire(server.open(server.certificates, anew=True))
            raise

    async def _prepare_within(self, server: Server, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            async with server.preparing:
                if not self.is_prepared(server):
                    await self._prepare(server, anyio.current_time() + seconds)
            return
        raise UnavailableError(server.address, f"no answer within {max(seconds, 0):.3g} s")

    async def _prepare(self, server: Server, deadline: float) -> None:
        await self.open_channels(server)
        if self.tokens.has_user and (not self.tokens.token or self.tokens.is_due):
            await self.renew_token(server, self.tokens.token, deadline)
        if not server.is_ready:
            self._learn_version(server, await self._version_of(server, deadline))
            server.is_ready = True
            self.on_change()

    async def _version_of(self, server: Server, deadline: float) -> Version:
        try:
            return version_of((await self.status(server, deadline)).version)
        except PermissionDeniedError:
            _log.warning("etcd at %s tells its version to root alone: the worst is assumed", server.address)
            return OLDEST_THAT_TELLS_ROOT_ALONE

    async def status(self, server: Server, deadline: float) -> rpc.StatusResponse:
        """Ask a server for its state. One that has lost its leader refuses."""
        call = Call("status", "the server")
        return await self.call(server, lambda channel: channel.maintenance.Status, rpc.StatusRequest(), call, deadline)

    async def call(
        self, server: Server, method: Method[Request, Response], request: Request, call: Call, deadline: float
    ) -> Response:
        """Make a call as the user. If the server does not take the token, it did nothing: once more with another one.

        And again, since the list of users may change while a token is fetched, which is slow: passwords are hashed.
        """
        for _ in range(_RENEWALS if self.tokens.has_user else 0):
            token = self.tokens.token
            with suppress(TokenRefusedError):
                return await server.call(method(server.calls), request, call, deadline, self.tokens.metadata)
            await self.renew_token(server, token, deadline)
        return await server.call(method(server.calls), request, call, deadline, self.tokens.metadata)

    async def open_channels(self, server: Server) -> None:
        """Open the channels of a server, or open them anew if the certificates on disk are others now.

        Raises:
            ConfigurationError: the certificates cannot be used, and there are none from before.
        """
        certificates = await self._certificates(server) if self._settings.tls else None
        if self._is_closed:
            raise ClientClosedError.closed()
        self._retire(server.open(certificates))

    def _retire(self, channels: Sequence[Channel]) -> None:
        """Close channels as soon as the calls under way there are done."""
        for channel in channels:
            self._supervisor.spawn(channel.aclose, self._settings.timeout, name="retire a channel")

    async def _certificates(self, server: Server) -> Certificates | None:
        try:
            return await Certificates.read(self._settings)
        except ConfigurationError as exc:
            if not server.is_open:
                raise
            # They may be about to be replaced, one file after the other.
            _log.warning("the certificates on disk cannot be used, so those read before are: %s", exc)
            return server.certificates

    async def renew_token(self, server: Server, refused: str, deadline: float) -> None:
        """Authenticate again, unless somebody has done so since that token was used; nothing if there is no user.

        Raises:
            AuthenticationError: the server does not accept the user.
        """

        async def authenticate(request: rpc.AuthenticateRequest) -> rpc.AuthenticateResponse:
            return await server.call(server.calls.auth.Authenticate, request, Call("authenticate", "a user"), deadline)

        await self.tokens.renew(refused, authenticate)

    def _learn_version(self, server: Server, version: Version) -> None:
        if version != server.version:
            for hazard in hazards_of(version):
                _log.warning("etcd %s at %s: %s", text_of(version), server.address, hazard.consequence)
        server.version = version
        versions = [each.version for each in self.servers if each.version is not None]
        self.version = min(versions)
        # Of all: a newer version may have what an older one is free of.
        self.hazards = frozenset(hazard.name for each in versions for hazard in hazards_of(each))

    # --- more of them ---

    def add(self, answer: rpc.MemberListResponse) -> None:
        """Add the members of the cluster that are not known yet, and that vote.

        None is taken away: what members say of themselves may be of no use here (`localhost`, a container's address).
        """
        known = {server.address for server in self.servers}
        urls = [url for member in answer.members if not member.isLearner for url in member.clientURLs]
        addresses = [url.partition("://")[2].rstrip("/") for url in urls]
        for address in addresses:
            if address not in known and is_endpoint(address):
                _log.info("found another member of the cluster at %s", address)
                self.servers.append(Server(address, self._settings.server_name))
                known.add(address)
                self.on_change()


def _all_of(failures: Sequence[UnavailableError]) -> UnavailableError:
    """Return one error for those of all servers."""
    if len(failures) == 1:
        return failures[0]
    kinds = {type(failure) for failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else UnavailableError
    where = ", ".join(failure.endpoint for failure in failures)
    return kind(where, "; ".join(f"{failure.endpoint}: {failure.reason}" for failure in failures))
