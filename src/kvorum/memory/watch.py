"""A stream of changes from memory. It reads the timeline directly, so nothing is buffered."""

from collections import deque
from typing import Final, Literal

import anyio.lowlevel
from typing_extensions import override

from kvorum.errors import FutureRevisionError, HistoryLostError
from kvorum.memory.store import MemoryStore
from kvorum.storage import Change, KeySpace, StorageWatch, WatchStatistics

# How many unread changes a watch keeps when they are compacted. A client of etcd may have read as
# many ahead.
READ_AHEAD: Final = 1000

BOOKMARK_AFTER: Final = 100  # revisions that changed nothing here


class MemoryStorageWatch(StorageWatch):
    """Follows the keys under a prefix. Made by `MemoryStorageBackend.watch`."""

    def __init__(
        self, store: MemoryStore, keys: KeySpace, prefix: str, since: int | None, *, bookmarks: bool
    ) -> None:
        self._store = store
        self._range = keys.range(prefix)  # first, since it checks the prefix
        self._subject = keys.prefix + prefix
        self._since = since
        self._state: Literal["not open", "open", "failed", "closed"] = "not open"
        self._revision = 0
        self._position = 0  # the last revision that was read
        self._kept: deque[tuple[Change, ...]] = deque()  # compacted before they were taken
        self._error: Exception | None = None
        self._bookmarks = bookmarks
        self._events = 0

    def __repr__(self) -> str:
        return f"<MemoryStorageWatch {self._subject} [{self._state}, at {self._revision}]>"

    @property
    @override
    def revision(self) -> int:
        return self._revision

    @override
    def statistics(self) -> WatchStatistics:
        buffered = sum(map(len, self._kept))
        return WatchStatistics(position=self._position, buffered=buffered, events=self._events)

    @override
    async def open(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._state != "not open":
            return
        try:
            self._store.check_open()
            self._check_start(self._store.timeline.revision)
        except BaseException:
            self._state = "closed"
            raise
        self._state = "open"
        self._revision = self._position = (
            self._store.timeline.revision if self._since is None else self._since
        )
        self._store.followers.add(self)

    def _check_start(self, current: int) -> None:
        if self._since is None:
            return
        if self._since > current:
            raise FutureRevisionError(revision=self._since, current=current)
        if max(self._since, 1) < self._store.timeline.compacted:
            raise HistoryLostError(
                revision=self._since + 1, compact_revision=self._store.timeline.compacted
            )

    @override
    async def aclose(self) -> None:
        self._state = "closed"
        self._error = None
        self._kept.clear()
        self._store.followers.discard(self)
        self._store.notify()
        await anyio.lowlevel.checkpoint()  # last, so that it is closed also if this is cancelled

    @override
    async def __anext__(self) -> tuple[Change, ...]:
        await self.open()
        # First wait, then take, with no await in between: a cancelled wait takes nothing.
        while (changes := self._take()) is None and self._state == "open":
            await self._store.wait()
        if changes is not None:
            self._revision = changes[0].revision if changes else self._position
            self._events += len(changes)
            return changes
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        raise StopAsyncIteration

    def _take(self) -> tuple[Change, ...] | None:
        """Take the next revision that changed something; None if there is none yet."""
        if self._kept:
            return self._kept.popleft()
        if self._state != "open":
            return None
        changes = self._read(self._store.timeline.revision)
        if (
            changes is None
            and self._bookmarks
            and self._position >= self._revision + BOOKMARK_AFTER
        ):
            return ()
        return changes

    def _read(self, last: int) -> tuple[Change, ...] | None:
        """Read up to the next revision that changed something, or up to the last one."""
        while self._position < last:
            self._position += 1
            if changes := self._store.timeline.changes(*self._range, self._position):
                return changes
        return None

    # --- called by the store ---

    def keep_before(self, revision: int) -> None:
        """Keep up to `READ_AHEAD` changes that are about to be compacted.

        If there are more, history is lost after them.
        """
        room = READ_AHEAD - sum(map(len, self._kept))
        while (changes := self._read(revision)) is not None:
            if len(changes) > room:
                return self.fail(
                    HistoryLostError(revision=changes[0].revision, compact_revision=revision)
                )
            room -= len(changes)
            self._kept.append(changes)
        return None

    def fail(self, error: Exception) -> None:
        """End with an error, which is raised after what was kept."""
        if self._state == "open":
            self._state = "failed"
            self._error = error
            self._store.followers.discard(self)
            self._store.notify()
