"""A watch with `initial` that loses history lists again, also in a store that was restored."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tests.faulty_store import LOST, ClientOf, FaultyStore
from tests.integration.test_watch_transitions import Pet, put, value

import kvorum
from kvorum import Added, Bookmark, Repository
from kvorum.storage import Change, Entry


@pytest.fixture
def pets(client: kvorum.Client) -> Repository[Pet]:
    return client.repository(Pet)


@pytest.mark.parametrize("is_entered", [True, False])
async def test_history_that_is_lost_between_the_list_and_the_stream_is_listed_again(
    pets: Repository[Pet],
    client: kvorum.Client,
    compact: Callable[[int], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    is_entered: bool,
) -> None:
    await put(client.backend, "selected")
    list_page = client.backend.list
    compacted = 0

    async def overtaken(*args: Any, **kwargs: Any) -> Any:
        nonlocal compacted
        found = await list_page(*args, **kwargs)
        if not compacted:
            for _ in range(3):
                compacted = await client.backend.set("pets/b", value("red", name="b"))
            await compact(compacted)
        return found

    monkeypatch.setattr(client.backend, "list", overtaken)
    watch = pets.watch(initial=True)
    if is_entered:
        await watch.__aenter__()
    with anyio.fail_after(10):
        delivered = [await anext(watch) for _ in range(4)]
    await watch.aclose()

    assert [type(event) for event in delivered] == [Added, Bookmark, Added, Bookmark]
    assert delivered[-1].resource_version == compacted
    assert watch.statistics().relists == 1


@pytest.mark.parametrize("before", [value("blue"), b"?"], ids=["other", "corrupt"])
async def test_a_revision_that_is_reached_again_is_judged_again(before: bytes) -> None:
    """In a restored store the same revision has other content, of which nothing was delivered."""
    red = value("red")
    first = Change("pets/a", 105, Entry("pets/a", red, 105, 5, 1), None)
    again = Change(
        "pets/a", 110, Entry("pets/a", red, 110, 5, 3), Entry("pets/a", before, 105, 5, 2)
    )
    store = FaultyStore()
    store.stream_script.extend([(first,), LOST, (again,)])
    pets = Repository(ClientOf(store), Pet)
    async with pets.watch(initial=True, labels="team=red", on_corrupt="event") as watch:
        delivered = [await anext(watch) for _ in range(5)]
    await store.aclose()

    # The list finds nothing of what was delivered.
    assert [type(event).__name__ for event in delivered] == [
        "Bookmark",
        "Added",
        "Deleted",
        "Bookmark",
        "Added",
    ]
