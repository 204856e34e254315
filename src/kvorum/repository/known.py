"""What a watch has shown.

So that it can tell what is other when it has lost history, and lists again.
"""

from typing import Generic, NamedTuple, TypeVar

from kvorum.errors import CorruptResourceError
from kvorum.repository.events import Added, Bookmark, Corrupt, Deleted, Modified
from kvorum.repository.query import Decode
from kvorum.repository.resource_list import ResourceList
from kvorum.repository.transitions import ChangeEvent, OnCorruptEvent, corrupt_event, gone_event
from kvorum.resources import AnyResource
from kvorum.storage import Entry

R = TypeVar("R", bound=AnyResource)


class _Last(NamedTuple):
    uid: str
    entry: Entry


class Shown(Generic[R]):
    """The resources that a watch has shown and not taken back, each with the bytes of its last state.

    It also knows which values were told as `Corrupt`: of each its key and revision.
    """

    def __init__(self, decode: Decode[R], on_corrupt: OnCorruptEvent) -> None:
        self._decode = decode
        self._on_corrupt: OnCorruptEvent = on_corrupt
        self._last: dict[str, _Last] = {}
        self._told: dict[str, int] = {}  # the revisions of what is corrupt, by key

    def __len__(self) -> int:
        return len(self._last)

    def get(self, key: str) -> Entry | None:
        """Return the last state of what was shown at a key."""
        last = self._last.get(key)
        return last.entry if last is not None else None

    def note(self, key: str, event: ChangeEvent[R] | None) -> None:
        """Take note of what is going to be shown of a change.

        What is corrupt now stays as it was shown.
        """
        self._told.pop(key, None)
        match event:
            case Added() | Modified():
                self._last[key] = _last_of(event.resource)[1]
            case Deleted() | Corrupt(is_gone=True):
                self._last.pop(key, None)
            case Corrupt():
                self._told[key] = event.revision
            case None:
                pass

    def difference(
        self, there: ResourceList[R], corrupt: dict[str, CorruptResourceError]
    ) -> list[ChangeEvent[R] | Bookmark]:
        """Return what is other in a list than it was when it was shown last, and take note of the list.

        First who is gone, or was replaced by another one of the same name, at the revision of the
        list; then, by their revisions, what was added and modified, and what is corrupt and was not
        told; and a bookmark.

        Args:
            there: the list.
            corrupt: what is corrupt in it, by key. What was shown of these is not gone.

        Raises:
            CorruptResourceError: like `gone_event`. Nothing is noted then.
        """
        revision, now = there.resource_version, dict(map(_last_of, there))
        kept = {key: last for key, last in self._last.items() if key in corrupt}
        events: list[ChangeEvent[R] | Bookmark] = [
            gone_event(self._decode, last.entry, revision, self._on_corrupt)
            for key, last in self._last.items()
            if key not in kept and (key not in now or now[key].uid != last.uid)
        ]
        news: list[ChangeEvent[R] | None] = [self._news(resource) for resource in there]
        news += [
            corrupt_event(error)
            for key, error in corrupt.items()
            if self._told.get(key) != error.revision
        ]
        events += sorted(filter(None, news), key=lambda event: event.resource_version)
        events.append(Bookmark(revision))
        self._last, self._told = now | kept, {key: error.revision for key, error in corrupt.items()}
        return events

    def _news(self, resource: R) -> Added[R] | Modified[R] | None:
        key, now = _last_of(resource)
        last = self._last.get(key)
        if last is None or last.uid != now.uid or key in self._told:
            return Added(resource)
        if (
            last.entry == now.entry
        ):  # else, also if only the content is other: the store may have been put back
            return None
        try:
            return Modified(resource, self._decode(last.entry))
        except CorruptResourceError:  # its type refuses by now what it was
            return Added(resource)


def newest_of(there: ResourceList[R]) -> Entry | None:
    """Return the newest entry of a list, with no more than key, value and revision.

    None if the list is empty.
    """
    newest = max(there, key=lambda resource: resource.metadata.resource_version, default=None)
    return _last_of(newest)[1].entry if newest is not None else None


def _last_of(resource: AnyResource) -> tuple[str, _Last]:
    stored = resource.metadata.stored
    assert stored is not None, "what a watch shows was read from bytes"  # noqa: S101 - by the codec, just before
    # Of an entry, no more than this is ever decoded.
    entry = Entry(stored.key, stored.value, resource.metadata.resource_version, 0, 0)
    return stored.key, _Last(resource.metadata.uid, entry)
