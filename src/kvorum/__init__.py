"""Kvorum keeps Kubernetes-style resources in etcd, for asyncio.

Typed resources, optimistic concurrency that never loses an update, and watches as async iterators.
Start with `connect`; what applications need can be imported from here.
"""

from kvorum.client import Client, connect
from kvorum.deadlines import deadline
from kvorum.embedded import EmbeddedEtcd, ServerTls
from kvorum.errors import (
    AlreadyExistsError,
    AnotherClusterError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    CorruptResourceError,
    EmbeddedEtcdError,
    FutureRevisionError,
    HistoryLostError,
    InternalError,
    InvalidResourceError,
    InvalidSelectorError,
    KvorumError,
    LeaseNotFoundError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    ServerError,
    StaleReadError,
    StorageFullError,
    TlsError,
    UnavailableError,
)
from kvorum.etcd import (
    Admin,
    Alarm,
    EndpointHash,
    EndpointStatus,
    EtcdStorageBackend,
    Member,
)
from kvorum.health import EndpointHealth, Health
from kvorum.memory import MemoryStorageBackend
from kvorum.observer import Observer
from kvorum.repository import (
    Added,
    Bookmark,
    Checkpoint,
    Corrupt,
    Deleted,
    Modified,
    Repository,
    ResourceList,
    Scan,
    TolerantWatch,
    Watch,
    WatchEvent,
)
from kvorum.resources import Condition, Kind, Metadata, Resource, set_condition
from kvorum.selectors import FieldSelector, LabelSelector
from kvorum.settings import EtcdSettings
from kvorum.storage import Change, Entry, Operation, Page, Selection, StorageBackend, StorageWatch

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # Connecting
    "connect",
    "Client",
    "EtcdSettings",
    "EmbeddedEtcd",
    "ServerTls",
    "deadline",
    "Health",
    "EndpointHealth",
    "Observer",
    # Operating etcd
    "Admin",
    "EndpointStatus",
    "Member",
    "Alarm",
    "EndpointHash",
    # Resources
    "Resource",
    "Kind",
    "Metadata",
    "Condition",
    "set_condition",
    # Repositories
    "Repository",
    "ResourceList",
    "Scan",
    "LabelSelector",
    "FieldSelector",
    # Watches
    "Watch",
    "TolerantWatch",
    "WatchEvent",
    "Added",
    "Modified",
    "Deleted",
    "Bookmark",
    "Corrupt",
    "Checkpoint",
    # Storage
    "StorageBackend",
    "EtcdStorageBackend",
    "MemoryStorageBackend",
    "StorageWatch",
    "Entry",
    "Page",
    "Selection",
    "Change",
    "Operation",
    # Errors
    "KvorumError",
    "NotFoundError",
    "AlreadyExistsError",
    "ConflictError",
    "HistoryLostError",
    "InternalError",
    "FutureRevisionError",
    "AnotherClusterError",
    "StaleReadError",
    "LeaseNotFoundError",
    "OutcomeUnknownError",
    "UnavailableError",
    "TlsError",
    "StorageFullError",
    "ServerError",
    "ConfigurationError",
    "InvalidResourceError",
    "InvalidSelectorError",
    "CorruptResourceError",
    "ResourceTooLargeError",
    "PermissionDeniedError",
    "AuthenticationError",
    "ClientClosedError",
    "EmbeddedEtcdError",
]
