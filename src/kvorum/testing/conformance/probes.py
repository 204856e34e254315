"""Short helpers that query a store."""

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from kvorum.storage import Change, Page, StorageBackend, StorageWatch

DEADLINE: Final = 10.0  # seconds


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Poll until a condition holds."""
    with anyio.fail_after(DEADLINE):
        while not await holds():  # noqa: ASYNC110 - a metric of the server has no event
            await anyio.sleep(0.01)


async def take(watch: StorageWatch, number: int) -> list[tuple[Change, ...]]:
    """Return the next revisions that a watch shows."""
    with anyio.fail_after(DEADLINE):
        return [await anext(watch) for _ in range(number)]


async def take_until(watch: StorageWatch, key: str) -> list[Change]:
    """Return all changes before the change of `key`.

    What a watch has not shown by then it never will.
    """
    taken: list[Change] = []
    with anyio.fail_after(DEADLINE):
        while True:
            changes = await anext(watch)
            if changes[0].key == key:
                return taken
            taken += changes


def keys_of(page: Page) -> list[str]:
    """Return the keys of a page, in order."""
    return [entry.key for entry in page.entries]


async def revision_of(backend: StorageBackend) -> int:
    """Return the current revision of a store."""
    return (await backend.list("", limit=1)).revision


async def fill(backend: StorageBackend, *keys: str) -> int:
    """Write keys, each with its own name as the value; return the last revision."""
    revision = 0
    for key in keys:
        revision = await backend.set(key, key.encode(errors="surrogateescape"))
    return revision


async def lease_of(backend: StorageBackend, key: str) -> int:
    """Return the lease of an existing key; 0 if it has none."""
    entry = await backend.get(key)
    assert entry is not None
    return entry.lease
