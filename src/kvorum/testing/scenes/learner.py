"""A learner joins and is among the endpoints."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from kvorum.embedded import (
    EmbeddedEtcd,
    EtcdBinary,
    EtcdMember,
    ProcessGroup,
    member_command,
)
from kvorum.testing.faults import Operator, OperatorError
from kvorum.testing.scenes.stage import Stage

ARGUMENTS = (
    "--strict-reconfig-check=false",
)  # else members must have been connected for five seconds


async def play(stage: Stage) -> None:
    """Add a member as a learner, first among the endpoints; keep it so, then promote it."""
    before = await stage.open()
    newcomer = Newcomer(stage.etcd, stage.limits.wait)
    await stage.enter(newcomer.running())
    async with stage.busy([before], watching=[before]):
        await stage.some_more()
        await stage.strike("a learner joins")
        learner = await stage.operator.add_learner(newcomer.peer)
        newcomer.start()
        await newcomer.answers()
    clients = [await stage.open(newcomer.endpoint, *stage.etcd.endpoints) for _ in range(2)]
    async with stage.busy([before, *clients], watching=clients):
        for _ in range(stage.rounds):
            await stage.some_more()
            await stage.strike("a learner is among the endpoints")
            await anyio.sleep(0.3)
        await stage.some_more()
        await stage.strike("the learner is promoted")
        await stage.operator.promote(learner)
        await stage.some_more()
    stage.need("learners promoted", 1)
    stage.operator.peers = (*stage.operator.peers, newcomer.peer)


class Newcomer:
    """One more member for a cluster, of the same version."""

    def __init__(self, etcd: EmbeddedEtcd, wait: float) -> None:
        self._wait = wait
        self._etcd = etcd
        self._member = EtcdMember("newcomer", etcd.data_dir)
        self._group = ProcessGroup()

    @property
    def endpoint(self) -> str:
        """Host and port for clients."""
        return str(self._member.client)

    @property
    def peer(self) -> str:
        """Host and port for members."""
        return str(self._member.peer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reserve its ports and folder. It is not started yet; it is killed at the end."""
        self._group.open(None)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                if self._member.process is not None and self._member.process.send(signal.SIGKILL):
                    await self._member.process.wait(5)
                await self._group.aclose()
            self._member.close()

    def start(self) -> None:
        """Start it. The cluster must have been told of it."""
        peers = {f"etcd-{number}": peer for number, peer in enumerate(self._etcd.peer_endpoints)}
        peers[self._member.name] = self.peer
        arguments = [
            "--initial-cluster="
            + ",".join(f"{name}=http://{peer}" for name, peer in peers.items()),
            "--initial-cluster-state=existing",
            "--heartbeat-interval=50",
            "--election-timeout=500",
        ]
        binary = EtcdBinary(self._etcd.binary, self._etcd.version)
        self._member.start(
            self._group,
            member_command(binary, self._member, [self._member], fsync=False, arguments=arguments),
        )

    async def answers(self) -> None:
        """Wait until it answers."""
        operator = Operator((self.endpoint,), (self.peer,))
        with anyio.fail_after(self._wait):
            while True:
                try:
                    await operator.ask("maintenance/status")
                except OperatorError:
                    await anyio.sleep(0.05)
                else:
                    return
