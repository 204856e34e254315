"""However a watch ends, nothing is left: no task here, and no watcher on the server."""

import asyncio
import gc
from collections.abc import Awaitable, Callable

import anyio
import pytest
from tests.kinds import Task, task
from tests.waiting import until
from tests.watching import DEADLINE, assert_ended, commit_three, take, touch, version_of

import kvorum
from kvorum import Added, ClientClosedError, Repository, Watch, WatchEvent

Watchers = Callable[[], Awaitable[int]]


@pytest.mark.usefixtures("nothing_left")
async def test_a_bare_loop_that_is_left_leaves_nothing(tasks: Repository[Task]) -> None:
    start = version_of(await tasks.add(task()))
    await tasks.mutate("a", touch)

    async for _ in tasks.watch(since=start):
        break


@pytest.mark.usefixtures("nothing_left")
async def test_a_loop_that_is_left_by_an_error_leaves_nothing(tasks: Repository[Task]) -> None:
    start = version_of(await tasks.add(task()))
    await tasks.mutate("a", touch)

    async def fail() -> None:
        async for event in tasks.watch(since=start):
            _ = event.resource_version / 0

    with pytest.raises(ZeroDivisionError):
        await fail()


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("entered", [False, True], ids=["bare", "entered"])
@pytest.mark.usefixtures("nothing_left")
async def test_a_consumer_may_be_cancelled_at_any_point(
    tasks: Repository[Task], initial: bool, entered: bool
) -> None:
    await tasks.add(task())

    async def consume() -> None:
        watch = tasks.watch(initial=initial)
        if entered:
            async with watch:
                async for _ in watch:
                    pass
        else:
            async for _ in watch:
                pass

    for steps in range(60):
        consumer = asyncio.create_task(consume())
        for _ in range(steps):
            await asyncio.sleep(0)
        consumer.cancel()
        with anyio.fail_after(2):
            await asyncio.wait([consumer])
        assert consumer.cancelled()
        del consumer


@pytest.mark.usefixtures("nothing_left")
async def test_a_consumer_in_a_cancelled_scope_leaves_nothing(tasks: Repository[Task]) -> None:
    for seconds in (0, 0.001, 0.005, 0.05):
        with anyio.move_on_after(seconds) as scope:
            async with tasks.watch() as watch:
                async for _ in watch:
                    pass
        assert scope.cancelled_caught


@pytest.mark.usefixtures("nothing_left")
async def test_a_watch_may_be_closed_twice_and_at_any_stage(tasks: Repository[Task]) -> None:
    for initial in (False, True):
        unopened, opened = tasks.watch(initial=initial), tasks.watch(initial=initial)
        async with opened:
            await opened.aclose()
        for watch in (unopened, opened):
            await watch.aclose()
            await watch.aclose()
            await assert_ended(watch)


@pytest.mark.usefixtures("nothing_left")
async def test_closing_a_watch_ends_the_loop_that_waits(tasks: Repository[Task]) -> None:
    watch = tasks.watch()
    seen: list[WatchEvent[Task]] = []

    async def read() -> None:
        async for event in watch:
            seen.append(event)  # noqa: PERF401 - the test looks at it meanwhile

    async with watch:
        reading = asyncio.create_task(read())
        await tasks.add(task())
        await until(lambda: len(seen) == 1)
        await watch.aclose()

        with anyio.fail_after(DEADLINE):
            await reading


@pytest.mark.parametrize("initial", [False, True])
async def test_a_watch_that_is_closed_is_not_entered_again(
    tasks: Repository[Task], initial: bool
) -> None:
    """It would deliver nothing, and say nothing."""
    await tasks.add(task())
    watch = tasks.watch(initial=initial)
    async with watch:
        pass
    unopened = tasks.watch(initial=initial)
    await unopened.aclose()

    for closed in (watch, unopened):
        with pytest.raises(ClientClosedError, match="watch of tasks/ is closed: make another"):
            await closed.__aenter__()
        await assert_ended(closed)


@pytest.mark.usefixtures("nothing_left")
async def test_a_watch_that_is_entered_is_not_entered_again_and_goes_on(
    tasks: Repository[Task],
) -> None:
    async with tasks.watch() as watch:
        with pytest.raises(ClientClosedError, match="entered already"):
            async with watch:
                pass
        added = await tasks.add(task())
        assert await take(watch, 1) == [Added(added)]


@pytest.mark.usefixtures("nothing_left")
async def test_a_watch_that_was_iterated_may_be_entered_and_is_iterated_on(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task())
    watch = tasks.watch(since=version_of(first) - 1)
    assert await take(watch, 1) == [Added(first)]
    async with watch:
        second = await tasks.add(task("b"))
        assert await take(watch, 1) == [Added(second)]
    await assert_ended(watch)


async def test_closing_a_watch_drops_what_was_not_delivered(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    async with tasks.watch() as watch:
        await commit_three(store)
        await take(watch, 1)

    await assert_ended(watch)


@pytest.mark.usefixtures("nothing_left")
async def test_a_timeout_around_a_wait_loses_no_event(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    timed_out = asyncio.Event()

    async def write() -> list[int]:
        revisions: list[int] = []
        for number in range(60):
            if (
                number % 10 == 0
            ):  # the reader has to time out now and then, however fast the store is
                timed_out.clear()
                await timed_out.wait()
            revisions += [await commit_three(store)] * 3
        return revisions

    async with tasks.watch() as watch:
        writing = asyncio.create_task(write())
        delivered: list[int] = []
        with anyio.fail_after(DEADLINE):
            while len(delivered) < 180:
                try:
                    async with asyncio.timeout(0.0002):
                        delivered.append((await anext(watch)).resource_version)
                except TimeoutError:
                    timed_out.set()

        assert delivered == await writing


@pytest.mark.usefixtures("nothing_left")
async def test_a_watch_that_is_not_read_holds_up_no_other(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    unread = [tasks.watch() for _ in range(50)]
    for watch in unread:
        await watch.__aenter__()
    async with tasks.watch() as read:
        versions = [version_of(await tasks.mutate("a", touch)) for _ in range(100)]
        assert [event.resource_version for event in await take(read, 100)] == versions
    for watch in unread[:25]:
        assert [event.resource_version for event in await take(watch, 100)] == versions
        await watch.aclose()
    del unread, watch


async def test_a_watch_that_is_dropped_in_a_thread_leaves_nothing(
    tasks: Repository[Task], watchers: Watchers
) -> None:
    """Python's garbage collector can run in any thread."""
    held = [tasks.watch()]
    await held[0].__aenter__()
    await anyio.to_thread.run_sync(held.clear)

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


def test_a_watch_that_outlives_its_loop_is_dropped_in_silence(kvorum_url: str) -> None:
    """pytest fails this test for an error in a finalizer, which would go unnoticed otherwise."""
    held: list[Watch[Task]] = []

    async def leave_open() -> None:
        async with kvorum.connect(kvorum_url) as client:
            held.append(client.repository(Task).watch())
            await held[0].__aenter__()

    asyncio.run(leave_open())
    held.clear()
    gc.collect()


def test_a_watch_may_be_made_where_no_loop_runs(kvorum_url: str) -> None:
    """As a client and a repository may: at the top of a module, say."""
    client = kvorum.connect(kvorum_url)
    tasks = client.repository(Task)
    watch = tasks.watch()
    unused = tasks.watch()

    async def use() -> None:
        async with client, watch:
            added = await tasks.add(task())
            assert await take(watch, 1) == [Added(added)]

    asyncio.run(use())
    del unused
    gc.collect()
