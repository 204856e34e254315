"""Iterating over a list without holding all of it."""

from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, Self, TypeVar

from kvorum.errors import CorruptResourceError
from kvorum.repository.query import OnCorrupt, Query
from kvorum.repository.resource_list import ResourceList
from kvorum.resources import AnyResource
from kvorum.storage import HasBackend

R = TypeVar("R", bound=AnyResource)


class Scan(Generic[R]):
    """The resources of a list, one at a time, all at one revision; or by page, with `pages()`.

    ::

        async for worker in workers.scan():
            ...

    It reads a page when it needs one, and holds only the rest of that page: there is nothing to
    close. Iterate it in one task at a time, and either by resource or by page.

    Attributes:
        resource_version: the revision of all resources; 0 before the first page.
        continuation: where the next page starts; None before the first page and after the last.

    Raises:
        HistoryLostError: the revision was compacted during the scan. With its `continuation`, a new
            scan resumes after the last page, at a newer revision. This one keeps raising it.
        CorruptResourceError: a value is not a resource of this kind, unless `on_corrupt` is
            "collect".
    """

    def __init__(
        self,
        client: HasBackend,
        query: Query[R],
        *,
        limit: int | None,
        continue_from: str | None,
        at: int | None,
        on_corrupt: OnCorrupt,
    ) -> None:
        self.resource_version: int = 0
        self.continuation: str | None = continue_from
        self._client = client
        self._query = query
        self._limit = limit
        self._at = at
        self._on_corrupt: OnCorrupt = on_corrupt
        self._corrupt: list[CorruptResourceError] = []
        self._unread: deque[R] = deque()
        self._is_complete = False

    def __repr__(self) -> str:
        state = "complete" if self._is_complete else f"at {self.resource_version}"
        return f"<Scan {self._query.prefix} [{state}, {len(self._unread)} unread]>"

    @property
    def corrupt(self) -> tuple[CorruptResourceError, ...]:
        """The values that could not be decoded so far, with `on_corrupt="collect"`."""
        return tuple(self._corrupt)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        while not self._unread:
            self._unread.extend(await self.next_page())
        return self._unread.popleft()

    def pages(self) -> AsyncIterator[ResourceList[R]]:
        """Iterate over pages instead of over single resources."""
        return _Pages(self)

    async def next_page(self) -> ResourceList[R]:
        """Read the next page.

        Raises:
            StopAsyncIteration: there are no more pages. Otherwise raises like an iteration.
        """
        if self._is_complete:
            raise StopAsyncIteration
        backend = self._client.backend
        page = await self._query.page(
            backend,
            limit=backend.page_size if self._limit is None else self._limit,
            continue_from=self.continuation,
            at=self._at,
            on_corrupt=self._on_corrupt,
        )
        self.resource_version, self.continuation, self._at = (
            page.resource_version,
            page.continuation,
            None,
        )
        self._is_complete = page.continuation is None
        self._corrupt += page.corrupt
        return page


class _Pages(Generic[R]):
    """Iterates over the pages of a scan: an object, because an async generator must be closed."""

    def __init__(self, scan: Scan[R]) -> None:
        self._scan = scan

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ResourceList[R]:
        return await self._scan.next_page()
