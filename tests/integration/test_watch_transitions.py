"""The event of each transition between the values of a key; and that all is taken back."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
from tests.watching import cancel_in

import kvorum
from kvorum import (
    Added,
    Bookmark,
    Corrupt,
    CorruptResourceError,
    Deleted,
    HistoryLostError,
    Kind,
    Metadata,
    Modified,
    Repository,
    Resource,
)

KEY = "pets/a"


class PetSpec(msgspec.Struct):
    owner: str = ""
    legs: int = 4


class PetStatus(msgspec.Struct):
    pass


class Pet(Resource[PetSpec, PetStatus]):
    kind: ClassVar[Kind] = Kind("Pet", plural="pets", api_version="test.kvorum.dev/v1")


def value(team: str, legs: Any = 4, name: str = "a") -> bytes:
    metadata = {"name": name, "labels": {"team": team}, "uid": "u"}
    pet = {"apiVersion": "test.kvorum.dev/v1", "kind": "Pet", "metadata": metadata}
    return msgspec.json.encode(pet | {"spec": {"owner": team, "legs": legs}})


# What can be at the key. The selectors here select what is red.
VALUES: dict[str, bytes | None] = {
    "absent": None,
    "selected": value("red"),
    "other": value("blue"),
    "broken and other": value("blue", legs="many"),  # excluded by its labels
    "broken": value("red", legs="many"),
    "corrupt": b"?",
}
CORRUPT = {"broken", "corrupt"}
# The values written before the change, in order.
BEFORE = {
    "absent": ["absent"],
    "selected": ["selected"],
    "other": ["other"],
    "broken and other": ["broken and other"],
    "corrupt": ["corrupt"],
    "corrupt over absent": ["selected", "absent", "corrupt"],
    "corrupt over selected": ["selected", "corrupt"],
    "corrupt twice over selected": ["selected", "corrupt", "broken"],
    "corrupt over other": ["selected", "other", "corrupt"],
    "corrupt over broken and other": ["selected", "broken and other", "corrupt"],
}
SELECTORS: dict[str, Any] = {
    "labels": {"labels": "team=red"},
    "fields": {"fields": "spec.owner=red"},
}
TRANSITIONS = [(before, now) for before in BEFORE for now in VALUES if {before, now} != {"absent"}]


def expected(before: str, now: str, start: str = "since") -> type | None:
    """Return the event by the table in the guide.

    With `initial` only what was listed was delivered.
    """
    is_delivered = before == "selected" or (before.endswith("over selected") and start != "initial")
    if now in CORRUPT:
        return Corrupt
    if now == "selected":
        return Modified if before == "selected" else Added
    return Deleted if is_delivered else None


async def put(store: kvorum.StorageBackend, what: str) -> int:
    found = VALUES[what]
    if found is not None:
        return await store.set(KEY, found)
    if await store.exists(KEY):
        return (await store.delete(KEY)).revision
    return await store.set("elsewhere", b"")


async def delivered_at(watch: Any, store: kvorum.StorageBackend, revision: int) -> list[Any]:
    """Return the events of a revision."""
    end = await store.set("pets/end", value("red", name="end"))
    events = []
    with anyio.fail_after(10):
        async for event in watch:
            if event.resource_version == end:
                break
            events += [event] if event.resource_version == revision else []
    await store.delete("pets/end")
    return events


@pytest.fixture
def pets(client: kvorum.Client) -> Repository[Pet]:
    return client.repository(Pet)


@pytest.mark.parametrize("start", ["live", "since", "initial"])
@pytest.mark.parametrize(("before", "now"), TRANSITIONS)
async def test_each_transition_is_delivered_as_the_guide_says(
    pets: Repository[Pet], client: kvorum.Client, before: str, now: str, start: str
) -> None:
    """By a watch from the beginning, by one from just before the change, and by one that lists."""
    store = client.backend
    live = pets.watch(labels="team=red", on_corrupt="event")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(live)
        *_, last = [await put(store, what) for what in BEFORE[before]]
        if start != "live":
            await live.aclose()
        watch = {
            "live": live,
            "since": pets.watch(labels="team=red", on_corrupt="event", since=last),
            "initial": pets.watch(labels="team=red", on_corrupt="event", initial=True),
        }[start]
        if watch is not live:
            await stack.enter_async_context(watch)
        revision = await put(store, now)
        delivered = await delivered_at(watch, store, revision)

    wanted = expected(before, now, start)
    assert [type(event) for event in delivered] == ([wanted] if wanted else [])
    if delivered and isinstance(delivered[0], Deleted):
        assert delivered[0].resource.spec.legs == 4
        assert delivered[0].resource.metadata.resource_version == revision
    if delivered and isinstance(delivered[0], Corrupt):
        assert (delivered[0].key, delivered[0].name, delivered[0].revision) == (
            store.location(KEY),
            "a",
            revision,
        )


@pytest.mark.parametrize(("before", "now"), TRANSITIONS)
async def test_a_watch_that_raises_delivers_the_same_except_corrupt_values(
    pets: Repository[Pet], client: kvorum.Client, before: str, now: str
) -> None:
    *_, last = [await put(client.backend, what) for what in BEFORE[before]]
    async with pets.watch(labels="team=red", since=last) as watch:
        revision = await put(client.backend, now)
        if now in CORRUPT:
            with pytest.raises(CorruptResourceError) as caught:
                await delivered_at(watch, client.backend, revision)
            assert caught.value.revision == revision
            assert watch.checkpoint == last
            return
        delivered = await delivered_at(watch, client.backend, revision)

    assert [type(event) for event in delivered] == (
        [expected(before, now)] if expected(before, now) else []
    )


@pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS.keys())
@pytest.mark.parametrize("now", VALUES)
async def test_lists_and_watches_select_alike(
    pets: Repository[Pet], client: kvorum.Client, now: str, selector: dict[str, Any]
) -> None:
    async with pets.watch(**selector, on_corrupt="event") as watch:
        revision = await put(client.backend, now)
        found = await pets.list(**selector, on_corrupt="collect")
        delivered = await delivered_at(watch, client.backend, revision)

    assert [Added(pet) for pet in found] == [
        event for event in delivered if isinstance(event, Added)
    ]
    assert [error.revision for error in found.corrupt] == [
        each.revision for each in delivered if isinstance(each, Corrupt)
    ]


async def test_what_history_does_not_tell_any_more_is_lost_history(
    pets: Repository[Pet], client: kvorum.Client, compact: Callable[[int], Awaitable[None]]
) -> None:
    """Another watch may have delivered it. Listing again tells what is there."""
    await put(client.backend, "selected")
    await compact(await put(client.backend, "corrupt"))
    since = await client.backend.set("elsewhere", b"")
    async with pets.watch(since=since) as watch, pets.watch() as since_now:
        revision = await put(client.backend, "absent")

        assert await delivered_at(since_now, client.backend, revision) == []
        with pytest.raises(HistoryLostError):
            await anext(watch)


async def test_what_a_watch_has_seen_become_corrupt_is_deleted_without_history(
    pets: Repository[Pet], client: kvorum.Client, compact: Callable[[int], Awaitable[None]]
) -> None:
    async with pets.watch(on_corrupt="event") as watch:
        await put(client.backend, "selected")
        bad = await put(client.backend, "corrupt")
        assert [type(await anext(watch)) for _ in range(2)] == [Added, Corrupt]
        await compact(bad)
        revision = await put(client.backend, "absent")

        (gone,) = await delivered_at(watch, client.backend, revision)

    assert isinstance(gone, Deleted)


async def test_a_wait_that_is_cancelled_while_history_is_read_loses_nothing(
    pets: Repository[Pet], client: kvorum.Client
) -> None:
    await put(client.backend, "selected")
    bad = await put(client.backend, "corrupt")
    async with pets.watch(since=bad) as watch:
        await put(client.backend, "absent")
        await cancel_in(client.backend, "get", watch.__anext__)

        with anyio.fail_after(10):
            assert isinstance(await anext(watch), Deleted)


async def test_a_store_that_is_away_while_history_is_read_is_waited_for(
    pets: Repository[Pet], client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(client.backend, "selected")
    bad = await put(client.backend, "corrupt")
    read, failures = client.backend.get, iter([kvorum.UnavailableError("e:1", "away")] * 2)

    async def away_at_first(key: str, *, revision: int | None = None) -> kvorum.Entry | None:
        for failure in failures:
            raise failure
        return await read(key, revision=revision)

    async with pets.watch(since=bad) as watch:
        await put(client.backend, "absent")
        monkeypatch.setattr(client.backend, "get", away_at_first)

        with anyio.fail_after(10):
            assert isinstance(await anext(watch), Deleted)


async def test_a_watch_opens_where_something_is_corrupt(
    pets: Repository[Pet], client: kvorum.Client
) -> None:
    bad = await put(client.backend, "corrupt")
    good = await pets.add(Pet(metadata=Metadata(name="b"), spec=PetSpec(), status=PetStatus()))

    async with pets.watch(initial=True, on_corrupt="event") as watch:
        opened = [await anext(watch) for _ in range(3)]

    assert [type(event) for event in opened] == [Corrupt, Added, Bookmark]
    assert [event.resource_version for event in opened[:2]] == [bad, good.metadata.resource_version]


RELISTS: dict[tuple[str, str], list[type]] = {
    ("selected", "absent"): [Deleted],
    ("selected", "other"): [Deleted],
    ("selected", "selected"): [Modified],
    ("selected", "corrupt"): [Corrupt],
    ("corrupt", "absent"): [],
    ("corrupt", "selected"): [Added],
    ("corrupt", "corrupt"): [Corrupt],
    ("corrupt over selected", "absent"): [Deleted],
    ("corrupt over selected", "other"): [Deleted],
    ("corrupt over selected", "selected"): [Added],
    ("corrupt over selected", "corrupt"): [Corrupt],
}


@pytest.mark.parametrize(("before", "now"), RELISTS)
async def test_a_watch_that_lists_again_deletes_or_updates_what_it_has_delivered(
    before: str, now: str
) -> None:
    """A corrupt value is there: what was delivered before is not taken back until it is gone."""
    async with kvorum.connect("memory://") as client:
        store, pets = client.backend, client.repository(Pet)
        assert isinstance(store, kvorum.MemoryStorageBackend)
        watch = pets.watch(labels="team=red", initial=True, on_corrupt="event")
        async with watch:
            *_, last = [await put(store, what) for what in BEFORE[before]]
            await delivered_at(watch, store, last)
            for _ in range(1001):  # more than a watch in memory reads ahead
                await store.set("pets/noise", value("blue", name="noise"))
            revision = await put(store, now)
            await store.compact(revision)

            with anyio.fail_after(10):
                delivered = [await anext(watch)]
                while not isinstance(delivered[-1], Bookmark):
                    delivered.append(await anext(watch))
            end = await store.delete(KEY) if await store.exists(KEY) else None
            after = await delivered_at(watch, store, end.revision) if end is not None else []

        assert watch.statistics().relists == 1
    told = [event for event in delivered if not isinstance(event, Bookmark)]
    about_it = [
        event for event in told if isinstance(event, Corrupt) or event.resource.metadata.name == "a"
    ]
    assert [type(event) for event in about_it] == RELISTS[before, now]
    was_delivered = now == "selected" or (now == "corrupt" and before != "corrupt")
    assert [type(event) for event in after] == [Deleted] * was_delivered


async def test_an_unknown_way_to_treat_corruption_is_refused(pets: Repository[Pet]) -> None:
    with pytest.raises(kvorum.InvalidResourceError, match="on_corrupt"):
        pets.watch(on_corrupt="collect")  # type: ignore[call-overload]  # mypy rejects it, too
