"""The contract of the storage port for the end of a watch, and its cleanup."""

import asyncio
from itertools import count
from typing import Final

import anyio
import pytest

from kvorum.storage import Change, Operation, StorageBackend, StorageWatch
from kvorum.testing.conformance.probes import DEADLINE, take, until
from kvorum.testing.conformance.store import Watchers


async def _break(watch: StorageWatch) -> None:
    async for _ in watch:
        break


async def _cancel(watch: StorageWatch) -> None:
    consumer = asyncio.create_task(_consume(watch))
    await asyncio.sleep(0.01)
    consumer.cancel()
    await asyncio.wait([consumer])


async def _time_out(watch: StorageWatch) -> None:
    with anyio.move_on_after(0.01):
        await _consume(watch)


async def _close_twice(watch: StorageWatch) -> None:
    await anext(watch)
    await watch.aclose()
    await watch.aclose()


async def _close_during_a_wait(watch: StorageWatch) -> None:
    consumer = asyncio.create_task(_consume(watch))
    await asyncio.sleep(0.01)
    await watch.aclose()
    await consumer


async def _drop(watch: StorageWatch) -> None:
    await anext(watch)


async def _consume(watch: StorageWatch) -> None:
    async for _ in watch:
        pass


_WAYS: Final = {
    way.__name__.strip("_"): way
    for way in (_break, _cancel, _time_out, _close_twice, _close_during_a_wait, _drop)
}


class WatchEndsConformance:
    """Tests of the end of a watch, and its cleanup."""

    @pytest.mark.parametrize("way", _WAYS)
    async def test_however_a_watch_ends_nothing_of_it_is_left(
        self, backend: StorageBackend, watchers: Watchers, way: str
    ) -> None:
        """Neither in the store nor in the client: no task."""
        start = await backend.set("a", b"")
        await backend.set("a", b"")
        tasks = asyncio.all_tasks()
        watch = backend.watch("", since=start)
        await watch.open()
        assert await watchers() == 1

        with anyio.fail_after(DEADLINE):
            await _WAYS[way](watch)
        del watch

        async def is_nothing_left() -> bool:
            return await watchers() == 0 and asyncio.all_tasks() <= tasks

        await until(is_nothing_left)

    async def test_a_watch_that_is_left_is_gone_from_the_store(
        self, backend: StorageBackend, watchers: Watchers
    ) -> None:
        async with backend.watch("") as watch:
            assert await watchers() == 1
            await backend.set("a", b"")
            await take(watch, 1)

        async def is_none_left() -> bool:
            return await watchers() == 0

        await until(is_none_left)

    async def test_a_watch_that_is_merely_dropped_is_gone_from_the_store(
        self, backend: StorageBackend, watchers: Watchers
    ) -> None:
        watch = backend.watch("")
        await watch.open()
        await backend.set("a", b"")
        await take(watch, 1)
        assert await watchers() == 1

        del watch

        async def is_none_left() -> bool:
            return await watchers() == 0

        await until(is_none_left)

    async def test_a_watch_with_an_unread_backlog_that_is_dropped_is_gone_from_the_store(
        self, backend: StorageBackend, watchers: Watchers
    ) -> None:
        """Its reader waits for room in the buffer, not for the store: that must end, too."""
        start = await backend.set("a", b"")
        for _ in range(30):
            await backend.commit([Operation.put(f"k{number}", b"") for number in range(100)])
        watch = backend.watch("", since=start)
        await take(watch, 1)
        assert await watchers() == 1

        del watch

        async def is_none_left() -> bool:
            return await watchers() == 0

        await until(is_none_left)

    async def test_a_watch_may_be_closed_any_number_of_times_and_at_any_stage(
        self, backend: StorageBackend
    ) -> None:
        unopened = backend.watch("")
        await unopened.aclose()
        await unopened.aclose()
        opened = backend.watch("")
        await opened.open()
        await opened.open()
        await asyncio.gather(opened.aclose(), opened.aclose())
        await opened.aclose()

        for watch in (unopened, opened):
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

    async def test_a_closed_watch_shows_nothing_that_it_had_read_ahead(
        self, backend: StorageBackend
    ) -> None:
        """Nor what arrives during closing, so several points of the stream are tried."""
        for turns in range(100):
            async with backend.watch("") as watch:
                for _ in range(3):
                    await backend.set("a", b"")
                for _ in range(turns % 10):
                    await asyncio.sleep(0)
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

    async def test_closing_a_watch_ends_a_waiting_iteration(self, backend: StorageBackend) -> None:
        watch = backend.watch("")
        await watch.open()
        shown: list[Change] = []

        async def read() -> None:
            async for changes in watch:
                shown.extend(changes)

        reader = asyncio.create_task(read())
        await backend.set("a", b"")

        async def is_shown() -> bool:  # then the reader waits again
            return len(shown) == 1

        await until(is_shown)
        await watch.aclose()

        with anyio.fail_after(DEADLINE):
            await reader
        assert len(shown) == 1

    async def test_a_wait_that_timed_out_has_taken_nothing(self, backend: StorageBackend) -> None:
        revisions: list[int] = []
        timed_out = asyncio.Event()

        async def write() -> None:
            for number in range(200):
                if number % 20 == 0:  # so that some waits time out, however fast the store is
                    timed_out.clear()
                    await timed_out.wait()
                revisions.append(await backend.set("a", b""))

        async with backend.watch("") as watch:
            writer = asyncio.create_task(write())
            shown: list[int] = []
            with anyio.fail_after(DEADLINE):
                while len(shown) < 200:
                    try:
                        async with asyncio.timeout(0.0002):
                            shown += [change.revision for change in await anext(watch)]
                    except TimeoutError:
                        timed_out.set()
            await writer

        assert shown == revisions

    async def test_a_wait_whose_task_was_cancelled_has_taken_nothing(
        self, backend: StorageBackend
    ) -> None:
        """Asyncio's cancellation can strike between the arrival of a change and its delivery."""
        revisions: list[int] = []

        async def write() -> None:
            for _ in range(200):
                revisions.append(await backend.set("a", b""))  # noqa: PERF401 - read concurrently

        async def take_one(watch: StorageWatch) -> tuple[Change, ...]:
            return await anext(watch)

        async with backend.watch("") as watch:
            writer = asyncio.create_task(write())
            shown: list[int] = []
            cancelled = 0
            with anyio.fail_after(DEADLINE):
                for turns in count():
                    waiter = asyncio.create_task(take_one(watch))
                    for _ in range(turns % 5):
                        await asyncio.sleep(0)
                    waiter.cancel()
                    try:
                        shown += [change.revision for change in await waiter]
                    except asyncio.CancelledError:
                        cancelled += 1
                    if len(shown) == 200:
                        break
            await writer

        assert shown == revisions
        assert cancelled > 0

    async def test_opening_a_watch_may_be_cancelled_at_any_point(
        self, backend: StorageBackend, watchers: Watchers
    ) -> None:
        for turns in range(30):
            watch = backend.watch("")
            opening = asyncio.create_task(watch.open())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            del watch, opening

        async def is_none_left() -> bool:
            return await watchers() == 0

        await until(is_none_left)

    async def test_closing_a_watch_that_is_being_opened_waits_for_nothing(
        self, backend: StorageBackend, watchers: Watchers
    ) -> None:
        """Closing must not wait for the deadline of an opening that is no longer wanted."""
        for turns in range(30):
            watch = backend.watch("")
            opening = asyncio.create_task(watch.open())
            for _ in range(turns):
                await asyncio.sleep(0)
            with anyio.fail_after(2):
                await watch.aclose()
                await opening
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

        async def is_none_left() -> bool:
            return await watchers() == 0

        await until(is_none_left)

    async def test_a_watch_whose_opening_was_cancelled_can_still_be_opened(
        self, backend: StorageBackend
    ) -> None:
        watch = backend.watch("")
        opening = asyncio.create_task(watch.open())
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])

        async with watch:
            revision = await backend.set("a", b"")
            assert (await take(watch, 1))[0][0].revision == revision

    async def test_a_reader_far_behind_gets_a_long_backlog_whole_and_in_order(
        self, backend: StorageBackend
    ) -> None:
        start = await backend.set("a", b"")
        revisions = [
            await backend.commit([Operation.put(f"k{number}", b"") for number in range(20)])
            for _ in range(500)
        ]

        async with backend.watch("", since=start) as watch:
            shown = await take(watch, 500)

        assert [changes[0].revision for changes in shown] == revisions
        assert {len(changes) for changes in shown} == {20}
