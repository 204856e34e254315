"""Watches whose connection breaks: they resume whole, in order and once, or report a loss."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.backups import back_up, put_back

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, FutureRevisionError, HistoryLostError, Operation
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.testing import FaultProxy

DEADLINE = 20
OFTEN = "--experimental-watch-progress-notify-interval=100ms"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(
        f"etcd://{proxy.endpoint}/lab", settings=EtcdSettings(timeout=2)
    ) as client:
        yield client


async def revisions_of(watch: kvorum.StorageWatch, number: int) -> list[int]:
    """Take so many revisions."""
    with anyio.fail_after(DEADLINE):
        return [(await anext(watch))[0].revision for _ in range(number)]


async def resumed(watch: kvorum.StorageWatch, number: int = 1) -> None:
    with anyio.fail_after(DEADLINE):
        while watch.statistics().resumes < number:  # noqa: ASYNC110 - a consumer has no event for it
            await anyio.sleep(0.01)


async def idle(watch: kvorum.StorageWatch) -> asyncio.Task[Any]:
    """Begin to wait for what comes next."""
    task = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    return task


# --- resuming -------------------------------------------------------------------------------------


async def test_a_watch_resumes_after_a_cut_connection(
    client: kvorum.Client, direct: kvorum.Client, proxy: FaultProxy
) -> None:
    """Changes in the meantime are delivered afterwards: once, and in order."""
    async with client.backend.watch("") as watch:
        written = [await direct.backend.set("a", b"1")]
        shown = await revisions_of(watch, 1)
        for number in range(5):
            waiting = await idle(watch)
            proxy.cut()
            written += [await direct.backend.set(f"k{n}", b"2") for n in range(20)]
            shown.append((await waiting)[0].revision)
            shown += await revisions_of(watch, 19)
            assert watch.statistics().resumes == number + 1

    assert shown == written
    assert watch.revision == written[-1]


@pytest.mark.parametrize("size", [1, 10, 100, 1_000, 10_000, 60_000])
async def test_a_watch_resumes_when_it_is_cut_in_the_middle_of_a_batch(
    client: kvorum.Client, direct: kvorum.Client, proxy: FaultProxy, size: int
) -> None:
    start = await direct.backend.set("a", b"")
    written = [
        await direct.backend.commit([Operation.put(f"k{number}-{n}", bytes(500)) for n in range(3)])
        for number in range(50)
    ]
    async with client.backend.watch("", since=start) as watch:
        proxy.cut_after(size, "replies")

        with anyio.fail_after(DEADLINE):
            shown = [await anext(watch) for _ in written]
    assert [changes[0].revision for changes in shown] == written
    assert all(len(changes) == 3 for changes in shown)


async def test_a_watch_resumes_after_a_restart_of_its_server(
    etcd: EmbeddedEtcd, direct: kvorum.Client
) -> None:
    async with direct.backend.watch("") as watch:
        first = await direct.backend.set("a", b"1")
        assert await revisions_of(watch, 1) == [first]
        await etcd.restart()
        second = await direct.backend.set("a", b"2")

        assert await revisions_of(watch, 1) == [second]


async def test_a_watch_resumes_after_its_server_is_killed(
    etcd: EmbeddedEtcd, direct: kvorum.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Without load: under load, 3.5.1 loses data when it is killed."""
    caplog.set_level("DEBUG", "kvorum.etcd.watch.reader")
    async with direct.backend.watch("") as watch:
        first = await direct.backend.set("a", b"1")
        assert await revisions_of(watch, 1) == [first]
        waiting = await idle(watch)
        await etcd.kill()
        with anyio.fail_after(DEADLINE):
            while caplog.text.count("is still interrupted") < 3:  # noqa: ASYNC110 - a log has no event
                await anyio.sleep(0.01)
        await etcd.restart()
        second = await direct.backend.set("a", b"2")

        with anyio.fail_after(DEADLINE):
            (change,) = await waiting
    assert change.revision == second


async def test_a_silent_server_is_noticed_and_the_watch_resumes(
    direct: kvorum.Client, proxy: FaultProxy
) -> None:
    """Its connections stay open. Keep-alive detects one, a deadline the other, in 15 seconds."""
    settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix="lab")
    async with kvorum.connect(settings) as client, client.backend.watch("") as watch:
        await direct.backend.set("a", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)
        started = anyio.current_time()
        proxy.hold("replies")
        second = await direct.backend.set("a", b"2")
        before = proxy.statistics().accepted
        with anyio.fail_after(DEADLINE):
            await proxy.wait(lambda now: now.accepted > before)
        noticed = anyio.current_time() - started
        await proxy.heal()

        with anyio.fail_after(DEADLINE):
            (change,) = await waiting
    assert change.revision == second
    assert noticed < 15


@pytest.mark.parametrize("victim", ["the leader", "the one it watches"])
async def test_a_watch_resumes_when_a_member_of_three_dies(
    kvorum_etcd: EmbeddedEtcd, victim: str
) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd,
        kvorum.connect(etcd.url) as client,
        client.backend.watch("") as watch,
    ):
        written = [await client.backend.set("a", b"0")]
        shown = await revisions_of(watch, 1)
        leads = [endpoint.is_leader for endpoint in (await client.health()).endpoints]
        leader = etcd.endpoints.index((await client.health()).endpoints[leads.index(True)].endpoint)
        mine = etcd.endpoints.index(client.connection.endpoint)
        waiting = await idle(watch)
        await etcd.kill(leader if victim == "the leader" else mine)

        with anyio.fail_after(DEADLINE):
            while len(written) < 20:
                entry = await client.backend.get("a")
                assert entry is not None
                value = b'{"metadata":{"writeToken":"%d"}}' % len(written)
                try:
                    revision = await client.backend.compare_and_swap(
                        "a", value, expected=entry.mod_revision
                    )
                except (kvorum.ConflictError, kvorum.UnavailableError):
                    continue
                written.append(revision)
            shown.append((await waiting)[0].revision)
        shown += await revisions_of(watch, 18)
    assert shown == written


async def test_a_watch_leaves_a_member_that_has_lost_its_leader(kvorum_etcd: EmbeddedEtcd) -> None:
    """Such a member would keep a silent stream open if it were not asked for a leader."""
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd,
        kvorum.connect(etcd.url) as client,
        client.backend.watch("") as watch,
    ):
        await client.backend.set("a", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)
        mine = etcd.endpoints.index(client.connection.endpoint)
        others = [number for number in range(3) if number != mine]
        for number in others:
            await etcd.pause(number)
        await resumed_or_left(client, etcd.endpoints[mine])
        for number in others:
            await etcd.resume(number)
        with kvorum.deadline(DEADLINE):
            revision = await client.backend.set("a", b"2")

        with anyio.fail_after(DEADLINE):
            (change,) = await waiting
    assert change.revision == revision


async def resumed_or_left(client: kvorum.Client, endpoint: str) -> None:
    """Wait until the client has left a server."""
    with anyio.fail_after(DEADLINE):
        while client.connection.endpoint == endpoint:  # noqa: ASYNC110 - there is no event
            await anyio.sleep(0.01)


async def test_a_server_that_refuses_all_connections_is_not_asked_in_a_hot_loop(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    """Waits grow to a second, and so the watch resumes about a second after the server is back."""
    async with client.backend.watch("") as watch:
        await direct.backend.set("a", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)
        proxy.cut_after(0, "replies")
        started, before = anyio.current_time(), proxy.statistics().accepted
        while anyio.current_time() < started + 2:
            proxy.cut()
            await anyio.sleep(0.005)
        assert proxy.statistics().accepted - before < 60
        await proxy.heal()
        revision = await direct.backend.set("a", b"2")

        with anyio.fail_after(DEADLINE):
            (change,) = await waiting
    assert change.revision == revision


async def test_only_the_statistics_tell_the_consumer_that_its_watch_was_resumed(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    async with client.backend.watch("") as watch:
        first = await direct.backend.set("a", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)
        proxy.cut()
        await resumed(watch)
        second = await direct.backend.set("a", b"2")
        await waiting

        now = watch.statistics()
    assert (now.position, now.resumes, now.buffered, now.events) == (second, 1, 0, 2)
    assert first < second


async def test_cancelling_a_wait_while_the_watch_is_interrupted_loses_nothing(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    """With asyncio's own timeout around each `anext`, while connections are cut."""
    written: list[int] = []
    shown: list[int] = []
    async with client.backend.watch("") as watch:

        async def write() -> None:
            for number in range(300):
                written.append(await direct.backend.set("a", b"%d" % number))
                if number % 30 == 0:
                    proxy.cut()

        writing = asyncio.ensure_future(write())
        with anyio.fail_after(DEADLINE):
            while len(shown) < 300:
                try:
                    async with asyncio.timeout(0.002):
                        shown.append((await anext(watch))[0].revision)
                except TimeoutError:
                    continue
        await writing
    assert shown == written


@pytest.mark.parametrize("how", ["closed", "cancelled", "dropped"])
async def test_a_watch_that_ends_while_it_is_interrupted_leaves_nothing(
    client: kvorum.Client,
    proxy: FaultProxy,
    etcd: EmbeddedEtcd,
    count_watchers: Callable[[EmbeddedEtcd], Awaitable[int]],
    how: str,
) -> None:
    """It must not resume when the server is back."""
    tasks = asyncio.all_tasks()
    watch = client.backend.watch("")
    await watch.open()
    waiting = await idle(watch)
    await proxy.refuse()
    proxy.cut()
    with anyio.fail_after(DEADLINE):
        while await count_watchers(etcd):  # noqa: ASYNC110 - a metric has no event
            await anyio.sleep(0.01)
    if how == "closed":
        await watch.aclose()
    else:
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    del watch, waiting

    with anyio.fail_after(DEADLINE):
        while any("watch" in task.get_name() for task in asyncio.all_tasks() - tasks):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    await proxy.heal()
    await client.backend.set("a", b"")  # the server is back
    assert await count_watchers(etcd) == 0


# --- what is lost ---------------------------------------------------------------------------------


async def cut_off_while(proxy: FaultProxy, happens: Callable[[], Awaitable[Any]]) -> None:
    """Run something while the proxy lets nothing through."""
    await proxy.refuse()
    proxy.cut()
    await happens()
    await proxy.heal()


async def test_history_that_is_compacted_meanwhile_is_reported_once_and_the_watch_ends(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    async with client.backend.watch("") as watch:
        first = await direct.backend.set("a", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)

        async def forget() -> None:
            await direct.backend.set("a", b"2")
            await direct.admin.compact(await direct.backend.set("a", b"3"))

        await cut_off_while(proxy, forget)

        with anyio.fail_after(DEADLINE), pytest.raises(HistoryLostError) as caught:
            await waiting
        assert caught.value.revision == first + 1
        assert caught.value.compact_revision == first + 2
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_a_deletion_at_the_very_revision_of_a_compaction_is_not_lost_in_silence(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    """etcd forgets it, and accepts a watch that starts there without an error."""
    await direct.backend.set("a", b"1")
    async with client.backend.watch("") as watch:
        await direct.backend.set("b", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)

        async def forget() -> None:
            change = await direct.backend.delete("a")
            await direct.admin.compact(change.revision)

        await cut_off_while(proxy, forget)
        await direct.backend.set("c", b"1")

        with anyio.fail_after(DEADLINE), pytest.raises(HistoryLostError):
            await waiting


async def test_a_compaction_of_what_was_already_delivered_disturbs_no_watch(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    async with client.backend.watch("") as watch:
        await direct.backend.set("a", b"1")
        deleted = (await direct.backend.delete("a")).revision
        await revisions_of(watch, 2)
        waiting = await idle(watch)

        async def forget() -> None:
            await direct.admin.compact(deleted)

        await cut_off_while(proxy, forget)
        later = await direct.backend.set("b", b"1")

        with anyio.fail_after(DEADLINE):
            (change,) = await waiting
    assert change.revision == later


async def test_a_store_that_was_put_back_to_an_older_state_is_not_waited_for(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    """etcd would let the watch wait for that revision, and skip all changes until then."""
    await back_up(etcd, tmp_path / "backup")
    async with kvorum.connect(etcd.url) as client, client.backend.watch("") as watch:
        last = [await client.backend.set("a", b"1") for _ in range(10)][-1]
        await revisions_of(watch, 10)
        waiting = await idle(watch)
        await put_back(etcd, tmp_path / "backup")

        with anyio.fail_after(DEADLINE), pytest.raises(FutureRevisionError) as caught:
            await waiting
        assert caught.value.revision == last


async def test_a_watch_says_that_there_is_another_cluster(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client, kvorum_etcd: EmbeddedEtcd
) -> None:
    """As after a restore under a new cluster id: none of its data are what the watch has read."""
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary) as another,
        client.backend.watch("") as watch,
    ):
        await direct.backend.set("a", b"1")
        await revisions_of(watch, 1)
        waiting = await idle(watch)
        proxy.redirect(another.endpoints[0])
        proxy.cut()

        with anyio.fail_after(DEADLINE), pytest.raises(kvorum.AnotherClusterError):
            await waiting


async def test_a_consumer_that_lags_behind_a_compaction_sees_all_or_an_error(
    client: kvorum.Client, direct: kvorum.Client
) -> None:
    """It has seen a part; the rest is either complete, or reported as lost."""
    start = await direct.backend.set("a", b"")
    written = [await direct.backend.set(f"k{number % 50}", bytes(2_000)) for number in range(3_000)]
    shown: list[int] = []
    async with client.backend.watch("", since=start) as watch:
        shown += await revisions_of(watch, 10)
        await direct.admin.compact(written[-1])
        with anyio.fail_after(DEADLINE), pytest.raises(HistoryLostError) as caught:
            await follow(watch, shown)

    assert caught.value.revision == shown[-1] + 1
    assert shown == written[: len(shown)]
    assert len(shown) < len(written)


async def follow(watch: kvorum.StorageWatch, shown: list[int]) -> None:
    async for changes in watch:
        shown.append(changes[0].revision)  # noqa: PERF401 - what was delivered before the error counts


# --- listing again --------------------------------------------------------------------------------


async def test_a_watch_with_initial_shows_the_difference_when_history_is_lost(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    """What was deleted, replaced, added and modified; and then the watch continues."""
    there = LabWorkerRepository(direct)
    for name in ("gone", "replaced", "changed", "same"):
        await there.add(LabWorker.new(name, lab_track="x"))
    last = {worker.metadata.name: worker for worker in await there.list()}
    async with LabWorkerRepository(client).watch(initial=True) as watch:
        states = watch.revisions()
        first = await anext(states)
        assert [type(event).__name__ for event in first] == ["Added"] * 4 + ["Bookmark"]
        waiting = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        await cut_off_while(proxy, partial(change_and_forget, direct))
        with anyio.fail_after(DEADLINE):
            difference = await waiting

        now = await there.list()
        workers = {worker.metadata.name: worker for worker in now}
        at = now.resource_version
        deleted = [event.resource for event in difference if isinstance(event, kvorum.Deleted)]
        assert [(each.metadata.name, each.metadata.uid, each.spec) for each in deleted] == [
            (name, last[name].metadata.uid, last[name].spec) for name in ("gone", "replaced")
        ]
        assert [each.metadata.resource_version for each in deleted] == [at, at]
        assert difference[2:] == (
            kvorum.Added(workers["replaced"]),
            kvorum.Modified(workers["changed"], last["changed"]),
            kvorum.Added(workers["new"]),
            kvorum.Bookmark(at),
        )
        assert (watch.checkpoint, watch.statistics().relists) == (at, 1)

        modified = await there.patch("same", {"metadata": {"labels": {"a": "b"}}})
        with anyio.fail_after(DEADLINE):
            assert await anext(states) == (kvorum.Modified(modified, last["same"]),)


async def change_and_forget(direct: kvorum.Client) -> None:
    there = LabWorkerRepository(direct)
    await there.delete("gone")
    await there.delete("replaced")
    await there.add(LabWorker.new("replaced", lab_track="x"))
    await there.patch("changed", {"metadata": {"labels": {"a": "b"}}})
    await there.add(LabWorker.new("new", lab_track="x"))
    await direct.admin.compact(await direct.backend.set("elsewhere", b""))


async def test_a_watch_with_initial_and_a_selector_tells_what_no_longer_matches(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    there = LabWorkerRepository(direct)
    for name in ("leaves", "stays"):
        await there.add(LabWorker.new(name, lab_track="x"))
    async with LabWorkerRepository(client).watch(labels="lab-track=x", initial=True) as watch:
        states = watch.revisions()
        await anext(states)
        waiting = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)

        async def forget() -> None:
            other = {"metadata": {"labels": {"lab-track": "y"}}, "spec": {"labTrack": "y"}}
            left = await there.patch("leaves", other)
            await direct.admin.compact(left.metadata.resource_version)

        await cut_off_while(proxy, forget)
        with anyio.fail_after(DEADLINE):
            deleted, _ = await waiting
    assert isinstance(deleted, kvorum.Deleted)
    assert deleted.resource.metadata.labels["lab-track"] == "x"


async def test_a_watch_without_initial_does_not_list(
    client: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    workers = LabWorkerRepository(client)
    async with workers.watch() as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)

        async def forget() -> None:
            repository = LabWorkerRepository(direct)
            added = [
                await repository.add(LabWorker.new(name, lab_track="x")) for name in ("a", "b")
            ]
            await direct.admin.compact(added[-1].metadata.resource_version)

        await cut_off_while(proxy, forget)
        with anyio.fail_after(DEADLINE), pytest.raises(HistoryLostError):
            await waiting
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


# --- bookmarks ------------------------------------------------------------------------------------


async def test_bookmarks_are_between_the_events(kvorum_etcd: EmbeddedEtcd) -> None:
    """They never go back, are at or after each event before them, and before each event after."""
    # 3.4 has no flag for the interval of ten minutes, so none arrives.
    arguments = [OFTEN] if kvorum_etcd.version >= (3, 5) else []
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments) as etcd,
        kvorum.connect(etcd.url) as client,
        LabWorkerRepository(client).watch(bookmarks=True) as watch,
    ):
        workers = LabWorkerRepository(client)
        seen: list[Any] = []
        for number in range(4):
            added = await workers.add(LabWorker.new(f"w{number}", lab_track="x"))
            elsewhere = await client.backend.set("elsewhere", b"")
            with anyio.fail_after(DEADLINE):
                seen.append(await anext(watch))
                while arguments and seen[-1].resource_version < elsewhere:
                    seen.append(await anext(watch))
            assert watch.checkpoint == (elsewhere if arguments else added.metadata.resource_version)

    numbers = [event.resource_version for event in seen]
    assert numbers == sorted(numbers)
    assert sum(isinstance(event, kvorum.Bookmark) for event in seen) == (4 if arguments else 0)


async def test_a_quiet_watch_resumes_from_its_bookmark_when_older_history_is_compacted(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """Nothing happens under its prefix; without bookmarks its position would be compacted."""
    if kvorum_etcd.version < (3, 5):
        pytest.skip("this version has no flag for the interval of its bookmarks")
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=[OFTEN]) as etcd,
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(f"etcd://{proxy.endpoint}/lab") as client,
        kvorum.connect(f"{etcd.url}/lab") as direct,
        client.backend.watch("quiet/") as watch,
    ):
        waiting = await idle(watch)
        last = [await direct.backend.set("loud", b"") for _ in range(10)][-1]
        with anyio.fail_after(DEADLINE):
            while watch.statistics().position < last:  # noqa: ASYNC110 - there is no event
                await anyio.sleep(0.01)
        await direct.admin.compact(last)
        proxy.cut()
        await resumed(watch)
        revision = await direct.backend.set("quiet/a", b"")

        with anyio.fail_after(DEADLINE):
            (change,) = await waiting
    assert change.revision == revision
