"""One etcd process: its ports, its data, its log, and its health."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from kvorum.embedded.binary import EtcdBinary, clean_environment
from kvorum.embedded.loopback_port import LoopbackPort
from kvorum.embedded.process_group import ChildProcess, ProcessGroup
from kvorum.errors import EmbeddedEtcdError

# A healthy server has a leader and can read through it. A NOSPACE alarm does not count: reads and
# deletes still work. (etcd 3.4.23 and 3.5.1 support `exclude`; servers that do not ignore it.)
_HEALTH_REQUEST: Final = b"GET /health?exclude=NOSPACE HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
_HEALTH_TIMEOUT: Final = 2.0
_EXCERPT_BYTES: Final = 8192


class ServerTls(msgspec.Struct, frozen=True):
    """The certificates of an embedded server: paths of PEM files.

    Attributes:
        cert: the server's certificate. Unless it is for 127.0.0.1 or localhost, clients need
            `EtcdSettings.server_name`.
        key: its key.
        client_ca: the CA that must have signed the certificates of clients; None: clients need no
            certificate.
    """

    cert: str
    key: str
    client_ca: str | None = None


class PortTakenError(EmbeddedEtcdError):
    """Another process has taken the port. Retry with another port."""


class EtcdMember:
    """One etcd process of a server, or of a cluster.

    Attributes:
        name: its name in the cluster.
        data: its data folder.
        log: the file that its output goes to, since its last start.
        client: the port for clients.
        peer: the port for other members.
        monitor: the port for its health and its metrics, without TLS. The same as `client` if that
            has no TLS.
        process: the process that was started last; None before the first start.
        binary: the etcd it runs, if it differs from that of the other members.
    """

    def __init__(self, name: str, folder: Path, tls: ServerTls | None = None) -> None:
        self.name = name
        self.data: Path = folder / name
        self.log: Path = folder / f"{name}.log"
        self.client: LoopbackPort = LoopbackPort()
        self.peer: LoopbackPort = LoopbackPort()
        self.monitor: LoopbackPort = self.client if tls is None else LoopbackPort()
        self.tls: ServerTls | None = tls
        self.process: ChildProcess | None = None
        self.binary: EtcdBinary | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process was started and has not ended. A paused process counts."""
        return self.process is not None and self.process.exit_code is None

    def start(self, group: ProcessGroup, argv: Sequence[str]) -> None:
        """Start its process, which must not run. It is not ready on return.

        Raises:
            EmbeddedEtcdError: it did not start.
        """
        for port in (self.client, self.peer, self.monitor):
            port.lend()
        self.process = group.spawn(argv, clean_environment(), self.log)

    async def is_healthy(self) -> bool:
        """Return whether it answers, has a leader, and can read through it.

        Raises:
            PortTakenError: the process has ended because a port was not free.
            EmbeddedEtcdError: the process has ended for another reason.
        """
        if not self.is_running:
            raise await self._death()
        with anyio.move_on_after(_HEALTH_TIMEOUT):
            try:
                async with await anyio.connect_tcp("127.0.0.1", self.monitor.number) as stream:
                    await stream.send(_HEALTH_REQUEST)
                    return b'"health":"true"' in b"".join([chunk async for chunk in stream])
            except (OSError, anyio.BrokenResourceError):
                return False
        return False

    async def last_words(self) -> str:
        """Return the first and the last lines of its log since its last start."""
        return await anyio.to_thread.run_sync(_excerpt, self.log)

    def close(self) -> None:
        """Release its ports. Idempotent."""
        for port in (self.client, self.peer, self.monitor):
            port.close()

    async def _death(self) -> EmbeddedEtcdError:
        words = await self.last_words()
        kind = PortTakenError if "address already in use" in words else EmbeddedEtcdError
        code = self.process.exit_code if self.process is not None else None
        return kind(f"{self.name} ended with exit code {code} before it was ready; {words}")


def member_command(
    binary: EtcdBinary,
    member: EtcdMember,
    cluster: Sequence[EtcdMember],
    *,
    fsync: bool,
    arguments: Sequence[str],
) -> list[str]:
    """Return the command line of a member.

    Args:
        binary: what to run.
        member: which one it is for.
        cluster: all members.
        fsync: whether writes wait for the disk; etcd before 3.5 always waits.
        arguments: further flags. They come last, because etcd uses the last value of a flag.
    """
    # A single node elects itself: the shorter its timeout, the sooner it serves. Several members
    # must receive each other's heartbeats in time, even on a busy machine.
    heartbeat, election = (10, 100) if len(cluster) == 1 else (50, 500)
    flags = {
        "name": member.name,
        "data-dir": str(member.data),
        **_listening(member),
        "listen-peer-urls": f"http://{member.peer}",
        "initial-advertise-peer-urls": f"http://{member.peer}",
        "initial-cluster": ",".join(f"{each.name}=http://{each.peer}" for each in cluster),
        # Distinguishes it from an older cluster whose ports the kernel has reused.
        "initial-cluster-token": "-".join(["kvorum", *(str(each.peer.number) for each in cluster)]),
        "heartbeat-interval": str(heartbeat),
        "election-timeout": str(election),
    }
    without_fsync = ["--unsafe-no-fsync"] if not fsync and binary.version >= (3, 5) else []
    return [
        str(binary.path),
        *(f"--{name}={value}" for name, value in flags.items()),
        *without_fsync,
        *arguments,
    ]


def _listening(member: EtcdMember) -> dict[str, str]:
    """Return the flags for the addresses and certificates that clients use."""
    tls = member.tls
    url = f"{'http' if tls is None else 'https'}://{member.client}"
    flags = {"listen-client-urls": url, "advertise-client-urls": url}
    if tls is None:
        return flags
    flags |= {
        "cert-file": tls.cert,
        "key-file": tls.key,
        "listen-metrics-urls": f"http://{member.monitor}",
    }
    return (
        flags
        if tls.client_ca is None
        else flags | {"trusted-ca-file": tls.client_ca, "client-cert-auth": "true"}
    )


def _excerpt(log: Path) -> str:
    try:
        with log.open("rb") as file:
            head = file.read(_EXCERPT_BYTES)
            file.seek(max(len(head), log.stat().st_size - _EXCERPT_BYTES))
            lines = (head + file.read()).decode(errors="replace").strip().split("\n")
    except FileNotFoundError:
        return "it wrote nothing"
    # An unknown flag is reported above a page of help; the reason of a panic comes last.
    shown = [*lines[:2], "…", *lines[-9:]] if len(lines) > 12 else lines
    return "its log:\n" + "\n".join(shown)
