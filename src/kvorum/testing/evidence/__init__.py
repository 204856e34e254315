"""What clients said, and what the server's history says."""

from kvorum.testing.evidence.history import (
    Answer,
    Call,
    Fault,
    History,
    Intent,
    Outcome,
    Sight,
    Snapshot,
    Tally,
    future_revision,
)
from kvorum.testing.evidence.recorder import RecordingBackend, RecordingRepository
from kvorum.testing.evidence.server_history import State, Truth, read_creations, read_truth
from kvorum.testing.evidence.settled import contradictions, settled_calls
from kvorum.testing.evidence.violation import Rule, Violation

__all__ = [
    "Answer",
    "Call",
    "Fault",
    "History",
    "Intent",
    "Outcome",
    "RecordingBackend",
    "RecordingRepository",
    "Rule",
    "Sight",
    "Snapshot",
    "State",
    "Tally",
    "Truth",
    "Violation",
    "contradictions",
    "future_revision",
    "read_creations",
    "read_truth",
    "settled_calls",
]
