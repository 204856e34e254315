"""What a watch must not miss silently: omitted events, a start in the past, another history."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from tests.backups import back_up, put_back
from tests.waiting import until
from typing_extensions import override

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, HistoryLostError, Observer
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.versions import EVENTS_LOST, has_hazard
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.observer import Call
from kvorum.testing import FaultProxy

DEADLINE = 20

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(
        f"etcd://{proxy.endpoint}/lab", settings=EtcdSettings(timeout=5)
    ) as client:
        yield client


class Followed:
    """A watch that is read to its end in a task of its own."""

    def __init__(self, watch: kvorum.StorageWatch) -> None:
        self.shown: list[int] = []
        self.error: HistoryLostError | None = None
        self._watch = watch
        self.task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        try:
            async for changes in self._watch:
                self.shown.append(changes[0].revision)
        except HistoryLostError as exc:
            self.error = exc

    async def until(self, number: int) -> None:
        """Wait until so many were delivered, or the watch has ended."""
        with anyio.fail_after(DEADLINE):
            while len(self.shown) < number and not self.task.done():  # noqa: ASYNC110 - there is no event
                await anyio.sleep(0.01)


# --- a slow link ----------------------------------------------------------------------------------


async def test_what_a_server_omits_from_a_slow_stream_is_reported_as_lost(
    client: kvorum.Client, direct: kvorum.Client, proxy: FaultProxy
) -> None:
    """Old servers continue after a compaction as if nothing were missing.

    What is delivered is whole, up to an error.
    """
    async with client.backend.watch("") as watch:
        written = [await direct.backend.create("first", b"")]
        followed = Followed(watch)
        await followed.until(1)
        proxy.throttle(400_000, "replies")
        written += [
            await direct.backend.create(f"{number}", bytes(100_000)) for number in range(200)
        ]
        await direct.admin.compact(written[-1])
        # The queue at the server moves on, after the compaction.
        await followed.until(len(followed.shown) + 8)
        written += [await direct.backend.create(f"after/{number}", b"") for number in range(3)]
        proxy.throttle(50_000_000, "replies")
        await followed.until(len(written))
        followed.task.cancel()
        await asyncio.wait([followed.task])

    assert followed.shown == written[: len(followed.shown)]
    assert followed.error is not None or followed.shown == written
    if followed.error is not None:
        assert followed.error.compact_revision == written[200]


async def test_a_watch_resumes_although_its_last_value_takes_longer_over_the_link_than_a_call_may(
    proxy: FaultProxy, direct: kvorum.Client
) -> None:
    """It needs no value to recognise its history."""
    settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix="lab", timeout=1)
    async with kvorum.connect(settings) as client, client.backend.watch("") as watch:
        written = [await direct.backend.set("large", bytes(100_000))]
        followed = Followed(watch)
        await followed.until(1)
        proxy.throttle(50_000, "replies")
        proxy.cut()
        written.append(await direct.backend.set("small", b"1"))
        await followed.until(2)
        followed.task.cancel()
        await asyncio.wait([followed.task])

    assert followed.shown == written


async def test_a_consumer_that_lags_behind_a_compaction_loses_nothing_that_its_server_has_sent(
    client: kvorum.Client, direct: kvorum.Client
) -> None:
    """They are queued for it. That they can no longer be read at their revisions is no loss."""
    async with client.backend.watch("") as watch:
        written = [await direct.backend.create(f"{number}", b"") for number in range(84)]
        await direct.admin.compact(written[-1])
        followed = Followed(watch)
        await followed.until(len(written))
        followed.task.cancel()
        await asyncio.wait([followed.task])

    assert followed.error is None
    assert followed.shown == written


async def test_a_quiet_watch_outlives_the_compaction_of_all_that_happened_elsewhere(
    client: kvorum.Client, direct: kvorum.Client
) -> None:
    """On servers that omit events, too: an empty queue cannot have been full."""
    async with client.backend.watch("quiet/") as watch:
        followed = Followed(watch)
        for number in range(1, 4):
            loud = [await direct.backend.set("loud", b"") for _ in range(3)][-1]
            await direct.admin.compact(loud)
            await direct.backend.create(f"quiet/{number}", b"")
            await followed.until(number)
        followed.task.cancel()
        await asyncio.wait([followed.task])

    assert followed.error is None
    assert len(followed.shown) == 3


class Checks(Observer):
    """Counts the requests that check whether a watch has missed anything."""

    number = 0

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        self.number += isinstance(message, rpc.RangeRequest) and call.revision > 0


async def test_servers_that_omit_nothing_are_not_asked(etcd: EmbeddedEtcd) -> None:
    checks = Checks()
    async with (
        kvorum.connect(f"{etcd.url}/lab", observer=checks) as client,
        client.backend.watch("") as watch,
    ):
        before = checks.number
        followed = Followed(watch)
        for number in range(100):
            await client.backend.set("a", b"%d" % number)
        await followed.until(100)
        followed.task.cancel()
        await asyncio.wait([followed.task])
        version = client.connection.cluster.current.version

    assert (checks.number > before) == has_hazard(version, EVENTS_LOST)
    assert checks.number - before <= 5


# --- where it starts ------------------------------------------------------------------------------


async def test_a_watch_from_now_shows_nothing_older_on_a_member_that_lags(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """That member answers the creation of a watch without asking its leader."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as cluster:
        settings = EtcdSettings(endpoints=cluster.endpoints, prefix="lab", timeout=10)
        async with kvorum.connect(settings) as some:
            health = await some.health()
        lagging = next(
            index for index, each in enumerate(cluster.endpoints) if each not in leaders(health)
        )
        theirs = EtcdSettings(endpoints=(cluster.endpoints[lagging],), prefix="lab", timeout=10)
        others = EtcdSettings(
            endpoints=tuple(
                each for each in cluster.endpoints if each != cluster.endpoints[lagging]
            ),
            prefix="lab",
            timeout=10,
        )
        async with (
            kvorum.connect(theirs) as client,
            kvorum.connect(others) as direct,
            client.backend.watch("elsewhere/"),  # connects the channel of watches
        ):
            await cluster.pause(lagging)
            written = [await direct.backend.set("a", b"%d" % number) for number in range(201)]
            watch = client.backend.watch("")
            opening = asyncio.ensure_future(watch.open())
            await asyncio.sleep(0)
            await cluster.resume(lagging)
            with anyio.fail_after(DEADLINE):
                await opening
            started = watch.revision
            last = await direct.backend.set("a", b"new")
            with anyio.fail_after(DEADLINE):
                (change,) = await anext(watch)
            await watch.aclose()

    assert started >= written[-1]
    assert change.revision == last


def leaders(health: kvorum.Health) -> set[str]:
    return {each.endpoint for each in health.endpoints if each.is_leader}


async def test_a_start_that_is_compacted_is_refused_with_the_oldest_revision_there_is(
    direct: kvorum.Client,
) -> None:
    written = [await direct.backend.set("a", b"") for _ in range(5)]
    await direct.admin.compact(written[3])

    with pytest.raises(HistoryLostError) as caught:
        await direct.backend.watch("", since=written[0]).open()
    assert caught.value.compact_revision == written[3]


# --- another history ------------------------------------------------------------------------------


async def test_a_watch_does_not_resume_in_a_store_that_was_put_back_to_an_older_state(
    etcd: EmbeddedEtcd, proxy: FaultProxy, client: kvorum.Client, tmp_path: Path
) -> None:
    """Only the content of a revision tells that it is another one."""
    async with kvorum.connect(f"{etcd.url}/lab") as before:
        await before.backend.set("a", b"kept")
    await back_up(etcd, tmp_path / "backup")
    async with client.backend.watch("") as watch:
        followed = Followed(watch)
        async with kvorum.connect(f"{etcd.url}/lab") as direct:
            await direct.backend.set("a", b"gone")
            await direct.backend.set("b", b"gone")
            await followed.until(2)
        await proxy.refuse()
        proxy.cut()
        await put_back(etcd, tmp_path / "backup")
        async with kvorum.connect(f"{etcd.url}/lab") as direct:
            for number in range(5):
                await direct.backend.set("c", b"%d" % number)
        await proxy.heal()
        with anyio.fail_after(DEADLINE):
            await asyncio.wait([followed.task])

    assert len(followed.shown) == 2
    assert "restored to an older state" in str(followed.error)


@pytest.mark.parametrize("reads_on", [False, True])
async def test_a_watch_notices_another_value_at_the_very_revision_that_it_read_last(
    etcd: EmbeddedEtcd, proxy: FaultProxy, client: kvorum.Client, tmp_path: Path, reads_on: bool
) -> None:
    """All numbers are the same.

    The new stream sends the value again; if the position has moved on since, it is read.
    """
    async with kvorum.connect(f"{etcd.url}/lab") as before:
        await before.backend.set("a", b"kept")
    await back_up(etcd, tmp_path / "backup")
    async with client.backend.watch("", bookmarks=True) as watch:
        followed = Followed(watch)
        async with kvorum.connect(f"{etcd.url}/lab") as direct:
            await direct.backend.set("a", b"gone")
            await followed.until(1)
        if reads_on:
            watch._reader.position += 1  # type: ignore[attr-defined]  # as a progress notification does
        await proxy.refuse()
        proxy.cut()
        await put_back(etcd, tmp_path / "backup")
        async with kvorum.connect(f"{etcd.url}/lab") as direct:
            await direct.backend.set("a", b"other")
            await direct.backend.set("b", b"other")
        await proxy.heal()
        with anyio.fail_after(DEADLINE):
            await asyncio.wait([followed.task])

    assert len(followed.shown) == 1
    assert "restored to an older state" in str(followed.error)


async def test_a_watch_with_initial_leaves_no_ghost_of_a_store_that_was_put_back(
    etcd: EmbeddedEtcd, proxy: FaultProxy, client: kvorum.Client, tmp_path: Path
) -> None:
    """It lists again, and reports what is gone, or has other content at the same revision."""
    async with kvorum.connect(f"{etcd.url}/lab") as direct:
        added = await LabWorkerRepository(direct).add(LabWorker.new("stays", lab_track="x"))
    await back_up(etcd, tmp_path / "backup")
    shown: dict[str, LabWorker] = {}

    async def follow() -> None:
        async for event in LabWorkerRepository(client).watch(initial=True):
            match event:
                case kvorum.Added(resource=worker) | kvorum.Modified(resource=worker):
                    shown[worker.metadata.name] = worker
                case kvorum.Deleted(resource=worker):
                    del shown[worker.metadata.name]

    task = asyncio.ensure_future(follow())
    async with kvorum.connect(f"{etcd.url}/lab") as direct:
        await LabWorkerRepository(direct).patch(
            "stays", {"metadata": {"labels": {"told": "before"}}}
        )
        await LabWorkerRepository(direct).add(LabWorker.new("ghost", lab_track="x"))
        await until(lambda: "ghost" in shown)
    await proxy.refuse()
    proxy.cut()
    await put_back(etcd, tmp_path / "backup")
    async with kvorum.connect(f"{etcd.url}/lab") as direct:
        again = await LabWorkerRepository(direct).patch(
            "stays", {"metadata": {"labels": {"told": "after"}}}
        )
        for number in range(3):
            await direct.backend.set("elsewhere", b"%d" % number)
    await proxy.heal()
    await until(lambda: "ghost" not in shown or task.done())
    if task.done():
        await task
    task.cancel()
    await asyncio.wait([task])

    assert again.metadata.resource_version == added.metadata.resource_version + 1
    assert {name: worker.metadata.labels["told"] for name, worker in shown.items()} == {
        "stays": "after"
    }
