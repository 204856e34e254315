"""Tools for tests on etcd, and for authors of storage backends.

The conformance suite for backends, a fault-injecting proxy, recorders, and checkers that compare
what clients were told with the server's history. Needs the extra `testing`::

    class TestMyBackend(kvorum.testing.StorageConformance):
        @pytest.fixture
        def open_store(self) -> kvorum.testing.OpenStore:
            return MyStore.open
"""

from kvorum.testing.checkers import (
    BookmarkSeen,
    Relist,
    ShownChange,
    WatchedStream,
    check_linearizability,
    check_resumed,
    check_revisions,
    check_watch,
)
from kvorum.testing.conformance import OpenStore, StorageConformance, Store
from kvorum.testing.evidence import (
    Answer,
    Call,
    Count,
    Fault,
    History,
    Observation,
    Outcome,
    RecordingBackend,
    RecordingRepository,
    Rule,
    ServerHistory,
    Snapshot,
    Violation,
    Write,
    read_server_history,
)
from kvorum.testing.faults import FAULTS, FaultProxy, FaultScript, ProxyStatistics, Step
from kvorum.testing.trial import Verdict, run_trial
from kvorum.testing.workload import Workload

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # The suite for backends
    "OpenStore",
    "StorageConformance",
    "Store",
    # Faults
    "FaultProxy",
    "ProxyStatistics",
    "FaultScript",
    "Step",
    "FAULTS",
    # Evidence
    "Workload",
    "RecordingBackend",
    "RecordingRepository",
    "History",
    "Call",
    "Answer",
    "Fault",
    "Write",
    "Outcome",
    "Observation",
    "Snapshot",
    "Count",
    "WatchedStream",
    "ShownChange",
    "BookmarkSeen",
    "Relist",
    # The server's history
    "ServerHistory",
    "read_server_history",
    # Checkers
    "check_revisions",
    "check_linearizability",
    "check_watch",
    "check_resumed",
    "Violation",
    "Rule",
    # All together
    "run_trial",
    "Verdict",
]
