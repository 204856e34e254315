"""Members are paused and restarted in turn."""

import anyio

from kvorum.testing.scenes.stage import Stage

PAUSE = 0.7  # seconds


async def play(stage: Stage) -> None:
    """Pause and restart the members in turn, as a rolling restart does."""
    clients = [await stage.open() for _ in range(3)]
    async with stage.busy(clients):
        for _ in range(stage.rounds):
            for member in range(len(stage.etcd.endpoints)):
                await stage.some_more()
                await stage.strike("a member is paused")
                await stage.etcd.pause(member)
                await anyio.sleep(PAUSE)
                await stage.etcd.resume(member)
                await stage.some_more()
                await stage.strike("a member is restarted")
                await stage.etcd.restart(member)
                before = stage.done_writes()
                await stage.some_more()
                stage.need("writes done after a restart", stage.done_writes() - before)
