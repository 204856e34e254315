"""The stage of a scene: a cluster, clients, watches, and the judgement."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec

import kvorum
from kvorum.client import Client
from kvorum.embedded import EmbeddedEtcd
from kvorum.errors import AnotherClusterError, HistoryLostError, KvorumError, UnavailableError
from kvorum.settings import EtcdSettings
from kvorum.storage import StorageBackend
from kvorum.testing.checkers import (
    WatchedStream,
    check_linearizability,
    check_resumed,
    check_revisions,
)
from kvorum.testing.evidence import (
    Call,
    Fault,
    History,
    Outcome,
    Rule,
    ServerHistory,
    Violation,
    read_server_history,
)
from kvorum.testing.faults import WAIT_LIMIT, Operator, OperatorError
from kvorum.testing.workload import Workload

T = TypeVar("T")

PREFIX: Final = "scene"
TIMEOUT: Final = 2.0  # seconds for a call: a fault may cost a call, not the scene
WORKLOAD: Final = Workload(operations=0, clients=8, keys=20, rest=0.01)

# With these errors etcd proposed nothing, or dropped the proposal, so the outcome is known.
_DEFINITE: Final = (
    "raft proposal dropped",
    "too many requests",
    "not supported for learner",
    "not capable",
)


class SceneLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Waits and sizes of scenes.

    Attributes:
        wait: how many seconds to wait for a state.
        burst: the number of concurrent writes in a burst.
    """

    wait: float = WAIT_LIMIT
    burst: int = 1_000


class UnplayableError(Exception):
    """A scene cannot be played here; the message says what is missing."""


class Follower:
    """Watches in sequence; each resumes where the previous one ended.

    Attributes:
        backend: the backend to watch.
        chains: what was shown; a new chain starts where history was lost.
        lost: the revisions that were reported lost.
        ended: the errors that should not have ended a watch.
        shown: everything up to this revision was shown.
    """

    def __init__(self, backend: StorageBackend, since: int) -> None:
        self.backend: StorageBackend = backend
        self.chains: list[list[WatchedStream]] = [[]]
        self.lost: list[int] = []
        self.ended: list[KvorumError] = []
        self.shown: int = since

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            stream = WatchedStream(prefix="", since=self.shown)
            self.chains[-1].append(stream)
            try:
                await self._follow(stream)
            except HistoryLostError as exc:
                self.lost.append(exc.revision)
                await self._list()
                self.chains.append([])
            except (UnavailableError, AnotherClusterError):  # reported, and to be retried
                await anyio.sleep(0.05)
            except KvorumError as exc:
                self.ended.append(exc)
                await anyio.sleep(0.05)

    async def _follow(self, stream: WatchedStream) -> None:
        async with self.backend.watch("", since=self.shown) as watch:
            async for changes in watch:
                stream.add_changes(changes)
                self.shown = changes[0].revision

    async def _list(self) -> None:
        while True:
            try:
                self.shown = (await self.backend.list("", limit=1)).revision
            except KvorumError:
                await anyio.sleep(0.05)
            else:
                return


class Stage:
    """The cluster of a scene, its clients and records.

    Attributes:
        etcd: the cluster.
        operator: performs operations on it.
        rounds: how often to repeat the operation.
        random: the source of random choices.
        history: what the clients were told.
        server_history: the server's history, as far as it was read.
        counts: what was observed, for the report.
        violations: the findings so far.
        followers: the watches.
        compacted: the last compacted revision.
        newer: another etcd, to upgrade to; None if there is none.
        limits: waits and sizes.
    """

    def __init__(
        self,
        etcd: EmbeddedEtcd,
        stack: AsyncExitStack,
        *,
        rounds: int,
        seed: int,
        newer: Path | None = None,
        limits: SceneLimits | None = None,
    ) -> None:
        self.limits: SceneLimits = limits if limits is not None else SceneLimits()
        self.etcd: EmbeddedEtcd = etcd
        self.newer: Path | None = newer
        self.operator: Operator = Operator(
            etcd.endpoints, etcd.peer_endpoints, wait=self.limits.wait
        )
        self.rounds: int = rounds
        self.random: random.Random = random.Random(seed)  # noqa: S311 - repeatable
        self.seed: int = seed
        self.history: History = History()
        self.server_history: ServerHistory = ServerHistory((), end=1)
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.followers: list[Follower] = []
        self.compacted: int = 0
        self._stack = stack
        self._clients: list[Client] = []
        self._looked_at = self._done_writes = 0

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Keep a context open until the scene is judged."""
        return await self._stack.enter_async_context(context)

    # --- clients ---

    async def open(self, *endpoints: str, lasts: bool = True, **settings: Any) -> Client:
        """Open a client, on all members by default.

        One that `lasts` must be able to read when the scene is over.
        """
        settings = {"prefix": PREFIX, "timeout": TIMEOUT, **settings}
        client = kvorum.connect(
            EtcdSettings(endpoints=endpoints or self.etcd.endpoints, **settings)
        )
        await self._stack.enter_async_context(client)
        if lasts:
            self._clients.append(client)
        return client

    @asynccontextmanager
    async def busy(
        self,
        clients: Sequence[Client],
        workload: Workload = WORKLOAD,
        *,
        watching: Sequence[Client] | None = None,
        others: Sequence[Client] = (),
    ) -> AsyncIterator[None]:
        """Run clients and watches during the block, until the watches have shown everything.

        Args:
            clients: the clients that run the workload.
            workload: the calls to make.
            watching: the clients that watch; by default those that work.
            others: clients that try the workload without permission.
        """
        self.followers += [
            Follower(client.backend, self.server_history.end)
            for client in (clients if watching is None else watching)
        ]
        is_over = anyio.Event()
        async with anyio.create_task_group() as group:
            for follower in self.followers:
                group.start_soon(follower.run)
            async with anyio.create_task_group() as working:
                for name, members in (("c", clients), ("o", others)):
                    backends = [client.backend for client in members]
                    run = partial(workload.run, backends, self.history, until=is_over, name=name)
                    if backends:
                        working.start_soon(run)
                yield
                is_over.set()
            await self.recover()
            await self.read_server_history()
            await self._catch_up()
            group.cancel_scope.cancel()

    async def recover(self) -> None:
        """Let every client read once, as soon as it can. A client that cannot is a finding."""
        async with anyio.create_task_group() as group:
            for client in self._clients:
                group.start_soon(self._recover, client)

    async def _recover(self, client: Client) -> None:
        last: KvorumError | None = None
        with anyio.move_on_after(self.limits.wait):
            while True:
                try:
                    await client.backend.get("recovered")
                except KvorumError as exc:
                    last = exc
                    await anyio.sleep(0.1)
                else:
                    return
        self.found(
            Rule.OUTAGE, f"{client!r} cannot read {self.limits.wait:g} s after the faults: {last}"
        )

    async def _catch_up(self) -> None:
        last = max(self.server_history.revisions, default=0)
        with anyio.move_on_after(self.limits.wait):  # what is missing afterwards is lost
            while any(follower.shown < last for follower in self.followers):  # noqa: ASYNC110
                await anyio.sleep(0.01)

    # --- faults ---

    async def strike(self, name: str) -> Fault:
        """Record a fault now, at a moment with writes in flight."""
        await self.until(lambda: self.history.writes_in_flight > 0)
        return self.history.mark(name)

    def need(self, what: str, number: int) -> None:
        """Count what the scene is about; if there was none of it, the scene proves nothing."""
        self.counts[what] += number
        if not number:
            self.history.faults.append(Fault(what, 0, ()))

    def found(self, rule: Rule, what: str, call: Call | None = None) -> None:
        """Record a finding."""
        self.violations.append(Violation(rule, what, call))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds, for at most `limits.wait`."""
        with anyio.move_on_after(self.limits.wait):
            while not holds():  # noqa: ASYNC110 - a history has no event
                await anyio.sleep(0.005)

    async def some_more(self, number: int = 30) -> None:
        """Wait until `number` more writes are done."""
        before = self.done_writes()
        await self.until(lambda: self.done_writes() >= before + number)

    def done_writes(self) -> int:
        """Return the number of done writes."""
        for call in self.history.calls[self._looked_at :]:
            self._done_writes += call.outcome is Outcome.DONE and call.writes
        self._looked_at = len(self.history.calls)
        return self._done_writes

    async def read_server_history(self) -> None:
        """Read the changes since the last reading."""
        token, endpoint = await self.operator.token(), self.etcd.endpoints[0]
        later = await read_server_history(
            endpoint, PREFIX, since=self.server_history.end, token=token
        )
        self.server_history = self.server_history.followed_by(later)

    async def forget(self) -> None:
        """Compact the whole history, after reading it."""
        await self.read_server_history()
        self.compacted = self.server_history.end
        await self.operator.compact(self.compacted)

    # --- findings ---

    async def judge(self) -> None:
        """Check calls and watches against the server's history, and the members' hashes."""
        self.violations += check_revisions(self.history, self.server_history)
        self.violations += check_linearizability(self.history, self.server_history)
        for follower in self.followers:
            self._judge_follower(follower)
        self.judge_doubts()
        await self.judge_members()

    def _judge_follower(self, follower: Follower) -> None:
        if follower.chains[-1]:
            follower.chains[-1][-1].complete_to = self.server_history.end
        for chain in follower.chains:
            self.violations += check_resumed(chain, self.server_history)
        for revision in follower.lost:
            if revision > self.compacted:
                self.found(
                    Rule.LOST_EVENT,
                    f"a watch reported {revision} lost; compacted is {self.compacted}",
                )
        for error in follower.ended:
            self.found(Rule.OUTAGE, f"a watch ended: {error!r}")

    def judge_doubts(self) -> None:
        """Report writes of unknown outcome that etcd certainly refused."""
        for call in self.history.calls:
            if call.outcome is Outcome.UNKNOWN and any(text in call.error for text in _DEFINITE):
                self.found(Rule.NEEDLESS_DOUBT, f"{call}: {call.error}", call)

    async def judge_members(self) -> None:
        """Compare the hashes of all members."""
        try:
            hashes = await self.operator.hashes()
        except OperatorError as exc:
            self.found(Rule.MEMBERS_DIFFER, f"a member does not return its hash: {exc}")
            return
        if len(set(hashes)) > 1:
            self.found(
                Rule.MEMBERS_DIFFER,
                f"{self.limits.wait:g} s after the last write they hold {hashes}",
            )
