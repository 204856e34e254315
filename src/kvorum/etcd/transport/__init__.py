"""Calls to etcd: servers, connections, tokens, and the meaning of their errors."""

from kvorum.etcd.transport import fork  # before anything else: gRPC is loaded there

# isort: split
from kvorum.etcd.transport.connection import Connection
from kvorum.etcd.transport.errors import (
    Call,
    Cause,
    TokenRefusedError,
    cause_of,
    error_for_cancel_reason,
    is_cancelled,
    mapped_errors,
    no_answer,
)
from kvorum.etcd.transport.members import Known, Members
from kvorum.etcd.transport.page_sizes import first_to_arrive
from kvorum.etcd.transport.policies import (
    ClusterTiming,
    MembersTiming,
    StreamLimits,
    TokenTiming,
    TransportPolicies,
)
from kvorum.etcd.transport.reports import is_of_observer
from kvorum.etcd.transport.server import Channel, Method, Server
from kvorum.etcd.transport.streams import StreamSlot
from kvorum.etcd.transport.versions import (
    EVENTS_LOST,
    FIRST_ROOT_ONLY_STATUS,
    QUOTA,
    READ_ONLY,
    ROLES,
    has_hazard,
    hazards_of,
    parse_version,
)

__all__ = [
    "EVENTS_LOST",
    "FIRST_ROOT_ONLY_STATUS",
    "QUOTA",
    "READ_ONLY",
    "ROLES",
    "Call",
    "Cause",
    "Channel",
    "ClusterTiming",
    "Connection",
    "Known",
    "Members",
    "MembersTiming",
    "Method",
    "Server",
    "StreamLimits",
    "StreamSlot",
    "TokenRefusedError",
    "TokenTiming",
    "TransportPolicies",
    "cause_of",
    "error_for_cancel_reason",
    "first_to_arrive",
    "fork",
    "has_hazard",
    "hazards_of",
    "is_cancelled",
    "is_of_observer",
    "mapped_errors",
    "no_answer",
    "parse_version",
]
