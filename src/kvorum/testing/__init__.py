"""For those who test on etcd, or write a storage backend.

The suite that a backend has to pass, a proxy that misbehaves, and what tells right histories from wrong ones. Needs the
extra `testing`::

    class TestMyBackend(kvorum.testing.StorageConformance):
        @pytest.fixture
        def open_store(self) -> kvorum.testing.OpenStore:
            return MyStore.open
"""

from kvorum.testing.conformance import StorageConformance
from kvorum.testing.fault_proxy import FaultProxy, ProxyStatistics
from kvorum.testing.fault_script import FAULTS, FaultScript, Step
from kvorum.testing.history import Answer, Call, Fault, History, Intent, Outcome, Sight, Snapshot, Tally
from kvorum.testing.linearizability import check_linearizability
from kvorum.testing.recorder import RecordingBackend, RecordingRepository
from kvorum.testing.revision_order import check_revisions
from kvorum.testing.store import OpenStore, Store
from kvorum.testing.trial import Verdict, run_trial
from kvorum.testing.truth import Truth, read_truth
from kvorum.testing.violation import Rule, Violation
from kvorum.testing.watch_streams import Listing, Mark, Shown, WatchedStream, check_resumed, check_watch
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
    "Intent",
    "Outcome",
    "Sight",
    "Snapshot",
    "Tally",
    "WatchedStream",
    "Shown",
    "Mark",
    "Listing",
    # What really happened
    "Truth",
    "read_truth",
    # Judgement
    "check_revisions",
    "check_linearizability",
    "check_watch",
    "check_resumed",
    "Violation",
    "Rule",
    # All of it
    "run_trial",
    "Verdict",
]
