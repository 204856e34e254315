"""A list that is read page by page, and that keeps what it has read when a wait is cancelled."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import anyio

from kvorum.deadlines import now
from kvorum.errors import FutureRevisionError, HistoryLostError
from kvorum.storage import Entry, StorageBackend

T = TypeVar("T")

_TRIES: Final = 3
_CUT: Final = 4


class Listing(Generic[T]):
    """What was read so far of the entries under a prefix, all at one revision.

    A `read` that is cancelled loses the page that is under way and no other: the next one goes on
    with it. So a list also ends for a caller that never waits for all of it at once. If not even
    one page arrives before the caller gives up, the next page is smaller; pages grow again as far
    as the caller's patience goes.

    Args:
        prefix: what the keys start with.
        keep: maps each entry to an item, or to None to drop it. Its errors propagate.
        wait: seconds to wait before the first page.

    Attributes:
        items: what was kept of the pages that were read.
        revision: the revision of the list; None before the first page.
    """

    def __init__(self, prefix: str, keep: Callable[[Entry], T | None], *, wait: float = 0) -> None:
        self.items: list[T] = []
        self.revision: int | None = None
        self._prefix = prefix
        self._keep = keep
        self._wait = wait
        self._begin: float | None = None  # when the first page may be requested
        self._after: str | None = None
        self._is_complete = False
        self._overtaken = 0
        self._size: int | None = None  # of the pages; None: as the backend says
        self._patience = 0.0  # how long a caller has waited, in seconds

    async def read(self, backend: StorageBackend) -> None:
        """Read what is left.

        If the revision of the pages that were read is no longer there, it starts again.

        Raises:
            HistoryLostError, FutureRevisionError: it was started again too often. And whatever
                `list` and `keep` raise.
        """
        await self._pause()
        started, has_progressed = now(), False
        while not self._is_complete:
            try:
                await self._read_page(backend)
            except (HistoryLostError, FutureRevisionError):
                self._overtaken += 1
                if self._overtaken == _TRIES:
                    raise
                self.items, self.revision, self._after = [], None, None
            except anyio.get_cancelled_exc_class():
                if not has_progressed:
                    self._patience = now() - started
                    self._size = max(1, (self._size or backend.page_size) // _CUT)
                raise
            else:
                has_progressed = True
                self._patience = max(self._patience, now() - started)

    async def _pause(self) -> None:
        if self._begin is None:
            self._begin = now() + self._wait
        if (left := self._begin - now()) > 0:
            await anyio.sleep(left)

    async def _read_page(self, backend: StorageBackend) -> None:
        size, asked = self._size or backend.page_size, now()
        page = await backend.list(
            self._prefix, limit=size, after=self._after, revision=self.revision
        )
        for entry in page.entries:
            item = self._keep(entry)
            if item is not None:
                self.items.append(item)
            self._after = entry.key
        self.revision = page.revision
        self._is_complete = not page.remaining
        if self._size is not None and _CUT * (now() - asked) < self._patience:
            self._size = min(2 * size, backend.page_size)
