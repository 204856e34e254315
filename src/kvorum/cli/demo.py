"""`kvorum demo`: the life of a few lab workers in a real etcd, and the proof of each claim."""

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio
import msgspec
from rich.console import Console
from rich.json import JSON
from rich.markup import escape
from rich.table import Table

import kvorum
from kvorum.lab import LabWorker, LabWorkerPhase, LabWorkerRepository

PREFIX: Final = "lab-resource-manager"
TTL: Final = 1.0
WRITERS: Final = 8
# For the server to remove a key whose TTL has passed; it checks every half second.
EXPIRY_TIMEOUT: Final = 15.0


class Claim(NamedTuple):
    """A claim of the demo about Kvorum, and whether it held.

    Attributes:
        text: the claim.
        holds: whether it is true.
        evidence: what was observed.
    """

    text: str
    holds: bool
    evidence: str


async def run_demo(console: Console, target: str | None, *, hold: bool = False) -> bool:
    """Run the demo, print it and its proof, and tell whether every claim holds.

    Args:
        console: where to print.
        target: the URL of an etcd; None starts one.
        hold: whether to keep running afterwards, until the task is cancelled.

    Raises:
        KvorumError: etcd could not be started or reached, or a call failed unexpectedly.
    """
    async with _client(console, target) as client:
        claims = await Demo(console, LabWorkerRepository(client)).run()
        await _show_bytes(console, client)
        proven = _show_proof(console, claims)
        if hold:
            _invite(console, client)
            await anyio.sleep_forever()
    return proven


class Demo:
    """Works on a repository, and remembers what the watch must deliver."""

    def __init__(self, console: Console, workers: LabWorkerRepository) -> None:
        self.console = console
        self.workers = workers
        self.written: list[tuple[str, str, int]] = []
        self.seen: list[tuple[str, str, int]] = []
        self.claims: list[Claim] = []
        self.expired: anyio.Event = anyio.Event()

    async def run(self) -> list[Claim]:
        """Run all steps under a watch; return the claims that they prove or disprove."""
        watch = self.workers.watch()
        async with watch, anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow, watch)
            await self.create()
            await self.conflict()
            await self.contend()
            await self.find()
            await self.expire()
            tasks.cancel_scope.cancel()
        return self.claims

    async def create(self) -> None:
        """Create three workers of two lab tracks."""
        self._headline("Create three workers")
        for name, track in (
            ("worker-001", "comp-sci-101"),
            ("worker-002", "comp-sci-101"),
            ("worker-003", "networks"),
        ):
            self._wrote("Added", await self.workers.add(LabWorker.new(name, lab_track=track)))

    async def conflict(self) -> None:
        """Write from two copies of the same version: the second write is rejected."""
        self._headline("Two read worker-001, and both write it")
        mine, theirs = await self.workers.get("worker-001"), await self.workers.get("worker-001")
        theirs.status.phase = LabWorkerPhase.READY
        self._wrote("Modified", await self.workers.update(theirs))
        mine.status.phase = LabWorkerPhase.FAILED
        try:
            lost = await self.workers.update(mine)
        except kvorum.ConflictError as exc:
            self._say(f"rejected: {exc}")
            kept = (await self.workers.get("worker-001")).status.phase
            self._claim(
                "a stale write is rejected", kept is LabWorkerPhase.READY, f"phase is still {kept}"
            )
        else:
            self._claim(
                "a stale write is rejected",
                holds=False,
                evidence=f"it was written at {lost.metadata}",
            )

    async def contend(self) -> None:
        """Change one worker from many tasks at once: no change is lost."""
        self._headline(f"{WRITERS} writers change worker-002 at once")

        async def annotate(number: int) -> None:
            def change(worker: LabWorker) -> None:
                worker.metadata.annotations[f"writer-{number}"] = "was here"

            self._wrote("Modified", await self.workers.mutate("worker-002", change))

        async with anyio.create_task_group() as writers:
            for number in range(WRITERS):
                writers.start_soon(annotate, number)
        left = len((await self.workers.get("worker-002")).metadata.annotations)
        self._claim(
            "no concurrent change is lost",
            left == WRITERS,
            f"{left} of {WRITERS} annotations are there",
        )

    async def find(self) -> None:
        """Find workers by track and by phase."""
        self._headline("Find workers by track and by phase")
        by_track = [
            worker.metadata.name for worker in await self.workers.find_by_lab_track("comp-sci-101")
        ]
        ready = [worker.metadata.name for worker in await self.workers.find_ready_workers()]
        counts = {
            str(phase): count
            for phase, count in (await self.workers.count_by_phase()).items()
            if count
        }
        self._say(f"track comp-sci-101: {', '.join(by_track)}")
        self._say(f"ready: {', '.join(ready)}; by phase: {counts}")
        found = (by_track, ready) == (["worker-001", "worker-002"], ["worker-001"])
        self._claim("workers are found by track and phase", found, f"{by_track}, {ready}")

    async def expire(self) -> None:
        """Let the server remove a worker with a TTL: the last event that the watch delivers."""
        self._headline(f"A worker that lives {TTL:g} s")
        began = time.monotonic()
        self._wrote(
            "Added",
            await self.workers.add(LabWorker.new("worker-brief", lab_track="networks"), ttl=TTL),
        )
        with anyio.move_on_after(EXPIRY_TIMEOUT):
            await self.expired.wait()
        lived = time.monotonic() - began
        gone = not await self.workers.exists("worker-brief")
        self._claim(
            "the TTL removed the worker, not before its time",
            gone and lived >= TTL,
            f"after {lived:.2f} s",
        )
        # The deletion is the server's own write: only the watch knows its revision.
        expected = [*sorted(self.written, key=lambda write: write[2]), *self.seen[-1:]]
        complete = self.expired.is_set() and self.seen == expected
        revisions = [revision for *_, revision in self.seen]
        ordered = revisions == sorted(set(revisions))
        self._claim(
            "the watch saw every write, once, in order",
            complete and ordered,
            f"{len(self.seen)} events",
        )

    async def _follow(self, watch: kvorum.Watch[LabWorker]) -> None:
        async for event in watch:
            match event:
                case (
                    kvorum.Added(resource=worker)
                    | kvorum.Modified(resource=worker)
                    | kvorum.Deleted(resource=worker)
                ):
                    self._saw(type(event).__name__, worker)
                case kvorum.Bookmark():
                    pass

    def _saw(self, what: str, worker: LabWorker) -> None:
        metadata = worker.metadata
        self.seen.append((what, metadata.name, metadata.resource_version))
        if (what, metadata.name) == ("Deleted", "worker-brief"):
            self.expired.set()
        phase = worker.status.phase
        self.console.print(
            f"  [cyan]watch[/] {what:<8} {metadata.name:<12} {phase!s:<8} "
            f"[dim]revision {metadata.resource_version}[/]"
        )

    def _wrote(self, what: str, worker: LabWorker) -> None:
        self.written.append((what, worker.metadata.name, worker.metadata.resource_version))

    def _claim(self, text: str, holds: bool, evidence: str) -> None:
        self.claims.append(Claim(text, holds, evidence))

    def _headline(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/]")

    def _say(self, text: str) -> None:
        self.console.print(f"  {escape(text)}", soft_wrap=True)


@asynccontextmanager
async def _client(console: Console, target: str | None) -> AsyncIterator[kvorum.Client]:
    """Open a client on an embedded etcd, or on the target under a new prefix, then emptied."""
    began = time.monotonic()
    if target is None:
        async with kvorum.connect(
            "embedded://", settings=kvorum.EtcdSettings(prefix=PREFIX)
        ) as client:
            _introduce(console, client, began)
            yield client
        return
    settings = kvorum.EtcdSettings.from_url(target)
    prefix = f"{settings.prefix}/demo-{uuid.uuid4().hex[:8]}/{PREFIX}"
    async with kvorum.connect(msgspec.structs.replace(settings, prefix=prefix)) as client:
        _introduce(console, client, began)
        try:
            yield client
        finally:
            with anyio.move_on_after(settings.timeout, shield=True):
                for key in await client.backend.keys():
                    await client.backend.delete(key)


def _introduce(console: Console, client: kvorum.Client, began: float) -> None:
    version = ".".join(map(str, client.connection.version))
    endpoints = ",".join(client.settings.endpoints)
    console.print(f"etcd {version} at {endpoints}, ready after {time.monotonic() - began:.2f} s")


async def _show_bytes(console: Console, client: kvorum.Client) -> None:
    """Print what is stored in etcd."""
    entry = await client.backend.get("lab-workers/worker-001")
    assert entry is not None  # noqa: S101 - the demo created it, under a prefix of its own
    console.print(
        f"\n[bold]What etcdctl shows under /{client.settings.prefix}/lab-workers/worker-001[/]"
    )
    console.print(JSON(entry.value.decode()))


def _show_proof(console: Console, claims: list[Claim]) -> bool:
    table = Table("claim", "holds", "evidence", title="\nProof", title_justify="left")
    for claim in claims:
        table.add_row(
            claim.text,
            "[green]yes[/]" if claim.holds else "[bold red]NO[/]",
            escape(claim.evidence),
        )
    console.print(table)
    return all(claim.holds for claim in claims)


def _invite(console: Console, client: kvorum.Client) -> None:
    settings = client.settings
    command = f"etcdctl --endpoints={','.join(settings.endpoints)} get --prefix /{settings.prefix}/"
    console.print(f"\nPress Ctrl-C to end:\n  ETCDCTL_API=3 {command}", soft_wrap=True)
