"""A store in memory whose lists and streams do what a test says."""

from collections import deque

from typing_extensions import override

import kvorum
from kvorum import HistoryLostError, MemoryStorageBackend
from kvorum.storage import Change, StorageWatch

LOST = HistoryLostError(revision=1)


class FaultyStore(MemoryStorageBackend):
    """A store in memory with errors for its next lists, and a script for its streams.

    Attributes:
        list_errors: what the next lists raise.
        stream_script: what the next reads of streams raise or return, before they read the store.
        lists: how many pages were read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.list_errors: deque[Exception] = deque()
        self.stream_script: deque[Exception | tuple[Change, ...]] = deque()
        self.lists: int = 0

    @override
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> kvorum.Page:
        self.lists += 1
        if self.list_errors:
            raise self.list_errors.popleft()
        return await super().list(prefix, limit=limit, after=after, revision=revision)

    @override
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        return ScriptedStream(super().watch(prefix, since=since, bookmarks=bookmarks), self)


class ScriptedStream(StorageWatch):
    """Another stream, after the script of the store."""

    def __init__(self, stream: StorageWatch, store: FaultyStore) -> None:
        self._stream = stream
        self._store = store

    @property
    @override
    def revision(self) -> int:
        return self._stream.revision

    @override
    async def open(self) -> None:
        await self._stream.open()

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()

    @override
    async def __anext__(self) -> tuple[Change, ...]:
        if not self._store.stream_script:
            return await anext(self._stream)
        item = self._store.stream_script.popleft()
        if isinstance(item, Exception):
            raise item
        return item


class ClientOf:
    """What a repository or a reflector needs of a client."""

    def __init__(self, backend: MemoryStorageBackend) -> None:
        self.backend = backend
