"""The only code that knows the driver (aetcd) and its transport (grpc)."""

from kvorum.etcd.transport import fork  # before anything else: gRPC is loaded there

# isort: split
from kvorum.etcd.admin import (
    Admin,
    Alarm,
    EndpointHash,
    EndpointStatus,
    Member,
    health_of,
)
from kvorum.etcd.backend import EtcdStorageBackend
from kvorum.etcd.pipeline import Pipeline
from kvorum.etcd.policies import DEFAULT_POLICIES, Policies
from kvorum.etcd.session import Session
from kvorum.etcd.transport import Connection

__all__ = [
    "DEFAULT_POLICIES",
    "Admin",
    "Alarm",
    "Connection",
    "EndpointHash",
    "EndpointStatus",
    "EtcdStorageBackend",
    "Member",
    "Pipeline",
    "Policies",
    "Session",
    "fork",
    "health_of",
]
