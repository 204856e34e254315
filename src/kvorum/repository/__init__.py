"""Typed resources with optimistic concurrency: verbs, lists and watches."""

from kvorum.repository.checkpoint import Checkpoint
from kvorum.repository.events import Added, Bookmark, Corrupt, Deleted, Modified, WatchEvent
from kvorum.repository.query import OnCorrupt
from kvorum.repository.repository import Repository
from kvorum.repository.resource_list import ResourceList
from kvorum.repository.scan import Scan
from kvorum.repository.watch import TolerantWatch, Watch
from kvorum.repository.writer import ContentionPolicy

__all__ = [
    "Added",
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
    "Watch",
    "WatchEvent",
]
