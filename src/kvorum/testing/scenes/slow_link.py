"""History is compacted before a slow link has delivered it."""

from itertools import count
from typing import Final

import anyio

from kvorum.errors import KvorumError
from kvorum.testing.evidence import RecordingBackend, read_creations
from kvorum.testing.faults import FaultProxy
from kvorum.testing.scenes.stage import PREFIX, Stage

RATE: Final = 400_000  # bytes per second
SIZE: Final = 100_000  # bytes of a value
BURST: Final = 200  # writes
CALM: Final = 2.5  # seconds; by then etcd counts the watch as unsynced
AFTER: Final = 5  # later writes, which arrive as new events


async def play(stage: Stage) -> None:
    """Compact history that a watch behind a slow link has not received yet.

    The watch receives all of it, or reports the loss. Later events look consecutive and hide the
    gap.
    """
    async with FaultProxy(stage.etcd.endpoints[0]) as proxy:
        near, far = await stage.open(timeout=10.0), await stage.open(proxy.endpoint, timeout=10.0)
        backend = RecordingBackend(near.backend, stage.history, "near")
        numbers = count()
        async with stage.busy([], watching=[near, far]):
            for _ in range(stage.rounds):
                await _write(backend, numbers, 3)
                await stage.until(lambda: stage.followers[1].shown >= stage.followers[0].shown)
                await stage.read_server_history()
                proxy.throttle(RATE, "replies")
                async with anyio.create_task_group() as group:
                    group.start_soon(_write, backend, numbers, BURST)
                    await stage.some_more(BURST // 2)
                    await stage.strike("compaction behind a slow link")
                # Compact at once, before etcd has sent it all. The history is then read from the
                # current state.
                behind, stage.compacted = (
                    stage.followers[1].shown,
                    max(call.revision for call in stage.history.calls),
                )
                await stage.operator.compact(stage.compacted)
                later = await read_creations(
                    stage.etcd.endpoints[0], PREFIX, since=stage.server_history.end
                )
                stage.server_history = stage.server_history.followed_by(later)
                stage.need(
                    "revisions compacted before they were shown", max(stage.compacted - behind, 0)
                )
                await anyio.sleep(CALM)
                await _write(backend, numbers, AFTER)
                proxy.throttle(50_000_000, "replies")
                await stage.until(lambda: stage.followers[1].shown >= stage.followers[0].shown)


async def _write(backend: RecordingBackend, numbers: "count[int]", times: int) -> None:
    for _ in range(times):
        number = next(numbers)
        try:
            await backend.create(f"k{number}", str(number).encode() + b"-" + b"x" * SIZE)
        except KvorumError:
            await anyio.sleep(0.05)
