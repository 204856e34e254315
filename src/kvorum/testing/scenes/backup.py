"""A backup is restored while clients hold newer reads."""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar, Final

import anyio
import anyio.to_thread
import msgspec

from kvorum.client import Client
from kvorum.embedded import EmbeddedEtcd
from kvorum.errors import KvorumError
from kvorum.repository import Added, Bookmark, Deleted, Modified, Repository, WatchEvent
from kvorum.resources import Kind, Metadata, Resource
from kvorum.testing.checkers import check_revisions
from kvorum.testing.evidence import (
    History,
    RecordingBackend,
    RecordingRepository,
    Rule,
    read_server_history,
)
from kvorum.testing.faults import OperatorError
from kvorum.testing.scenes.stage import PREFIX, Stage, UnplayableError

AFTER: Final = 20  # writes after the backup
BUMP: Final = 1_000_000  # revisions


class NoteSpec(msgspec.Struct):
    """The spec of a note."""

    text: str = ""


class NoteStatus(msgspec.Struct):
    """Empty."""


class Note(Resource[NoteSpec, NoteStatus]):
    """The resource that is backed up and restored."""

    kind: ClassVar[Kind] = Kind("Note", plural="notes", api_version="scene.kvorum.dev/v1")


async def play(stage: Stage) -> None:
    """Restore a backup unchanged, so that its revisions recur.

    No update of an older read overwrites a newer write. A watch shows the current state, or fails
    with an error.
    """
    await _restored(stage, bump=False)


async def play_bumped(stage: Stage) -> None:
    """Restore a backup with bumped and compacted revisions, so that none recurs."""
    await _restored(stage, bump=True)


async def _restored(stage: Stage, *, bump: bool) -> None:
    tools = await _Tools.beside(stage, bump=bump)
    for _ in range(stage.rounds):
        old, name = await stage.open(lasts=False), f"note-{stage.random.randrange(10**9)}"
        notes, watched, after = old.repository(Note), _Watched(old), History()
        await notes.add(_note(name))
        await tools.save()
        since = (await old.backend.list("")).revision
        async with anyio.create_task_group() as group:
            group.start_soon(watched.run)
            group.start_soon(_tick, RecordingBackend(old.backend, stage.history, "old"))
            await stage.until(partial(getattr, watched, "is_open"))
            held = {note.metadata.resource_version: note for note in await _written(notes, name)}
            await stage.strike("a backup is restored")
            await tools.restore()
            fresh = RecordingRepository((await stage.open()).repository(Note), after, "fresh")
            recurred = 0
            for number in range(5 * AFTER):
                written = await fresh.mutate(name, _text(f"after {number}"))
                twin = held.get(written.metadata.resource_version)
                if twin is not None:
                    recurred += 1
                    await _update_over(stage, RecordingRepository(notes, after, "old"), twin)
            if not bump:
                stage.need("revisions that recurred", recurred)
            await _watch_is_right(stage, watched)
            group.cancel_scope.cancel()
        await _judge(stage, after, since + BUMP * bump)
        stage.need("restored backups", 1)


async def _tick(backend: RecordingBackend) -> None:
    """Keep one write in flight until cancelled."""
    for number in count():
        try:
            await backend.set("tick", str(number).encode())
        except KvorumError:
            await anyio.sleep(0.05)


async def _judge(stage: Stage, after: History, since: int) -> None:
    """Check the calls after the restoration against the server's history."""
    server_history = await read_server_history(stage.etcd.endpoints[0], PREFIX, since=since)
    reads_of_it = [
        call
        for call in after.calls
        if call.observation is not None and call.observation.revision > since
    ]
    later = History()
    later.calls += reads_of_it
    stage.violations += check_revisions(later, server_history, is_complete=False)


def _note(name: str) -> Note:
    return Note(metadata=Metadata(name=name), spec=NoteSpec(), status=NoteStatus())


def _text(text: str) -> Callable[[Note], None]:
    def change(note: Note) -> None:
        note.spec.text = text

    return change


async def _written(notes: Repository[Note], name: str) -> list[Note]:
    """Write what the restoration will lose: many states of a note, and another, newer note."""
    states = [await notes.mutate(name, _text(f"before {number}")) for number in range(AFTER)]
    await notes.add(_note(f"{name}-ghost"))
    return states


async def _update_over(stage: Stage, notes: RecordingRepository[Note], held: Note) -> None:
    """Update from a read before the restoration, whose revision another write has now."""
    held.spec.text = "over"
    try:
        await notes.update(held)
    except KvorumError:
        stage.counts["updates refused"] += 1
    else:
        revision, name = held.metadata.resource_version, held.metadata.name
        what = f"a read of {name!r} before the restoration overwrote a later {revision}"
        stage.found(Rule.BROKEN_EXPECTATION, what)


async def _watch_is_right(stage: Stage, watched: "_Watched") -> None:
    """Compare the state that a watch shows with the current one, unless the watch failed."""
    fresh = await stage.open()
    there = {note.metadata.name: note.spec.text for note in await fresh.repository(Note).list()}
    await stage.until(lambda: watched.error is not None or watched.there == there)
    if watched.error is None and watched.there != there:
        stage.found(
            Rule.LOST_EVENT,
            f"after {stage.limits.wait:g} s a watch shows {watched.there}, not {there}",
        )
    stage.counts[
        "watches that failed" if watched.error is not None else "watches that continued"
    ] += 1


class _Watched:
    """The state that a watch with `initial` shows, and its error."""

    def __init__(self, client: Client) -> None:
        self.there: dict[str, str] = {}
        self.error: KvorumError | None = None
        self.is_open = False
        self._watch = client.repository(Note).watch(initial=True, bookmarks=True)

    async def run(self) -> None:
        """Follow the watch until it ends."""
        try:
            async with self._watch:
                async for event in self._watch:
                    self._take(event)
        except KvorumError as exc:
            self.error = exc

    def _take(self, event: WatchEvent[Note]) -> None:
        match event:
            case Added(resource=note) | Modified(resource=note):
                self.there[note.metadata.name] = note.spec.text
            case Deleted(resource=note):
                self.there.pop(note.metadata.name, None)
            case Bookmark():
                self.is_open = True


class _Tools:
    """`etcdctl` and `etcdutl`, from the folder of the server."""

    def __init__(self, etcd: EmbeddedEtcd, *, save: Path, restore: Path, bump: bool) -> None:
        self._etcd = etcd
        self._snapshot = etcd.data_dir / "snapshot.db"
        self._save = save
        self._restore = restore
        self._bump = ["--bump-revision", str(BUMP), "--mark-compacted"] if bump else []

    @classmethod
    async def beside(cls, stage: Stage, *, bump: bool) -> "_Tools":
        """Find the tools.

        Raises:
            UnplayableError: one is missing, or lacks an option.
        """
        folder = stage.etcd.binary.parent
        save = await anyio.to_thread.run_sync(_tool, folder, "etcdctl")
        # `etcdutl` restores from 3.5 on, `etcdctl` before.
        name = "etcdutl" if stage.etcd.version >= (3, 5) else "etcdctl"
        restore = await anyio.to_thread.run_sync(_tool, folder, name)
        if bump and "--bump-revision" not in await _run(restore, "snapshot", "restore", "--help"):
            raise UnplayableError(f"{restore} has no --bump-revision")
        return cls(stage.etcd, save=save, restore=restore, bump=bump)

    async def save(self) -> None:
        """Save a backup."""
        endpoint = f"http://{self._etcd.endpoints[0]}"
        await _run(self._save, "--endpoints", endpoint, "snapshot", "save", str(self._snapshot))

    async def restore(self) -> None:
        """Replace the data by the backup, and restart on the same ports."""
        await self._etcd.kill()
        data, peer = self._etcd.data_dir / "etcd-0", self._etcd.peer_endpoints[0]
        await anyio.to_thread.run_sync(shutil.rmtree, data)
        arguments = [
            "--data-dir",
            str(data),
            "--name",
            "etcd-0",
            "--initial-advertise-peer-urls",
            f"http://{peer}",
        ]
        arguments += ["--initial-cluster", f"etcd-0=http://{peer}"]
        arguments += ["--initial-cluster-token", f"kvorum-{peer.rpartition(':')[2]}"]
        await _run(
            self._restore, "snapshot", "restore", str(self._snapshot), *arguments, *self._bump
        )
        await self._etcd.restart()


def _tool(folder: Path, name: str) -> Path:
    """Return the path of a tool beside the server.

    Raises:
        UnplayableError: it does not exist.
    """
    tool = folder / name
    if not tool.exists():
        raise UnplayableError(f"there is no {name} beside {folder / 'etcd'}")
    return tool


async def _run(tool: Path, *arguments: str) -> str:
    done = await anyio.run_process([str(tool), *arguments], env={"ETCDCTL_API": "3"}, check=False)
    if done.returncode:
        raise OperatorError(f"{tool} {' '.join(arguments)}: {done.stderr[-500:]!r}")
    return (done.stdout + done.stderr).decode()
