"""Where scenes are played.

A cluster, clients that work on it, watches that follow, and the judgement afterwards.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

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
TIMEOUT: Final = 2.0  # seconds for a call: a fault should cost a call, not the scene
WORKLOAD: Final = Workload(operations=0, clients=8, keys=20, rest=0.01)

# Etcd proposes nothing when it says one of these, or has thrown the proposal away: the outcome is
# known.
_DEFINITE: Final = (
    "raft proposal dropped",
    "too many requests",
    "not supported for learner",
    "not capable",
)


class UnplayableError(Exception):
    """A scene cannot be played here; the message says what is missing."""


class Follower:
    """Watches one after the other, each going on where the one before had got to.

    Attributes:
        backend: what is watched.
        chains: what was shown; a new chain begins where history was lost.
        lost: the revisions that it was told are lost.
        ended: the errors that ended a watch although they should not have.
        shown: up to where everything was shown.
    """

    def __init__(self, backend: StorageBackend, since: int) -> None:
        self.backend: StorageBackend = backend
        self.chains: list[list[WatchedStream]] = [[]]
        self.lost: list[int] = []
        self.ended: list[KvorumError] = []
        self.shown: int = since

    async def run(self) -> None:
        """Follow until this is cancelled."""
        while True:
            stream = WatchedStream(prefix="", since=self.shown)
            self.chains[-1].append(stream)
            try:
                await self._follow(stream)
            except HistoryLostError as exc:
                self.lost.append(exc.revision)
                await self._list()
                self.chains.append([])
            except (UnavailableError, AnotherClusterError):  # it says so, and it may be tried again
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
    """What a scene is played on.

    Attributes:
        etcd: the cluster.
        operator: what is done to it.
        rounds: how often the scene does what it does.
        random: what is drawn is drawn from.
        history: what the clients say.
        server_history: what has happened, as far as it was read.
        counts: what was seen on the way, for people.
        violations: what is wrong, as far as the scene has found it by itself.
        followers: the watches.
        compacted: the last revision that was compacted.
        newer: another etcd, to upgrade to; None if there is none.
    """

    def __init__(
        self,
        etcd: EmbeddedEtcd,
        stack: AsyncExitStack,
        *,
        rounds: int,
        seed: int,
        newer: Path | None = None,
    ) -> None:
        self.etcd: EmbeddedEtcd = etcd
        self.newer: Path | None = newer
        self.operator: Operator = Operator(etcd.endpoints, etcd.peer_endpoints)
        self.rounds: int = rounds
        self.random: random.Random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
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
        """Keep something open until all is judged."""
        return await self._stack.enter_async_context(context)

    # --- who works ---

    async def open(self, *endpoints: str, lasts: bool = True, **settings: Any) -> Client:
        """Open a client, on all members by default.

        One that `lasts` has to be able to read when all is over.
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
        """Let clients work and watch while something is done to the cluster; it is over when what was done is shown.

        Args:
            clients: who works.
            workload: what they do.
            watching: who watches; the clients by default.
            others: who tries to work although it may not.
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
                for name, who in (("c", clients), ("o", others)):
                    backends = [client.backend for client in who]
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
        """Let every client read once, as soon as it can; that one cannot is a finding."""
        async with anyio.create_task_group() as group:
            for client in self._clients:
                group.start_soon(self._recover, client)

    async def _recover(self, client: Client) -> None:
        last: KvorumError | None = None
        with anyio.move_on_after(WAIT_LIMIT):
            while True:
                try:
                    await client.backend.get("recovered")
                except KvorumError as exc:
                    last = exc
                    await anyio.sleep(0.1)
                else:
                    return
        self.found(
            Rule.OUTAGE, f"{client!r} cannot read {WAIT_LIMIT:g} s after all was well: {last}"
        )

    async def _catch_up(self) -> None:
        last = max(self.server_history.revisions, default=0)
        with anyio.move_on_after(WAIT_LIMIT):  # what is missing then is lost
            while any(follower.shown < last for follower in self.followers):  # noqa: ASYNC110 - a watch tells nobody
                await anyio.sleep(0.01)

    # --- what is done ---

    async def strike(self, name: str) -> Fault:
        """Note that something is done now, at a moment when writes are under way."""
        await self.until(lambda: self.history.writes_in_flight > 0)
        return self.history.mark(name)

    def need(self, what: str, number: int) -> None:
        """Count what the scene is about; if it was not seen at all, the scene has shown nothing."""
        self.counts[what] += number
        if not number:
            self.history.faults.append(Fault(what, 0, ()))

    def found(self, rule: Rule, what: str, call: Call | None = None) -> None:
        """Note that something is wrong."""
        self.violations.append(Violation(rule, what, call))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something is so, for `WAIT_LIMIT` at the most."""
        with anyio.move_on_after(WAIT_LIMIT):
            while not holds():  # noqa: ASYNC110 - a history tells nobody
                await anyio.sleep(0.005)

    async def some_more(self, number: int = 30) -> None:
        """Wait until so many more writes are done."""
        before = self.done_writes()
        await self.until(lambda: self.done_writes() >= before + number)

    def done_writes(self) -> int:
        """Count the writes that are done."""
        for call in self.history.calls[self._looked_at :]:
            self._done_writes += call.outcome is Outcome.DONE and call.writes
        self._looked_at = len(self.history.calls)
        return self._done_writes

    async def read_server_history(self) -> None:
        """Read what has happened since the last time."""
        token, endpoint = await self.operator.token(), self.etcd.endpoints[0]
        later = await read_server_history(
            endpoint, PREFIX, since=self.server_history.end, token=token
        )
        self.server_history = self.server_history.followed_by(later)

    async def forget(self) -> None:
        """Compact everything, once it has been read."""
        await self.read_server_history()
        self.compacted = self.server_history.end
        await self.operator.compact(self.compacted)

    # --- what is found ---

    async def judge(self) -> None:
        """Check calls and watches against the server's history, and the members against each other."""
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
                    f"a watch was told that {revision} is lost; compacted is {self.compacted}",
                )
        for error in follower.ended:
            self.found(Rule.OUTAGE, f"a watch ended: {error!r}")

    def judge_doubts(self) -> None:
        """Find writes whose outcome is called unknown although etcd has refused them for certain."""
        for call in self.history.calls:
            if call.outcome is Outcome.UNKNOWN and any(text in call.error for text in _DEFINITE):
                self.found(Rule.NEEDLESS_DOUBT, f"{call}: {call.error}", call)

    async def judge_members(self) -> None:
        """Hold what the members have against each other."""
        try:
            hashes = await self.operator.hashes()
        except OperatorError as exc:
            self.found(Rule.MEMBERS_DIFFER, f"a member does not tell its hash: {exc}")
            return
        if len(set(hashes)) > 1:
            self.found(
                Rule.MEMBERS_DIFFER, f"{WAIT_LIMIT:g} s after the last write they hold {hashes}"
            )
