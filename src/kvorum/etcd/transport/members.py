"""Which members the cluster has, and of which versions: asked in the background, for what goes through its log.

Each member applies what is in the log by its own version. A form that one version refuses and
another one takes must be sent only if every member is known to take it alike, also those that this
client never talks to; or else they hold different data for ever. A member that cannot be asked is
of an unknown version.

There is a gap by nature: a member may be replaced by an older one between a question and the next.
A client notices that at once if it is connected to that member, and else within a minute.
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
from kvorum.etcd.transport.certificates import context
from kvorum.etcd.transport.cluster import addresses_of
from kvorum.etcd.transport.connection import Connection
from kvorum.etcd.transport.errors import Call, TokenRefusedError
from kvorum.etcd.transport.server import Method, Request, Response, Server
from kvorum.etcd.transport.versions import ALL, Version, names_of, version_of
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)

_PERIOD: Final = 60.0  # seconds between two questions
_SOON: Final = 10.0  # the same, while the version of a member is not known
_LEAST: Final = 1.0  # the same, however often something changes
_FRESH: Final = 150.0  # seconds for which an answer counts
# seconds that a question takes at the most, for the list as well as for all members together
_PATIENCE: Final = 2.0
_FIRST: Final = 0.3  # seconds that a client which opens waits for the first answer
_MAX_ANSWER: Final = 4_096  # bytes of an answer in HTTP
_CALL: Final = Call("members", "the cluster")


class Known(NamedTuple):
    """What is known about the members, by the names of hazards (see `versions`).

    Attributes:
        hazards: those that a member has, or may have.
        uneven: those that a member has, or may have, and another one is free of, or may be.
    """

    hazards: frozenset[str]
    uneven: frozenset[str]


UNKNOWN: Final = Known(ALL, ALL)


def known_of(versions: Sequence[Version | None]) -> Known:
    """Return what follows from the versions of all members.

    None is a member of an unknown version.
    """
    named = [names_of(each) for each in versions if each is not None]
    if not named or len(named) < len(versions):
        return UNKNOWN
    of_any, of_all = frozenset().union(*named), named[0].intersection(*named)
    return Known(of_any, of_any - of_all)


class Members:
    """What is known about the members of a cluster.

    Args:
        connection: what they are asked by.
        tell: called when `known` has changed, and when the servers that the connection goes to may
            be others.

    Attributes:
        known: what is known of them. An answer older than some minutes does not count: see `check`.
    """

    def __init__(self, connection: Connection, tell: Callable[[], None]) -> None:
        self.known: Known = UNKNOWN
        self._connection = connection
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._fresh_until = 0.0
        self._pause = _PERIOD
        self._again = anyio.Event()
        self._asked = anyio.Event()  # at least once

    def start(self) -> None:
        """Begin to ask, until the client is closed: now, whenever something has changed, and every minute.

        Raises:
            ClientClosedError: the client is being closed.
        """
        self._connection.supervisor.spawn(self._keep_asking, name="members")
        self._connection.cluster.on_change = self.forget

    async def first(self) -> None:
        """Wait for the first answer, but not for long.

        Until there is one, writes do not share requests.
        """
        with anyio.move_on_after(_FIRST):
            await self._asked.wait()

    def forget(self) -> None:
        """Take note that a member may be another one now.

        Ask again, and trust nothing until there is an answer.
        """
        self.known = UNKNOWN
        self._tell()
        self._again.set()

    def check(self) -> None:
        """Forget what is too old to count."""
        if self.known is not UNKNOWN and self._loop.time() >= self._fresh_until:
            self.forget()

    async def _keep_asking(self) -> None:
        while True:
            self._again = again = anyio.Event()
            least = self._loop.time() + _LEAST
            try:
                known = await self._ask()
            except Exception:  # noqa: BLE001 - a question in the background ends no client, whatever becomes of it
                _log.exception("the members of the cluster could not be asked")
                known = UNKNOWN
            if not again.is_set():  # else something has changed while it was asked
                self.known, self._fresh_until = known, self._loop.time() + _FRESH
                self._tell()
            self._asked.set()
            with anyio.move_on_after(self._pause):
                await again.wait()
            await anyio.sleep(max(least - self._loop.time(), 0))

    # --- one question ---

    async def _ask(self) -> Known:
        """Ask for the list of members, and each of them for its version.

        The others all at once, if there are any.
        """
        self._pause = _PERIOD
        current, deadline = self._connection.cluster.current, self._loop.time() + _PATIENCE
        if not current.is_ready:  # `forget` is called when it is
            return UNKNOWN
        versions: dict[int, Version] = {}
        try:
            async with self._visit(current.address) as server:
                answer = await self._list(server, deadline, linearizable=True)
                with suppress(KvorumError, OSError):  # it is then asked once more, with the others
                    versions[answer.header.member_id] = await self._version_of(server, deadline)
        except KvorumError as exc:
            _log.debug("the members of the cluster are not known: %s", exc)
            if isinstance(
                exc, UnavailableError
            ):  # and no refusal, which another question would not change
                self._pause = _SOON
            return UNKNOWN
        if any(member.ID not in versions for member in answer.members):
            await self._ask_all(answer, versions)
        found = [versions.get(member.ID) for member in answer.members]
        if None in found:
            self._pause = _SOON
        return known_of(found)

    async def _ask_all(self, answer: rpc.MemberListResponse, versions: dict[int, Version]) -> None:
        deadline = self._loop.time() + _PATIENCE
        with anyio.move_on_after(_PATIENCE):
            async with anyio.create_task_group() as group:
                for address in self._addresses_of(answer):
                    group.start_soon(
                        self._ask_at, address, answer.header.cluster_id, versions, deadline
                    )

    def _addresses_of(self, answer: rpc.MemberListResponse) -> Iterable[str]:
        """Return where members may be.

        As they say, and as the settings say, since one of both may lead nowhere.
        """
        urls = [url for member in answer.members for url in member.clientURLs]
        said = addresses_of(urls, tls=self._connection.settings.tls)
        used = [server.address for server in self._connection.cluster.servers]
        return dict.fromkeys([*said, *used])

    async def _ask_at(
        self, address: str, cluster_id: int, versions: dict[int, Version], deadline: float
    ) -> None:
        """Note which member is at an address, and its version. An address may lead to any server.

        It says its id.
        """
        try:
            async with self._visit(address) as server:
                header = (await self._list(server, deadline, linearizable=False)).header
                if header.cluster_id == cluster_id:
                    versions[header.member_id] = await self._version_of(server, deadline)
        except (KvorumError, OSError) as exc:
            _log.debug("the version of etcd at %s is not known: %s", address, exc)

    @asynccontextmanager
    async def _visit(self, address: str) -> AsyncIterator[Server]:
        """Connect to an address for a question.

        Not on the channels of the calls: a question that fails there would let gRPC connect them
        again by itself, with the certificates from before.
        """
        connection = self._connection
        server = Server(address, connection.settings.server_name, connection.observer)
        try:
            await connection.cluster.open_channels(server)
            yield server
        finally:
            with anyio.move_on_after(1, shield=True):
                await server.aclose()

    async def _list(
        self, server: Server, deadline: float, *, linearizable: bool
    ) -> rpc.MemberListResponse:
        request = rpc.MemberListRequest(
            linearizable=linearizable
        )  # from 3.5 on; 3.4 does not look at it
        return await self._call(
            server, lambda channel: channel.cluster.MemberList, request, deadline
        )

    async def _version_of(self, server: Server, deadline: float) -> Version:
        try:
            status = await self._call(
                server, lambda channel: channel.maintenance.Status, rpc.StatusRequest(), deadline
            )
            return version_of(status.version)
        except PermissionDeniedError:  # some versions tell that to root alone
            with anyio.fail_after(max(deadline - self._loop.time(), 0)):
                return await version_by_http(server.address, self._connection.settings)

    async def _call(
        self, server: Server, method: Method[Request, Response], request: Request, deadline: float
    ) -> Response:
        """Make a call that is no evidence about the servers that the client uses, whatever comes of it.

        The password does not go to the server: an address that a member advertises may lead to any
        other one.
        """
        cluster = self._connection.cluster
        token = cluster.tokens.token
        try:
            return await server.call(
                method(server.calls), request, _CALL, deadline, cluster.tokens.metadata
            )
        except TokenRefusedError:  # a member that was restarted knows none from before
            if not cluster.tokens.has_user:
                raise
        await cluster.renew_token(cluster.current, token, deadline)  # all members take that token
        return await server.call(
            method(server.calls), request, _CALL, deadline, cluster.tokens.metadata
        )


# --- a question that etcd answers to anybody ------------------------------------------------------


class _Said(msgspec.Struct):
    etcdserver: str


async def version_by_http(address: str, settings: EtcdSettings) -> Version:
    """Return the version of the server at an address: `GET /version`.

    Raises:
        OSError: it does not say, at least not here (as with `--listen-client-http-urls`).
        ServerError: it is none.
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
        return version_of(
            msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=_Said).etcdserver
        )
    except msgspec.MsgspecError as exc:
        raise OSError(f"no version in {answer[:40]!r}") from exc
