"""Opening a watch.

Within its caller's deadline, with nothing left behind, however many there are, in one cluster.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from subprocess import STDOUT
from typing import Any

import anyio
import pytest

import kvorum
from kvorum import (
    AnotherClusterError,
    EmbeddedEtcd,
    EtcdSettings,
    HistoryLostError,
    Operation,
    UnavailableError,
)
from kvorum.etcd.admin import compact
from kvorum.etcd.transport import streams
from kvorum.etcd.watch import reader
from kvorum.etcd.watch.history import Reading
from kvorum.etcd.watch.stream import WatchStream
from kvorum.lab import LabWorkerRepository
from kvorum.testing import FaultProxy

DEADLINE = 20

pytestmark = pytest.mark.timeout(60)


def watch_tasks(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    new = asyncio.all_tasks() - before
    return [task for task in new if task.get_name().startswith("kvorum-watch ")]


@pytest.fixture
async def etcd(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server of the test's own."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


@pytest.fixture
async def proxy(etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(etcd.endpoints[0]) as proxy:
        yield proxy


def settings_of(proxy: FaultProxy, timeout: float) -> EtcdSettings:
    return EtcdSettings(endpoints=(proxy.endpoint,), prefix="lab", timeout=timeout)


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "silent", ["the creation", "the check of the past", "the check of the future"]
)
async def test_opening_from_the_past_ends_by_its_callers_deadline_wherever_it_hangs(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """Before a read does that starts later and has more time.

    The client itself would wait for a minute.
    """
    held = asyncio.Event()
    waits = {"the check of the past": "check_readable", "the check of the future": "revision_now"}
    async with kvorum.connect(settings_of(proxy, 60)) as client, client.backend.watch("elsewhere/"):
        first = await client.backend.set("a", b"1")
        last = await client.backend.set("a", b"2")
        if name := waits.get(silent):
            check = getattr(reader, name)

            async def hold(*arguments: Any) -> Any:
                proxy.hold("replies")
                held.set()
                return await check(*arguments)

            monkeypatch.setattr(reader, name, hold)
        else:
            proxy.hold("replies")
            held.set()
        watch = client.backend.watch(
            "", since=last + 1 if silent == "the check of the future" else first
        )
        with kvorum.deadline(0.5):
            opening = asyncio.create_task(watch.open())
        with anyio.fail_after(DEADLINE):
            await held.wait()
        with kvorum.deadline(3):
            reading = asyncio.create_task(client.backend.get("a"))
        done, _ = await asyncio.wait([opening, reading], return_when=asyncio.FIRST_COMPLETED)

        assert done == {opening}
        assert isinstance(opening.exception(), UnavailableError)
        reading.cancel()
        await asyncio.wait([reading])


# --- where it starts ------------------------------------------------------------------------------


async def test_a_deletion_just_after_the_start_is_not_lost_if_it_is_compacted_at_once(
    etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd forgets a deletion whose own revision is compacted, and still lets a watch start there."""
    read, check = getattr(reader, "revision_now"), getattr(reader, "check_readable")  # noqa: B009 - imported there
    async with kvorum.connect(f"{etcd.url}/lab") as client, client.backend.watch("elsewhere/"):
        await client.backend.set("a", b"1")
        deleted: list[int] = []

        async def delete_then(*arguments: Any) -> Any:
            start = await read(*arguments)
            if not deleted:
                deleted.append((await client.backend.delete("a")).revision)
            return start

        async def compact_then(*arguments: Any) -> Any:
            await check(*arguments)
            await compact(client.connection, deleted[0])

        monkeypatch.setattr(reader, "revision_now", delete_then)
        monkeypatch.setattr(reader, "check_readable", compact_then)
        watch = client.backend.watch("")
        await watch.open()
        await client.backend.set("b", b"1")
        shown = 0
        with (
            suppress(HistoryLostError),
            anyio.fail_after(DEADLINE),
        ):  # which says so; or it was told in time
            shown = (await anext(watch))[0].revision
        await watch.aclose()
    assert shown in {0, deleted[0]}


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["of the store", "of a repository", "with initial"])
async def test_an_opening_that_is_cancelled_at_any_point_leaves_no_watch_on_the_server(
    etcd: EmbeddedEtcd, count_watchers: Callable[[EmbeddedEtcd], Awaitable[int]], kind: str
) -> None:
    """Although the object is still there."""
    tasks = asyncio.all_tasks()
    kept: list[Any] = []
    cancelled = 0
    async with kvorum.connect(f"{etcd.url}/lab") as client:
        workers = LabWorkerRepository(client)
        async with client.backend.watch("elsewhere/"):  # connects its channel
            steps = 1
            while True:
                watch: Any = (
                    client.backend.watch("")
                    if kind == "of the store"
                    else workers.watch(initial=kind == "with initial")
                )
                kept.append(watch)
                opening = asyncio.create_task(watch.__aenter__())
                for _ in range(steps):
                    await asyncio.sleep(0)
                if opening.done():  # it has come to its end: all points before have been tried
                    await watch.aclose()
                    break
                opening.cancel()
                await asyncio.wait([opening])
                assert opening.cancelled()
                cancelled += 1
                steps += 1 + steps // 5

            assert cancelled >= 5
            with anyio.fail_after(DEADLINE):
                while len(watch_tasks(tasks)) > 1:  # noqa: ASYNC110 - a task has no event
                    await anyio.sleep(0.01)
                while await count_watchers(etcd) > 1:  # noqa: ASYNC110 - a metric has no event
                    await anyio.sleep(0.01)
    assert len(kept) == cancelled + 1


# --- pieces ---------------------------------------------------------------------------------------


@pytest.fixture
def asked_for_pieces(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each watch that was created was to be sent in pieces."""
    asked: list[bool] = []
    create = WatchStream._create

    async def note(stream: WatchStream, request: Any) -> None:
        asked.append(request.fragment)
        await create(stream, request)

    monkeypatch.setattr(WatchStream, "_create", note)
    return asked


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The revisions with which each piece but the last began and ended."""
    found: list[tuple[int, int]] = []
    news_of = Reading.news_of

    def note(reading: Reading, response: Any) -> Any:
        if response.fragment:
            found.append((response.events[0].kv.mod_revision, response.events[-1].kv.mod_revision))
        return news_of(reading, response)

    monkeypatch.setattr(Reading, "news_of", note)
    return found


async def test_a_catch_up_that_broke_without_news_comes_in_pieces_and_is_put_together(
    kvorum_etcd: EmbeddedEtcd, asked_for_pieces: list[bool], pieces: list[tuple[int, int]]
) -> None:
    """etcd may cut in the middle of a revision.

    One that brings news is asked for as a whole again the next time.
    """
    small = ["--max-request-bytes=100000"]  # and 512 KiB on top, for a piece
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=small) as etcd,
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(f"{etcd.url}/lab") as direct,
        kvorum.connect(settings_of(proxy, 10)) as client,
    ):
        start = await direct.backend.set("a", b"")
        written = [
            await direct.backend.commit([Operation.put(f"k{n}", bytes(7_000)) for n in range(7)])
            for _ in range(30)
        ]
        async with client.backend.watch("", since=start) as watch:
            proxy.cut_after(1_000, "replies")
            with anyio.fail_after(DEADLINE):
                shown = [await anext(watch) for _ in written]
            assert [changes[0].revision for changes in shown] == written
            assert all(
                [change.key for change in changes] == [f"k{n}" for n in range(7)]
                for changes in shown
            )
            assert asked_for_pieces == [False, True]
            assert len(pieces) >= 3
            assert any(end == begin for (_, end), (begin, _) in pairwise(pieces)), "within one"

            proxy.cut()
            revision = await direct.backend.set("a", b"2")
            with anyio.fail_after(DEADLINE):
                assert (await anext(watch))[0].revision == revision
    assert asked_for_pieces == [False, True, False]


# --- many -----------------------------------------------------------------------------------------


@pytest.fixture
async def narrow(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server that takes eight streams on a connection."""
    told = await anyio.run_process([str(kvorum_etcd.binary), "--help"], stderr=STDOUT, check=False)
    if b"--max-concurrent-streams" not in told.stdout:
        pytest.skip("this version has no limit of streams that could be set")
    async with EmbeddedEtcd(
        binary=kvorum_etcd.binary, arguments=["--max-concurrent-streams=8"]
    ) as etcd:
        yield etcd


async def test_more_watches_than_a_connection_takes_are_put_on_others(narrow: EmbeddedEtcd) -> None:
    """All open, all show what happens, and the server is not left for one that is away."""
    async with FaultProxy(narrow.endpoints[0]) as one, FaultProxy(narrow.endpoints[0]) as two:
        settings = EtcdSettings(endpoints=(one.endpoint, two.endpoint), prefix="lab", timeout=4)
        async with kvorum.connect(settings) as client:
            endpoint = client.connection.endpoint
            watches = [client.backend.watch("") for _ in range(20)]
            for watch in watches:
                await watch.open()
            revision = await client.backend.set("a", b"1")
            with anyio.fail_after(DEADLINE):
                assert [(await anext(watch))[0].revision for watch in watches] == [revision] * 20

            assert client.connection.endpoint == endpoint
            server = client.connection.cluster.current
            assert server.is_ready
            assert (server.streams.limit, server.streams.total) == (8, 20)
            for watch in watches:
                await watch.aclose()
            assert server.streams.total == 0


async def test_a_watch_that_finds_no_place_says_how_many_there_are(
    narrow: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server stays in use.

    Those that are there go on, and a place that is given up is taken.
    """
    monkeypatch.setattr(streams, "MOST", 1)
    async with (
        FaultProxy(narrow.endpoints[0]) as proxy,
        kvorum.connect(settings_of(proxy, 2)) as client,
    ):
        watches = [client.backend.watch("") for _ in range(16)]
        for watch in watches:
            await watch.open()
        before = proxy.statistics().accepted
        with pytest.raises(UnavailableError, match="beside 16 others"):
            await client.backend.watch("").open()

        assert client.connection.cluster.current.is_ready
        assert proxy.statistics().accepted == before
        revision = await client.backend.set("a", b"1")
        with anyio.fail_after(DEADLINE):
            assert [(await anext(watch))[0].revision for watch in watches] == [revision] * 16
        await watches.pop().aclose()
        async with client.backend.watch(""):
            pass
        for watch in watches:
            await watch.aclose()


# --- another cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [False, True])
async def test_a_watch_shows_nothing_of_another_cluster_at_the_same_address(
    etcd: EmbeddedEtcd, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, others: bool
) -> None:
    """It goes on at a server of its own, and ends if there is none."""
    async with (
        EmbeddedEtcd(binary=etcd.binary) as another,
        kvorum.connect(f"{another.url}/lab") as stranger,
        kvorum.connect(f"{etcd.url}/lab") as direct,
        FaultProxy(etcd.endpoints[0]) as right,
        kvorum.connect(settings_of(proxy, 2)) as client,
        client.backend.watch("") as watch,
    ):
        cluster = client.connection.cluster
        if others:
            cluster.servers.append(type(cluster.current)(right.endpoint, None))
        waiting = asyncio.ensure_future(anext(watch))
        for _ in range(10):
            await stranger.backend.set("strange", b"1")
        proxy.redirect(another.endpoints[0])
        await right.refuse()
        proxy.cut()
        await told(caplog)
        await right.heal()
        revision = await direct.backend.set("a", b"1")
        with anyio.fail_after(DEADLINE):
            if others:
                (change,) = await waiting
                assert (change.key, change.revision) == ("a", revision)
            else:
                with pytest.raises(AnotherClusterError):
                    await waiting


async def test_a_connection_of_watches_alone_that_leads_to_another_cluster_is_not_believed(
    etcd: EmbeddedEtcd, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The calls' connection, made before, still leads to the client's own.

    So only the responses tell.
    """
    async with (
        EmbeddedEtcd(binary=etcd.binary) as another,
        kvorum.connect(f"{another.url}/lab") as stranger,
        kvorum.connect(settings_of(proxy, 10)) as client,
    ):
        first = await client.backend.set("a", b"1")
        for _ in range(10):
            await stranger.backend.set("strange", b"1")
        proxy.redirect(another.endpoints[0])
        watch = client.backend.watch("", since=first)
        opening = asyncio.create_task(watch.open())
        await told(caplog)
        assert not opening.done()
        await proxy.heal()
        with anyio.fail_after(DEADLINE):
            await opening
            revision = await client.backend.set("a", b"2")
            (change,) = await anext(watch)
        await watch.aclose()
    assert (change.key, change.revision) == ("a", revision)


async def told(caplog: pytest.LogCaptureFixture) -> None:
    """Wait until the client has noticed another cluster."""
    with anyio.fail_after(DEADLINE):
        while "belongs to another cluster" not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await anyio.sleep(0.01)
