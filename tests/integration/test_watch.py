"""What a typed watch promises on a healthy etcd."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import anyio
import msgspec
import pytest

import kvorum
from kvorum import (
    Added,
    Bookmark,
    CorruptResourceError,
    Deleted,
    FutureRevisionError,
    HistoryLostError,
    InvalidResourceError,
    InvalidSelectorError,
    Kind,
    Metadata,
    Modified,
    Operation,
    Repository,
    Resource,
    Watch,
    WatchEvent,
)

DEADLINE = 10.0

Watchers = Callable[[], Awaitable[int]]


class TaskSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    owner: str = ""


class TaskStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    phase: str = ""


class Task(Resource[TaskSpec, TaskStatus]):
    kind: ClassVar[Kind] = Kind("Task", plural="tasks", api_version="test.kvorum.dev/v1")


class TeamTask(Resource[TaskSpec, TaskStatus]):
    kind: ClassVar[Kind] = Kind(
        "TeamTask", plural="team-tasks", api_version="test.kvorum.dev/v1", namespaced=True
    )


def task(name: str = "a", **metadata: Any) -> Task:
    return Task(metadata=Metadata(name=name, **metadata), spec=TaskSpec(), status=TaskStatus())


def by_hand(name: str, **parts: Any) -> bytes:
    value = {
        "apiVersion": "test.kvorum.dev/v1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {},
    } | parts
    return msgspec.json.encode(value)


def version_of(resource: Resource[Any, Any]) -> int:
    return resource.metadata.resource_version


def touch(current: Task) -> None:
    current.spec.owner += "x"


@pytest.fixture
def tasks(client: kvorum.Client) -> Repository[Task]:
    return client.repository(Task)


@pytest.fixture
def store(client: kvorum.Client) -> kvorum.StorageBackend:
    return client.backend


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for a state that nobody announces."""
    with anyio.fail_after(DEADLINE):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await anyio.sleep(0.01)


def tasks_here() -> set[asyncio.Task[Any]]:
    """Return all tasks of the loop, but for those of anyio's plugin for pytest."""
    return {each for each in asyncio.all_tasks() if "TestRunner" not in repr(each.get_coro())}


@pytest.fixture
async def nothing_left(client: kvorum.Client, watchers: Watchers) -> AsyncIterator[None]:
    """Whatever the test does.

    At its end no watcher is left on the server and no task here, with the client open.
    """
    before = tasks_here()
    yield

    async def is_nothing_left() -> bool:
        return await watchers() == 0 and tasks_here() <= before

    await until(is_nothing_left)
    assert "[open]" in repr(client)


async def take(watch: Watch[Task], number: int) -> list[WatchEvent[Task]]:
    with anyio.fail_after(DEADLINE):
        return [await anext(watch) for _ in range(number)]


async def take_until(watch: Watch[Task], revision: int) -> list[WatchEvent[Task]]:
    """Take all events up to that of a revision.

    What a watch has not shown by then it never will.
    """
    taken: list[WatchEvent[Task]] = []
    while not taken or taken[-1].resource_version < revision:
        taken += await take(watch, 1)
    return taken


# --- what it shows --------------------------------------------------------------------------------


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


async def test_a_deletion_is_shown_just_as_delete_returned_it(tasks: Repository[Task]) -> None:
    await tasks.add(task(labels={"x": "y"}, annotations={"n": "m"}))
    async with tasks.watch() as watch:
        deleted = await tasks.delete("a")

        (event,) = await take(watch, 1)
        assert event == Deleted(deleted)
        assert event.resource_version == version_of(deleted)


async def test_what_a_watch_shows_can_be_updated_at_once(tasks: Repository[Task]) -> None:
    async with tasks.watch() as watch:
        await tasks.add(task())
        (event,) = await take(watch, 1)
        assert isinstance(event, Added)
        event.resource.spec.owner = "ann"

        assert await tasks.update(event.resource) == await tasks.get("a")


async def test_a_watch_since_a_version_shows_what_came_after_it_and_never_itself(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task("a"))
    second = await tasks.add(task("b"))
    async with tasks.watch(since=version_of(first)) as watch:
        assert await take(watch, 1) == [Added(second)]
    async with tasks.watch(since=version_of(second)) as watch:
        third = await tasks.add(task("c"))
        assert await take(watch, 1) == [Added(third)]


async def test_a_watch_goes_on_from_a_list_without_a_gap(tasks: Repository[Task]) -> None:
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
    """From each of the last hundred revisions, all at once, while others write and the history before is compacted."""
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
                else Operation.put(f"tasks/{name}", by_hand(name))
                for name in names
            ]
        )
        kinds = {n: Deleted if n in gone else Modified if there[n] else Added for n in names}
        history.append((revision, {(kind, name) for name, kind in kinds.items()}))

    for _ in range(100):
        await write()
    starts = [version_of(first), *(revision for revision, _ in history)]

    async def follow(start: int) -> list[tuple[int, set[tuple[type, str]]]]:
        shown: list[tuple[int, set[tuple[type, str]]]] = []
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
                shown.append((watch.checkpoint, told))
                if any(name == "end" for _, name in told):
                    return shown
        raise AssertionError("the watch ended")

    following = [asyncio.create_task(follow(start)) for start in starts]
    await compact(version_of(first))
    for _ in range(50):
        await write()
    end = await tasks.add(task("end"))
    history.append((version_of(end), {(Added, "end")}))

    with anyio.fail_after(DEADLINE):
        for start, shown in zip(starts, await asyncio.gather(*following), strict=True):
            assert shown == [each for each in history if each[0] > start]


async def test_a_namespace_can_be_watched_alone(client: kvorum.Client) -> None:
    tasks = client.repository(TeamTask)

    async def add(namespace: str, name: str) -> TeamTask:
        metadata = Metadata(name=name, namespace=namespace)
        return await tasks.add(TeamTask(metadata=metadata, spec=TaskSpec(), status=TaskStatus()))

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


# --- selectors ------------------------------------------------------------------------------------


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
    assert gone.resource.status.phase == "2"  # its content as it was last shown
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
    """Else a quiet watch could only go on from a revision that may be compacted by then."""
    async with tasks.watch(labels="on=yes") as watch:
        waiting = asyncio.create_task(take(watch, 1))
        hidden = await tasks.add(task("hidden"))
        await until(lambda: watch.checkpoint == version_of(hidden))
        shown = await tasks.add(task("shown", labels={"on": "yes"}))

        assert await waiting == [Added(shown)]
        assert watch.checkpoint == version_of(shown)


# --- initial --------------------------------------------------------------------------------------


async def test_an_initial_watch_shows_what_is_there_then_a_bookmark_then_what_follows(
    tasks: Repository[Task],
) -> None:
    there = [await tasks.add(task(name)) for name in ("a", "b")]
    listed = await tasks.list()
    async with tasks.watch(initial=True) as watch:
        assert watch.checkpoint == 0
        assert await take(watch, 2) == [Added(each) for each in there]
        assert watch.checkpoint == 0  # a consumer that stops here has not seen a state
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


async def test_an_initial_watch_with_a_selector_shows_what_it_matches(
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


# --- several changes in one revision --------------------------------------------------------------


async def commit_three(store: kvorum.StorageBackend) -> int:
    return await store.commit([Operation.put(f"tasks/{name}", by_hand(name)) for name in "abc"])


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


async def test_who_stops_within_a_revision_sees_all_of_it_again_from_the_checkpoint(
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


# --- what it cannot show --------------------------------------------------------------------------


async def assert_ended(watch: Watch[Task]) -> None:
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


@pytest.mark.usefixtures("nothing_left")
async def test_a_value_that_cannot_be_decoded_is_named_once_and_nothing_comes_after_it(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    watch = tasks.watch()
    async with watch:
        good = await tasks.add(task("good"))
        bad = await store.commit(
            [Operation.put("tasks/bad", b"{}"), Operation.put("tasks/c", by_hand("c"))]
        )
        await tasks.add(task("after"))

        assert await take(watch, 1) == [Added(good)]
        with pytest.raises(CorruptResourceError) as caught:
            await take(watch, 1)
        await assert_ended(watch)

    assert caught.value.key.endswith("tasks/bad")
    assert caught.value.revision == bad
    assert watch.checkpoint == version_of(good)


async def test_an_error_whose_wait_was_cancelled_comes_out_of_the_next_one(
    tasks: Repository[Task], store: kvorum.StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is closed before it is raised, which takes a moment.

    A timeout may end the wait just then.
    """
    stream = store.watch("tasks/", bookmarks=True)
    monkeypatch.setattr(store, "watch", lambda *_, **__: stream)
    watch = tasks.watch()
    async with watch:
        monkeypatch.setattr(stream, "aclose", anyio.sleep_forever)
        bad = await store.set("tasks/bad", b"{}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(watch)
        monkeypatch.undo()

        with pytest.raises(CorruptResourceError) as caught:
            await take(watch, 1)
        await assert_ended(watch)
    assert caught.value.revision == bad


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


async def test_what_takes_the_place_of_what_was_corrupt_is_added(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """Nobody can have seen what was there; and to match `Modified` must not raise."""
    await store.set("tasks/a", b"{}")
    async with tasks.watch() as watch:
        await store.set("tasks/a", by_hand("a"))
        (event,) = await take(watch, 1)

    assert event == Added(await tasks.get("a"))


async def test_what_a_resource_was_before_is_decoded_once(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    async with tasks.watch() as watch:
        await tasks.mutate("a", touch)
        (event,) = await take(watch, 1)

    assert isinstance(event, Modified)
    assert event.previous == added
    assert event.previous is event.previous


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
    """Whoever stores it to go on later must not be thrown back to 0 by an error."""
    future = version_of(await tasks.add(task())) + 1_000_000
    watch = tasks.watch(since=future)
    with pytest.raises(FutureRevisionError):
        await take(watch, 1)
    await assert_ended(watch)

    assert watch.checkpoint == future


async def test_who_deletes_a_corrupt_value_does_not_stop_those_who_watch(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """Nobody can have been shown it. And it would stop them again, wherever they go on from."""
    await store.set("tasks/bad", b"{}")
    async with tasks.watch() as everything, tasks.watch(labels="!x") as some:
        await store.delete("tasks/bad")
        good = await tasks.add(task("good"))

        assert await take(some, 1) == [Added(good)]
        assert await take(everything, 1) == [Added(good)]


# --- how it ends ----------------------------------------------------------------------------------


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


@pytest.mark.usefixtures("nothing_left")
async def test_an_initial_loop_that_is_left_at_once_leaves_nothing(tasks: Repository[Task]) -> None:
    for name in "abc":
        await tasks.add(task(name))

    async for _ in tasks.watch(initial=True):
        break
    async for events in tasks.watch(initial=True).revisions():
        assert len(events) == 4
        break


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

    for patience in range(60):
        consumer = asyncio.create_task(consume())
        for _ in range(patience):
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
async def test_closing_a_watch_ends_the_loop_of_who_waits(tasks: Repository[Task]) -> None:
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


async def test_closing_a_watch_drops_what_was_not_delivered(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    async with tasks.watch() as watch:
        await commit_three(store)
        await take(watch, 1)

    await assert_ended(watch)


async def test_an_initial_watch_that_is_closed_while_it_lists_shows_nothing_and_leaves_nothing(
    tasks: Repository[Task],
    store: kvorum.StorageBackend,
    watchers: Watchers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its stream must not be opened after it was closed: nobody would close that one."""
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
        shown = await reading

    assert shown == []
    assert await watchers() == 0


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
            ):  # the reader has to wait in vain now and then, however fast the store is
                timed_out.clear()
                await timed_out.wait()
            revisions += [await commit_three(store)] * 3
        return revisions

    async with tasks.watch() as watch:
        writing = asyncio.create_task(write())
        shown: list[int] = []
        with anyio.fail_after(DEADLINE):
            while len(shown) < 180:
                try:
                    async with asyncio.timeout(0.0002):
                        shown.append((await anext(watch)).resource_version)
                except TimeoutError:
                    timed_out.set()

        assert shown == await writing


@pytest.mark.usefixtures("nothing_left")
async def test_a_watch_that_nobody_reads_holds_up_no_other(tasks: Repository[Task]) -> None:
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
    """Python's garbage collector runs in whatever thread comes along."""
    held = [tasks.watch()]
    await held[0].__aenter__()
    await anyio.to_thread.run_sync(held.clear)

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


def test_a_watch_that_outlives_its_loop_is_dropped_in_silence(kvorum_url: str) -> None:
    """pytest fails this test for an error in a finalizer, which nobody else would see."""
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


# --- checkpoint and repr --------------------------------------------------------------------------


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
