"""What the suite asks of a store beyond the port, so that it can look at what the port does not show."""

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
        """Forget all history before a revision; the state at it can still be read."""

    @abstractmethod
    async def watchers(self) -> int:
        """Count the watches that the store serves now, whosever they are."""


OpenStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens an empty store, each time that it is called."""

Compact: TypeAlias = Callable[[int], Awaitable[None]]
Watchers: TypeAlias = Callable[[], Awaitable[int]]
