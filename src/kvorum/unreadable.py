"""What a watch knows of values that cannot be read: what was shown under their keys before, which has to be taken back.

A value that is no resource of the kind hides what was there. When it goes, the change tells of the unreadable bytes
alone. What a watch has seen become unreadable it remembers; for what was so before it began, it asks the store's
history.
"""

from collections.abc import Mapping
from typing import Any, Final

from kvorum.errors import CorruptResourceError, HistoryLostError
from kvorum.query import Query
from kvorum.storage import Entry, StorageBackend
from kvorum.transitions import Transition

MAX_KEYS: Final = 1000  # that are remembered; of the others history is asked
MAX_READS: Final = 1000  # of history, for one key: each write of an unreadable value costs one


class Unreadable:
    """The keys whose values cannot be read, with what was shown of each before (None: nothing was)."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}
        self._shown: dict[str, Entry | None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._revisions

    def is_told(self, key: str, revision: int) -> bool:
        """Tell whether the value that was written then was shown as `Corrupt`."""
        return self._revisions.get(key) == revision

    def note(self, transition: Transition[Any]) -> None:
        """Take note of a value that cannot be read now, and of what was shown before it."""
        change, before = transition.change, transition.before
        if not self._note(change.key, change.revision) or isinstance(before, CorruptResourceError):
            return  # of the latter it is known what was shown already, or is not
        self._shown[change.key] = change.previous if before is not None else None

    def note_list(self, corrupt: Mapping[str, CorruptResourceError]) -> None:
        """Take note that just these values cannot be read, whatever was shown before them."""
        for key in self._revisions.keys() - corrupt.keys():
            self.forget(key)
        for key, error in corrupt.items():
            self._note(key, error.revision)

    def _note(self, key: str, revision: int) -> bool:
        if key not in self._revisions and len(self._revisions) >= MAX_KEYS:
            return False
        self._revisions[key] = revision
        return True

    def knows(self, key: str) -> bool:
        """Tell whether it saw the value become unreadable."""
        return key in self._shown

    def shown(self, key: str) -> Entry | None:
        """Return what was shown at a key before, if it `knows`."""
        return self._shown.get(key)

    def forget(self, key: str) -> None:
        """Take note that the value at a key can be read, or is gone."""
        self._revisions.pop(key, None)
        self._shown.pop(key, None)


async def last_readable(query: Query[Any], backend: StorageBackend, entry: Entry) -> Entry | None:
    """Return what was selected at a key before it became unreadable; None if nothing was since the key was created.

    Raises:
        HistoryLostError: that has been compacted, or the key was written too often since. And what `get` raises.
    """
    for _ in range(MAX_READS):
        if entry.mod_revision == entry.create_revision:
            return None
        earlier = await backend.get(entry.key, revision=entry.mod_revision - 1)
        if earlier is None:
            return None
        try:
            return earlier if query.select(earlier) is not None else None
        except CorruptResourceError:
            entry = earlier
    raise HistoryLostError(
        revision=entry.mod_revision - 1,
        reason=f"the last {MAX_READS} values of {entry.key} cannot be read, and no more of them are looked at",
    )
