"""A watch takes back what unreadable values cover, within bounds of memory and time."""

from collections.abc import Awaitable, Callable, Iterator
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
from kvorum.repository import UnreadableLimits, WatchPolicy
from kvorum.testing import FaultProxy

refused: set[int] = set()


class JobSpec(msgspec.Struct):
    number: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        if self.number in refused:
            raise ValueError("the deadline has passed")


class JobStatus(msgspec.Struct):
    pass


class Job(Resource[JobSpec, JobStatus]):
    kind: ClassVar[Kind] = Kind("Job", plural="jobs", api_version="test.kvorum.dev/v1")


def job(number: int, text: str = "") -> Job:
    metadata = Metadata(name=f"j{number}", labels={"team": "red"})
    return Job(metadata=metadata, spec=JobSpec(number, text), status=JobStatus())


@pytest.fixture(autouse=True)
def _nothing_is_refused() -> Iterator[None]:
    yield
    refused.clear()


@pytest.fixture
def jobs(client: kvorum.Client) -> Repository[Job]:
    return client.repository(Job)


def jobs_within(client: kvorum.Client, **limits: Any) -> Repository[Job]:
    """Return the jobs, watched with limits that a test can reach."""
    return Repository(client, Job, watching=WatchPolicy(unreadable=UnreadableLimits(**limits)))


async def events_of(watch: Any, count: int) -> list[Any]:
    with anyio.fail_after(10):
        return [await anext(watch) for _ in range(count)]


def kinds_of(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


@pytest.mark.parametrize("limits", [{"keys": 1}, {"size": 1500}], ids=["keys", "size"])
async def test_what_a_watch_had_no_room_to_remember_is_lost_history_not_silence(
    jobs: Repository[Job],
    client: kvorum.Client,
    compact: Callable[[int], Awaitable[None]],
    limits: dict[str, int],
) -> None:
    """A value that was unreadable when the watch started was not delivered: that loses nothing."""
    await client.backend.set("jobs/j0", b"?")
    async with jobs_within(client, **limits).watch(on_corrupt="event") as watch:
        for number in (1, 2):
            await jobs.add(job(number, "x" * 1000))
        await client.backend.set("jobs/j1", b"?")
        bad = await client.backend.set("jobs/j2", b"?")
        await events_of(watch, 4)
        await compact(bad)
        for number in (0, 1, 2):
            await jobs.delete(f"j{number}", corrupt=True)

        assert kinds_of(await events_of(watch, 1)) == ["Deleted"]
        with anyio.fail_after(10), pytest.raises(HistoryLostError):
            await anext(watch)


async def test_a_relist_delivers_no_corrupt_value_twice_however_many_there_are() -> None:
    async with kvorum.connect("memory://") as client:
        store, jobs = client.backend, jobs_within(client, keys=1)
        assert isinstance(store, kvorum.MemoryStorageBackend)
        async with jobs.watch(on_corrupt="event", initial=True, labels="team=red") as watch:
            for number in range(5):
                await store.set(f"jobs/j{number}", b"?")
            await events_of(watch, 6)
            await lose_history(store)
            (event,) = await events_of(watch, 1)

    assert isinstance(event, Bookmark)
    assert watch.statistics().relists == 1


async def lose_history(store: kvorum.MemoryStorageBackend) -> None:
    """Write more than a watch reads ahead, none of it selected, and compact it."""
    for _ in range(1001):
        await store.set("jobs/noise", b'{"metadata": {"labels": {"team": "blue"}}}')
    await store.compact(await store.set("elsewhere", b""))


async def test_a_value_too_large_for_the_link_does_not_keep_a_watch_waiting(
    kvorum_etcd: kvorum.EmbeddedEtcd,
) -> None:
    place = "slow-lookups"
    async with (
        FaultProxy(kvorum_etcd.endpoints[0]) as proxy,
        kvorum.connect(f"{kvorum_etcd.url}/{place}") as direct,
    ):
        await direct.repository(Job).add(job(1, "x" * 400_000))
        await direct.backend.set("jobs/j1", b"?")
        since = await direct.backend.set("elsewhere", b"")
        settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), prefix=place, timeout=1.0)
        async with kvorum.connect(settings) as client:
            proxy.throttle(100_000, "replies")
            jobs = jobs_within(client, seconds=0.5)
            async with jobs.watch(since=since, on_corrupt="event") as watch:
                await direct.backend.delete("jobs/j1")
                with anyio.fail_after(20), pytest.raises(HistoryLostError, match="takes more than"):
                    await anext(watch)

    assert proxy.statistics().replies < 1_000_000  # it was not requested again and again


async def test_with_initial_nothing_is_deleted_that_the_watch_has_not_delivered(
    jobs: Repository[Job], client: kvorum.Client
) -> None:
    """Another watch may have delivered it; this one delivered `Corrupt`."""
    await jobs.add(job(1))
    await client.backend.set("jobs/j1", b"?")
    async with jobs.watch(on_corrupt="event", initial=True) as watch:
        await jobs.delete("j1", corrupt=True)
        await jobs.add(job(2))

        delivered = await events_of(watch, 3)

    assert kinds_of(delivered) == ["Corrupt", "Bookmark", "Added"]


@pytest.mark.parametrize("initial", [True, False])
async def test_a_type_that_no_longer_accepts_what_was_delivered_ends_no_watch(
    jobs: Repository[Job], initial: bool
) -> None:
    async with jobs.watch(on_corrupt="event", initial=initial) as watch:
        await events_of(watch, int(initial))
        await jobs.add(job(1))
        await events_of(watch, 1)
        refused.add(1)
        await jobs.delete("j1", corrupt=True)
        await jobs.add(job(2))

        gone, added = await events_of(watch, 2)

    assert isinstance(gone, Corrupt)
    assert gone.is_gone
    assert gone.name == "j1"
    assert "the deadline has passed" in gone.reason
    assert gone.revision == added.resource_version - 1
    assert added.resource.metadata.name == "j2"


async def test_a_watch_that_raises_resumes_behind_what_its_type_no_longer_accepts(
    jobs: Repository[Job],
) -> None:
    async with jobs.watch() as watch:
        await jobs.add(job(1))
        await events_of(watch, 1)
        refused.add(1)
        await jobs.delete("j1", corrupt=True)
        with pytest.raises(CorruptResourceError, match="it is gone") as caught:
            await events_of(watch, 1)
    added = await jobs.add(job(2))
    async with jobs.watch(since=caught.value.revision) as watch:
        assert await events_of(watch, 1) == [Added(added)]


async def test_a_relist_reports_what_the_type_no_longer_accepts_and_loses_nothing() -> None:
    async with kvorum.connect("memory://") as client:
        store, jobs = client.backend, client.repository(Job)
        assert isinstance(store, kvorum.MemoryStorageBackend)
        for number in (1, 2, 3):
            await jobs.add(job(number))
        async with jobs.watch(on_corrupt="event", initial=True, labels="team=red") as watch:
            await events_of(watch, 4)
            await lose_history(store)
            await jobs.delete("j1")
            two = await jobs.get("j2")
            two.spec.number = 4
            await jobs.update(two)
            await jobs.delete("j3")
            refused.update({1, 2})
            delivered = await events_of(watch, 4)

    assert kinds_of(delivered) == ["Corrupt", "Deleted", "Added", "Bookmark"]
    assert [delivered[0].name, delivered[0].is_gone] == ["j1", True]
    assert delivered[2].resource.spec.number == 4  # its last state cannot be read any more


async def test_a_previous_state_that_its_type_no_longer_accepts_raises(
    jobs: Repository[Job],
) -> None:
    async with jobs.watch() as watch:
        one = await jobs.add(job(1))
        one.spec.number = 5
        await jobs.update(one)
        added, modified = await events_of(watch, 2)
        refused.add(1)

    assert isinstance(added, Added)
    assert isinstance(modified, Modified)
    with pytest.raises(CorruptResourceError, match="the deadline has passed"):
        _ = modified.previous


async def test_what_became_unreadable_is_deleted_with_its_last_delivered_state(
    jobs: Repository[Job], client: kvorum.Client
) -> None:
    async with jobs.watch(on_corrupt="event") as watch:
        await jobs.add(job(1, "a"))
        await client.backend.set("jobs/j1", b"?")
        await jobs.delete("j1", corrupt=True)
        *_, gone = await events_of(watch, 3)

    assert isinstance(gone, Deleted)
    assert gone.resource.spec.text == "a"


async def test_a_wait_that_is_cancelled_forgets_nothing_that_was_delivered(
    jobs: Repository[Job], client: kvorum.Client
) -> None:
    """While history is read for one key of a revision, and another key of it was delivered."""
    await jobs.add(job(1))
    since = await client.backend.set("jobs/j1", b"?")
    async with jobs.watch(since=since, on_corrupt="event") as watch:
        await jobs.add(job(2))
        await events_of(watch, 1)
        refused.add(2)
        await client.backend.commit(
            [kvorum.Operation.delete("jobs/j1"), kvorum.Operation.delete("jobs/j2")]
        )
        await cancel_in(client.backend, "get", watch.__anext__)

        delivered = await events_of(watch, 2)

    assert sorted(kinds_of(delivered)) == ["Corrupt", "Deleted"]
