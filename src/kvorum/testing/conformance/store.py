"""What the suite needs beyond the port, to observe a store."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from kvorum.storage import StorageBackend


class Store(ABC):
    """A store under test."""

    @property
    @abstractmethod
    def backend(self) -> StorageBackend:
        """The backend."""

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Compact the history before a revision. The state at that revision stays readable."""

    @abstractmethod
    async def watchers(self) -> int:
        """Return the number of watches that the store serves now, of all clients."""


OpenStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens an empty store at each call."""

Compact: TypeAlias = Callable[[int], Awaitable[None]]
Watchers: TypeAlias = Callable[[], Awaitable[int]]
