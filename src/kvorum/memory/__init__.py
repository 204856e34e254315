"""The storage port in memory: for tests without a server, and for trying things out."""

from kvorum.memory.backend import MemoryStorageBackend

__all__ = ["MemoryStorageBackend"]
