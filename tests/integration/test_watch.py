"""What a typed watch delivers, from any start, with and without selectors."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tests.kinds import Task, TeamTask, task, task_by_hand, team_task
from tests.waiting import until
from tests.watching import DEADLINE, commit_three, take, take_until, touch, version_of

import kvorum
from kvorum import (
    Added,
    Bookmark,
    Deleted,
    InvalidResourceError,
    InvalidSelectorError,
    Modified,
    Operation,
    Repository,
)


async def test_a_watch_tells_the_life_of_a_resource(tasks: Repository[Task]) -> None:
    async with tasks.watch() as watch:
        added = await tasks.add(task())
        modified = await tasks.mutate("a", touch)
        deleted = await tasks.delete("a")

        assert await take(watch, 3) == [Added(added), Modified(modified, added), Deleted(deleted)]


async def test_events_can_be_told_apart_by_patterns(tasks: Repository[Task]) -> None:
    said: list[str] = []
    async with tasks.watch(initial=True) as watch:
        await tasks.add(task())
        await tasks.mutate("a", touch)
        await tasks.delete("a")
        for event in await take(watch, 4):
            match event:
                case Added(resource=it):
                    said.append(f"added {it.metadata.name}")
                case Modified(it, previous):
                    said.append(f"{previous.spec.owner!r} became {it.spec.owner!r}")
                case Deleted(it):
                    said.append(f"deleted {it.metadata.name}")
                case Bookmark(resource_version=version):
                    said.append("bookmark" if version > 0 else "nothing")

    assert said == ["bookmark", "added a", "'' became 'x'", "deleted a"]


async def test_events_say_what_they_are_about(tasks: Repository[Task]) -> None:
    async with tasks.watch() as watch:
        added = await tasks.add(task())

        (event,) = await take(watch, 1)
        assert event.resource_version == version_of(added)
        assert repr(event) == f"<Added tasks/a at {version_of(added)}>"


async def test_a_deletion_is_delivered_just_as_delete_returned_it(tasks: Repository[Task]) -> None:
    await tasks.add(task(labels={"x": "y"}, annotations={"n": "m"}))
    async with tasks.watch() as watch:
        deleted = await tasks.delete("a")

        (event,) = await take(watch, 1)
        assert event == Deleted(deleted)
        assert event.resource_version == version_of(deleted)


async def test_a_delivered_resource_can_be_updated_at_once(tasks: Repository[Task]) -> None:
    async with tasks.watch() as watch:
        await tasks.add(task())
        (event,) = await take(watch, 1)
        assert isinstance(event, Added)
        event.resource.spec.owner = "ann"

        assert await tasks.update(event.resource) == await tasks.get("a")


async def test_a_watch_since_a_version_delivers_what_came_after_it_and_never_itself(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task("a"))
    second = await tasks.add(task("b"))
    async with tasks.watch(since=version_of(first)) as watch:
        assert await take(watch, 1) == [Added(second)]
    async with tasks.watch(since=version_of(second)) as watch:
        third = await tasks.add(task("c"))
        assert await take(watch, 1) == [Added(third)]


async def test_a_watch_resumes_from_a_list_without_a_gap(tasks: Repository[Task]) -> None:
    """List, then watch from its version, while others write: together they are the whole truth."""
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            await tasks.add(task(f"t{number}"))
            if number % 3 == 0:
                await tasks.delete(f"t{number - 1}")

    writing = asyncio.create_task(write())
    listed = await tasks.list()
    with anyio.fail_after(DEADLINE):
        while len(listed) < 10:
            listed = await tasks.list()
    known = {each.metadata.name: each for each in listed}
    async with tasks.watch(since=listed.resource_version) as watch:
        for event in await take(watch, 20):
            if isinstance(event, Deleted):
                del known[event.resource.metadata.name]
            elif isinstance(event, Added):
                assert event.resource.metadata.name not in known
                known[event.resource.metadata.name] = event.resource
        seen = watch.checkpoint
    stop = True
    await writing

    assert known == {each.metadata.name: each for each in await tasks.list(at=seen)}


async def test_from_any_start_a_watch_is_ordered_complete_and_whole_by_revision(  # noqa: PLR0915 - one scene
    tasks: Repository[Task], store: kvorum.StorageBackend, compact: Callable[[int], Awaitable[None]]
) -> None:
    """From each of the last hundred revisions, while others write and history is compacted."""
    choose = random.Random(18)
    first = await tasks.add(task("first"))
    history: list[tuple[int, set[tuple[type, str]]]] = []

    async def write() -> None:
        names = choose.sample([f"t{n}" for n in range(8)], choose.choice([1, 1, 1, 3]))
        there = {name: await store.exists(f"tasks/{name}") for name in names}
        gone = {name for name in names if there[name] and choose.random() < 0.4}
        revision = await store.commit(
            [
                Operation.delete(f"tasks/{name}")
                if name in gone
                else Operation.put(f"tasks/{name}", task_by_hand(name))
                for name in names
            ]
        )
        kinds = {n: Deleted if n in gone else Modified if there[n] else Added for n in names}
        history.append((revision, {(kind, name) for name, kind in kinds.items()}))

    for _ in range(100):
        await write()
    starts = [version_of(first), *(revision for revision, _ in history)]

    async def follow(start: int) -> list[tuple[int, set[tuple[type, str]]]]:
        delivered: list[tuple[int, set[tuple[type, str]]]] = []
        async with tasks.watch(since=start) as watch:
            async for events in watch.revisions():
                versions = {event.resource_version for event in events}
                assert len(versions) == 1
                assert watch.checkpoint in versions
                told = {
                    (type(e), e.resource.metadata.name)
                    for e in events
                    if not isinstance(e, Bookmark)
                }
                assert len(told) == len(events)
                delivered.append((watch.checkpoint, told))
                if any(name == "end" for _, name in told):
                    return delivered
        raise AssertionError("the watch ended")

    following = [asyncio.create_task(follow(start)) for start in starts]
    await compact(version_of(first))
    for _ in range(50):
        await write()
    end = await tasks.add(task("end"))
    history.append((version_of(end), {(Added, "end")}))

    with anyio.fail_after(DEADLINE):
        for start, delivered in zip(starts, await asyncio.gather(*following), strict=True):
            assert delivered == [each for each in history if each[0] > start]


async def test_a_namespace_can_be_watched_alone(client: kvorum.Client) -> None:
    tasks = client.repository(TeamTask)

    async def add(namespace: str, name: str) -> TeamTask:
        return await tasks.add(team_task(namespace, name))

    async with tasks.watch(namespace="team-a") as one, tasks.watch() as all_of_them:
        first = await add("team-a", "x")
        await add("team-ab", "x")
        last = await add("team-a", "y")

        with anyio.fail_after(DEADLINE):
            assert [await anext(one), await anext(one)] == [Added(first), Added(last)]
            events = [await anext(all_of_them) for _ in range(3)]
        assert [e.resource.metadata.namespace for e in events if isinstance(e, Added)] == [
            "team-a",
            "team-ab",
            "team-a",
        ]


@pytest.mark.parametrize(
    "selector", [{"labels": "on=yes"}, {"fields": "spec.owner=ann"}], ids=["labels", "fields"]
)
async def test_a_selector_makes_coming_in_an_addition_and_going_out_a_deletion(
    tasks: Repository[Task], selector: dict[str, Any]
) -> None:
    def switch(*, on: bool, phase: str) -> Callable[[Task], None]:
        def change(current: Task) -> None:
            current.metadata.labels = {"on": "yes"} if on else {"on": "no"}
            current.spec.owner = "ann" if on else "bob"
            current.status.phase = phase

        return change

    async with tasks.watch(**selector) as watch:
        await tasks.add(task())
        await tasks.mutate("a", switch(on=False, phase="0"))  # outside
        came = await tasks.mutate("a", switch(on=True, phase="1"))
        stayed = await tasks.mutate("a", switch(on=True, phase="2"))
        went = await tasks.mutate("a", switch(on=False, phase="3"))
        await tasks.mutate("a", switch(on=False, phase="4"))  # outside
        back = await tasks.mutate("a", switch(on=True, phase="5"))
        deleted = await tasks.delete("a")
        await tasks.add(task())  # outside
        await tasks.delete("a")  # outside
        end = await tasks.mutate(
            (await tasks.add(task("end"))).metadata.name, switch(on=True, phase="end")
        )
        events = await take_until(watch, version_of(end))

    gone = events[2]
    assert isinstance(gone, Deleted)
    assert gone.resource.status.phase == "2"  # its content as it was last delivered
    assert gone.resource_version == version_of(went)  # and the version of the change
    assert events == [
        Added(came),
        Modified(stayed, came),
        gone,
        Added(back),
        Deleted(deleted),
        Added(end),
    ]


async def test_a_selector_that_cannot_be_read_is_refused_at_once(tasks: Repository[Task]) -> None:
    with pytest.raises(InvalidSelectorError):
        tasks.watch(labels="a=b=c")
    with pytest.raises(InvalidSelectorError):
        tasks.watch(fields="spec.nonsense=1")
    with pytest.raises(InvalidResourceError):
        tasks.watch(namespace="a")


async def test_a_checkpoint_moves_on_over_what_a_selector_hides(tasks: Repository[Task]) -> None:
    """Otherwise a quiet watch could resume only from a revision that may be compacted by then."""
    async with tasks.watch(labels="on=yes") as watch:
        waiting = asyncio.create_task(take(watch, 1))
        hidden = await tasks.add(task("hidden"))
        await until(lambda: watch.checkpoint == version_of(hidden))
        delivered = await tasks.add(task("delivered", labels={"on": "yes"}))

        assert await waiting == [Added(delivered)]
        assert watch.checkpoint == version_of(delivered)


async def test_the_checkpoint_of_a_bare_watch_is_now_from_its_opening_on(
    tasks: Repository[Task],
) -> None:
    before = await tasks.add(task())
    watch = tasks.watch()
    assert watch.checkpoint == 0
    async with watch:
        assert watch.checkpoint >= version_of(before)
        missed = await tasks.mutate("a", touch)
    async with tasks.watch(since=watch.checkpoint) as again:
        assert await take(again, 1) == [Modified(missed, before)]


async def test_a_watch_says_what_it_is_and_where(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    watch = tasks.watch()
    assert repr(watch) == "<Watch tasks/ [not open, at 0, 0 buffered]>"
    async with watch:
        assert repr(watch) == f"<Watch tasks/ [open, at {watch.checkpoint}, 0 buffered]>"
        await commit_three(store)
        await take(watch, 1)
        assert repr(watch) == f"<Watch tasks/ [open, at {watch.checkpoint}, 2 buffered]>"
    assert repr(watch) == f"<Watch tasks/ [closed, at {watch.checkpoint}, 0 buffered]>"


async def test_what_a_resource_was_before_can_be_asked_for_after_the_client_was_closed(
    client: kvorum.Client, tasks: Repository[Task]
) -> None:
    added = await tasks.add(task())
    async with tasks.watch() as watch:
        await tasks.mutate("a", touch)
        (event,) = await take(watch, 1)
    await client.aclose()

    assert isinstance(event, kvorum.Modified)
    assert event.previous == added


async def test_what_a_resource_was_before_is_decoded_once(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    async with tasks.watch() as watch:
        await tasks.mutate("a", touch)
        (event,) = await take(watch, 1)

    assert isinstance(event, Modified)
    assert event.previous == added
    assert event.previous is event.previous
