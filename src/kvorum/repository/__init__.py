"""Typed resources with optimistic concurrency: verbs, lists and watches."""

from kvorum.repository.checkpoint import Checkpoint
from kvorum.repository.event_queue import WatchPolicy
from kvorum.repository.events import Added, Bookmark, Corrupt, Deleted, Modified, WatchEvent
from kvorum.repository.query import OnCorrupt
from kvorum.repository.reflector import Backoff
from kvorum.repository.repository import Repository
from kvorum.repository.resource_list import ResourceList
from kvorum.repository.scan import Scan
from kvorum.repository.unreadable import UnreadableLimits
from kvorum.repository.watch import TolerantWatch, Watch
from kvorum.repository.writer import ContentionPolicy

__all__ = [
    "Added",
    "Backoff",
    "Bookmark",
    "Checkpoint",
    "ContentionPolicy",
    "Corrupt",
    "Deleted",
    "Modified",
    "OnCorrupt",
    "Repository",
    "ResourceList",
    "Scan",
    "TolerantWatch",
    "UnreadableLimits",
    "Watch",
    "WatchEvent",
    "WatchPolicy",
]
