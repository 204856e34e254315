"""Trials: run a workload, optionally with faults, and judge it by the server's history."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import msgspec

from kvorum.client import Client
from kvorum.errors import InvalidResourceError, UnavailableError
from kvorum.storage import StorageBackend
from kvorum.testing.checkers import (
    WatchedStream,
    check_linearizability,
    check_resumed,
    check_revisions,
)
from kvorum.testing.evidence import (
    History,
    Outcome,
    Rule,
    ServerHistory,
    Violation,
    read_server_history,
)
from kvorum.testing.faults import FaultProxy, FaultScript
from kvorum.testing.workload import Workload

WAIT_LIMIT: Final = 10.0  # seconds for the watch to catch up when the workload is done


class Verdict(msgspec.Struct, frozen=True):
    """The result of a trial.

    Attributes:
        history: what the clients were told.
        server_history: the server's history.
        streams: what a watch showed; each stream resumes where the previous one ended.
        violations: all findings.
        undecided: findings that are neither right nor wrong, because the search was given up.
    """

    history: History
    server_history: ServerHistory
    streams: Sequence[WatchedStream]
    violations: Sequence[Violation]
    undecided: Sequence[Violation] = ()

    @property
    def is_right(self) -> bool:
        """Whether there are no findings, nothing is undecided, and every fault hit a call."""
        return not self.violations and not self.undecided and not self.history.idle_faults

    def __str__(self) -> str:
        calls = self.history.calls
        outcomes = {outcome: sum(call.outcome is outcome for call in calls) for outcome in Outcome}
        told = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes.items())
        faults = f"{len(self.history.faults)} faults ({len(self.history.idle_faults)} of them idle)"
        shown = [*self.violations[:10], *self.undecided[:10]]
        found = "; ".join(map(str, shown)) or "nothing is wrong"
        made = f"{len(calls):,} calls ({told}), {len(self.server_history.revisions):,} revisions"
        return f"{made}, {faults}: {found}"


async def run_trial(
    endpoint: str,
    clients: Sequence[Client],
    workload: Workload,
    *,
    proxy: FaultProxy | None = None,
    script: FaultScript | None = None,
) -> Verdict:
    """Run a workload on open clients of one prefix, follow it with a watch, and judge both.

    Args:
        endpoint: `host:port` of the etcd itself, to read the history from; it must not be compacted
            meanwhile.
        clients: the clients to use; they may connect through a proxy. Their prefix must be empty.
        workload: the calls to make.
        proxy: the proxy to play the script on.
        script: the faults to inject. The workload continues until the script has ended.

    Raises:
        InvalidResourceError: the prefix is not empty.
        HistoryLostError: the history was compacted.
    """
    history = History()
    backends = [client.backend for client in clients]
    streams: list[WatchedStream] = []
    before = await backends[0].list("", limit=1)
    if before.entries:
        raise InvalidResourceError(
            backends[0].location(""), "a trial needs a prefix with nothing in it"
        )
    async with anyio.create_task_group() as group:
        group.start_soon(_follow, backends[-1], workload.prefix, before.revision, streams)
        await _work(workload, backends, history, proxy, script)
        server_history = await read_server_history(
            endpoint, clients[0].settings.prefix, since=before.revision
        )
        with anyio.move_on_after(WAIT_LIMIT):
            await _reached(streams, max(server_history.revisions, default=0))
        group.cancel_scope.cancel()
        return _judged(history, server_history, streams)
    raise AssertionError("a cancelled group still returns")


async def _work(
    workload: Workload,
    backends: Sequence[StorageBackend],
    history: History,
    proxy: FaultProxy | None,
    script: FaultScript | None,
) -> None:
    is_played = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(partial(workload.run, backends, history, until=is_played))
        if proxy is not None and script is not None:
            await script.play(proxy, history)
        is_played.set()


def _judged(
    history: History, server_history: ServerHistory, streams: Sequence[WatchedStream]
) -> Verdict:
    streams[-1].complete_to = server_history.end
    found = [
        *check_revisions(history, server_history),
        *check_linearizability(history, server_history),
        *check_resumed(streams, server_history),
    ]
    undecided = [each for each in found if each.rule is Rule.UNDECIDED]
    return Verdict(
        history,
        server_history,
        streams,
        [each for each in found if each not in undecided],
        undecided,
    )


async def _follow(
    backend: StorageBackend, prefix: str, since: int, streams: list[WatchedStream]
) -> None:
    """Record what a watch shows. After a lost connection, a new watch resumes from its position."""
    while True:
        stream = WatchedStream(prefix=prefix, since=since)
        streams.append(stream)
        try:
            async with backend.watch(prefix, since=since) as watch:
                async for changes in watch:
                    stream.add_changes(changes)
                    since = changes[0].revision
        except UnavailableError:
            await anyio.sleep(0.05)


async def _reached(streams: Sequence[WatchedStream], revision: int) -> None:
    # A stream has no event to wait for.
    while not any(_last(stream) >= revision for stream in streams):  # noqa: ASYNC110
        await anyio.sleep(0.01)


def _last(stream: WatchedStream) -> int:
    shown = stream.shown[-1] if stream.shown else ()
    return shown[0].revision if isinstance(shown, tuple) and shown else 0
