"""A real etcd as a child process: one member, or a cluster of several."""

import secrets
import shutil
import signal
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import anyio
import anyio.to_thread

from kvorum.embedded.binary import EtcdBinary, find_binary
from kvorum.embedded.member import EtcdMember, PortTakenError, ServerTls, command
from kvorum.embedded.process_group import ProcessGroup
from kvorum.errors import ConfigurationError, EmbeddedEtcdError

STOP_TIMEOUT: Final = (
    5.0  # from SIGTERM to SIGKILL; and how long a killed process may take to be gone
)
CLOSE_TIMEOUT: Final = 12.0
_PORT_ATTEMPTS: Final = 5
_POLL: Final = 0.005


class EmbeddedEtcd:
    """An etcd of one's own, on free ports of 127.0.0.1: `async with EmbeddedEtcd() as etcd: etcd.url`.

    It is ready when it is entered. It is gone when it is left, also by an error or a cancellation,
    and when this process is killed. It can be entered once. Its methods may be called from any
    event loop, one call at a time.

    Ports stay the same through `kill` and `restart`, and on Linux nobody else can take them in
    between.

    Args:
        binary: the etcd to run; None: see `find_binary` for where it is looked for.
        data_dir: a folder to keep the data and the logs in; None: a private one, which is removed
            in the end.
        members: how many members the cluster has. The data of several can be started with once
            only: they know each other by ports, which are other ones the next time.
        arguments: further flags for each server.
        ready_timeout: how long a start may take, in seconds.
        fsync: whether writes wait for the disk; None: if the data is kept. Before 3.5 they always
            do. Without, a write survives the death of the process, but not that of the machine.
        tls: the certificates with which it talks TLS to clients; None: it does not.

    Raises:
        ConfigurationError: `members` is less than 1.
    """

    def __init__(
        self,
        *,
        binary: str | Path | None = None,
        data_dir: str | Path | None = None,
        members: int = 1,
        arguments: Sequence[str] = (),
        ready_timeout: float = 20.0,
        fsync: bool | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        if members < 1:
            raise ConfigurationError(f"a cluster has at least one member, not {members}")
        self._asked_binary = binary
        self._count = members
        self._arguments = tuple(arguments)
        self._ready_timeout = ready_timeout
        self._is_private = data_dir is None
        self._tls = tls
        self._fsync = not self._is_private if fsync is None else fsync
        self._folder = None if data_dir is None else Path(data_dir)
        self._binary: EtcdBinary | None = None
        self._group = ProcessGroup()
        self._members: list[EtcdMember] = []
        self._state: Literal["not started", "running", "stopped"] = "not started"

    def __repr__(self) -> str:
        where = "".join(f" {member.client}" for member in self._members)
        return f"<EmbeddedEtcd{where} [{self._state}]>"

    # --- what it is; all of these raise EmbeddedEtcdError before it is entered, and stay afterwards

    @property
    def url(self) -> str:
        """The URL for `kvorum.connect`, with the ports of all members."""
        return f"{'etcd' if self._tls is None else 'etcds'}://{','.join(self.endpoints)}"

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Host and port of each member."""
        return tuple(str(member.client) for member in self._started())

    @property
    def metrics_endpoints(self) -> tuple[str, ...]:
        """Host and port at which each member serves `/metrics` and `/health`, without TLS."""
        return tuple(str(member.monitor) for member in self._started())

    @property
    def peer_endpoints(self) -> tuple[str, ...]:
        """Host and port at which each member talks to the others."""
        return tuple(str(member.peer) for member in self._started())

    @property
    def binary(self) -> Path:
        """The executable that runs."""
        return self._found().path

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version, as `(3, 5, 1)`."""
        return self._found().version

    @property
    def data_dir(self) -> Path:
        """The folder with `etcd-N` (data) and `etcd-N.log` for each member."""
        if self._folder is None:
            raise self._not_started()
        return self._folder

    @property
    def pid(self) -> int:
        """The process id of the first member."""
        return self.pids[0]

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each member; of one that has ended, what it was."""
        return tuple(member.process.pid for member in self._started() if member.process is not None)

    # --- what can be done to it; `member` counts from 0, None means all ---

    async def restart(self, member: int | None = None, *, binary: str | Path | None = None) -> None:
        """Stop gracefully what runs, paused or not, and start it again: same ports, same data. Ready on return.

        A member is ready when it can read through a leader, so of a cluster enough members must
        run.

        Args:
            member: which one; None: all.
            binary: another etcd to run it with from now on, as in an upgrade.

        Raises:
            EmbeddedEtcdError: it did not come back.
        """
        chosen = self._chosen(member)
        if binary is not None:
            found = await anyio.to_thread.run_sync(find_binary, binary)
            for each in chosen:
                each.binary = found
        await self._stop(chosen, gently=True)
        self._start(chosen)
        await self._until_ready(chosen)

    async def kill(self, member: int | None = None) -> None:
        """Kill the process (SIGKILL) and wait until it is gone.

        Does nothing to one that does not run.
        """
        await self._stop(self._chosen(member), gently=False)

    async def pause(self, member: int | None = None) -> None:
        """Stop the process (SIGSTOP): connections stay open, nothing answers. It has stopped on return.

        Raises:
            EmbeddedEtcdError: it does not run.
        """
        chosen = self._chosen(member)
        self._signal(chosen, signal.SIGSTOP)
        with anyio.move_on_after(STOP_TIMEOUT):
            # The state of another process comes with no event to wait for
            while not all(each.process is not None and each.process.is_paused for each in chosen):  # noqa: ASYNC110
                await anyio.sleep(_POLL)
            return
        raise EmbeddedEtcdError(f"etcd was told to pause, but runs on after {STOP_TIMEOUT:g} s")

    async def resume(self, member: int | None = None) -> None:
        """Let a paused process go on (SIGCONT). It may take it a moment to have a leader again.

        Raises:
            EmbeddedEtcdError: it does not run.
        """
        self._signal(self._chosen(member), signal.SIGCONT)

    # --- entering and leaving ---

    async def __aenter__(self) -> Self:
        """Start, and wait until it is ready. If that fails, nothing is left behind.

        Raises:
            EmbeddedEtcdError: no binary was found, or it did not start; the message has the end of
                its log.
        """
        if self._state != "not started":
            raise EmbeddedEtcdError("an EmbeddedEtcd is entered once; make another")
        self._state = "running"
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, asked first if the data is kept, and remove a private folder.

        The second time, do nothing.
        """
        if self._state == "running":
            await self._close()

    async def _open(self) -> None:
        self._binary = await anyio.to_thread.run_sync(find_binary, self._asked_binary)
        folder = self._folder = await anyio.to_thread.run_sync(
            _folder_for, self._folder, self._count
        )
        # The guard comes before the folder: whatever is there when this process is killed, it
        # removes.
        self._group.open(folder if self._is_private else None)
        make = partial(folder.mkdir, mode=0o700, parents=True, exist_ok=not self._is_private)
        try:
            await anyio.to_thread.run_sync(make)
        except OSError as exc:
            raise EmbeddedEtcdError(f"there can be no data in {folder}: {exc}") from exc
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                await self._found_cluster(folder)
            except PortTakenError:
                if attempt == _PORT_ATTEMPTS:
                    raise
                await self._disband()
            else:
                return

    async def _found_cluster(self, folder: Path) -> None:
        for number in range(self._count):
            self._members.append(EtcdMember(f"etcd-{number}", folder, self._tls))
        self._start(self._members)
        await self._until_ready(self._members)

    async def _disband(self) -> None:
        """Make room for another attempt with other ports.

        Members that have met know each other's old ones.
        """
        members, self._members = self._members, []
        try:
            await self._stop(members, gently=False)
        finally:
            for member in members:
                member.close()
        if self._count > 1:
            for member in members:
                await anyio.to_thread.run_sync(
                    partial(shutil.rmtree, member.data, ignore_errors=True)
                )

    async def _close(self) -> None:
        self._state = "stopped"
        try:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                # Data that is thrown away need not be put in order first.
                await self._stop(self._members, gently=not self._is_private)
                if self._is_private and self._folder is not None:
                    await anyio.to_thread.run_sync(
                        partial(shutil.rmtree, self._folder, ignore_errors=True)
                    )
                await self._group.aclose()
        finally:
            # If the above was cut short (asyncio's cancellation knows no shield), the guard does
            # the rest.
            self._group.abandon()
            for member in self._members:
                member.close()

    # --- steps of these ---

    def _start(self, members: Sequence[EtcdMember]) -> None:
        for member in members:
            argv = command(
                member.binary or self._found(),
                member,
                self._members,
                fsync=self._fsync,
                arguments=self._arguments,
            )
            member.start(self._group, argv)

    async def _until_ready(self, members: Sequence[EtcdMember]) -> None:
        waiting = list(members)
        with anyio.move_on_after(self._ready_timeout):
            while waiting := [each for each in waiting if not await each.is_healthy()]:  # noqa: ASYNC110 - see pause
                await anyio.sleep(_POLL)
            return
        words = await waiting[0].last_words()
        raise EmbeddedEtcdError(
            f"{waiting[0].name} was not ready within {self._ready_timeout:g} s; {words}"
        )

    async def _stop(self, members: Sequence[EtcdMember], *, gently: bool) -> None:
        """End the processes that run.

        By SIGTERM within `STOP_TIMEOUT` if `gently`, and what is left by SIGKILL.
        """
        running = [
            member.process for member in members if member.process is not None and member.is_running
        ]
        if gently:
            with anyio.move_on_after(STOP_TIMEOUT):
                # One by one: a leader hands over before it goes, and waits 5 s in vain if nobody is
                # left to take it.
                for process in running:
                    process.send(signal.SIGTERM)
                    process.send(signal.SIGCONT)  # a paused one gets the first with this
                    await process.wait(STOP_TIMEOUT)
        for process in running:
            process.send(signal.SIGKILL)
        for process in running:
            if not await process.wait(STOP_TIMEOUT):
                raise EmbeddedEtcdError(
                    f"etcd (process {process.pid}) has been killed, but does not end"
                )

    @staticmethod
    def _signal(members: Sequence[EtcdMember], number: int) -> None:
        for member in members:
            if member.process is None or not member.process.send(number):
                raise EmbeddedEtcdError(f"{member.name} does not run; restart it first")

    def _chosen(self, member: int | None) -> Sequence[EtcdMember]:
        if self._state != "running":
            raise (
                self._not_started()
                if self._state == "not started"
                else EmbeddedEtcdError("etcd has been stopped")
            )
        if member is None:
            return self._members
        if not 0 <= member < self._count:
            raise EmbeddedEtcdError(
                f"there is no member {member}; they count from 0 to {self._count - 1}"
            )
        return [self._members[member]]

    def _started(self) -> Sequence[EtcdMember]:
        if not self._members:
            raise self._not_started()
        return self._members

    def _found(self) -> EtcdBinary:
        if self._binary is None:
            raise self._not_started()
        return self._binary

    @staticmethod
    def _not_started() -> EmbeddedEtcdError:
        return EmbeddedEtcdError(
            "etcd has not been started; use it inside `async with EmbeddedEtcd() as etcd:`"
        )


def _folder_for(asked: Path | None, members: int) -> Path:
    """Return the absolute folder to use: the one asked for, or a private one, which does not exist yet.

    Raises:
        EmbeddedEtcdError: it holds data that cannot be started with.
    """
    if asked is None:
        return Path(tempfile.gettempdir(), f"kvorum-etcd-{secrets.token_hex(8)}")
    folder = asked.absolute()
    kept = [path.name for path in sorted(folder.glob("etcd-*")) if path.is_dir()]
    if kept and (members > 1 or len(kept) > 1):
        problem = (
            "a cluster's data cannot be started with again, since its members have other ports now"
        )
        raise EmbeddedEtcdError(f"{folder} holds the data of {', '.join(kept)}: {problem}")
    return folder
