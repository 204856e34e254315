"""The entries that a watch has delivered, by which it finds the difference when it lists again."""

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from kvorum.storage import Change, Entry

_Mark: TypeAlias = tuple[int, bytes]
"""The revision of a value that cannot be read, and a digest of it."""


def _mark_of(entry: Entry) -> _Mark:
    return entry.mod_revision, blake2b(entry.value, digest_size=16).digest()


class Known:
    """The last state, in bytes, of each key that was delivered and not deleted since.

    A key whose current value cannot be read keeps its last readable state here, and is marked with
    the revision and a digest of the unreadable value: a store that was restored from a backup can
    reach the same revision with another value.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._unreadable: dict[str, _Mark] = {}

    def get(self, key: str) -> Entry | None:
        """Return the last readable state that was delivered for a key."""
        return self._entries.get(key)

    def put(self, entry: Entry) -> None:
        """Keep a new state."""
        self._unreadable.pop(entry.key, None)
        self._entries[entry.key] = entry

    def remove(self, key: str) -> None:
        """Forget a key."""
        self._unreadable.pop(key, None)
        self._entries.pop(key, None)

    def mark_unreadable(self, entry: Entry) -> None:
        """Record that this value cannot be read. The last readable state stays."""
        self._unreadable[entry.key] = _mark_of(entry)

    def unchanged(self, entry: Entry) -> Entry | None:
        """Return the known entry that a listed one equals in all respects; None if there is none.

        To keep the known one instead saves a second copy of the value while the list is read.
        """
        last = self._entries.get(entry.key)
        return last if last == entry and entry.key not in self._unreadable else None

    def replace(
        self, listed: Sequence[Entry], revision: int, *, unreadable: Collection[str] = ()
    ) -> list[Change]:
        """Hold what a list has, and return the changes that lead there.

        First what is gone, or was replaced by another resource of the same name: at the revision of
        the list, with its last state. Then what is new or changed, in the order of revisions; it is
        new, too, if its last value could not be read.

        Args:
            listed: the entries of the list.
            revision: the revision of the list.
            unreadable: the keys among them whose values cannot be read. Such a value is there, so
                what was delivered before is not gone; the value is a change if it is not marked.
        """
        now = {entry.key: entry for entry in listed}
        gone = [
            last
            for key, last in self._entries.items()
            if key not in unreadable and (key not in now or _is_replaced(last, now[key]))
        ]
        for last in gone:
            del self._entries[last.key]
        changes = [
            Change(entry.key, entry.mod_revision, entry, self._previous(entry, unreadable))
            for entry in listed
            if self._is_news(entry, unreadable)
        ]
        changes.sort(key=lambda change: change.revision)
        self._entries.update((key, entry) for key, entry in now.items() if key not in unreadable)
        self._unreadable = {key: _mark_of(now[key]) for key in unreadable}
        return [Change(last.key, revision, None, last) for last in gone] + changes

    def _is_news(self, entry: Entry, unreadable: Collection[str]) -> bool:
        if entry.key in unreadable:
            return self._unreadable.get(entry.key) != _mark_of(entry)
        last = self._entries.get(entry.key)
        return last is None or entry.key in self._unreadable or not _is_same(last, entry)

    def _previous(self, entry: Entry, unreadable: Collection[str]) -> Entry | None:
        if entry.key in unreadable or entry.key in self._unreadable:
            return None
        return self._entries.get(entry.key)


class _Identity(msgspec.Struct):
    uid: str = ""


class _Identified(msgspec.Struct):
    metadata: _Identity


_identified = msgspec.json.Decoder(_Identified)


def _is_same(last: Entry, now: Entry) -> bool:
    # A store that was restored from a backup can reach the same revision with another value.
    return last is now or (last.mod_revision == now.mod_revision and last.value == now.value)


def _is_replaced(last: Entry, now: Entry) -> bool:
    """Return whether a key holds another resource now, by its uid, or else by its creation."""
    if _is_same(last, now):
        return False
    uids = _uid_of(last), _uid_of(now)
    return uids[0] != uids[1] if any(uids) else last.create_revision != now.create_revision


def _uid_of(entry: Entry) -> str:
    try:
        return _identified.decode(entry.value).metadata.uid
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
