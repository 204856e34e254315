"""An endpoint temporarily leads to another cluster."""

import anyio

import kvorum
from kvorum.embedded import EmbeddedEtcd
from kvorum.settings import EtcdSettings
from kvorum.testing.evidence import Rule
from kvorum.testing.faults import FaultProxy
from kvorum.testing.scenes.stage import PREFIX, Stage, UnplayableError

AHEAD = 300  # writes that the other cluster is ahead
LASTS = 1.0  # seconds


async def play(stage: Stage) -> None:
    """Let an address lead to another cluster for a while, as a reassigned address does.

    No call reads or writes there, and no watch shows its changes.
    """
    other = await stage.enter(EmbeddedEtcd(binary=stage.etcd.binary))
    elsewhere = await _prepared(stage, other)
    moving, failing, spare = [
        await stage.enter(FaultProxy(stage.etcd.endpoints[0])) for _ in range(3)
    ]
    moved = await stage.open(moving.endpoint)
    failing_over = await stage.open(failing.endpoint, spare.endpoint)
    near = await stage.open()
    async with stage.busy([near, moved, failing_over]):
        for _ in range(stage.rounds):
            await stage.some_more()
            await stage.strike("an address leads elsewhere")
            for proxy in (moving, spare):
                proxy.redirect(other.endpoints[0])
                proxy.cut()
            await failing.refuse()
            failing.cut()
            await anyio.sleep(LASTS)
            for proxy in (moving, failing, spare):
                await proxy.heal()
                proxy.cut()
    found = await elsewhere.backend.list("", limit=AHEAD)
    if len(found.entries) > 1:
        stage.found(
            Rule.INVENTED_WRITE,
            f"the other cluster was written to: {[e.key for e in found.entries]}",
        )
    stage.need("connections to the other cluster", moving.statistics().accepted - 1)


async def _prepared(stage: Stage, other: EmbeddedEtcd) -> kvorum.Client:
    """Put the other cluster ahead, so that its revisions do not give it away."""
    settings = EtcdSettings(endpoints=other.endpoints, prefix=PREFIX)
    client = await stage.enter(kvorum.connect(settings))
    for number in range(AHEAD):
        await client.backend.set("theirs", str(number).encode())
    if not await client.backend.exists("theirs"):
        raise UnplayableError("the other cluster does not keep its writes")
    return client
