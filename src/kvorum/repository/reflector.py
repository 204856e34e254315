"""List, then watch: the entries under a prefix, and every change to them, fed to a store.

A reflector knows bytes and revisions only. What it feeds decides what they mean: the queue of a
typed watch, or a cache. It is a state machine, as in `kube-rs`; `step` acts on the current state:

| state      | action                           | next       | history lost | other error |
|------------|----------------------------------|------------|--------------|-------------|
| `Empty`    | list on, then `store.replace`    | `Listed`   | `Empty`      | `Failed`    |
| `Listed`   | open a stream after the list     | `Watching` | `Empty`      | `Failed`    |
| `Watching` | read one revision                | `Changed`  | `Empty`      | `Failed`    |
| `Changed`  | `store.apply`                    | `Watching` | `Failed`     | `Failed`    |
| `Failed`   | close the stream, raise the error | `Closed`  |              |             |
| `Closed`   | raise `StopAsyncIteration`       | `Closed`   |              |             |

1. The state changes without an await after the effect that it records. A step that is cancelled is
   repeated by the next one, so no revision is lost. Of a list, the next step reads only the pages
   that are missing.
2. A step that finds itself in another state after an await was overtaken by `aclose`. It drops what
   it has read. `aclose` ends a list that is under way, and the store in `close` what it waits for.
3. A reflector that does not list starts in `Listed`. It has no way back to `Empty`: lost history
   fails it.
4. After the first relist an unavailable store counts as lost history: the reflector keeps listing
   until the store is back. `open` does not wait for that: it raises the error.
"""

import logging
import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import anyio
import msgspec

from kvorum.errors import HistoryLostError, KvorumError, UnavailableError
from kvorum.repository.listing import Listing
from kvorum.runtime import Limits
from kvorum.storage import (
    Change,
    Entry,
    HasBackend,
    StorageWatch,
    WatchStatistics,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Item(NamedTuple, Generic[T]):
    """A listed entry, with what the store made of it.

    Attributes:
        entry: the entry to keep: the listed one, or an equal one that the store has already.
        value: whatever the store needs again in `replace`.
    """

    entry: Entry
    value: T


class ReflectorStore(Protocol[T]):
    """What a reflector feeds. Every method but `apply` takes effect at once."""

    @abstractmethod
    def select(self, entry: Entry) -> Item[T] | None:
        """Return what to keep of a listed entry; None to drop it.

        It is called page by page, and again for all entries if a compaction overtakes the list. So
        it changes nothing. An error ends the reflector.
        """

    @abstractmethod
    def start(self, revision: int) -> None:
        """Start from a revision without a list: only later changes will come."""

    @abstractmethod
    def replace(self, items: Sequence[Item[T]], revision: int) -> None:
        """Hold the items of a list, which is whole at `revision`, instead of all before.

        An error ends the reflector.
        """

    @abstractmethod
    async def apply(self, changes: tuple[Change, ...]) -> None:
        """Apply all changes of one revision, or, if cancelled or failed, none of them.

        After a cancelled call the same changes come again. An error ends the reflector.
        """

    @abstractmethod
    def advance(self, revision: int) -> None:
        """Record that nothing else has happened up to a revision."""

    @abstractmethod
    def close(self) -> None:
        """Record that nothing more will come, and end an `apply` that waits. Idempotent."""


class Backoff(Limits, frozen=True):
    """Random waits between attempts, doubled by each failure. The first retry does not wait.

    Attributes:
        base: seconds; after `n` failures a wait is `base * 2**n` at the most.
        most: seconds; no wait is longer.
    """

    base: float = 0.05
    most: float = 1.0

    def bound(self, failures: int) -> float:
        """Return the upper bound of the wait after so many failures in a row, in seconds."""
        # The exponent is bounded, because a store can be away for days.
        return min(self.base * 2 ** min(failures, 32), self.most) if failures > 1 else 0.0

    def draw(self, failures: int) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        return random.uniform(0, self.bound(failures))  # noqa: S311 - no secret

    async def wait(self, failures: int) -> None:
        """Wait before the next attempt, after so many failures in a row."""
        if seconds := self.draw(failures):
            await anyio.sleep(seconds)


class _Empty(NamedTuple):
    """Nothing is listed yet, or what was listed cannot be continued. A list may be under way."""

    listing: Listing[Any]


class _Listed(NamedTuple):
    """Everything up to `revision` is in the store (None: what is current on opening)."""

    revision: int | None
    newest: Entry | None


class _Watching(NamedTuple):
    """The stream is open, and all that was read is in the store."""


class _Changed(NamedTuple):
    """The changes of a revision were read, and are not in the store yet."""

    changes: tuple[Change, ...]


class _Failed(NamedTuple):
    """An error was not raised yet."""

    error: KvorumError


class _Closed(NamedTuple):
    """Nothing more will come."""


_State: TypeAlias = _Empty | _Listed | _Watching | _Changed | _Failed | _Closed

_BACKOFF: Final = Backoff()
_WATCHING: Final = _Watching()
_CLOSED: Final = _Closed()


class Reflector(Generic[T]):
    """Keeps a store in step with the entries under a prefix. Call `step` in one task at a time.

    It refers to the store, and the store must not refer to it: so both are dropped at once, and the
    stream is cancelled on the server then.

    Args:
        client: where the entries are.
        prefix: what their keys start with.
        store: what to feed.
        lists: whether to list first, and again whenever history is lost.
        since: without a list, the revision after which to start; None: the current one.
        backoff: the waits between lists.

    Attributes:
        is_open: whether a stream has been opened.
    """

    def __init__(
        self,
        client: HasBackend,
        prefix: str,
        store: ReflectorStore[T],
        *,
        lists: bool = False,
        since: int | None = None,
        backoff: Backoff = _BACKOFF,
    ) -> None:
        self.is_open: bool = False
        self._client = client
        self._prefix = prefix
        self._store = store
        self._lists = lists
        self._backoff = backoff
        self._scope: anyio.CancelScope | None = None  # of a list that is under way
        self._stream: StorageWatch | None = None
        self._earlier = WatchStatistics(position=0)  # of the streams before this one
        self._has_listed = False
        self._relists = 0
        self._failures = 0  # lists and streams in a row that led to no change
        self._state: _State = self._to_list() if lists else _Listed(since, None)

    def __repr__(self) -> str:
        state = type(self._state).__name__.removeprefix("_").lower()
        return f"<Reflector {self._prefix} [{state}, at {self.statistics().position}]>"

    @property
    def is_closed(self) -> bool:
        """Whether it was closed or has failed."""
        return isinstance(self._state, _Closed | _Failed)

    @property
    def is_listed(self) -> bool:
        """Whether the next step opens a stream after a list, or where it starts without one."""
        return isinstance(self._state, _Listed)

    def statistics(self) -> WatchStatistics:
        """Return what it has done so far, over all its streams."""
        now = self._earlier if self._stream is None else self._stream.statistics()
        resumes = self._earlier.resumes + (0 if self._stream is None else now.resumes)
        return msgspec.structs.replace(now, resumes=resumes, relists=self._relists)

    async def open(self) -> None:
        """Take steps until the stream is open, or until it has listed and lost the history after.

        Raises: like `step`.
        """
        while isinstance(self._state, _Listed) or (
            isinstance(self._state, _Empty) and not self._has_listed
        ):
            await self.step(waits=False)

    async def step(self, *, waits: bool = True) -> None:
        """Act on the current state. A step that is cancelled loses nothing.

        Args:
            waits: whether an unavailable store is waited for after a relist.

        Raises:
            StopAsyncIteration: it is closed.
            KvorumError: it has failed, and is closed now. Raised once.
        """
        state = self._state
        try:
            match state:
                case _Watching():
                    await self._read(state)
                case _Empty():
                    await self._list(state)
                case _Listed():
                    await self._open(state)
                case _Changed():
                    await self._apply(state)
                case _Failed():
                    raise state.error
                case _Closed():
                    raise StopAsyncIteration
        except KvorumError as exc:
            if isinstance(self._state, _Closed):
                return
            if not self._may_list_again(exc, waits=waits):
                await self._fail(exc)
                raise
            self._list_again(exc)
        finally:
            del state  # it may hold the error, whose traceback holds this frame

    async def aclose(self) -> None:
        """End it, here and on the server. Idempotent."""
        self._state = _CLOSED
        if self._scope is not None:
            self._scope.cancel()
        await self._close()

    # --- the actions of the states ---

    async def _list(self, state: _Empty) -> None:
        listing: Listing[Item[T]] = state.listing
        try:
            with anyio.CancelScope() as self._scope:
                await listing.read(self._client.backend)
        finally:
            self._scope = None
        if self._state is not state or listing.revision is None:
            return
        self._store.replace(listing.items, listing.revision)
        entries = (item.entry for item in listing.items)
        newest = max(entries, key=lambda entry: entry.mod_revision, default=None)
        self._has_listed = True
        self._state = _Listed(listing.revision, newest)

    async def _open(self, state: _Listed) -> None:
        if self._stream is None:
            self._stream = self._client.backend.watch(
                self._prefix, since=state.revision, bookmarks=True
            )
            if state.newest is not None:
                self._stream.expect(state.newest)
        await self._stream.open()
        if self._state is not state:
            return
        if not self._lists:
            self._store.start(self._stream.revision)
        self.is_open = True
        self._state = _WATCHING

    async def _read(self, state: _Watching) -> None:
        assert self._stream is not None, "it was opened"  # noqa: S101
        changes = await anext(self._stream)
        if self._state is not state:
            return
        self._failures = 0
        if not changes:
            self._store.advance(self._stream.revision)
            return
        changed = _Changed(changes)
        self._state = changed
        await self._apply(changed)

    async def _apply(self, state: _Changed) -> None:
        await self._store.apply(state.changes)
        if self._state is state:
            self._state = _WATCHING

    # --- errors ---

    def _list_again(self, error: KvorumError) -> None:
        _log.warning("%r lists again: %s", self, error)
        self._earlier = self.statistics()
        self._stream = None  # it has ended with the error
        self._relists += 1
        self._failures += 1
        self._state = self._to_list()

    def _to_list(self) -> _Empty:
        wait = self._backoff.draw(self._failures)
        return _Empty(Listing(self._prefix, self._store.select, wait=wait))

    def _may_list_again(self, error: KvorumError, *, waits: bool) -> bool:
        if not self._lists or isinstance(self._state, _Changed | _Failed):
            return False
        is_away = isinstance(error, UnavailableError) and waits and self._relists > 0
        return is_away or isinstance(error, HistoryLostError)

    async def _fail(self, error: KvorumError) -> None:
        """Close before an error is raised. If that is cancelled, the next step raises it."""
        self._state = _Failed(error)
        await self._close()
        self._state = _CLOSED

    async def _close(self) -> None:
        self._store.close()
        if self._stream is not None:
            await self._stream.aclose()
