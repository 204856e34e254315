"""The servers of a cluster: which one calls go to now, and what has to be so before they do.

Calls go to one server for as long as it answers, and to the next one when it does not: it is asked
for its version, and the user's token is fetched, before anything else is sent there.

A server is left on evidence about the server: it refused as a member (see `faults`), its connection
failed, it is of another cluster, it hangs. That a caller's deadline was short is none; then the
server is asked whether it is alive.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import anyio

from kvorum.deadlines import deadline_of, now
from kvorum.errors import (
    AnotherClusterError,
    ConfigurationError,
    KvorumError,
    PermissionDeniedError,
    ServerError,
    TlsError,
    UnavailableError,
)
from kvorum.etcd.supervisor import Supervisor
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.certificates import Certificates
from kvorum.etcd.transport.diagnosis import tls_error_of
from kvorum.etcd.transport.errors import Call, Cause, TokenRefusedError, cause_of, no_answer
from kvorum.etcd.transport.floor import Doubt, Floor
from kvorum.etcd.transport.pulse import Pulse
from kvorum.etcd.transport.server import Channel, Method, Request, Response, Server, flush
from kvorum.etcd.transport.tokens import Tokens
from kvorum.etcd.transport.versions import (
    ALL,
    OLDEST_THAT_TELLS_ROOT_ALONE,
    Version,
    hazards_of,
    names_of,
    text_of,
    version_of,
)
from kvorum.observer import Observer
from kvorum.settings import EtcdSettings, is_endpoint

_log = logging.getLogger(__name__)

_RENEWALS: Final = 3  # of the token, for one call
_LEAST_SHARE: Final = (
    1.0  # seconds for connecting to one of many servers; less is no chance on a long link
)
_ROUND: Final = (0.05, 0.25)  # seconds between two rounds while opening, at random
_DIAGNOSIS: Final = 0.2  # seconds for the reason, when a deadline has passed
_SUSPECT: Final = 2.0  # seconds in which a server has to get ready if a connection to it was lost
_WHOLE: Final = (
    0.9  # of a share counts as all of it: the caller has used the rest since it set its deadline
)

_DEFINITE: Final = (TlsError,)  # failures to open that no waiting cures


class BehindError(UnavailableError):
    """A server answered with less than what was known before: it is behind, or its store was put back.

    Attributes:
        known: the revision that was known.
        found: the one that it answered with.
    """

    def __init__(self, endpoint: str, *, known: int, found: int) -> None:
        self.known = known
        self.found = found
        super().__init__(
            endpoint, f"it answered at revision {found}, after revision {known} had been seen"
        )


class Cluster:
    """The servers that are known. `open` it on the event loop that uses it.

    Attributes:
        servers: all of them.
        current: the one that the next call goes to.
        version: the lowest of those that were asked; (0, 0, 0) before there is one.
        hazards: what one of those cannot be trusted with, by name.
        tokens: what tells them who the user is.
        floor: which cluster it is, and the highest revision that was seen of it.
        on_change: called when a member may be another one than before: a connection was made anew,
            or a member found.
    """

    def __init__(self, settings: EtcdSettings, supervisor: Supervisor, observer: Observer) -> None:
        # In a random order: else all clients of a cluster would talk to the same member.
        endpoints = list(dict.fromkeys(settings.endpoints))  # one that is named twice is one server
        addresses = random.sample(endpoints, len(endpoints))
        self.servers: list[Server] = [
            Server(address, settings.server_name, observer) for address in addresses
        ]
        self.current: Server = self.servers[0]
        self.version: Version = (0, 0, 0)
        self.hazards: frozenset[str] = ALL
        self.tokens: Tokens = Tokens(settings)
        self.floor: Floor = Floor()
        self._joined_at = (
            0  # the revision of the store when the connection of now was made, or a higher one
        )
        self._configured = frozenset(addresses)
        self._pulses: dict[Server, Pulse] = {}
        self._foreign: set[Server] = set()
        self._retired: set[Channel] = set()  # replaced, and not closed yet
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._supervisor = supervisor
        self._observer = observer
        self._is_closed = False

    async def open(self) -> None:
        """Find a server that answers. Servers that are still starting are tried again until the timeout.

        Raises:
            UnavailableError: none does, or not within the timeout.
            TlsError: no secure connection can be made.
            AuthenticationError: the server does not accept the user.
            ConfigurationError: a certificate, key or password cannot be read.
        """
        deadline = deadline_of(self._settings.timeout)
        while True:
            failures = await self._open_one(deadline)
            if not failures:
                return
            pause = random.uniform(*_ROUND)  # noqa: S311 - no secret
            if all(isinstance(each, _DEFINITE) for each in failures) or now() + pause >= deadline:
                raise _all_of(failures)
            await asyncio.sleep(pause)

    async def _open_one(self, deadline: float) -> Sequence[UnavailableError]:
        """Try each server once; return why none answers, nothing if one does."""
        failures: list[UnavailableError] = []
        for _ in self.servers:
            server = self.current
            try:
                await self.prepare(server, deadline)
            except UnavailableError as exc:
                failures.append(exc)
                self.leave(server)
            else:
                return ()
            if now() >= deadline:
                break
        return await self._diagnosed(failures, deadline)

    async def _diagnosed(
        self, failures: Sequence[UnavailableError], deadline: float
    ) -> Sequence[UnavailableError]:
        """Put what is wrong with TLS in place of a failure, where it is that.

        All are asked at a time.
        """
        found: dict[str, TlsError] = {}

        async def ask(address: str) -> None:
            if error := await tls_error_of(address, self._settings):
                found[address] = error

        with anyio.move_on_after(max(deadline - now(), _DIAGNOSIS)):
            async with anyio.create_task_group() as group:
                for failure in failures:
                    group.start_soon(ask, failure.endpoint)
        return [found.get(failure.endpoint, failure) for failure in failures]

    async def aclose(self) -> None:
        """Close the channels of all; calls under way end with an error. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for pulse in self._pulses.values():
            pulse.close()
        for server in self.servers:
            await server.aclose(self._supervisor.failure)
        while (
            self._retired
        ):  # before their time: what would have closed them was cancelled, or never ran
            await self._retired.pop().aclose()
        await flush()

    # --- which one ---

    def leave(self, server: Server) -> None:
        """Take note that a server cannot be used now.

        The next call goes to another one, if there is any.
        """
        server.is_ready = False
        self.pass_by(server)

    def pass_by(self, server: Server) -> None:
        """Have the next call go to another server, if there is any. This one stays ready.

        It has answered.
        """
        if server is self.current:
            index = self.servers.index(server)
            self.current = self.servers[(index + 1) % len(self.servers)]
            if self.current is not server:
                self._observer.server_left(server.address, self.current.address)

    def suspect(self, server: Server) -> None:
        """Leave a server whose stream was lost; look twice at its other connection, which may be as dead.

        Without calls on it no keep-alive finds out, and gRPC takes it for good.
        """
        server.is_suspect = True
        self.leave(server)

    def judge(self, server: Server, error: KvorumError, *, started: float, deadline: float) -> None:
        """Leave a server if a failed attempt is evidence about it; ask it in the background if that is not clear.

        Args:
            server: where the attempt was made.
            error: how it failed.
            started: when it began.
            deadline: until when it was allowed to take.
        """
        cause = cause_of(error)
        if cause in {Cause.MEMBER, Cause.OPEN} or now() - started >= self._settings.timeout:
            self.leave(server)
        elif cause is Cause.BUSY:  # overload is not made worse by another look at each server
            self.pass_by(server)
        elif cause is not Cause.REQUEST and deadline > started and server is self.current:
            self.pulse_of(server).ask()

    @property
    def share(self) -> float:
        """How many seconds one of the servers may take to connect and get ready, so that others have time, too."""
        timeout, number = self._settings.timeout, len(self.servers)
        return timeout if number == 1 else max(timeout / number, min(_LEAST_SHARE, timeout / 4))

    def patience(self, deadline: float, *, writes: bool = False) -> float:
        """Return how many seconds a server may take for what can be tried elsewhere if it takes longer."""
        left = deadline - now()
        return left if writes or len(self.servers) == 1 else min(left, self.share)

    # --- whether it is alive ---

    def pulse_of(self, server: Server) -> Pulse:
        """Return what watches over the answers that a server owes."""
        pulse = self._pulses.get(server)
        if pulse is None:

            async def is_alive() -> bool:
                return await self._is_alive(server)

            def spawn(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
                self._supervisor.spawn_aside(run, name="look after a server")

            pulse = Pulse(is_alive, spawn, lambda: self._leave_for_dead(server), self.share / 2)
            self._pulses[server] = pulse
        return pulse

    async def _is_alive(self, server: Server) -> bool:
        """Ask a server something cheap.

        One that refuses as a member is no better than one that is silent.
        """
        seconds = self.share / (1 if len(self.servers) == 1 else 2)
        if not self.is_prepared(server):
            return await self._is_answer(server, self._prepare_within(server, seconds))
        answers: list[bool] = []
        async with anyio.create_task_group() as group:

            async def ask(channel: Channel) -> None:
                status = server.call(
                    channel.maintenance.Status,
                    rpc.StatusRequest(),
                    _STATUS,
                    now() + seconds,
                    self.tokens.metadata,
                )
                answers.append(await self._is_answer(server, status))
                if answers[-1]:
                    group.cancel_scope.cancel()

            # On both connections: what is asked may be queued behind the very page that is waited
            # for.
            group.start_soon(ask, server.calls)
            group.start_soon(ask, server.watches)
        return any(answers)

    async def _is_answer(self, server: Server, question: Coroutine[Any, Any, object]) -> bool:
        try:
            await question
        except UnavailableError as exc:
            _log.debug("etcd at %s does not answer: %s", server.address, exc)
            return False
        except (
            KvorumError
        ):  # a refusal is an answer, too; and when the client is closed nothing matters any more
            return True
        return True

    def _leave_for_dead(self, server: Server) -> None:
        if len(self.servers) == 1:
            self._renew_channels(server)
        self.leave(server)

    def _renew_channels(self, server: Server) -> None:
        """Take other channels to a server that is connected, and silent: it may be the connection that is dead.

        The keep-alive would find out, but runs during calls only.
        """
        server.is_suspect = False
        if not self._is_closed and server.is_open and server.calls.is_connected:
            self._retire(server.open(server.certificates, anew=True))

    def renew_watches(self, server: Server, channel: Channel) -> None:
        """Take other channels for watches, unless that one was replaced before: it leads to another cluster.

        The calls' may have been made earlier, and be right: then nothing else would ever make it
        anew.
        """
        if not self._is_closed and server.is_open and server.has_watches_on(channel):
            self._retire(server.open_watches())

    # --- before it is used ---

    def is_prepared(self, server: Server) -> bool:
        """Tell whether a call can go there at once: not if the connection has to be made first.

        Whoever is at that address may be another one then, of another version or cluster. And a
        connection takes the certificates of now.
        """
        return server.stands() and not self.tokens.is_due

    def may_recur(self, revision: int) -> bool:
        """Tell whether the store may have come to a revision again, since there is another connection now.

        A store cannot be put back to an older state while a connection to it stands.
        """
        return revision <= self._joined_at or not self.current.stands()

    async def prepare(self, server: Server, deadline: float) -> None:
        """See to it that a server answers, that it is of this cluster, and that its version and a token are known.

        One that has not done so in its whole share is left, and in two seconds if a connection to
        it was lost just now. A deadline that leaves less is no evidence against it.

        Raises:
            UnavailableError: it does not answer, or it is of another cluster.
            AuthenticationError: it does not accept the user.
        """
        left, share = deadline - now(), self.share
        enough = _WHOLE * (min(share, _SUSPECT) if server.is_suspect else share)
        if left <= 0:
            raise server.not_asked()
        try:
            await self._prepare_within(server, left if len(self.servers) == 1 else min(left, share))
        except UnavailableError as exc:
            if left >= enough and exc.__cause__ is None and not isinstance(exc, BehindError):
                self._renew_channels(server)
                self.leave(server)
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
        server.stands()  # before the first call, which may connect it
        if self.tokens.has_user and (not self.tokens.token or self.tokens.is_due):
            await self.renew_token(server, self.tokens.token, deadline)
        if not server.stands():
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
            return version_of(status.version)
        except PermissionDeniedError:
            _log.warning(
                "etcd at %s tells its version to root alone: the worst is assumed", server.address
            )
            return OLDEST_THAT_TELLS_ROOT_ALONE
        except ServerError as exc:
            raise UnavailableError(
                server.address, f"it does not answer as etcd does: {exc}"
            ) from exc

    async def status(self, server: Server, deadline: float) -> rpc.StatusResponse:
        """Ask a server for its state. One that has lost its leader refuses."""
        return await self.call(
            server,
            lambda channel: channel.maintenance.Status,
            rpc.StatusRequest(),
            _STATUS,
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
        """Make a call as the user. If the server does not take the token, it did nothing.

        Again with another one.
        """
        floor, token = self.floor, self.tokens.token
        known = floor.revision
        try:
            answer = await server.call(
                method(server.calls), request, call, deadline, self.tokens.metadata
            )
        except TokenRefusedError:
            if not self.tokens.has_user:
                raise
            answer = await self._call_again(server, method, request, call, deadline, token)
        header = answer.header
        revision = header.revision
        if (
            header.cluster_id != floor.cluster_id
            or revision < known
            or (revision == known and call.writes)
        ):
            self._look_closer(server, answer, call, known)
        elif revision > floor.revision:
            floor.revision = revision
        return answer

    async def _call_again(
        self,
        server: Server,
        method: Method[Request, Response],
        request: Request,
        call: Call,
        deadline: float,
        refused: str,
    ) -> Response:
        """Make a call with another token than that; and again, since the list of users may change while one is fetched.

        That is slow: passwords are hashed.
        """
        for _ in range(_RENEWALS - 1):
            await self._renew_for(call, server, refused, deadline)
            refused = self.tokens.token
            with suppress(TokenRefusedError):
                return await server.call(
                    method(server.calls), request, call, deadline, self.tokens.metadata
                )
        await self._renew_for(call, server, refused, deadline)
        return await server.call(
            method(server.calls), request, call, deadline, self.tokens.metadata
        )

    async def _renew_for(self, call: Call, server: Server, refused: str, deadline: float) -> None:
        """Fetch another token for a call.

        A connection that was made anew in the meantime is looked at first.
        """
        await self.renew_token(server, refused, deadline)
        if call is not _STATUS and not server.stands():
            raise UnavailableError(server.address, "its connection was lost")

    def _look_closer(self, server: Server, answer: "rpc.Answer", call: Call, known: int) -> None:
        """Refuse an answer that is not to be believed.

        Of a write nobody can tell then what became of it.
        """
        doubt = self.floor.doubt(answer, known)
        if doubt is None:
            return
        self.leave(server)
        if doubt is Doubt.FOREIGN:
            found, words = (
                answer.header.cluster_id,
                self.floor.words_for_foreign(server.address, answer.header),
            )
            self._foreign.add(server)
            if not call.writes and self._foreign.issuperset(
                self.servers
            ):  # none is left that could be waited for
                raise AnotherClusterError(
                    server.address, expected=self.floor.cluster_id, found=found
                )
            raise no_answer(call, server.address, words)
        behind = BehindError(server.address, known=known, found=answer.header.revision)
        raise no_answer(call, server.address, behind.reason) if call.writes else behind

    async def open_channels(self, server: Server) -> None:
        """Open the channels of a server, or open them anew if the certificates on disk are others now.

        Raises:
            ConfigurationError: the certificates cannot be used, and there are none from before.
        """
        certificates = await self._certificates(server) if self._settings.tls else None
        if self._is_closed:
            raise self._supervisor.closed()
        self._retire(server.open(certificates))

    def _retire(self, channels: Sequence[Channel]) -> None:
        """Close channels when the calls under way there have had their time, or with the client."""
        for channel in channels:
            self.close_later(channel, self._settings.timeout)

    def close_later(self, channel: Channel, seconds: float = 0) -> None:
        """Close a channel that nothing uses any more in so many seconds, or with the client."""
        self._retired.add(
            channel
        )  # first: a task that is cancelled before its first step closes nothing
        self._supervisor.spawn_aside(self._close_in, seconds, channel, name="close a channel")

    async def _close_in(self, seconds: float, channel: Channel) -> None:
        await anyio.sleep(seconds)
        self._retired.discard(channel)
        await channel.aclose()

    async def _certificates(self, server: Server) -> Certificates | None:
        try:
            return await Certificates.read(self._settings)
        except ConfigurationError as exc:
            if not server.is_open:
                raise
            # They may be about to be replaced, one file after the other.
            _log.warning(
                "the certificates on disk cannot be used, so those read before are: %s", exc
            )
            return server.certificates

    async def renew_token(self, server: Server, refused: str, deadline: float) -> None:
        """Authenticate again, unless somebody has done so since that token was used; nothing if there is no user.

        It takes a server's share of the time at the most, since all tasks wait for it.

        Raises:
            AuthenticationError: the server does not accept the user.
            UnavailableError: it did not answer in time, or is of another cluster: its token is not
                taken.
        """
        deadline = min(deadline, now() + self.share)

        async def authenticate(request: rpc.AuthenticateRequest) -> rpc.AuthenticateResponse:
            call = Call("authenticate", "a user")
            answer = await server.call(server.calls.auth.Authenticate, request, call, deadline)
            if self.floor.is_foreign(answer.header):
                words = self.floor.words_for_foreign(server.address, answer.header)
                raise UnavailableError(server.address, words)
            return answer

        with anyio.move_on_after(deadline - now()):
            if await self.tokens.renew(refused, authenticate):
                await self._observer.after_authentication(server.address)
            return
        raise UnavailableError(server.address, "no token of the user in time")

    def _learn_version(self, server: Server, version: Version) -> None:
        if version != server.version:
            for hazard in hazards_of(version):
                _log.warning(
                    "etcd %s at %s: %s", text_of(version), server.address, hazard.consequence
                )
        server.version = version
        versions = [each.version for each in self.servers if each.version is not None]
        self.version = min(versions)
        # Of all: a newer version may have what an older one is free of.
        self.hazards = names_of(*versions)

    # --- more of them ---

    def add(self, answer: rpc.MemberListResponse) -> None:
        """Add the members of the cluster that are not known yet, and that vote; forget those that it has no more.

        Of those in the settings none is forgotten: what members say of themselves may be of no use
        here (`localhost`, a container's address).
        """
        known = {server.address for server in self.servers}
        urls = [
            url for member in answer.members if not member.isLearner for url in member.clientURLs
        ]
        addresses = addresses_of(urls, tls=self._settings.tls)
        for address in addresses:
            if address not in known:
                _log.info("found another member of the cluster at %s", address)
                self.servers.append(Server(address, self._settings.server_name, self._observer))
                known.add(address)
                self._observer.server_found(address)
                self.on_change()
        for server in tuple(self.servers):
            if (
                addresses
                and server.address not in self._configured
                and server.address not in addresses
            ):
                self._forget(server)
        for pulse in self._pulses.values():
            pulse.pause = self.share / 2

    def _forget(self, server: Server) -> None:
        _log.info("the cluster has no member at %s any more", server.address)
        self.leave(server)
        self.servers.remove(server)
        self._foreign.discard(server)
        if pulse := self._pulses.pop(server, None):
            pulse.close()
        self._retire(server.forget())
        self._observer.server_forgotten(server.address)
        self.on_change()


def addresses_of(urls: Iterable[str], *, tls: bool) -> list[str]:
    """Return the addresses in what members advertise, as far as this client can connect there.

    With TLS or without, whichever it speaks; no Unix sockets; and not `0.0.0.0`, which is no
    address of anything.
    """
    scheme = "https://" if tls else "http://"
    found = [url.removeprefix(scheme).rstrip("/") for url in urls if url.startswith(scheme)]
    return [
        each for each in found if is_endpoint(each) and not each.startswith(("0.0.0.0:", "[::]:"))
    ]


_STATUS: Final = Call("status", "the server")


def _all_of(failures: Sequence[UnavailableError]) -> UnavailableError:
    """Return one error for those of all servers."""
    if len(failures) == 1:
        return failures[0]
    kinds = {type(failure) for failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else UnavailableError
    where = ", ".join(failure.endpoint for failure in failures)
    return kind(where, "; ".join(f"{failure.endpoint}: {failure.reason}" for failure in failures))
