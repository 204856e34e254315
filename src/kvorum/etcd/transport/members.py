"""The members of the cluster and their versions, read in the background.

Each member applies the log by its own version. A request that one version refuses and another one
applies may be sent only if every member is known to treat it the same way, including those that
this client never talks to. Otherwise members would hold different data for good. A member that
cannot be asked is of an unknown version.

There is an inherent gap: a member may be replaced by an older one between two reads. The client
notices at once if it is connected to that member, and otherwise within a minute.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

import anyio
import anyio.to_thread
import msgspec

from kvorum.errors import KvorumError, PermissionDeniedError, UnavailableError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.addresses import addresses_of
from kvorum.etcd.transport.certificates import context
from kvorum.etcd.transport.connection import Connection
from kvorum.etcd.transport.errors import Call, TokenRefusedError
from kvorum.etcd.transport.server import Method, Request, Response, Server
from kvorum.etcd.transport.versions import ALL, Version, hazard_names, parse_version
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)

_MAX_ANSWER: Final = 4_096  # bytes of an answer in HTTP
_CALL: Final = Call("members", "the cluster")


class Known(NamedTuple):
    """What is known about the members, as names of known issues (see `versions`).

    Attributes:
        hazards: those that a member has, or may have.
        uneven: those that one member has or may have, and another one lacks or may lack.
    """

    hazards: frozenset[str]
    uneven: frozenset[str]


UNKNOWN: Final = Known(ALL, ALL)


def summarize(versions: Sequence[Version | None]) -> Known:
    """Return what follows from the versions of all members; None is an unknown version."""
    named = [hazard_names(each) for each in versions if each is not None]
    if not named or len(named) < len(versions):
        return UNKNOWN
    of_any, of_all = frozenset().union(*named), named[0].intersection(*named)
    return Known(of_any, of_any - of_all)


def is_of_cluster(answer: rpc.MemberListResponse) -> bool:
    """Return whether a list of members is the one of a cluster, by one of its members.

    `etcd grpc-proxy` answers with a list that has nothing but the proxy itself.
    """
    ids = [member.ID for member in answer.members]
    return bool(answer.header.cluster_id) and all(ids) and answer.header.member_id in ids


class Versions:
    """The versions that the members of a cluster have told.

    Args:
        answer: the list of its members.
        tls: whether the client uses TLS.

    Attributes:
        cluster_id: of the cluster.
    """

    def __init__(self, answer: rpc.MemberListResponse, *, tls: bool) -> None:
        self.cluster_id: int = answer.header.cluster_id
        self._by_member: dict[int, Version | None] = {}
        self._addresses = {
            member.ID: {*addresses_of(member.clientURLs, tls=tls)} for member in answer.members
        }

    def of(self, member_id: int) -> Version | None:
        """Return the version of a member; None if it is unknown."""
        return self._by_member.get(member_id)

    def is_own_address(self, address: str, member_id: int) -> bool:
        """Return whether an address leads to a member and to no other one.

        A balancer is an address of several, or of none.
        """
        members = self._addresses
        others = [those for other, those in members.items() if other != member_id]
        return not others or (
            address in members.get(member_id, ()) and not any(address in those for those in others)
        )

    def note(self, header: rpc.ResponseHeader, version: Version) -> None:
        """Record a version as that of the member in the header of the answer which told it.

        A member that tells two is being replaced: its version is unknown.
        """
        if header.cluster_id == self.cluster_id and header.member_id:
            known = self._by_member.setdefault(header.member_id, version)
            if known != version:
                self._by_member[header.member_id] = None


class Members:
    """What is known about the members of a cluster.

    Args:
        connection: sends the requests.
        tell: called when `known` has changed, and when a member may have changed.

    Attributes:
        known: what is known of them. An answer that is minutes old no longer counts: see `check`.
    """

    def __init__(self, connection: Connection, tell: Callable[[], None]) -> None:
        self.known: Known = UNKNOWN
        self._connection = connection
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._fresh_until = 0.0
        self._timing = connection.policies.members
        self._pause = self._timing.period
        self._again = anyio.Event()
        self._asked = anyio.Event()  # at least once

    def start(self) -> None:
        """Read the members now, after each change, and every minute, until the client is closed.

        Raises:
            ClientClosedError: the client is being closed.
        """
        # First, since it may raise: a client that is being closed is not to be told of changes.
        self._connection.supervisor.spawn(self._keep_asking, name="kvorum-members")
        self._connection.cluster.on_change = self.forget

    async def first(self) -> None:
        """Wait a moment for the first answer. Until there is one, writes are not batched."""
        with anyio.move_on_after(self._timing.first):
            await self._asked.wait()

    def forget(self) -> None:
        """Record that a member may have changed. Read again, and assume the worst until then."""
        self.known = UNKNOWN
        self._tell()
        self._again.set()

    def check(self) -> None:
        """Forget an answer that is too old."""
        if self.known is not UNKNOWN and self._loop.time() >= self._fresh_until:
            self.forget()

    async def _keep_asking(self) -> None:
        while True:
            self._again = again = anyio.Event()
            earliest = self._loop.time() + self._timing.least
            try:
                versions = await self._ask()
            except Exception:  # noqa: BLE001 - a background task must not end the client
                _log.exception("the members of the cluster could not be read")
                versions = ()
            if not again.is_set():  # otherwise a member may have changed meanwhile
                self._fresh_until = self._loop.time() + self._timing.fresh
                self.known = summarize(versions)
                self._tell()
                self._connection.observer.members_read(versions)
            self._asked.set()
            with anyio.move_on_after(self._pause):
                await again.wait()
            await anyio.sleep(max(earliest - self._loop.time(), 0))

    # --- one reading --------------------------------------------------------------------------

    async def _ask(self) -> Sequence[Version | None]:
        """Read the member list, and the version of each member; empty if the list is unknown."""
        self._pause = self._timing.period
        current = self._connection.cluster.current
        deadline = self._loop.time() + self._timing.limit
        if not current.is_ready:  # `forget` is called when it is
            return ()
        try:
            async with self._visit(current.address) as server:
                answer = await self._list(server, deadline, linearizable=True)
                if not is_of_cluster(answer):
                    _log.debug("%s does not list the members of its cluster", server.address)
                    return ()
                versions = Versions(answer, tls=self._connection.settings.tls)
                with suppress(KvorumError, OSError):  # it is retried with the others
                    await self._ask_server(server, answer.header, versions, deadline)
        except KvorumError as exc:
            _log.debug("the members of the cluster are not known: %s", exc)
            if isinstance(exc, UnavailableError):  # a refusal would be repeated
                self._pause = self._timing.retry
            return ()
        if any(versions.of(member.ID) is None for member in answer.members):
            await self._ask_all(answer, versions)
        found = [versions.of(member.ID) for member in answer.members]
        if None in found:
            self._pause = self._timing.retry
        return found

    async def _ask_all(self, answer: rpc.MemberListResponse, versions: Versions) -> None:
        deadline = self._loop.time() + self._timing.limit
        with anyio.move_on_after(self._timing.limit):
            async with anyio.create_task_group() as group:
                for address in self._addresses_of(answer):
                    group.start_soon(self._ask_at, address, versions, deadline)

    def _addresses_of(self, answer: rpc.MemberListResponse) -> Iterable[str]:
        """Return where members may be: by what they advertise, and by the settings."""
        urls = [url for member in answer.members for url in member.clientURLs]
        advertised = addresses_of(urls, tls=self._connection.settings.tls)
        used = [server.address for server in self._connection.cluster.servers]
        return dict.fromkeys([*advertised, *used])

    async def _ask_at(self, address: str, versions: Versions, deadline: float) -> None:
        """Read which member is at an address, and its version.

        An address may lead to any server, so its answer counts by the ids in its header.
        """
        try:
            async with self._visit(address) as server:
                header = (await self._list(server, deadline, linearizable=False)).header
                if header.cluster_id == versions.cluster_id:
                    await self._ask_server(server, header, versions, deadline)
        except (KvorumError, OSError) as exc:
            _log.debug("the version of etcd at %s is not known: %s", address, exc)

    @asynccontextmanager
    async def _visit(self, address: str) -> AsyncIterator[Server]:
        """Connect to an address for a moment.

        Not on the channels of the calls: after a failure there gRPC would reconnect them by itself,
        with old certificates.
        """
        connection = self._connection
        server = Server(address, connection.settings.server_name, connection.observer)
        try:
            await connection.cluster.channels.open(server)
            yield server
        finally:
            with anyio.move_on_after(1, shield=True):
                await server.aclose()

    async def _list(
        self, server: Server, deadline: float, *, linearizable: bool
    ) -> rpc.MemberListResponse:
        request = rpc.MemberListRequest(linearizable=linearizable)  # 3.4 ignores it
        return await self._call(
            server, lambda channel: channel.cluster.MemberList, request, deadline
        )

    async def _ask_server(
        self, server: Server, header: rpc.ResponseHeader, versions: Versions, deadline: float
    ) -> None:
        """Ask a server for its version.

        Args:
            server: where to ask.
            header: of what was answered there before. A balancer or a proxy may pass the next
                request to another member.
            versions: noted there.
            deadline: until when.
        """
        try:
            status = await self._call(
                server, lambda channel: channel.maintenance.Status, rpc.StatusRequest(), deadline
            )
        except PermissionDeniedError:  # some versions tell that to root only
            # What is answered on another connection names no member.
            if not versions.is_own_address(server.address, header.member_id):
                raise
            with anyio.fail_after(max(deadline - self._loop.time(), 0)):
                version = await version_by_http(server.address, self._connection.settings)
        else:
            header, version = status.header, parse_version(status.version)
        versions.note(header, version)

    async def _call(
        self, server: Server, method: Method[Request, Response], request: Request, deadline: float
    ) -> Response:
        """Make a call whose result is no evidence about the servers that the client uses.

        The password is never sent there: an advertised address may lead to any server.
        """
        cluster = self._connection.cluster
        token = cluster.tokens.token
        try:
            return await server.call(
                server.calls, method, request, _CALL, deadline, cluster.tokens.metadata
            )
        except TokenRefusedError:  # a restarted member has forgotten simple tokens
            if not cluster.tokens.has_user:
                raise
        await cluster.renew_token(cluster.current, token, deadline)  # all members accept that one
        return await server.call(
            server.calls, method, request, _CALL, deadline, cluster.tokens.metadata
        )


# --- a request that etcd answers without authentication -------------------------------------------


class _VersionAnswer(msgspec.Struct):
    etcdserver: str


async def version_by_http(address: str, settings: EtcdSettings) -> Version:
    """Return the version of the server at an address: `GET /version`.

    Raises:
        OSError: it does not answer that here, for example with `--listen-client-http-urls`.
        ServerError: the answer is not a version.
        ConfigurationError: a certificate or key cannot be read.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    tls = await anyio.to_thread.run_sync(context, settings) if settings.tls else None
    name = None if tls is None else settings.server_name or host
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name)
    try:
        writer.write(f"GET /version HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        answer = b""
        while len(answer) < _MAX_ANSWER and (read := await reader.read(_MAX_ANSWER)):
            answer += read
    finally:
        writer.transport.abort()
    try:
        return parse_version(
            msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=_VersionAnswer).etcdserver
        )
    except msgspec.MsgspecError as exc:
        raise OSError(f"no version in {answer[:40]!r}") from exc
