"""Clients open while etcd starts."""

import anyio

import kvorum
from kvorum.embedded import LOSES_DATA
from kvorum.errors import KvorumError
from kvorum.settings import EtcdSettings
from kvorum.testing.evidence import Rule
from kvorum.testing.scenes.stage import PREFIX, Stage

TIMEOUT = 10.0  # seconds, far more than it takes to start
OPENING = 4  # clients


async def play(stage: Stage) -> None:
    """Open clients while etcd is down and restarts. Each opens within its timeout, and reads."""
    working = await stage.open()
    async with stage.busy([working]):
        for _ in range(2 * stage.rounds):
            await stage.some_more()
            await stage.strike("clients open while etcd starts")
            async with anyio.create_task_group() as group:
                group.start_soon(_restart, stage)
                for _ in range(OPENING):
                    group.start_soon(_open, stage, stage.random.uniform(0, 0.3))
    stage.need("clients that opened while etcd started", stage.counts["opened"])


async def _restart(stage: Stage) -> None:
    if stage.etcd.version not in LOSES_DATA:
        await stage.etcd.kill()  # it is down immediately
    await stage.etcd.restart()


async def _open(stage: Stage, after: float) -> None:
    await anyio.sleep(after)
    settings = EtcdSettings(endpoints=stage.etcd.endpoints, prefix=PREFIX, timeout=TIMEOUT)
    started = anyio.current_time()
    try:
        async with kvorum.connect(settings) as client:
            await client.backend.get("k0")
    except KvorumError as exc:
        took = anyio.current_time() - started
        stage.found(
            Rule.OUTAGE,
            f"a client with a timeout of {TIMEOUT:g} s failed to open after {took:.1f} s: {exc}",
        )
    else:
        stage.counts["opened"] += 1
