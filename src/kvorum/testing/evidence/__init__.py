"""Records of what clients were told, and the server's own history."""

from kvorum.testing.evidence.history import (
    Answer,
    Call,
    Count,
    Fault,
    History,
    Observation,
    Outcome,
    Snapshot,
    Write,
    future_revision,
)
from kvorum.testing.evidence.recorder import RecordingBackend, RecordingRepository
from kvorum.testing.evidence.server_history import (
    ServerHistory,
    State,
    read_creations,
    read_server_history,
)
from kvorum.testing.evidence.settled import contradictions, settled_calls
from kvorum.testing.evidence.violation import Rule, Violation

__all__ = [
    "Answer",
    "Call",
    "Count",
    "Fault",
    "History",
    "Observation",
    "Outcome",
    "RecordingBackend",
    "RecordingRepository",
    "Rule",
    "ServerHistory",
    "Snapshot",
    "State",
    "Violation",
    "Write",
    "contradictions",
    "future_revision",
    "read_creations",
    "read_server_history",
    "settled_calls",
]
