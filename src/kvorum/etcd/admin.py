"""What operators ask of etcd."""

from typing import Final

import anyio

from kvorum.errors import KvorumError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.connection import Connection
from kvorum.etcd.versions import hazards_of
from kvorum.health import EndpointHealth, Health

_ALARMS: Final = {1: "NOSPACE", 2: "CORRUPT"}


async def health_of(connection: Connection) -> Health:
    """Ask for status and alarms. A server that does not answer is a finding, and no error."""
    started = anyio.current_time()
    try:
        status = await connection.status()
        latency = anyio.current_time() - started
        alarms = await connection.alarms(rpc.AlarmRequest())
    except KvorumError as exc:
        return Health((EndpointHealth(connection.endpoint, error=str(exc)),))
    endpoint = EndpointHealth(
        connection.endpoint,
        latency,
        status.version,
        is_leader=bool(status.leader) and status.leader == status.header.member_id,
        has_leader=bool(status.leader),
        db_size=status.dbSize,
        hazards=tuple(hazard.name for hazard in hazards_of(connection.version)),
    )
    raised = sorted({_ALARMS.get(member.alarm, str(member.alarm)) for member in alarms.alarms})
    return Health((endpoint,), tuple(raised))
