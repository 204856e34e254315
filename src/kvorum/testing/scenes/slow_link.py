"""History is compacted while it is on its way over a slow link."""

import msgspec

from kvorum.testing.fault_proxy import FaultProxy
from kvorum.testing.scenes.stage import WORKLOAD, Stage

RATE = 400_000  # bytes per second
_WORKLOAD = msgspec.structs.replace(
    WORKLOAD,
    clients=4,
    mix={"set": 3, "create": 1, "delete": 1, "swap": 1},
    value=lambda _, unique: unique.encode() + b"-" + b"x" * 60_000,
    rest=0.05,
)


async def play(stage: Stage) -> None:
    """Compact history that a watch behind a slow link has not got yet.

    It gets all of it, or is told that it is lost.
    """
    async with FaultProxy(stage.etcd.endpoints[0]) as proxy:
        near, far = await stage.open(), await stage.open(proxy.endpoint)
        async with stage.busy([near], _WORKLOAD, watching=[near, far]):
            for _ in range(stage.rounds):
                await stage.some_more(5)
                await stage.strike("compaction behind a slow link")
                proxy.throttle(RATE, "replies")
                await stage.some_more(150)
                behind = stage.followers[1].shown
                await stage.forget()
                stage.need("revisions compacted before they were shown", stage.compacted - behind)
                await stage.some_more(30)
                proxy.throttle(50_000_000, "replies")
                await stage.until(lambda: stage.followers[1].shown >= stage.compacted)
