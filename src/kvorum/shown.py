"""What a watch has shown: so that it can tell what is other when it has lost history, and lists again."""

from typing import Generic, NamedTuple, TypeVar

from kvorum.errors import CorruptResourceError
from kvorum.events import Added, Bookmark, Deleted, Modified
from kvorum.query import Decode
from kvorum.resource_list import ResourceList
from kvorum.resources import AnyResource
from kvorum.storage import Entry
from kvorum.transitions import ChangeEvent, corrupt_event
from kvorum.unreadable import Unreadable

R = TypeVar("R", bound=AnyResource)


class _Last(NamedTuple):
    uid: str
    entry: Entry


class Shown(Generic[R]):
    """The resources that a watch has shown and not taken back, each with the bytes of its last state."""

    def __init__(self, decode: Decode[R]) -> None:
        self._decode = decode
        self._last: dict[str, _Last] = {}

    def __len__(self) -> int:
        return len(self._last)

    def get(self, key: str) -> Entry | None:
        """Return the last state of what was shown at a key."""
        last = self._last.get(key)
        return last.entry if last is not None else None

    def note(self, event: ChangeEvent[R]) -> None:
        """Take note of an event that is going to be shown. What is corrupt now stays as it was shown."""
        match event:
            case Added() | Modified():
                key, last = _last_of(event.resource)
                self._last[key] = last
            case Deleted():
                self._last.pop(_last_of(event.resource)[0], None)

    def difference(
        self, there: ResourceList[R], corrupt: dict[str, CorruptResourceError], unreadable: Unreadable
    ) -> list[ChangeEvent[R] | Bookmark]:
        """Return what is other in a list than it was when it was shown last, and take note of the list.

        First who is gone, or was replaced by another one of the same name, at the revision of the list; then, by their
        revisions, what was added and modified, and what is corrupt and was not told; and a bookmark.

        Args:
            there: the list.
            corrupt: what is corrupt in it, by key. What was shown of these is not gone.
            unreadable: what was corrupt before.
        """
        before, self._last = self._last, dict(map(_last_of, there))
        self._last |= {key: last for key, last in before.items() if key in corrupt}
        events: list[ChangeEvent[R] | Bookmark] = []
        for key, (uid, entry) in before.items():
            if key not in self._last or self._last[key].uid != uid:
                events.append(Deleted(self._decode(entry, revision=there.resource_version)))
        news: list[ChangeEvent[R] | None] = [self._news(resource, before, unreadable) for resource in there]
        news += [corrupt_event(error) for key, error in corrupt.items() if not unreadable.is_told(key, error.revision)]
        events += sorted(filter(None, news), key=lambda event: event.resource_version)
        events.append(Bookmark(there.resource_version))
        return events

    def _news(self, resource: R, before: dict[str, _Last], unreadable: Unreadable) -> Added[R] | Modified[R] | None:
        key, now = _last_of(resource)
        last = before.get(key)
        if last is None or last.uid != now.uid or key in unreadable:
            return Added(resource)
        if last.entry != now.entry:  # the same revision can have other content in a store that was put back
            return Modified(resource, self._decode(last.entry))
        return None


def newest_of(there: ResourceList[R]) -> Entry | None:
    """Return the newest entry of a list, with no more than key, value and revision; None if the list is empty."""
    newest = max(there, key=lambda resource: resource.metadata.resource_version, default=None)
    return _last_of(newest)[1].entry if newest is not None else None


def _last_of(resource: AnyResource) -> tuple[str, _Last]:
    stored = resource.metadata.stored
    assert stored is not None, "what a watch shows was read from bytes"  # noqa: S101 - by the codec, just before
    # Of an entry, no more than this is ever decoded.
    entry = Entry(stored.key, stored.value, resource.metadata.resource_version, 0, 0)
    return stored.key, _Last(resource.metadata.uid, entry)
