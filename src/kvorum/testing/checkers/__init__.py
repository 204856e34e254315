"""Checkers, which tell correct histories from incorrect ones."""

from kvorum.testing.checkers.linearizability import check_linearizability
from kvorum.testing.checkers.revision_order import check_revisions
from kvorum.testing.checkers.watch_streams import (
    BookmarkSeen,
    Relist,
    ShownChange,
    WatchedStream,
    check_resumed,
    check_watch,
)

__all__ = [
    "BookmarkSeen",
    "Relist",
    "ShownChange",
    "WatchedStream",
    "check_linearizability",
    "check_resumed",
    "check_revisions",
    "check_watch",
]
