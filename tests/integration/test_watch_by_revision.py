"""A watch is whole by revision: all events of a transaction are delivered together."""

import anyio
import pytest
from tests.kinds import Task, task
from tests.watching import DEADLINE, commit_three, take, touch, version_of

import kvorum
from kvorum import Added, Repository


async def test_a_transaction_of_three_gives_three_events_of_one_revision(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    async with tasks.watch() as watch:
        revision = await commit_three(store)

        events = await take(watch, 3)
        assert sorted(e.resource.metadata.name for e in events if isinstance(e, Added)) == [
            "a",
            "b",
            "c",
        ]
        assert {event.resource_version for event in events} == {revision}


async def test_a_consumer_that_stops_within_a_revision_gets_all_of_it_again_from_the_checkpoint(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    before = await tasks.add(task("before"))
    async with tasks.watch(since=version_of(before)) as watch:
        revision = await commit_three(store)
        for _ in range(2):
            await take(watch, 1)
            assert watch.checkpoint == version_of(before)
    async with tasks.watch(since=watch.checkpoint) as watch:
        await take(watch, 3)
        assert watch.checkpoint == revision


async def test_revisions_are_tuples_of_what_was_not_delivered_yet(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    async with tasks.watch() as watch:
        await commit_three(store)
        single = await tasks.add(task("d"))
        await take(watch, 1)

        with anyio.fail_after(DEADLINE):
            assert len(await watch.next_revision()) == 2
            assert await anext(watch.revisions()) == (Added(single),)
        assert watch.checkpoint == version_of(single)


async def test_iterating_over_revisions_ends_with_the_watch(tasks: Repository[Task]) -> None:
    watch = tasks.watch()
    await tasks.add(task())
    seen = 0
    async with watch:
        await tasks.mutate("a", touch)
        async for events in watch.revisions():
            seen += len(events)
            await watch.aclose()

    assert seen == 1
    with pytest.raises(StopAsyncIteration):
        await watch.next_revision()
