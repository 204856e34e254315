"""What operators ask of etcd: state, members, alarms, compaction, defragmentation, hashes."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
import msgspec

from kvorum.arguments import check_given_revision, check_options, problem_of_seconds
from kvorum.deadlines import deadline_of
from kvorum.errors import (
    ClientClosedError,
    ConfigurationError,
    KvorumError,
    PermissionDeniedError,
    UnavailableError,
)
from kvorum.etcd.session import Session
from kvorum.etcd.transport import (
    FIRST_ROOT_ONLY_STATUS,
    Call,
    Connection,
    Server,
    hazards_of,
    parse_version,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.health import EndpointHealth, Health

T = TypeVar("T")

DEFRAGMENT_TIMEOUT: Final = 60.0

_ALARMS: Final = {1: "NOSPACE", 2: "CORRUPT"}


class Member(msgspec.Struct, frozen=True):
    """A member of the cluster, as the cluster lists it.

    Attributes:
        id: its id.
        name: its name; empty if the member has never started.
        client_urls: where it says that clients reach it; empty if it has never started.
        peer_urls: where it says that other members reach it.
        is_learner: whether it has no vote yet.
    """

    id: int
    name: str
    client_urls: tuple[str, ...]
    peer_urls: tuple[str, ...]
    is_learner: bool


class EndpointStatus(msgspec.Struct, frozen=True):
    """The state of one server, as it reports it. If it did not answer, only `error` is set.

    Attributes:
        endpoint: its address.
        error: why it did not answer; empty if it did.
        member_id: the id of the member.
        version: its version, such as `3.5.1`.
        revision: the revision that it has applied.
        leader_id: the member that it considers the leader; 0 if it knows none.
        is_learner: whether it has no vote yet.
        db_size: size of its database file, in bytes.
        db_size_in_use: the part of `db_size` that holds data. Defragmenting frees the rest.
        raft_index: the last entry of its log that is committed.
        raft_applied_index: the last entry of its log that it has applied.
        raft_term: the current term.
        problems: what it reports as wrong, such as an alarm.
    """

    endpoint: str
    error: str = ""
    member_id: int = 0
    version: str = ""
    revision: int = 0
    leader_id: int = 0
    is_learner: bool = False
    db_size: int = 0
    db_size_in_use: int = 0
    raft_index: int = 0
    raft_applied_index: int = 0
    raft_term: int = 0
    problems: tuple[str, ...] = ()

    @property
    def is_leader(self) -> bool:
        """Whether this server leads its cluster."""
        return self.leader_id != 0 and self.leader_id == self.member_id


class Alarm(msgspec.Struct, frozen=True):
    """An alarm that a member has raised. It stays until an operator disarms it.

    Attributes:
        name: `NOSPACE`: the member's quota is used up, and the cluster rejects writes. `CORRUPT`:
            the member's data differs from that of the others.
        member_id: the member.
    """

    name: str
    member_id: int


class EndpointHash(msgspec.Struct, frozen=True):
    """The hash of a server's keys and their history.

    Two servers hold the same data at a revision if `hash` and `compact_revision` are equal. If only
    `compact_revision` differs, one of them has not compacted yet: ask again.

    Attributes:
        endpoint: its address.
        hash: over all keys from `compact_revision` up to the revision that was asked for.
        compact_revision: the revision of its last compaction; -1 if there was none.
    """

    endpoint: str
    hash: int
    compact_revision: int


class Admin:
    """Operations on a cluster as a whole, not on the keys of a prefix. See `Client.admin`.

    With authentication enabled most of them need the role `root`.

    Errors common to all methods, in addition to those that each lists:
        UnavailableError: no server answered in time. Every operation here can be repeated safely.
        PermissionDeniedError, AuthenticationError: the server rejects the user.
        ClientClosedError: the client is not open.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        return f"<Admin of {self._session!r}>"

    async def status(self) -> tuple[EndpointStatus, ...]:
        """Ask all known servers for their state. One that does not answer has an `error`."""
        connection = self._session.connection

        async def ask(server: Server) -> EndpointStatus:
            try:
                return _status_of(server, await connection.status(server))
            except (ClientClosedError, PermissionDeniedError):
                raise
            except KvorumError as exc:
                return EndpointStatus(server.address, error=str(exc))

        return await _from_each(connection, ask)

    async def members(self) -> tuple[Member, ...]:
        """List the members of the cluster; from etcd 3.5 on, by a linearizable read."""
        request = rpc.MemberListRequest(linearizable=True)
        answer = await self._session.connection.send(
            lambda channel: channel.cluster.MemberList, request, Call("members", "the cluster")
        )
        return tuple(
            Member(
                member.ID,
                member.name,
                tuple(member.clientURLs),
                tuple(member.peerURLs),
                member.isLearner,
            )
            for member in answer.members
        )

    async def alarms(self) -> tuple[Alarm, ...]:
        """List the alarms that the members have raised."""
        answer = await self._session.connection.alarms(rpc.AlarmRequest())
        return tuple(Alarm(_name_of(alarm), alarm.memberID) for alarm in answer.alarms)

    async def compact(self, revision: int) -> None:
        """Discard the history before a revision. The state at the revision can still be read.

        Watches and continuations that need older revisions fail with `HistoryLostError`. If the
        reply is lost, the request is sent again, and succeeds if the history is compacted then.

        Raises:
            HistoryLostError: the history was compacted there already, before this call.
            UnavailableError: no reply in time. Call it again: `HistoryLostError` then says that it
                was done.
            FutureRevisionError: the store has not reached the revision.
            InvalidResourceError: `revision` is not an int of 1 or more.
        """
        await compact(self._session.connection, revision)

    async def defragment(self, endpoint: str, *, timeout: float = DEFRAGMENT_TIMEOUT) -> None:  # noqa: ASYNC109 - it becomes a deadline of the call
        """Rewrite the database of one server, which returns free space to its file system.

        The server answers no other request meanwhile. So defragment one at a time, the leader last.

        Args:
            endpoint: its address: `host:port`, as in `EtcdSettings.endpoints` or `status`.
            timeout: seconds to wait. The server continues after that.

        Raises:
            ConfigurationError: the client knows no such server, or `timeout` is not a number above
                0 and up to thirty years.
        """
        check_options([problem_of_seconds("timeout", timeout)])
        connection = self._session.connection
        servers = {server.address: server for server in connection.cluster.servers}
        if endpoint not in servers:
            raise ConfigurationError(
                f"there is no server {endpoint!r}; the client knows {', '.join(servers)}"
            )
        await connection.ask(
            servers[endpoint],
            lambda channel: channel.maintenance.Defragment,
            rpc.DefragmentRequest(),
            Call("defragment", endpoint),
            deadline_of(timeout),
        )

    async def hash(self, revision: int) -> tuple[EndpointHash, ...]:
        """Ask all known servers for the hash of their data at a revision.

        Raises:
            HistoryLostError: a server has compacted the revision. Ask for a later one.
            FutureRevisionError: a server, which it names, has not reached the revision.
            InvalidResourceError: `revision` is not an int of 1 or more.
            UnavailableError: a server did not answer. The other hashes are discarded.
        """
        check_given_revision("a hash", revision, "revision", least=1)
        connection = self._session.connection
        request = rpc.HashKVRequest(revision=revision)

        async def ask(server: Server) -> EndpointHash:
            call = Call("hash", server.address, revision=revision)
            answer = await connection.ask(
                server, lambda channel: channel.maintenance.HashKV, request, call
            )
            return EndpointHash(server.address, answer.hash, answer.compact_revision)

        return await _from_each(connection, ask)


async def compact(connection: Connection, revision: int) -> None:
    """Discard the history before a revision. See `Admin.compact`, which calls this."""
    check_given_revision("a compaction", revision, "revision", least=1)
    await connection.compact(rpc.CompactionRequest(revision=revision))


async def health_of(connection: Connection) -> Health:
    """Ask all servers for their state, and the cluster for its alarms.

    A server that does not answer is a finding, not an error. If none does, the alarms are unknown.
    """
    found = await _from_each(connection, lambda server: _health_of_server(connection, server))
    if not any(endpoint.is_up for endpoint in found):
        return Health(found, None)
    try:
        answer = await connection.alarms(rpc.AlarmRequest())
    except PermissionDeniedError:  # etcd 3.5.28 and 3.6.9 tell root alone
        return Health(found, None)
    except UnavailableError as exc:
        return Health(found, None, str(exc))
    return Health(found, tuple(sorted({_name_of(alarm) for alarm in answer.alarms})))


async def _health_of_server(connection: Connection, server: Server) -> EndpointHealth:
    started = anyio.current_time()
    try:
        status = await connection.status(server)
    except ClientClosedError:
        raise
    except PermissionDeniedError:  # the server checks for a leader before it checks the role
        return EndpointHealth(
            server.address,
            anyio.current_time() - started,
            has_leader=True,
            hazards=tuple(hazard.name for hazard in hazards_of(FIRST_ROOT_ONLY_STATUS)),
        )
    except KvorumError as exc:
        return EndpointHealth(server.address, error=str(exc))
    return EndpointHealth(
        server.address,
        anyio.current_time() - started,
        status.version,
        is_leader=_status_of(server, status).is_leader,
        has_leader=bool(status.leader),
        db_size=status.dbSize,
        hazards=tuple(hazard.name for hazard in hazards_of(parse_version(status.version))),
    )


async def _from_each(
    connection: Connection, ask: Callable[[Server], Awaitable[T]]
) -> tuple[T, ...]:
    """Ask all servers concurrently; return the answers in the servers' order.

    Raises:
        Exception: the first error that one of the questions raised.
    """
    servers = tuple(connection.cluster.servers)
    answers: dict[Server, T] = {}
    errors: list[Exception] = []

    async def ask_one(server: Server) -> None:
        try:
            answers[server] = await ask(server)
        except Exception as exc:  # noqa: BLE001 - raised below: the task group would wrap it
            errors.append(exc)

    async with anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(ask_one, server)
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # their tracebacks hold this frame
    return tuple(answers[server] for server in servers)


def _status_of(server: Server, status: rpc.StatusResponse) -> EndpointStatus:
    return EndpointStatus(
        server.address,
        "",
        status.header.member_id,
        status.version,
        status.header.revision,
        status.leader,
        status.isLearner,
        status.dbSize,
        status.dbSizeInUse,
        status.raftIndex,
        status.raftAppliedIndex,
        status.raftTerm,
        tuple(status.errors),
    )


def _name_of(alarm: "rpc.AlarmMember") -> str:
    return _ALARMS.get(alarm.alarm, str(alarm.alarm))
