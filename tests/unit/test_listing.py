"""A list that keeps what it has read when its caller gives up."""

from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest
from typing_extensions import override

from kvorum import FutureRevisionError, HistoryLostError, MemoryStorageBackend, Page
from kvorum.repository.listing import Listing
from kvorum.storage import Entry

pytestmark = pytest.mark.anyio


class Store(MemoryStorageBackend):
    """A store that does something before each page, and records how large pages were to be."""

    def __init__(self) -> None:
        super().__init__(page_size=8)
        self.asked: list[int | None] = []
        self.before_page: Callable[[], None] = lambda: None

    @override
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        self.asked.append(limit)
        self.before_page()
        await anyio.lowlevel.checkpoint()
        return await super().list(prefix, limit=limit, after=after, revision=revision)

    def cancel_in(self, scope: anyio.CancelScope, page: int) -> None:
        """Cancel a scope when this page is requested."""
        self.before_page = lambda: scope.cancel() if len(self.asked) == page else None


@pytest.fixture
async def store() -> Store:
    store = Store()
    for number in range(40):
        await store.set(f"pods/{number:02}", b"1")
    return store


def keep(entry: Entry) -> str:
    return entry.key


async def give_up_in(store: Store, listing: Listing[str], page: int) -> None:
    with anyio.CancelScope() as scope:
        store.cancel_in(scope, page)
        await listing.read(store)
    assert scope.cancelled_caught
    store.before_page = lambda: None


async def test_a_read_that_is_cancelled_loses_only_the_page_that_is_under_way(
    store: Store,
) -> None:
    listing = Listing("pods/", keep)
    await give_up_in(store, listing, 3)
    assert listing.items == [f"pods/{number:02}" for number in range(16)]
    at = listing.revision
    await store.set("pods/00", b"2")
    await store.set("pods/99", b"later")

    await listing.read(store)

    assert listing.items == [f"pods/{number:02}" for number in range(40)]
    assert listing.revision == at
    assert store.asked == [8] * 6


async def test_pages_are_smaller_while_not_even_one_arrives_in_time(store: Store) -> None:
    listing = Listing("pods/", keep)
    for page in (1, 2, 3, 4):
        await give_up_in(store, listing, page)

    assert store.asked == [8, 2, 1, 1]


async def test_pages_are_larger_again_once_the_caller_waits(store: Store) -> None:
    listing = Listing("pods/", keep)
    for page in (1, 2):
        await give_up_in(store, listing, page)

    await listing.read(store)

    assert len(listing.items) == 40
    assert store.asked[2] == 1
    assert store.asked[-1] == 8


async def test_pages_that_are_compacted_meanwhile_are_read_again(store: Store) -> None:
    listing = Listing("pods/", keep)
    await give_up_in(store, listing, 3)
    await store.compact(now := await store.set("pods/00", b"2"))

    await listing.read(store)

    assert listing.items == [f"pods/{number:02}" for number in range(40)]
    assert listing.revision == now


@pytest.mark.parametrize(
    "error", [HistoryLostError(revision=1), FutureRevisionError(revision=1)], ids=["lost", "future"]
)
async def test_a_list_whose_revision_is_gone_three_times_is_given_up(
    store: Store, error: Exception
) -> None:
    def fail() -> None:
        if len(store.asked) % 2 == 0:
            raise error

    store.before_page = fail
    with pytest.raises(type(error)):
        await Listing("pods/", keep).read(store)
    assert len(store.asked) == 6


async def test_a_wait_before_the_first_page_goes_on_while_nobody_waits(store: Store) -> None:
    listing = Listing("pods/", keep, wait=0.1)
    with anyio.fail_after(10):
        while not store.asked:
            with anyio.move_on_after(0.01):
                await listing.read(store)
    await listing.read(store)

    assert len(listing.items) == 40
