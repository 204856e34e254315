"""The state of a store, for readiness probes and for operators."""

import msgspec


class EndpointHealth(msgspec.Struct, frozen=True):
    """The state of one server.

    Some versions of etcd (3.6, and 3.5 from 3.5.28 on) report their state to root only. Then it is
    known only that the server answered and has a leader.

    Attributes:
        endpoint: its address.
        latency: seconds until it answered; None if it did not.
        version: its version, such as `3.5.1`; empty if unknown.
        is_leader: whether it leads its cluster.
        has_leader: whether it knows a leader. Without one nothing can be written.
        db_size: size of its database file, in bytes.
        hazards: names of the known issues of its version; see `docs/failures.md`.
        error: why it did not answer, for example that it knows no leader.
    """

    endpoint: str
    latency: float | None = None
    version: str = ""
    is_leader: bool = False
    has_leader: bool = False
    db_size: int = 0
    hazards: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_up(self) -> bool:
        """Whether it answered and has a leader."""
        return self.latency is not None and self.has_leader


class Health(msgspec.Struct, frozen=True):
    """The state of a store.

    Attributes:
        endpoints: its servers; none if it is in memory.
        alarms: the alarms of the cluster: `NOSPACE` (it rejects writes), `CORRUPT`; None if
            unknown.
        error: why the alarms are unknown, for example while the cluster elects a leader; empty if
            they are known, or if the user may not read them.
    """

    endpoints: tuple[EndpointHealth, ...] = ()
    alarms: tuple[str, ...] | None = ()
    error: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether every server is up and no alarm is raised."""
        return (
            all(endpoint.is_up for endpoint in self.endpoints)
            and not self.alarms
            and not self.error
        )
