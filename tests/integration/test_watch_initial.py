"""A watch with `initial`: all there is, then a bookmark, then what follows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tests.kinds import Task, task
from tests.watching import assert_ended, take, take_until, touch, version_of

import kvorum
from kvorum import (
    Added,
    Bookmark,
    CorruptResourceError,
    Deleted,
    InvalidResourceError,
    Modified,
    Repository,
    WatchEvent,
)
from kvorum.testing import FaultProxy

Watchers = Callable[[], Awaitable[int]]


async def test_an_initial_watch_delivers_what_is_there_then_a_bookmark_then_what_follows(
    tasks: Repository[Task],
) -> None:
    there = [await tasks.add(task(name)) for name in ("a", "b")]
    listed = await tasks.list()
    async with tasks.watch(initial=True) as watch:
        assert watch.checkpoint == 0
        assert await take(watch, 2) == [Added(each) for each in there]
        assert watch.checkpoint == 0  # a consumer that stops here has no complete state
        (bookmark,) = await take(watch, 1)
        assert isinstance(bookmark, Bookmark)
        assert bookmark.resource_version >= listed.resource_version
        assert watch.checkpoint == bookmark.resource_version
        modified = await tasks.mutate("a", touch)
        assert await take(watch, 1) == [Modified(modified, there[0])]


async def test_an_initial_watch_of_nothing_begins_with_its_bookmark(
    tasks: Repository[Task],
) -> None:
    async with tasks.watch(initial=True) as watch:
        assert [type(event) for event in await take(watch, 1)] == [Bookmark]


async def test_an_initial_watch_with_a_selector_delivers_what_it_matches(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task("a"))
    mine = await tasks.add(task("b", labels={"on": "yes"}))
    async with tasks.watch(initial=True, labels="on=yes") as watch:
        first, bookmark = await take(watch, 2)
        assert first == Added(mine)
        assert isinstance(bookmark, Bookmark)
        deleted = await tasks.delete("b")
        assert await take(watch, 1) == [Deleted(deleted)]


async def test_an_initial_watch_misses_nothing_while_others_write(tasks: Repository[Task]) -> None:
    for number in range(5):
        await tasks.add(task(f"t{number}"))

    async def write() -> None:
        for number in range(100):
            await tasks.mutate(f"t{number % 5}", touch)

    writing = asyncio.create_task(write())
    known: dict[str, Task] = {}
    async with tasks.watch(initial=True) as watch:
        await writing
        end = await tasks.add(task("end"))
        for event in await take_until(watch, version_of(end)):
            if isinstance(event, Modified):
                assert event.previous == known[event.resource.metadata.name]
            if isinstance(event, Added | Modified):
                known[event.resource.metadata.name] = event.resource

    assert known == {each.metadata.name: each for each in await tasks.list()}


async def test_the_initial_state_comes_as_one_revision(tasks: Repository[Task]) -> None:
    there = [await tasks.add(task(name)) for name in ("a", "b")]
    async with tasks.watch(initial=True) as watch:
        (*added, bookmark) = await anext(watch.revisions())

        assert added == [Added(each) for each in there]
        assert watch.checkpoint == bookmark.resource_version


def test_a_watch_has_either_a_start_or_an_initial_state(kvorum_url: str) -> None:
    with pytest.raises(InvalidResourceError, match="either"):
        kvorum.connect(kvorum_url).repository(Task).watch(since=1, initial=True)


async def test_a_value_that_cannot_be_decoded_ends_an_initial_watch_too(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    await tasks.add(task("a"))
    bad = await store.set("tasks/bad", b"{}")
    watch = tasks.watch(initial=True)

    with pytest.raises(CorruptResourceError) as caught:
        await take(watch, 1)

    assert caught.value.revision == bad
    await assert_ended(watch)


async def test_an_initial_watch_that_is_closed_while_it_lists_delivers_nothing_and_leaves_nothing(
    tasks: Repository[Task],
    store: kvorum.StorageBackend,
    watchers: Watchers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its stream must not be opened after it was closed: it would stay open."""
    await tasks.add(task())
    listing, go_on = anyio.Event(), anyio.Event()
    list_now = type(store).list

    async def list_when_told(*args: Any, **options: Any) -> kvorum.Page:
        listing.set()
        await go_on.wait()
        return await list_now(*args, **options)

    monkeypatch.setattr(type(store), "list", list_when_told)
    watch = tasks.watch(initial=True)

    async def read() -> list[WatchEvent[Task]]:
        return [event async for event in watch]

    reading = asyncio.create_task(read())
    await listing.wait()
    await watch.aclose()
    go_on.set()
    with anyio.fail_after(2):
        delivered = await reading

    assert delivered == []
    assert await watchers() == 0


@pytest.mark.usefixtures("nothing_left")
async def test_an_initial_loop_that_is_left_at_once_leaves_nothing(tasks: Repository[Task]) -> None:
    for name in "abc":
        await tasks.add(task(name))

    async for _ in tasks.watch(initial=True):
        break
    async for events in tasks.watch(initial=True).revisions():
        assert len(events) == 4
        break


@pytest.mark.parametrize("by_revision", [False, True])
async def test_a_bare_loop_survives_an_outage_while_it_handles_what_was_listed(
    etcd: kvorum.EmbeddedEtcd, proxy: FaultProxy, by_revision: bool
) -> None:
    """Its stream is opened before the first event: an open watch waits, however long that is."""
    settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), timeout=0.5)
    async with kvorum.connect(etcd.url) as other, kvorum.connect(settings) as client:
        mine = other.repository(Task)
        await mine.add(task("a"))
        await mine.add(task("b"))
        watch = client.repository(Task).watch(initial=True)
        with anyio.fail_after(10):
            delivered = list(await watch.next_revision()) if by_revision else [await anext(watch)]
        proxy.cut()
        await proxy.refuse()
        with anyio.move_on_after(2):  # far more than the timeout
            async for event in watch:
                delivered.append(event)
        await mine.add(task("c"))
        await proxy.heal()
        delivered += await take(watch, 1)

    assert [type(event) for event in delivered] == [Added, Added, Bookmark, Added]
    assert (watch.statistics().resumes, watch.statistics().relists) == (1, 0)
