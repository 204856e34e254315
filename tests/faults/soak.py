"""A soak of watches: writers, followers, and the faults injected between them."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

import anyio
import msgspec
from tests.faults.followers import END, KINDS, WORKLOAD, Follower

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings
from kvorum.testing import (
    FaultProxy,
    History,
    Rule,
    ServerHistory,
    Violation,
    check_resumed,
    read_server_history,
)

FaultOfSoak: TypeAlias = Callable[["Soak"], Awaitable[None]]

WAIT_LIMIT: Final = 60.0  # seconds: a watch must be up to date by then once all is well


class Soak:
    """Writers, followers, and the faults injected between them.

    Attributes:
        history: the calls of the writers, and the faults.
        followers: the watches.
        server_history: the server's history, as far as it was read.
        counts: what the faults caused.
        in_flight: how many writes were in flight at each fault.
        violations: the findings, after `run`.
        wait_limit: how many seconds a watch may take to catch up at the end.
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
        self.wait_limit = WAIT_LIMIT
        self._compacted = 0

    def __str__(self) -> str:
        changes = sum(len(each) for each in self.server_history.revisions.values())
        shown = sum(follower.events for follower in self.followers)
        faults = Counter(fault.name for fault in self.history.faults)
        version = ".".join(map(str, self.etcd.version))
        revisions = len(self.server_history.revisions)
        lines = [
            f"etcd {version}, {len(self.etcd.endpoints)} members, seed {self.seed}",
            f"{len(self.history.faults)} faults, {changes:,} events in {revisions:,} revisions",
            f"shown {shown:,} times by {len(self.followers)} watches",
            f"writes in flight at a fault: {min(self.in_flight)} to {max(self.in_flight)}",
            ", ".join(f"{number} {name}" for name, number in sorted(self.counts.items())),
            "faults: " + ", ".join(f"{number} {name}" for name, number in sorted(faults.items())),
            f"{len(self.violations)} violations",
        ]
        return "\n  ".join(lines + [str(violation) for violation in self.violations[:10]])

    async def run(self, faults: Sequence[FaultOfSoak]) -> None:
        """Inject the faults while writers write; then judge what the watches showed."""
        self.server_history = ServerHistory((), end=await self.now())
        problem: Exception | None = None
        async with AsyncExitStack() as stack:
            for number, kind in enumerate(KINDS):
                opened = follower_of(self.etcd, kind, self.seed + number)
                self.followers.append(await stack.enter_async_context(opened))
            try:
                await self.follow(faults)
            except Exception as exc:  # noqa: BLE001 - raised below, outside all groups
                problem = exc
        if problem is not None:
            raise problem
        await self.read_server_history()
        self.judge()

    async def follow(self, faults: Sequence[FaultOfSoak]) -> None:
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
            with kvorum.deadline(WAIT_LIMIT):
                end = await self.client.backend.set("items/end", END)
            with anyio.move_on_after(self.wait_limit):  # what is missing afterwards is lost
                while any(follower.shown < end for follower in self.followers):  # noqa: ASYNC110
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
            # History that is reported lost must have been compacted.
            for revision in follower.lost:
                if not 0 < revision <= self._compacted:
                    self.violations.append(
                        Violation(Rule.LOST_EVENT, f"{revision} is not lost, as {follower} said")
                    )

    # --- tools of the faults ---

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.move_on_after(WAIT_LIMIT):
            while not holds():  # noqa: ASYNC110 - followers have no event
                await anyio.sleep(0.01)
            return
        raise AssertionError(
            f"it is not so after {WAIT_LIMIT:g} s, {self.history}: {self.followers}"
        )

    async def now(self) -> int:
        """Return the store's revision, as soon as the store answers."""
        with kvorum.deadline(WAIT_LIMIT):
            return (await self.client.backend.list("", limit=1)).revision

    async def some_more(self, number: int) -> int:
        """Wait for `number` more revisions; return the revision then."""
        until = await self.now() + number
        while (now := await self.now()) < until:  # noqa: ASYNC110 - a store has no event
            await anyio.sleep(0.02)
        return now

    async def strike(self, name: str) -> None:
        """Record a fault that is injected next, at a moment with writes in flight."""
        await self.until(lambda: self.history.writes_in_flight > 0)
        self.in_flight.append(self.history.writes_in_flight)
        self.history.mark(name)

    def some(self, *, least: Sequence[Follower] = ()) -> list[Follower]:
        """Choose the followers to hit."""
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
        """Compact the whole history, after reading it."""
        await self.read_server_history()
        self._compacted = self.server_history.end
        await self.client.admin.compact(self._compacted)

    async def leader(self) -> int:
        """Return the index of the leader, as soon as there is one."""
        with anyio.fail_after(WAIT_LIMIT):
            while True:
                with kvorum.deadline(WAIT_LIMIT):
                    endpoints = (await self.client.health()).endpoints
                leading = [number for number, each in enumerate(endpoints) if each.is_leader]
                if leading:
                    return self.etcd.endpoints.index(endpoints[leading[0]].endpoint)
                await anyio.sleep(0.05)


@asynccontextmanager
async def follower_of(
    etcd: EmbeddedEtcd, kind: type[Follower], seed: int
) -> AsyncIterator[Follower]:
    """Open a client for a follower, through its own proxies."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(FaultProxy(endpoint)) for endpoint in etcd.endpoints
        ]
        settings = EtcdSettings(
            endpoints=tuple(proxy.endpoint for proxy in proxies), prefix="soak", timeout=2
        )
        yield kind(await stack.enter_async_context(kvorum.connect(settings)), proxies, seed)
