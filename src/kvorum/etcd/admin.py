"""What operators ask of etcd."""

from typing import Final

import anyio

from kvorum.arguments import check_given_revision
from kvorum.errors import ClientClosedError, KvorumError, PermissionDeniedError, UnavailableError
from kvorum.etcd.transport import (
    OLDEST_THAT_TELLS_ROOT_ALONE,
    Connection,
    Server,
    hazards_of,
    version_of,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.health import EndpointHealth, Health

_ALARMS: Final = {1: "NOSPACE", 2: "CORRUPT"}


async def health_of(connection: Connection) -> Health:
    """Ask all servers for their status, and the cluster for its alarms.

    A server that does not answer is a finding, and no error. If none does, nobody tells of alarms.
    """
    endpoints: dict[str, EndpointHealth] = {}

    async def ask(server: Server) -> None:
        endpoints[server.address] = await _status_of(connection, server)

    async with anyio.create_task_group() as group:
        for server in connection.cluster.servers:
            group.start_soon(ask, server)
    found = tuple(endpoints[server.address] for server in connection.cluster.servers)
    if not any(endpoint.is_up for endpoint in found):
        return Health(found, None)
    try:
        alarms = await connection.alarms(rpc.AlarmRequest())
    except PermissionDeniedError:  # 3.5.28 and 3.6.9 tell root alone
        return Health(found, None)
    except UnavailableError as exc:
        return Health(found, None, str(exc))
    return Health(
        found,
        tuple(sorted({_ALARMS.get(member.alarm, str(member.alarm)) for member in alarms.alarms})),
    )


async def _status_of(connection: Connection, server: Server) -> EndpointHealth:
    started = anyio.current_time()
    try:
        status = await connection.status(server)
    except ClientClosedError:
        raise
    except PermissionDeniedError:  # it has looked for its leader before it looked for a role
        latency, hazards = anyio.current_time() - started, hazards_of(OLDEST_THAT_TELLS_ROOT_ALONE)
        return EndpointHealth(
            server.address,
            latency,
            has_leader=True,
            hazards=tuple(hazard.name for hazard in hazards),
        )
    except KvorumError as exc:
        return EndpointHealth(server.address, error=str(exc))
    return EndpointHealth(
        server.address,
        anyio.current_time() - started,
        status.version,
        is_leader=bool(status.leader) and status.leader == status.header.member_id,
        has_leader=bool(status.leader),
        db_size=status.dbSize,
        hazards=tuple(hazard.name for hazard in hazards_of(version_of(status.version))),
    )


async def compact(connection: Connection, revision: int) -> None:
    """Forget the history before a revision; the state at it can still be read.

    Raises:
        HistoryLostError: that has been done.
        FutureRevisionError: there is no such revision yet.
        InvalidResourceError: it is no revision.
    """
    check_given_revision("a compaction", revision, "revision", least=1)
    await connection.compact(rpc.CompactionRequest(revision=revision))
