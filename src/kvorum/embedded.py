"""A real etcd as a child process, for tests, demos and development."""

import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.abc
import anyio.to_thread

from kvorum.errors import EmbeddedEtcdError
from kvorum.etcd_binary import EtcdBinary, find_etcd
from kvorum.guardian import Guardian

STOP_TIMEOUT: Final = 5.0
_POLL: Final = 0.01
_START_ATTEMPTS: Final = 5
# Below the range that systems take the ports of outgoing connections from: such a connection would be in the way of a
# restart on the same port.
_PORTS: Final = range(10_240, 32_768)
_ADDRESS_IN_USE: Final = "address already in use"


class EmbeddedEtcd:
    """An etcd of one's own, on free loopback ports, with its data in a folder of its own.

        async with EmbeddedEtcd() as etcd:
            async with kvorum.connect(etcd.url) as client:
                ...

    It is ready when it is entered: it has answered a linearizable read. On leaving, on cancellation, and when this
    process is killed, it is stopped, and its private folder is removed. Made for tests: a single member elects itself
    within a tenth of a second, which makes its minimum TTL 1 second.

    Args:
        binary: the server to run; else it is looked for, see `kvorum.etcd_binary.find_etcd`.
        data_dir: where to keep the data; None for a private folder that is removed in the end.
        members: how many members the cluster has.
        arguments: more flags for the server.
        ready_timeout: how long it may take to start, in seconds.

    Attributes:
        binary: what runs; once it is entered.
    """

    def __init__(
        self,
        *,
        binary: str | Path | None = None,
        data_dir: str | Path | None = None,
        members: int = 1,
        arguments: Sequence[str] = (),
        ready_timeout: float = 20.0,
    ) -> None:
        if members < 1:
            raise EmbeddedEtcdError(f"a cluster has at least one member, not {members}")
        self.binary: EtcdBinary | None = None
        self._named = binary
        self._data_dir = Path(data_dir) if data_dir is not None else None
        self._count = members
        self._arguments = tuple(arguments)
        self._ready_timeout = ready_timeout
        self._members: list[_Member] = []
        self._stack: AsyncExitStack | None = None

    def __repr__(self) -> str:
        state = "not started" if not self._members else "running" if self._stack is not None else "stopped"
        return f"<EmbeddedEtcd {','.join(self.endpoints)} [{state}]>"

    # --- what users ask ---

    @property
    def endpoints(self) -> tuple[str, ...]:
        """`host:port` of each member; empty before it is entered."""
        return tuple(f"127.0.0.1:{member.client_port}" for member in self._members)

    @property
    def url(self) -> str:
        """`etcd://127.0.0.1:PORT`, with all members.

        Raises:
            EmbeddedEtcdError: it has not been entered: its ports are not known yet.
        """
        if not self._members:
            raise EmbeddedEtcdError("the embedded etcd has no address before it is entered")
        return f"etcd://{','.join(self.endpoints)}"

    @property
    def version(self) -> tuple[int, int, int]:
        """The server's version, as (3, 5, 1); (0, 0, 0) before it is entered."""
        return self.binary.version if self.binary is not None else (0, 0, 0)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the members that run."""
        return tuple(member.pid for member in self._members if member.pid is not None)

    # --- what tests do to it; `member` is a number from 0, None means all ---

    async def kill(self, member: int | None = None) -> None:
        """Kill the process (SIGKILL) and wait until it is gone. `restart` starts it again."""
        for each in self._chosen(member):
            await each.kill()

    async def restart(self, member: int | None = None) -> None:
        """Stop gracefully, if it runs, and start again, with the same ports and data; ready on return.

        Raises:
            EmbeddedEtcdError: it did not stop, or did not start.
        """
        chosen = self._chosen(member)
        for each in chosen:
            await each.stop()
        await self._start(chosen)

    async def pause(self, member: int | None = None) -> None:
        """Stop the process in its tracks (SIGSTOP): it keeps its connections, and says nothing."""
        for each in self._chosen(member):
            each.signal(signal.SIGSTOP)

    async def resume(self, member: int | None = None) -> None:
        """Let a paused process go on (SIGCONT)."""
        for each in self._chosen(member):
            each.signal(signal.SIGCONT)

    def _chosen(self, member: int | None) -> "list[_Member]":
        if self._stack is None:
            raise EmbeddedEtcdError("the embedded etcd does not run; use it inside `async with`")
        return self._members if member is None else [self._members[member]]

    # --- life ---

    async def __aenter__(self) -> Self:
        """Start it, and wait until it is ready.

        Raises:
            EmbeddedEtcdError: there is no binary, or it did not start; the message says why.
        """
        if self._stack is not None or self._members:
            raise EmbeddedEtcdError("an embedded etcd is entered once; make another")
        async with AsyncExitStack() as stack:
            self.binary = await find_etcd(self._named)
            private = None if self._data_dir else await anyio.to_thread.run_sync(tempfile.mkdtemp, None, "kvorum-etcd-")
            guardian = await stack.enter_async_context(Guardian(private))
            stack.push_async_callback(self._stop)
            folder = self._data_dir or Path(str(private))
            await self._found_cluster(self.binary, folder, guardian)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it: asked first, then killed; and remove its private folder."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def _stop(self) -> None:
        with anyio.CancelScope(shield=True):  # bounded: whoever does not stop is killed
            for member in self._members:
                await member.stop()

    async def _found_cluster(self, binary: EtcdBinary, folder: Path, guardian: Guardian) -> None:
        """Start with free ports, and with others if somebody was faster to take one of them."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            ports = await anyio.to_thread.run_sync(_free_ports, 2 * self._count)
            self._members = [
                _Member(f"m{number}", binary, folder / f"m{number}", ports[2 * number], ports[2 * number + 1], guardian)
                for number in range(self._count)
            ]
            try:
                await self._start(self._members)
            except EmbeddedEtcdError as exc:
                if _ADDRESS_IN_USE not in str(exc) or attempt == _START_ATTEMPTS:
                    raise
                await self._stop()
            else:
                return

    async def _start(self, members: "Sequence[_Member]") -> None:
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self._members)
        # A cluster of several on a busy machine needs more patience than a single member, which only waits for itself.
        heartbeat, election = (10, 100) if self._count == 1 else (50, 500)
        flags = [
            f"--initial-cluster={cluster}",
            f"--heartbeat-interval={heartbeat}",
            f"--election-timeout={election}",
            *self._arguments,
        ]
        for member in members:
            await member.start(flags)
        with anyio.move_on_after(self._ready_timeout):
            for member in members:
                await member.wait_ready()
            return
        raise EmbeddedEtcdError(f"etcd was not ready within {self._ready_timeout:g} s{await members[0].last_words()}")


class _Member:
    """One process of the cluster."""

    def __init__(
        self, name: str, binary: EtcdBinary, folder: Path, client_port: int, peer_port: int, guardian: Guardian
    ) -> None:
        self.name = name
        self.client_port = client_port
        self.peer_url = f"http://127.0.0.1:{peer_port}"
        self._binary = binary
        self._folder = folder
        self._log = folder / "etcd.log"
        self._guardian = guardian
        self._process: anyio.abc.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None if it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self, flags: Sequence[str]) -> None:
        """Start the process; `wait_ready` tells when it serves."""
        client_url = f"http://127.0.0.1:{self.client_port}"
        command = [
            str(self._binary.path),
            f"--name={self.name}",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            *flags,
        ]
        # etcd takes its flags from ETCD_* as well, and ETCD_PREFIX or ETCD_ENDPOINTS are ours.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        await anyio.Path(self._folder).mkdir(parents=True, exist_ok=True)
        async with await anyio.open_file(self._log, "ab") as log:
            # A session of its own: Ctrl-C at the terminal is for this process, which then stops the server in order.
            self._process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log.wrapped,
                stderr=log.wrapped,
                env=environment,
                start_new_session=True,
            )
        await self._guardian.guard(self._process.pid)

    async def wait_ready(self) -> None:
        """Wait until the member answers a linearizable read.

        Raises:
            EmbeddedEtcdError: it has ended instead.
        """
        while not await self._is_healthy():
            if self.pid is None:
                code = self._process.returncode if self._process is not None else None
                raise EmbeddedEtcdError(f"etcd ended with exit code {code}{await self.last_words()}")
            await anyio.sleep(_POLL)

    async def stop(self) -> None:
        """End the process if it runs: asked first (SIGTERM), killed after 5 seconds."""
        self.signal(signal.SIGCONT)  # a paused one would not hear the next
        self.signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_TIMEOUT):
            await self._ended()
        await self.kill()

    async def kill(self) -> None:
        """End the process at once, if it runs."""
        self.signal(signal.SIGKILL)
        await self._ended()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self.pid is not None:
            with suppress(ProcessLookupError):  # it has just ended; `_ended` finds out
                self._process.send_signal(number)

    async def last_words(self) -> str:
        """Return the end of the log, for an error message."""
        log = anyio.Path(self._log)
        text = await log.read_text(errors="replace") if await log.exists() else ""
        lines = text.strip().splitlines()
        # A flag that it does not know stands above a page of help, a panic at the end.
        shown = [*lines[:2], "…", *lines[-8:]] if len(lines) > 10 else lines
        return "; its log:\n" + "\n".join(shown) if shown else ""

    async def _ended(self) -> None:
        process = self._process
        if process is not None:
            await process.wait()
            await self._guardian.release(process.pid)
            self._process = None

    async def _is_healthy(self) -> bool:
        """Ask /health, behind which etcd does a linearizable read."""
        try:
            async with await anyio.connect_tcp("127.0.0.1", self.client_port) as stream:
                await stream.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = b"".join([part async for part in stream])
        except (OSError, anyio.BrokenResourceError):
            return False
        return answer.startswith(b"HTTP/1.1 200") and b'"true"' in answer


def _free_ports(count: int) -> list[int]:
    """Return ports on which nobody listens; all are held while they are chosen, so they differ.

    Somebody else may take one before etcd does, so a start that fails for that is tried again with others.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            candidate = held.enter_context(socket.socket())
            with suppress(OSError):
                candidate.bind(("127.0.0.1", random.choice(_PORTS)))  # noqa: S311 - no secret
                ports.append(candidate.getsockname()[1])
        return ports
