"""What a client can say about its store: for readiness probes, and for whoever is on call."""

import msgspec


class EndpointHealth(msgspec.Struct, frozen=True):
    """One server.

    Some versions of etcd (3.6, and 3.5 since 3.5.28) tell nobody but root how they are. Then there
    is no more than that it answered, and has a leader.

    Attributes:
        endpoint: where it is.
        latency: seconds that it took to answer; None if it did not.
        version: as `3.5.1`; empty if it did not say.
        is_leader: whether it leads its cluster.
        has_leader: whether it knows a leader; without one nothing can be written.
        db_size: of its database, in bytes.
        hazards: what its version cannot be trusted with, by name; see `docs/failures.md`.
        error: why it did not answer, as that it knows no leader.
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
        """Whether it answered, and is a part of a cluster that works."""
        return self.latency is not None and self.has_leader


class Health(msgspec.Struct, frozen=True):
    """A store.

    Attributes:
        endpoints: its servers; none if it is in memory.
        alarms: what the cluster has raised: `NOSPACE` (it takes no more writes), `CORRUPT`; None if
            nobody told.
        error: why the cluster did not tell its alarms, as while it elects a leader; empty if it
            did, or may not.
    """

    endpoints: tuple[EndpointHealth, ...] = ()
    alarms: tuple[str, ...] | None = ()
    error: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether every server is up, and the cluster tells of no alarm."""
        return (
            all(endpoint.is_up for endpoint in self.endpoints)
            and not self.alarms
            and not self.error
        )
