"""The server's history of a prefix, revision by revision, read without Kvorum's own code."""

import base64
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from typing import Final

import anyio.to_thread
import msgspec

from kvorum.errors import HistoryLostError
from kvorum.storage import Change, Entry, KeySpace

TIMEOUT: Final = 60.0  # seconds without a byte


class ServerHistory:
    """All changes under a prefix, from an empty state to revision `end`.

    Attributes:
        revisions: the changes of each revision, in order, without the revisions that changed
            nothing here.
        end: the last revision covered.
        read_at: when it was read, by `time.monotonic`; None if it was built by hand.
    """

    def __init__(
        self, revisions: Iterable[tuple[Change, ...]], *, end: int, read_at: float | None = None
    ) -> None:
        self.read_at: float | None = read_at
        self.revisions: Mapping[int, tuple[Change, ...]] = {
            changes[0].revision: changes for changes in revisions
        }
        self.end: int = end
        self._by_key: dict[str, tuple[list[int], list[Change]]] = {}
        self._counts: dict[str, tuple[list[int], list[int]]] = {}
        for changes in self.revisions.values():
            for change in changes:
                numbers, all_of_key = self._by_key.setdefault(change.key, ([], []))
                numbers.append(change.revision)
                all_of_key.append(change)

    def __repr__(self) -> str:
        return f"<ServerHistory of {len(self.revisions)} revisions to {self.end}>"

    def followed_by(self, later: "ServerHistory") -> "ServerHistory":
        """Return this history extended by a later one. Long runs read one for each compaction."""
        return ServerHistory(
            (*self.revisions.values(), *later.revisions.values()),
            end=later.end,
            read_at=later.read_at,
        )

    def all_keys(self) -> list[str]:
        """Return every key that ever existed."""
        return list(self._by_key)

    def change(self, key: str, revision: int) -> Change | None:
        """Return the change of a key at a revision; None if there is none."""
        return next(
            (change for change in self.revisions.get(revision, ()) if change.key == key), None
        )

    def entry(self, key: str, revision: int) -> Entry | None:
        """Return the entry of a key at a revision; None if it was absent."""
        numbers, changes = self._by_key.get(key, ([], []))
        index = bisect_right(numbers, revision)
        return changes[index - 1].entry if index else None

    def changes_after(self, key: str, revision: int) -> Iterator[Change]:
        """Return the changes of a key after a revision, in order."""
        numbers, changes = self._by_key.get(key, ([], []))
        return iter(changes[bisect_right(numbers, revision) :])

    def first(self, key: str, *, exists: bool, since: int) -> int | None:
        """Return the first revision from `since` on at which a key exists or not; None if none."""
        if (self.entry(key, since) is not None) == exists:
            return since
        return next(
            (c.revision for c in self.changes_after(key, since) if (c.entry is not None) == exists),
            None,
        )

    def until(self, key: str, revision: int) -> int:
        """Return the next revision that changed a key; `end + 1` if there is none."""
        change = next(self.changes_after(key, revision), None)
        return change.revision if change is not None else self.end + 1

    def first_count(self, prefix: str, number: int, *, since: int) -> int | None:
        """Return the first revision from `since` on with `number` keys there; None if none."""
        revisions, counts = self._counts.get(prefix) or self._count(prefix)
        index = bisect_right(revisions, since) - 1
        if counts[index] == number:
            return since
        return next(
            (revisions[at] for at in range(index + 1, len(counts)) if counts[at] == number), None
        )

    def _count(self, prefix: str) -> tuple[list[int], list[int]]:
        revisions, counts = [0], [0]
        for revision, changes in self.revisions.items():
            mine = [change for change in changes if change.key.startswith(prefix)]
            revisions.append(revision)
            counts.append(
                counts[-1] + sum((c.entry is not None) - (c.previous is not None) for c in mine)
            )
        self._counts[prefix] = revisions, counts
        return revisions, counts


class State:
    """Replays a server history: the keys at a revision that only moves forward."""

    def __init__(self, server_history: ServerHistory) -> None:
        self._rest = iter(server_history.revisions.items())
        self._next = next(self._rest, None)
        self._entries: dict[bytes, Entry] = {}
        self._keys: list[bytes] = []

    def go_to(self, revision: int) -> None:
        """Apply all changes up to a revision."""
        while self._next is not None and self._next[0] <= revision:
            for change in self._next[1]:
                self._apply(change)
            self._next = next(self._rest, None)

    def _apply(self, change: Change) -> None:
        key = change.key.encode(errors="surrogateescape")
        if change.entry is None:
            if self._entries.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
            return
        if key not in self._entries:
            self._keys.insert(bisect_left(self._keys, key), key)
        self._entries[key] = change.entry

    def range(self, prefix: str, after: str | None = None) -> list[Entry]:
        """Return the entries under a prefix, after the given key."""
        start = prefix.encode(errors="surrogateescape")
        first = bisect_left(self._keys, start)
        if after is not None:
            first = max(first, bisect_right(self._keys, after.encode(errors="surrogateescape")))
        found: list[Entry] = []
        for key in self._keys[first:]:
            if not key.startswith(start):
                break
            found.append(self._entries[key])
        return found


# --- reading it from etcd -------------------------------------------------------------------------


class _KeyValue(msgspec.Struct):
    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class _Event(msgspec.Struct):
    kv: _KeyValue
    type: str = "PUT"
    prev_kv: _KeyValue | None = None


class _Header(msgspec.Struct):
    revision: int = 0


class _Response(msgspec.Struct):
    header: _Header
    events: list[_Event] = []
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""


class _Range(msgspec.Struct):
    header: _Header
    kvs: list[_KeyValue] = []


class _Message(msgspec.Struct):
    result: _Response


# The gateway writes 64-bit numbers as strings.
_messages = msgspec.json.Decoder(_Message, strict=False)
_ranges = msgspec.json.Decoder(_Range, strict=False)
_responses = msgspec.json.Decoder(_Response, strict=False)

_ALL = {"key": base64.b64encode(b"\0").decode(), "range_end": base64.b64encode(b"\0").decode()}


async def read_server_history(
    endpoint: str, prefix: str, *, since: int = 0, token: str = ""
) -> ServerHistory:
    """Read the history of a prefix from etcd, up to its current revision.

    It reads etcd's JSON gateway and shares no code with what it judges.

    Args:
        endpoint: `host:port`.
        prefix: the prefix of the clients.
        since: a revision at which the prefix was empty, or the end of an earlier history that this
            one extends; later changes are read.
        token: a token of a user with read access, if authentication is enabled.

    Raises:
        HistoryLostError: part of it was compacted.
    """
    return await anyio.to_thread.run_sync(_read, endpoint, KeySpace(prefix), since, token)


async def read_creations(endpoint: str, prefix: str, *, since: int) -> ServerHistory:
    """Read the history of a prefix under which keys were only created, from its current state.

    Unlike `read_server_history` it also works after a compaction.

    Raises:
        HistoryLostError: a key was changed after its creation, so its state is not its history.
    """
    return await anyio.to_thread.run_sync(_read_creations, endpoint, KeySpace(prefix), since)


def _read_creations(endpoint: str, keys: KeySpace, since: int) -> ServerHistory:
    connection = HTTPConnection(endpoint, timeout=TIMEOUT)
    try:
        read_at = time.monotonic()
        body = {
            **_ALL,
            "min_mod_revision": str(since + 1),
            "sort_target": "MOD",
            "sort_order": "ASCEND",
        }
        answer = _ranges.decode(_ask(connection, "/v3/kv/range", body, "").read())
    finally:
        connection.close()
    changes: list[tuple[Change, ...]] = []
    for kv in answer.kvs:
        if kv.key.startswith(keys.prefix.encode()):
            if kv.version > 1:
                raise HistoryLostError(revision=kv.create_revision)
            key = keys.relative(kv.key)
            changes.append((Change(key, kv.mod_revision, _entry(key, kv), None),))
    return ServerHistory(changes, end=answer.header.revision, read_at=read_at)


def _read(endpoint: str, keys: KeySpace, since: int, token: str) -> ServerHistory:
    connection = HTTPConnection(endpoint, timeout=TIMEOUT)
    try:
        end = _responses.decode(
            _ask(connection, "/v3/kv/range", {**_ALL, "count_only": True}, token).read()
        ).header.revision
        read_at = time.monotonic()  # what etcd did before this is included
        create = {**_ALL, "start_revision": str(since + 1), "prev_kv": True}
        changes = _revisions(
            _ask(connection, "/v3/watch", {"create_request": create}, token), keys, since, end
        )
        return ServerHistory(changes, end=end, read_at=read_at)
    finally:
        connection.close()


def _ask(connection: HTTPConnection, path: str, body: object, token: str) -> HTTPResponse:
    headers = {"Authorization": token} if token else {}
    connection.request("POST", path, msgspec.json.encode(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise OSError(f"{path}: {response.status} {response.read(1000)!r}")
    return response


def _revisions(
    response: HTTPResponse, keys: KeySpace, since: int, end: int
) -> Iterator[tuple[Change, ...]]:
    """Read the changes of the whole store up to a revision, and yield those under the prefix."""
    prefix, reached = keys.prefix.encode(), max(since, 1)
    while reached < end:
        message = _messages.decode(response.readline()).result
        if message.canceled:
            raise HistoryLostError(revision=since + 1, compact_revision=message.compact_revision)
        changes: list[Change] = []
        for event in message.events:
            if changes and event.kv.mod_revision != changes[0].revision:
                yield tuple(changes)
                changes = []
            reached = event.kv.mod_revision
            if reached <= end and event.kv.key.startswith(prefix):
                changes.append(_change(event, keys))
        if changes:
            yield tuple(changes)


def _change(event: _Event, keys: KeySpace) -> Change:
    key, revision = keys.relative(event.kv.key), event.kv.mod_revision
    before = event.prev_kv if event.prev_kv is not None and event.prev_kv.mod_revision else None
    return Change(
        key,
        revision,
        _entry(key, event.kv) if event.type == "PUT" else None,
        _entry(key, before) if before is not None else None,
    )


def _entry(key: str, kv: _KeyValue) -> Entry:
    return Entry(key, kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease)
