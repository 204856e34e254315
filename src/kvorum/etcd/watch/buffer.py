"""What a reader has read and its consumer has not taken yet."""

from collections import deque
from typing import Final

import anyio

from kvorum.storage import Change

# The reader stops reading while this many changes wait for the consumer, and continues when half of
# them are taken; etcd keeps the rest. One message more may be buffered: during a catch-up that is
# 1000 revisions, each with the changes of one transaction.
READ_AHEAD: Final = 256


class WatchBuffer:
    """The buffer between the reader of a watch and its consumer. Only `wait` waits.

    Attributes:
        is_wanted: whether the consumer has asked for anything yet. Until then nothing is read.
        is_ended: whether nothing more will be put.
        size: how many changes are buffered.
        events: how many changes were put in all.
        changed: set, and replaced, whenever the state of the buffer or of its reader changes.
    """

    def __init__(self) -> None:
        self.is_wanted: bool = False
        self.is_ended: bool = False
        self.size: int = 0
        self.events: int = 0
        self.changed: anyio.Event = anyio.Event()
        self._revisions: deque[tuple[int, tuple[Change, ...]]] = deque()
        self._error: Exception | None = None

    @property
    def is_full(self) -> bool:
        """Whether the reader should stop reading."""
        return self.size >= READ_AHEAD

    @property
    def has_room(self) -> bool:
        """Whether a reader that has stopped should continue."""
        return self.size <= READ_AHEAD // 2

    def notify(self) -> None:
        """Wake all tasks that wait for a change."""
        self.changed.set()
        self.changed = anyio.Event()

    # --- the consumer's side ---

    async def wait(self) -> None:
        """Wait until there is something to take, or never will be.

        A cancelled wait takes nothing.
        """
        if not self.is_wanted:
            self.is_wanted = True
            self.notify()
        while not self._revisions and not self.is_ended:
            await self.changed.wait()

    def take(self) -> tuple[int, tuple[Change, ...]] | None:
        """Take the oldest revision with its changes; None if the buffer is empty.

        Without changes, nothing has happened up to that revision.
        """
        if not self._revisions:
            return None
        revision, changes = self._revisions.popleft()
        had_room = self.has_room
        self.size -= len(changes)
        if self.has_room and not had_room:
            self.notify()
        return revision, changes

    def raise_error(self) -> None:
        """Raise the error that ended the watch, once."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def close(self) -> None:
        """End it, without an error, and drop its content."""
        self.is_ended = True
        self._error = None
        self._revisions.clear()
        self.size = 0
        self.notify()

    # --- the reader's side ---

    def put(self, revision: int, changes: tuple[Change, ...]) -> None:
        """Buffer the changes of a revision."""
        self._revisions.append((revision, changes))
        self.size += len(changes)
        self.events += len(changes)

    def put_bookmark(self, revision: int) -> None:
        """Record that nothing has happened up to a revision. It replaces a bookmark just before."""
        if self._revisions and not self._revisions[-1][1]:
            self._revisions.pop()
        self._revisions.append((revision, ()))

    def fail(self, error: Exception) -> None:
        """End it with an error, which is raised after the content is taken."""
        if not self.is_ended:
            self.is_ended = True
            self._error = error
            self.notify()
