"""The space quota is crossed with writes in flight."""

from functools import partial

import msgspec

from kvorum.testing.evidence import Outcome
from kvorum.testing.scenes.stage import WORKLOAD, Stage

QUOTA = 2_000_000  # bytes
FULL = ("no more writes", "space exceeded")  # how Kvorum and etcd say so
_WORKLOAD = msgspec.structs.replace(
    WORKLOAD, clients=16, value=lambda _, unique: unique.encode() + b"-" + b"x" * 6_000, keys=12
)


async def play(stage: Stage) -> None:
    """Cross the quota, free space (compact, defragment, disarm), and resume; repeatedly.

    Etcd applies the write that crosses the quota, and reports that it did not.
    """
    clients = [await stage.open() for _ in range(2)]
    async with stage.busy(clients, _WORKLOAD):
        for _ in range(stage.rounds):
            await stage.strike("quota")
            refused = len(_refused(stage))
            await stage.until(partial(_are_refused, stage, refused + 20))
            stage.need("writes refused for lack of space", len(_refused(stage)) - refused)
            await stage.forget()
            await stage.operator.make_room()
            before = stage.done_writes()
            await stage.some_more()
            stage.need("writes done after space was freed", stage.done_writes() - before)


def _are_refused(stage: Stage, number: int) -> bool:
    return len(_refused(stage)) >= number


def _refused(stage: Stage) -> list[str]:
    return [
        call.error
        for call in stage.history.calls
        if call.outcome is not Outcome.DONE and any(text in call.error for text in FULL)
    ]
