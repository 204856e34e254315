"""Watches of every kind under random faults at random times, judged by what really happened.

Each follower reads through proxies of its own, so that what was done to it is known; the writers
write past them, to the servers themselves, which are paused, restarted and killed. The server_history is
read from etcd by other means, piece by piece before each compaction.
"""

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias

import anyio
import msgspec
import pytest

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, HistoryLostError, Kind, Resource, UnavailableError
from kvorum.etcd.admin import compact
from kvorum.etcd.transport.connection import Connection
from kvorum.etcd.watch.reader import WatchReader
from kvorum.storage.port import StorageWatch
from kvorum.storage.values import Entry
from kvorum.testing import (
    FaultProxy,
    History,
    Rule,
    ServerHistory,
    Violation,
    WatchedStream,
    Workload,
    check_resumed,
    read_server_history,
)
from kvorum.testing.faults.operator import Operator, OperatorError

PATIENCE: Final = 60.0  # seconds in which a watch has to be up to date again, once all is well
# seconds after which a watch has noticed that its server says nothing, on a busy machine too
SILENCE: Final = 15.0
HANDSHAKE: Final = 4_000  # bytes; connecting, asking for the version and creating a watch take less
OFTEN: Final = "--experimental-watch-progress-notify-interval=100ms"

pytestmark = pytest.mark.timeout(1_500)


class ItemSpec(msgspec.Struct):
    owner: str = ""
    text: str = ""


class ItemStatus(msgspec.Struct):
    pass


class Item(Resource[ItemSpec, ItemStatus]):
    kind: ClassVar[Kind] = Kind("Item", plural="items", api_version="test.kvorum.dev/v1")


def value_of(key: str, unique: str) -> bytes:
    """Make an item.

    Now and then it comes to match a selector, ceases to, or is another one of the same name.
    """
    draw = random.Random(zlib.crc32(unique.encode()))
    name = key.rpartition("/")[2]
    labels = {"on": "yes"} if draw.random() < 0.6 else {}
    metadata = {"name": name, "uid": f"{name}-{draw.randrange(2)}", "labels": labels}
    spec = {"owner": draw.choice(["ann", "bob"]), "text": unique + "x" * draw.randrange(400)}
    return msgspec.json.encode(
        {
            "apiVersion": "test.kvorum.dev/v1",
            "kind": "Item",
            "metadata": metadata,
            "spec": spec,
            "status": {},
        }
    )


END: Final = msgspec.json.encode(  # every selector matches it
    {
        "apiVersion": "test.kvorum.dev/v1",
        "kind": "Item",
        "metadata": {"name": "end", "uid": "end", "labels": {"on": "yes"}},
        "spec": {"owner": "ann"},
    }
)
WORKLOAD: Final = Workload(
    operations=0,
    clients=5,
    keys=60,
    batch=12,
    mix={"set": 25, "create": 15, "swap": 20, "delete": 15, "commit": 25},
    prefix="items/k",
    value=value_of,
)


# --- those who watch ------------------------------------------------------------------------------


class Follower:
    """One watch after the other, each going on where the one before had got to, and what they showed.

    Attributes:
        proxies: what stands before each server, for this one only.
        chains: what was shown; a new chain begins where history was lost, with a list.
        lost: the revisions that it was told are lost.
        is_held: whether it reads nothing for now.
        watch: the one that is open.
    """

    matches: Callable[[Entry], bool] = staticmethod(lambda _: True)
    options: Mapping[str, Any] = {}

    def __init__(self, client: kvorum.Client, proxies: Sequence[FaultProxy], seed: int) -> None:
        self.proxies = proxies
        self.chains: list[list[WatchedStream]] = [[]]
        self.lost: list[int] = []
        self.is_held = False
        self.watch: kvorum.Watch[Item] | StorageWatch | None = None
        self.random = random.Random(seed)
        self._client = client
        self._repository = client.repository(Item)
        self._since: int | None = None
        self._earlier = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.watch!r}>"

    @property
    def is_initial(self) -> bool:
        return bool(self.options.get("initial"))

    @property
    def resumes(self) -> int:
        return self._earlier + (0 if self.watch is None else self.watch.statistics().resumes)

    @property
    def relists(self) -> int:
        return 0 if self.watch is None else self.watch.statistics().relists

    @property
    def position(self) -> int:
        """Up to where it has read."""
        return 0 if self.watch is None else self.watch.statistics().position

    @property
    def shown(self) -> int:
        """Up to where it has shown everything."""
        if self.watch is None:
            return 0
        return (
            self.watch.checkpoint if isinstance(self.watch, kvorum.Watch) else self.watch.revision
        )

    @property
    def events(self) -> int:
        streams = [stream for chain in self.chains for stream in chain]
        return sum(
            len(each) for stream in streams for each in stream.shown if isinstance(each, tuple)
        )

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except HistoryLostError as exc:
                self.lost.append(exc.revision or 0)
                await self._list()
                self.chains.append([])
            except UnavailableError:
                await anyio.sleep(
                    0.05
                )  # only while a new one is opened: one that is open waits by itself

    async def _list(self) -> None:
        while True:
            try:
                self._since = (await self._repository.list(limit=1)).resource_version
            except UnavailableError:
                await anyio.sleep(0.05)
            else:
                return

    def open(self) -> Any:
        return self._repository.watch(since=self._since, **self.options)

    async def _follow(self) -> None:
        watch = self.open()
        try:
            async with watch:
                self.watch = watch
                stream = WatchedStream(
                    prefix="items/",
                    since=None if self.is_initial else self.shown,
                    matches=self.matches,
                    bookmarks=bool(self.options.get("bookmarks")),
                )
                self._since = stream.since
                self.chains[-1].append(stream)
                await self.consume(watch, stream)
        finally:
            self._earlier, self.watch = self.resumes, None

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        async for events in watch.revisions():
            stream.add_events(events)

    # --- what is done to it ---

    def cut(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    async def cut_off(self) -> None:
        for proxy in self.proxies:
            await proxy.refuse()
            proxy.cut()

    async def heal(self) -> None:
        for proxy in self.proxies:
            await proxy.heal()


class ByEvent(Follower):
    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        held: list[kvorum.WatchEvent[Item]] = []
        async for event in watch:
            held.append(event)
            if watch.checkpoint == event.resource_version:
                stream.add_events(held)
                held = []


class Labelled(Follower):
    options = {"labels": "on=yes"}  # noqa: RUF012 - nobody changes it
    matches = staticmethod(lambda entry: b'"on":"yes"' in entry.value)


class Initial(Follower):
    options = {"initial": True}  # noqa: RUF012


class InitialByField(Follower):
    options = {"initial": True, "fields": "spec.owner=ann"}  # noqa: RUF012
    matches = staticmethod(lambda entry: b'"owner":"ann"' in entry.value)


class Bookmarked(Follower):
    """With bookmarks, which come ten times a second from a server that can be told to (3.5)."""

    options = {"bookmarks": True}  # noqa: RUF012


class Impatient(Follower):
    """Cancels its waits, in asyncio's own way."""

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        while True:
            try:
                async with asyncio.timeout(self.random.choice([0.0005, 0.005, 0.1])):
                    stream.add_events(await watch.next_revision())
            except TimeoutError:
                continue


class Restarting(Follower):
    """Leaves within a revision now and then, and goes on from the checkpoint."""

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        held: list[kvorum.WatchEvent[Item]] = []
        left = self.random.randrange(1, 3_000)
        async for event in watch:
            held.append(event)
            if watch.checkpoint == event.resource_version:
                stream.add_events(held)
                held = []
            left -= 1
            if not left:
                break
        if watch.checkpoint > self._since_of(stream):
            stream.add_events([kvorum.Bookmark(watch.checkpoint)])  # that is what a checkpoint says
        self._since = watch.checkpoint

    @staticmethod
    def _since_of(stream: WatchedStream) -> int:
        last = stream.shown[-1] if stream.shown else None
        return last[0].revision if isinstance(last, tuple) else stream.since or 0


class Slow(Follower):
    """Reads nothing while it is held, and slowly else."""

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        while True:
            while self.is_held:  # noqa: ASYNC110 - a consumer that does not read
                await anyio.sleep(0.01)
            stream.add_events(await watch.next_revision())
            if self.random.random() < 0.02:
                await anyio.sleep(0.02)


class SlowInitial(Slow):
    options = {"initial": True}  # noqa: RUF012


class OfTheStorage(Follower):
    """Beneath the types."""

    def open(self) -> StorageWatch:
        return self._client.backend.watch("items/", since=self._since)

    async def consume(self, watch: Any, stream: WatchedStream) -> None:
        async for changes in watch:
            stream.add_changes(changes)


KINDS: Final = (
    *(ByEvent, Labelled, Initial, InitialByField, Bookmarked),
    *(Impatient, Restarting, Slow, SlowInitial, OfTheStorage),
)


# --- the soak -------------------------------------------------------------------------------------


class Soak:
    """Writers, followers, and what is done to them.

    Attributes:
        history: what the writers did, and the faults.
        followers: who watches.
        server_history: what has happened, as far as it was read.
        counts: what the faults brought about.
        in_flight: how many writes were under way at each fault.
        violations: what is wrong, after `run`.
        patience: how many seconds a watch may take to be up to date in the end.
    """

    def __init__(self, etcd: EmbeddedEtcd, client: kvorum.Client, seed: int) -> None:
        self.etcd = etcd
        self.client = client
        self.seed = seed
        self.random = random.Random(seed)
        self.history = History()
        self.followers: list[Follower] = []
        self.server_history = ServerHistory((), end=0)
        self.counts: Counter[str] = Counter()
        self.in_flight: list[int] = []
        self.violations: list[Violation] = []
        self.patience = PATIENCE
        self._compacted = 0

    def __str__(self) -> str:
        changes = sum(len(each) for each in self.server_history.revisions.values())
        shown = sum(follower.events for follower in self.followers)
        faults = Counter(fault.name for fault in self.history.faults)
        lines = [
            f"etcd {'.'.join(map(str, self.etcd.version))}, {len(self.etcd.endpoints)} members, seed {self.seed}",
            f"{len(self.history.faults)} faults, {changes:,} events in {len(self.server_history.revisions):,} revisions",
            f"shown {shown:,} times by {len(self.followers)} watches",
            f"writes under way at a fault: {min(self.in_flight)} to {max(self.in_flight)}",
            ", ".join(f"{number} {name}" for name, number in sorted(self.counts.items())),
            "faults: " + ", ".join(f"{number} {name}" for name, number in sorted(faults.items())),
            f"{len(self.violations)} violations",
        ]
        return "\n  ".join(lines + [str(violation) for violation in self.violations[:10]])

    async def run(self, faults: Sequence["FaultOfSoak"]) -> None:
        """Do all of that to watches while writers write; then judge what was shown."""
        self.server_history = ServerHistory((), end=await self.now())
        problem: Exception | None = None
        async with AsyncExitStack() as stack:
            for number, kind in enumerate(KINDS):
                opened = follower_of(self.etcd, kind, self.seed + number)
                self.followers.append(await stack.enter_async_context(opened))
            try:
                await self.follow(faults)
            except Exception as exc:  # noqa: BLE001 - raised below: else it would come in a group for each proxy
                problem = exc
        if problem is not None:
            raise problem
        await self.read_server_history()
        self.judge()

    async def follow(self, faults: Sequence["FaultOfSoak"]) -> None:
        writers_stop = anyio.Event()
        async with anyio.create_task_group() as group:
            for follower in self.followers:
                group.start_soon(follower.run)
            await self.until(lambda: all(follower.watch is not None for follower in self.followers))
            async with anyio.create_task_group() as writing:
                workload = msgspec.structs.replace(WORKLOAD, seed=self.seed)
                writing.start_soon(
                    partial(workload.run, [self.client.backend], self.history, until=writers_stop)
                )
                for fault in faults:
                    await anyio.sleep(self.random.uniform(0, 0.3))
                    await fault(self)
                writers_stop.set()
            with kvorum.deadline(PATIENCE):
                end = await self.client.backend.set("items/end", END)
            with anyio.move_on_after(self.patience):  # what is missing then is lost
                while not all(follower.shown >= end for follower in self.followers):  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            self.count_up()
            group.cancel_scope.cancel()

    def count_up(self) -> None:
        self.counts["resumes"] = sum(follower.resumes for follower in self.followers)
        self.counts["re-lists"] = sum(follower.relists for follower in self.followers)
        self.counts["lost histories told"] = sum(len(follower.lost) for follower in self.followers)

    def judge(self) -> None:
        for follower in self.followers:
            follower.chains[-1][-1].complete_to = self.server_history.end
            for chain in follower.chains:
                self.violations += check_resumed(chain, self.server_history)
            # One that says that history is lost must not say so in vain.
            for revision in follower.lost:
                if not 0 < revision <= self._compacted:
                    self.violations.append(
                        Violation(Rule.LOST_EVENT, f"{revision} is not lost, as {follower} said")
                    )

    # --- means of those who do it ---

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.move_on_after(PATIENCE):
            while not holds():  # noqa: ASYNC110 - whoever follows tells nobody
                await anyio.sleep(0.01)
            return
        raise AssertionError(f"it is not so after {PATIENCE:g} s, {self.history}: {self.followers}")

    async def now(self) -> int:
        """Return the store's revision, as soon as it can be told."""
        with kvorum.deadline(PATIENCE):
            return (await self.client.backend.list("", limit=1)).revision

    async def some_more(self, number: int) -> int:
        """Wait until there are so many more revisions; return where the store is then."""
        until = await self.now() + number
        while (now := await self.now()) < until:  # noqa: ASYNC110 - a store tells nobody
            await anyio.sleep(0.02)
        return now

    async def strike(self, name: str) -> None:
        """Take note of a fault that comes next, at a moment when writes are under way."""
        await self.until(lambda: self.history.writes_in_flight > 0)
        self.in_flight.append(self.history.writes_in_flight)
        self.history.mark(name)

    def some(self, *, least: Sequence[Follower] = ()) -> list[Follower]:
        """Draw whom to do it to."""
        drawn = self.random.sample(
            self.followers, self.random.randrange(1, len(self.followers) + 1)
        )
        return [follower for follower in self.followers if follower in drawn or follower in least]

    async def read_server_history(self) -> None:
        later = await read_server_history(
            self.etcd.endpoints[0], self.client.settings.prefix, since=self.server_history.end
        )
        self.server_history = self.server_history.followed_by(later)

    async def forget(self) -> None:
        """Compact everything, once it has been read."""
        await self.read_server_history()
        self._compacted = self.server_history.end
        await compact(self.client.connection, self._compacted)

    async def leader(self) -> int:
        """Return who leads, as soon as there is somebody: the last fault may have been its end."""
        with anyio.fail_after(PATIENCE):
            while True:
                with kvorum.deadline(PATIENCE):
                    endpoints = (await self.client.health()).endpoints
                leading = [number for number, each in enumerate(endpoints) if each.is_leader]
                if leading:
                    return self.etcd.endpoints.index(endpoints[leading[0]].endpoint)
                await anyio.sleep(0.05)


@asynccontextmanager
async def follower_of(
    etcd: EmbeddedEtcd, kind: type[Follower], seed: int
) -> AsyncIterator[Follower]:
    """Open a client for a follower, through proxies of its own."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(FaultProxy(endpoint)) for endpoint in etcd.endpoints
        ]
        settings = EtcdSettings(
            endpoints=tuple(proxy.endpoint for proxy in proxies), prefix="soak", timeout=2
        )
        yield kind(await stack.enter_async_context(kvorum.connect(settings)), proxies, seed)


# --- what is done ---------------------------------------------------------------------------------

FaultOfSoak: TypeAlias = Callable[[Soak], Awaitable[None]]


def in_the_network(name: str, act: Callable[[FaultProxy, random.Random], object]) -> FaultOfSoak:
    """Make a fault of some connections, until they are healed."""

    async def fault(soak: Soak) -> None:
        chosen = soak.some()
        await soak.strike(name)
        for follower in chosen:
            for proxy in follower.proxies:
                act(proxy, soak.random)
        await anyio.sleep(soak.random.uniform(0.02, 0.5))
        for follower in chosen:
            await follower.heal()

    return fault


def cut_in_a_request(proxy: FaultProxy, draw: random.Random) -> None:
    proxy.cut()  # what is sent next connects again, and creates the watch
    proxy.cut_after(draw.randrange(1, 800), "requests")


async def refuse(soak: Soak) -> None:
    chosen = soak.some()
    await soak.strike("refuse")
    for follower in chosen:
        await follower.cut_off()
    await anyio.sleep(soak.random.uniform(0.1, 0.8))
    for follower in chosen:
        await follower.heal()


async def cut_in_a_batch(soak: Soak) -> None:
    """Cut connections again while they bring what has been missed, which etcd sends in one message."""
    chosen = [each for each in soak.some() if not isinstance(each, Restarting | Slow)]
    for follower in chosen:
        await follower.cut_off()
    target = await soak.some_more(150)
    sizes = [soak.random.randrange(2 * HANDSHAKE, 60_000) for _ in chosen]
    await soak.strike("cut in a batch")
    async with anyio.create_task_group() as group:
        for follower, size in zip(chosen, sizes, strict=True):
            group.start_soon(resume_in_a_batch, soak, follower, target, size)


async def resume_in_a_batch(soak: Soak, follower: Follower, target: int, size: int) -> None:
    """Heal one, cut it within its next batch, and count that if it was so and it went on."""
    before = follower.resumes
    first = sum(proxy.statistics().replies for proxy in follower.proxies)
    cuts = [proxy.statistics().cuts for proxy in follower.proxies]
    for proxy in follower.proxies:
        await proxy.heal()
        proxy.cut_after(size, "replies")

    def is_cut() -> bool:
        return any(
            proxy.statistics().cuts > cut for proxy, cut in zip(follower.proxies, cuts, strict=True)
        )

    await soak.until(lambda: is_cut() or follower.shown >= target)
    # It was created again, has got more than a handshake, and yet not all that it had missed: so it
    # was cut in that.
    resumes, passed = (
        follower.resumes,
        sum(proxy.statistics().replies for proxy in follower.proxies) - first,
    )
    is_within = is_cut() and resumes > before and passed > HANDSHAKE and follower.position < target
    await follower.heal()
    await soak.until(lambda: follower.position >= target)
    soak.counts["resumes in the middle of a batch"] += is_within and follower.resumes > resumes


def paused(seconds: Callable[[random.Random], float], *, cut: bool, name: str) -> FaultOfSoak:
    """Make a pause of a server, the leader if there are several.

    Count who had to take over because of it.
    """

    async def fault(soak: Soak) -> None:
        member = await soak.leader()
        before_it = await soak.now()
        await soak.until(lambda: all(follower.position >= before_it for follower in soak.followers))
        await soak.strike(name)
        await soak.etcd.pause(member)
        if cut:
            for follower in soak.followers:
                follower.cut()
        before = [follower.resumes for follower in soak.followers]
        await anyio.sleep(seconds(soak.random))
        await soak.etcd.resume(member)
        target = await soak.now()
        await soak.until(lambda: all(follower.position >= target for follower in soak.followers))
        after = [follower.resumes for follower in soak.followers]
        resumed = sum(now > was for now, was in zip(after, before, strict=True))
        soak.counts["resumes after a pause"] += resumed
        if name == "long pause":
            soak.counts["of these, noticed by keep-alive"] += resumed

    return fault


async def restart(soak: Soak) -> None:
    member = await soak.leader()
    await soak.strike("restart")
    await soak.etcd.restart(member)


async def kill(soak: Soak) -> None:
    """Kill a server, the leader if there are several, and start it again after a while."""
    member = await soak.leader()
    await soak.strike("kill")
    await soak.etcd.kill(member)
    await anyio.sleep(soak.random.uniform(0, 1))
    await soak.etcd.restart(member)


async def compact_during_a_disconnect(soak: Soak) -> None:
    chosen = soak.some(least=[each for each in soak.followers if each.is_initial])
    await soak.strike("compaction during a disconnect")
    for follower in chosen:
        await follower.cut_off()
    await soak.some_more(30)
    await soak.forget()
    await soak.some_more(20)
    for follower in chosen:
        await follower.heal()


async def compact_while_one_lags(soak: Soak) -> None:
    """Compact what lies between a consumer that does not read and the present."""
    lagging = [follower for follower in soak.followers if isinstance(follower, Slow)]
    for follower in lagging:
        follower.is_held = True
    await soak.some_more(soak.random.randrange(300, 900))
    before = [follower.position for follower in lagging]
    await soak.strike("compaction while one lags")
    await soak.forget()
    soak.counts["watches behind a compaction"] += sum(
        position < soak.server_history.end for position in before
    )
    for follower in lagging:
        follower.is_held = False


async def compact_behind_a_slow_link(soak: Soak) -> None:
    """Compact history that is on its way to some, over links that have become slow."""
    chosen = soak.some(least=[each for each in soak.followers if each.is_initial])
    for follower in chosen:
        for proxy in follower.proxies:
            proxy.throttle(20_000, "replies")
    await soak.some_more(200)
    before = [follower.shown for follower in chosen]
    await soak.strike("compaction behind a slow link")
    await soak.forget()
    soak.counts["watches behind a compaction"] += sum(
        shown < soak.server_history.end for shown in before
    )
    await soak.some_more(20)
    for follower in chosen:
        await follower.heal()


async def hand_over(soak: Soak) -> None:
    """Let the leader hand over to the next member."""
    operator = Operator(soak.etcd.endpoints, soak.etcd.peer_endpoints)
    await soak.strike("leader handed over")
    with suppress(OperatorError):  # it leads no more
        await operator.move_leader()


async def restart_in_turn(soak: Soak) -> None:
    """Restart all members, one after the other."""
    for member in range(len(soak.etcd.endpoints)):
        await soak.strike("restart in turn")
        await soak.etcd.restart(member)


CUT: Final = in_the_network("cut", lambda proxy, _: proxy.cut())
IN_THE_NETWORK: Final = (
    CUT,
    CUT,
    in_the_network("cut in a request", cut_in_a_request),
    in_the_network(
        "cut in a reply", lambda proxy, draw: proxy.cut_after(draw.randrange(1, 2_000), "replies")
    ),
    in_the_network(
        "cut in a reply", lambda proxy, draw: proxy.cut_after(draw.randrange(1, 60_000), "replies")
    ),
    in_the_network("delay", lambda proxy, draw: proxy.delay(draw.uniform(0.01, 0.2))),
    in_the_network("throttle", lambda proxy, _: proxy.throttle(100_000)),
    in_the_network("hold replies", lambda proxy, _: proxy.hold("replies")),
    in_the_network("hold requests", lambda proxy, _: proxy.hold("requests")),
    in_the_network("drop replies", lambda proxy, _: proxy.drop("replies")),
    in_the_network("mute", lambda proxy, _: proxy.mute()),
    refuse,
)
SHORT_PAUSE: Final = paused(lambda draw: draw.uniform(0.1, 1), cut=False, name="pause")
PAUSE_AND_CUT: Final = paused(lambda draw: draw.uniform(0.1, 1), cut=True, name="pause, and cut")
LONG_PAUSE: Final = paused(lambda _: SILENCE, cut=False, name="long pause")


def shuffled(faults: Sequence[FaultOfSoak], seed: int) -> list[FaultOfSoak]:
    return random.Random(seed).sample(faults, len(faults))


def faults_for(
    version: tuple[int, ...], members: int, seed: int, *, is_long: bool
) -> list[FaultOfSoak]:
    """Return what to do. 3.5.1 is not killed.

    It loses committed entries then, which no watch can show.
    """
    kills = [kill] if version < (3, 5) or version >= (3, 5, 3) else [restart]
    servers = [restart, *kills, SHORT_PAUSE, PAUSE_AND_CUT]
    compactions = [compact_during_a_disconnect, compact_while_one_lags, compact_behind_a_slow_link]
    if members > 1:
        leaders = [hand_over, hand_over, restart_in_turn, compact_during_a_disconnect]
        return shuffled([*IN_THE_NETWORK[::3], *servers, *leaders] * (4 if is_long else 1), seed)
    if not is_long:
        return shuffled(
            [*IN_THE_NETWORK, *servers, *compactions, cut_in_a_batch, cut_in_a_batch], seed
        )
    often = [
        *IN_THE_NETWORK * 9,
        *servers * 12,
        *compactions * 12,
        *[cut_in_a_batch] * 26,
        *[LONG_PAUSE] * 3,
    ]
    return shuffled(often, seed)


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--soak-seed"))


@pytest.fixture
def open_soak(
    kvorum_etcd: EmbeddedEtcd, seed: int
) -> Callable[[int], AbstractAsyncContextManager[Soak]]:
    """Open one on servers of its own, so many."""

    @asynccontextmanager
    async def opened(members: int) -> AsyncIterator[Soak]:
        arguments = [OFTEN] if kvorum_etcd.version >= (3, 5) else []
        async with EmbeddedEtcd(
            binary=kvorum_etcd.binary, members=members, arguments=arguments
        ) as etcd:
            settings = EtcdSettings(endpoints=etcd.endpoints, prefix="soak", timeout=2)
            async with kvorum.connect(settings) as client:
                yield Soak(etcd, client, seed)

    return opened


Opened: TypeAlias = Callable[[int], AbstractAsyncContextManager[Soak]]


async def test_watches_lose_nothing_under_random_faults(
    open_soak: Opened, count_watchers: Callable[[EmbeddedEtcd], Awaitable[int]], *, is_long: bool
) -> None:
    async with open_soak(1) as soak:
        await soak.run(faults_for(soak.etcd.version, 1, soak.seed, is_long=is_long))
        with anyio.fail_after(10):  # nothing is left there of all those that took over
            while await count_watchers(soak.etcd):  # noqa: ASYNC110 - a metric has no event
                await anyio.sleep(0.01)

    print(f"\n{soak}")
    assert soak.violations == [], str(soak)
    assert min(soak.in_flight) > 0
    assert soak.counts["re-lists"] > 0
    assert soak.counts["resumes in the middle of a batch"] > 0
    if is_long:
        assert len(soak.history.faults) >= 200
        assert sum(len(each) for each in soak.server_history.revisions.values()) >= 100_000
        for what in ("resumes in the middle of a batch", "re-lists", "resumes after a pause"):
            assert soak.counts[what] >= 20, str(soak)
        assert soak.counts["of these, noticed by keep-alive"] >= 20, str(soak)


async def test_watches_lose_nothing_while_leaders_fail(open_soak: Opened, *, is_long: bool) -> None:
    async with open_soak(3) as soak:
        await soak.run(faults_for(soak.etcd.version, 3, soak.seed, is_long=is_long))

    print(f"\n{soak}")
    assert soak.violations == [], str(soak)
    assert min(soak.in_flight) > 0


async def take_over_at_the_header(
    feed: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    """The classical mistake: the header of what etcd answers first is the store's revision."""
    stream = await create(feed, connection, since, deadline)
    if feed.is_open:
        feed.position = max(feed.position, stream.created.header.revision)
    return stream


async def take_over_one_later(
    feed: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    stream = await create(feed, connection, since, deadline)
    feed.position += feed.is_open
    return stream


async def take_over_one_earlier(
    feed: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    stream = await create(feed, connection, since, deadline)
    feed.position -= feed.is_open
    feed._last.change = None  # else it finds out that this is not what it has read, and says so
    return stream


async def take_over_without_one_event(
    feed: WatchReader, connection: Connection, since: int, deadline: float
) -> Any:
    """Drop one event of the first message that comes.

    The last one, which may be the last of several of a revision.
    """
    stream: Any = await create(feed, connection, since, deadline)
    read = stream.read

    async def read_less() -> Any:
        stream.read = read
        response = await read()
        del response.events[-1:]
        return response

    if feed.is_open:
        stream.read = read_less
    return stream


create = WatchReader._create
PLANTED: Final = {
    take_over_at_the_header: {Rule.LOST_EVENT},
    take_over_one_later: {Rule.LOST_EVENT},
    take_over_one_earlier: {Rule.DUPLICATE_EVENT},
    take_over_without_one_event: {Rule.LOST_EVENT, Rule.SPLIT_REVISION, Rule.WRONG_PREVIOUS},
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
async def test_the_soak_finds_a_planted_fault(
    open_soak: Opened, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    """Else it would prove nothing."""
    monkeypatch.setattr(WatchReader, "_create", fault)
    async with open_soak(1) as soak:
        soak.patience = 2
        await soak.run([refuse, CUT, refuse, CUT])

    assert {violation.rule for violation in soak.violations} & PLANTED[fault], str(soak)
