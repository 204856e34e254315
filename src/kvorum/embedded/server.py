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
from kvorum.embedded.member import EtcdMember, PortTakenError, ServerTls, member_command
from kvorum.embedded.process_group import ProcessGroup
from kvorum.errors import ConfigurationError, EmbeddedEtcdError

STOP_TIMEOUT: Final = 5.0  # from SIGTERM to SIGKILL, and from SIGKILL to the end of the process
CLOSE_TIMEOUT: Final = 12.0
_PORT_ATTEMPTS: Final = 5
_POLL: Final = 0.005


class EmbeddedEtcd:
    """A private etcd on free ports of 127.0.0.1: `async with EmbeddedEtcd() as etcd: etcd.url`.

    It serves once the block is entered, and is stopped when the block is left, whether normally, by
    an error or by a cancellation. It also ends if this process is killed. It can be entered once.
    Its methods may be called from any event loop, one call at a time.

    Ports survive `kill` and `restart`. On Linux no other process can take them in between.

    Args:
        binary: the etcd to run; None: the one that `find_binary` finds.
        data_dir: a folder to keep the data and the logs in; None: a private one, which is removed
            at the end.
        members: how many members the cluster has. The data of several members can be used once
            only: members know each other by their ports, which differ the next time.
        arguments: further flags for each server.
        ready_timeout: seconds that a start may take.
        fsync: whether writes wait for the disk; None: only if the data is kept. etcd before 3.5
            always waits. Without fsync, a write survives the death of the process but not of the
            machine.
        tls: the certificates for TLS with clients; None: no TLS.

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

    # --- properties: they raise EmbeddedEtcdError before the server is entered, and stay afterwards

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
        """The server's version, such as `(3, 5, 1)`."""
        return self._found().version

    @property
    def data_dir(self) -> Path:
        """The folder that holds `etcd-N` (data) and `etcd-N.log` of each member."""
        if self._folder is None:
            raise self._not_started()
        return self._folder

    @property
    def pid(self) -> int:
        """The process id of the first member."""
        return self.pids[0]

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each member. A member that has ended keeps its last one."""
        return tuple(member.process.pid for member in self._started() if member.process is not None)

    # --- operations: `member` counts from 0, None means all ---

    async def restart(self, member: int | None = None, *, binary: str | Path | None = None) -> None:
        """Stop members gracefully, if they run, and start them with the same ports and data.

        On return they serve: they can read through a leader. So enough members of the cluster must
        run.

        Args:
            member: which one; None: all.
            binary: another etcd to run from now on, as in an upgrade.

        Raises:
            EmbeddedEtcdError: a member did not start, or did not serve in time.
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
        """Kill the process (SIGKILL) and wait for its end. Does nothing if it does not run."""
        await self._stop(self._chosen(member), gently=False)

    async def pause(self, member: int | None = None) -> None:
        """Pause the process (SIGSTOP): its connections stay open, but it does not answer.

        Raises:
            EmbeddedEtcdError: the process does not run, or was not paused in time.
        """
        chosen = self._chosen(member)
        self._signal(chosen, signal.SIGSTOP)
        with anyio.move_on_after(STOP_TIMEOUT):
            # The operating system has no event for this
            while not all(each.process is not None and each.process.is_paused for each in chosen):  # noqa: ASYNC110
                await anyio.sleep(_POLL)
            return
        raise EmbeddedEtcdError(f"etcd still runs {STOP_TIMEOUT:g} s after it was told to pause")

    async def resume(self, member: int | None = None) -> None:
        """Resume a paused process (SIGCONT). It may take a moment until it has a leader.

        Raises:
            EmbeddedEtcdError: the process does not run.
        """
        self._signal(self._chosen(member), signal.SIGCONT)

    # --- entering and leaving ---

    async def __aenter__(self) -> Self:
        """Start, and wait until the server is ready. A failed start leaves nothing behind.

        Raises:
            EmbeddedEtcdError: no binary was found, or the server did not start. The message quotes
                the end of its log.
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
        """Stop the server, gracefully if the data is kept, and remove a private folder.

        Does nothing the second time.
        """
        if self._state == "running":
            await self._close()

    async def _open(self) -> None:
        self._binary = await anyio.to_thread.run_sync(find_binary, self._asked_binary)
        folder = self._folder = await anyio.to_thread.run_sync(
            _folder_for, self._folder, self._count
        )
        # The guard comes before the folder: it removes the folder whenever this process is killed.
        self._group.open(folder if self._is_private else None)
        make = partial(folder.mkdir, mode=0o700, parents=True, exist_ok=not self._is_private)
        try:
            await anyio.to_thread.run_sync(make)
        except OSError as exc:
            raise EmbeddedEtcdError(f"no data can be kept in {folder}: {exc}") from exc
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
        """Prepare another attempt with other ports.

        Members that have met remember each other's old ports, so their data goes as well.
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
                # Data that is removed needs no graceful stop.
                await self._stop(self._members, gently=not self._is_private)
                if self._is_private and self._folder is not None:
                    await anyio.to_thread.run_sync(
                        partial(shutil.rmtree, self._folder, ignore_errors=True)
                    )
                await self._group.aclose()
        finally:
            # The guard finishes what was cut short: anyio's shield does not stop asyncio's own
            # cancellation.
            self._group.abandon()
            for member in self._members:
                member.close()

    # --- helpers ---

    def _start(self, members: Sequence[EtcdMember]) -> None:
        for member in members:
            argv = member_command(
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
        """End the running processes: with SIGTERM first if `gently`, then with SIGKILL."""
        running = [
            member.process for member in members if member.process is not None and member.is_running
        ]
        if gently:
            with anyio.move_on_after(STOP_TIMEOUT):
                # One by one: a leader transfers its leadership before it ends, and waits 5 s if no
                # member is left to take it.
                for process in running:
                    process.send(signal.SIGTERM)
                    process.send(
                        signal.SIGCONT
                    )  # a paused process handles SIGTERM only when it resumes
                    await process.wait(STOP_TIMEOUT)
        for process in running:
            process.send(signal.SIGKILL)
        for process in running:
            if not await process.wait(STOP_TIMEOUT):
                raise EmbeddedEtcdError(
                    f"etcd (process {process.pid}) was killed, but does not end"
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
    """Return the absolute folder to use: the one asked for, or a private one, yet to be made.

    Raises:
        EmbeddedEtcdError: the folder holds data that cannot be used.
    """
    if asked is None:
        return Path(tempfile.gettempdir(), f"kvorum-etcd-{secrets.token_hex(8)}")
    folder = asked.absolute()
    kept = [path.name for path in sorted(folder.glob("etcd-*")) if path.is_dir()]
    if kept and (members > 1 or len(kept) > 1):
        problem = "a cluster's data cannot be used again, because its members have other ports now"
        raise EmbeddedEtcdError(f"{folder} holds the data of {', '.join(kept)}: {problem}")
    return folder
