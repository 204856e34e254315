"""Opening a watch: within the caller's deadline, without leaks, one of many, in one cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from subprocess import STDOUT
from typing import Any

import anyio
import pytest
from typing_extensions import override

import kvorum
from kvorum import (
    AnotherClusterError,
    EmbeddedEtcd,
    EtcdSettings,
    HistoryLostError,
    Observer,
    Operation,
    UnavailableError,
)
from kvorum.etcd.transport import StreamLimits
from kvorum.etcd.transport import _rpc as rpc
from kvorum.lab import LabWorkerRepository
from kvorum.observer import Call
from kvorum.testing import FaultProxy

DEADLINE = 20

pytestmark = pytest.mark.timeout(60)


def watch_tasks(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    new = asyncio.all_tasks() - before
    return [task for task in new if task.get_name().startswith("kvorum-watch ")]


def settings_of(proxy: FaultProxy, timeout: float) -> EtcdSettings:
    return EtcdSettings(endpoints=(proxy.endpoint,), prefix="lab", timeout=timeout)


# --- deadlines ------------------------------------------------------------------------------------


class Silence(Observer):
    """Holds all replies back before a request.

    Attributes:
        before: which request: `creation` of a watch, or a check of its `past` or its `future`.
        has_begun: set then.
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self.before = ""
        self.has_begun = asyncio.Event()
        self._proxy = proxy

    @override
    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        self._begin("creation")

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if isinstance(message, rpc.RangeRequest) and message.count_only:
            self._begin("past" if call.revision else "future")

    def _begin(self, request: str) -> None:
        if request == self.before:
            self._proxy.hold("replies")
            self.has_begun.set()


@pytest.mark.parametrize("silent", ["creation", "past", "future"])
async def test_opening_from_the_past_ends_by_its_callers_deadline_wherever_it_hangs(
    proxy: FaultProxy, silent: str
) -> None:
    """Before a read that starts later and has more time. The client itself would wait a minute."""
    silence = Silence(proxy)
    async with (
        kvorum.connect(settings_of(proxy, 60), observer=silence) as client,
        client.backend.watch("elsewhere/"),
    ):
        first = await client.backend.set("a", b"1")
        last = await client.backend.set("a", b"2")
        silence.before = silent
        watch = client.backend.watch("", since=last + 1 if silent == "future" else first)
        with kvorum.deadline(0.5):
            opening = asyncio.create_task(watch.open())
        with anyio.fail_after(DEADLINE):
            await silence.has_begun.wait()
        with kvorum.deadline(3):
            reading = asyncio.create_task(client.backend.get("a"))
        done, _ = await asyncio.wait([opening, reading], return_when=asyncio.FIRST_COMPLETED)

        assert done == {opening}
        assert isinstance(opening.exception(), UnavailableError)
        reading.cancel()
        await asyncio.wait([reading])


# --- where it starts ------------------------------------------------------------------------------


class Deletion(Observer):
    """Deletes a key after a watch has read where "now" is, and before it is created."""

    def __init__(self, store: kvorum.StorageBackend) -> None:
        self.revision = 0
        self._store = store

    @override
    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        if not self.revision:
            self.revision = (await self._store.delete("a")).revision


async def test_a_deletion_just_after_the_start_is_not_lost_if_it_is_compacted_at_once(
    etcd: EmbeddedEtcd,
) -> None:
    """etcd forgets a deletion whose revision is compacted, and still lets a watch start there."""
    async with kvorum.connect(f"{etcd.url}/lab") as direct:
        await direct.backend.set("a", b"1")
        deletion = Deletion(direct.backend)
        async with kvorum.connect(f"{etcd.url}/lab", observer=deletion) as client:
            watch = client.backend.watch("")
            await watch.open()
            await direct.admin.compact(deletion.revision)
            await direct.backend.set("b", b"1")
            shown = 0
            # It is delivered, or said to be lost.
            with suppress(HistoryLostError), anyio.fail_after(DEADLINE):
                shown = (await anext(watch))[0].revision
            await watch.aclose()
    assert deletion.revision
    assert shown in {0, deletion.revision}


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["of the store", "of a repository", "with initial"])
async def test_an_opening_that_is_cancelled_at_any_point_leaves_no_watch_on_the_server(
    etcd: EmbeddedEtcd, count_watchers: Callable[[EmbeddedEtcd], Awaitable[int]], kind: str
) -> None:
    """Even while the object is still referenced."""
    tasks = asyncio.all_tasks()
    kept: list[Any] = []
    cancelled = 0
    async with kvorum.connect(f"{etcd.url}/lab") as client:
        workers = LabWorkerRepository(client)
        async with client.backend.watch("elsewhere/"):  # connects the channel of watches
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
                if opening.done():  # so all points before its end have been tested
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


# --- fragments ------------------------------------------------------------------------------------


class Fragments(Observer):
    """Keeps what is fragmented.

    Attributes:
        asked: whether each stream was asked for in fragments.
        received: the first and the last revision of each fragment but the last.
    """

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.received: list[tuple[int, int]] = []

    @override
    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        assert isinstance(message, rpc.WatchCreateRequest)
        self.asked.append(message.fragment)

    @override
    def watch_received(self, subject: str, endpoint: str, message: object, /) -> None:
        assert isinstance(message, rpc.WatchResponse)
        if message.fragment:
            events = message.events
            self.received.append((events[0].kv.mod_revision, events[-1].kv.mod_revision))


async def test_a_catch_up_that_broke_without_news_is_sent_in_fragments_and_put_together(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """etcd may cut in the middle of a revision.

    After a stream that brought news, the next one is asked for without fragments again.
    """
    fragments = Fragments()
    small = ["--max-request-bytes=100000"]  # and 512 KiB on top, for a piece
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=small) as etcd,
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(f"{etcd.url}/lab") as direct,
        kvorum.connect(settings_of(proxy, 10), observer=fragments) as client,
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
            assert fragments.asked == [False, True]
            pieces = fragments.received
            assert len(pieces) >= 3
            assert any(end == begin for (_, end), (begin, _) in pairwise(pieces)), "within one"

            proxy.cut()
            revision = await direct.backend.set("a", b"2")
            with anyio.fail_after(DEADLINE):
                assert (await anext(watch))[0].revision == revision
    assert fragments.asked == [False, True, False]


# --- many -----------------------------------------------------------------------------------------


@pytest.fixture
async def narrow(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server that allows eight streams on a connection."""
    told = await anyio.run_process([str(kvorum_etcd.binary), "--help"], stderr=STDOUT, check=False)
    if b"--max-concurrent-streams" not in told.stdout:
        pytest.skip("this version has no limit of streams that could be set")
    async with EmbeddedEtcd(
        binary=kvorum_etcd.binary, arguments=["--max-concurrent-streams=8"]
    ) as etcd:
        yield etcd


async def test_more_watches_than_a_connection_takes_are_put_on_others(narrow: EmbeddedEtcd) -> None:
    """All open, all deliver changes, and the server is not left for one that is away."""
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


async def test_a_watch_that_finds_no_free_slot_says_how_many_others_there_are(
    narrow: EmbeddedEtcd,
) -> None:
    """The server stays in use, the open watches continue, and a slot that is left is reused."""
    async with (
        FaultProxy(narrow.endpoints[0]) as proxy,
        kvorum.connect(settings_of(proxy, 2)) as client,
    ):
        client.connection.cluster.current.streams.limits = StreamLimits(connections=1)
        watches = [client.backend.watch("") for _ in range(16)]
        for watch in watches:
            await watch.open()
        before = proxy.statistics().accepted
        with pytest.raises(UnavailableError, match="has 16 other watches"):
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
async def test_a_watch_delivers_nothing_of_another_cluster_at_the_same_address(
    etcd: EmbeddedEtcd, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, others: bool
) -> None:
    """It resumes at a server of its own cluster, and ends if there is none."""
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
    """The connection of the calls still leads to the right cluster, so only the responses tell."""
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
