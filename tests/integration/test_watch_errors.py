"""What a watch cannot deliver it raises, once, and ends."""

from collections.abc import Awaitable, Callable

import pytest
from tests.kinds import Task, task, task_by_hand
from tests.watching import assert_ended, cancel_in, take, touch, version_of

import kvorum
from kvorum import (
    Added,
    CorruptResourceError,
    FutureRevisionError,
    HistoryLostError,
    Operation,
    Repository,
)


@pytest.mark.usefixtures("nothing_left")
async def test_a_value_that_cannot_be_decoded_is_named_once_and_nothing_comes_after_it(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    watch = tasks.watch()
    async with watch:
        good = await tasks.add(task("good"))
        bad = await store.commit(
            [Operation.put("tasks/bad", b"{}"), Operation.put("tasks/c", task_by_hand("c"))]
        )
        await tasks.add(task("after"))

        assert await take(watch, 1) == [Added(good)]
        with pytest.raises(CorruptResourceError) as caught:
            await take(watch, 1)
        await assert_ended(watch)

    assert caught.value.key.endswith("tasks/bad")
    assert caught.value.revision == bad
    assert watch.checkpoint == version_of(good)


async def test_an_error_whose_wait_was_cancelled_is_raised_by_the_next_one(
    tasks: Repository[Task], store: kvorum.StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is closed before it is raised, which takes a moment.

    A timeout may end the wait just then.
    """
    stream = store.watch("tasks/", bookmarks=True)
    monkeypatch.setattr(store, "watch", lambda *_, **__: stream)
    watch = tasks.watch()
    async with watch:
        bad = await store.set("tasks/bad", b"{}")
        await cancel_in(stream, "aclose", watch.__anext__)

        with pytest.raises(CorruptResourceError) as caught:
            await take(watch, 1)
        await assert_ended(watch)
    assert caught.value.revision == bad


async def test_what_takes_the_place_of_what_was_corrupt_is_added(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """What was there was never delivered, and matching on `Modified` must not raise."""
    await store.set("tasks/a", b"{}")
    async with tasks.watch() as watch:
        await store.set("tasks/a", task_by_hand("a"))
        (event,) = await take(watch, 1)

    assert event == Added(await tasks.get("a"))


async def test_a_start_in_the_future_is_refused_once(tasks: Repository[Task]) -> None:
    future = version_of(await tasks.add(task())) + 1_000_000
    watch = tasks.watch(since=future)

    with pytest.raises(FutureRevisionError) as caught:
        await take(watch, 1)

    assert caught.value.revision == future
    await assert_ended(watch)


async def test_a_start_in_lost_history_is_refused_once(
    tasks: Repository[Task], compact: Callable[[int], Awaitable[None]]
) -> None:
    old = version_of(await tasks.add(task()))
    await tasks.mutate("a", touch)
    await compact(version_of(await tasks.mutate("a", touch)))
    watch = tasks.watch(since=old)

    with pytest.raises(HistoryLostError):
        await take(watch, 1)

    await assert_ended(watch)
    assert watch.checkpoint == old


async def test_a_refused_start_leaves_the_checkpoint_where_it_was(tasks: Repository[Task]) -> None:
    """A consumer that stores it must not be thrown back to 0 by an error."""
    future = version_of(await tasks.add(task())) + 1_000_000
    watch = tasks.watch(since=future)
    with pytest.raises(FutureRevisionError):
        await take(watch, 1)
    await assert_ended(watch)

    assert watch.checkpoint == future


async def test_deleting_a_corrupt_value_ends_no_watch(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """It was never delivered, and an error would end the watch again wherever it resumes."""
    await store.set("tasks/bad", b"{}")
    async with tasks.watch() as everything, tasks.watch(labels="!x") as some:
        await store.delete("tasks/bad")
        good = await tasks.add(task("good"))

        assert await take(some, 1) == [Added(good)]
        assert await take(everything, 1) == [Added(good)]
