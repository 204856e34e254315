"""The quota is crossed with writes under way."""

import msgspec

from kvorum.testing.evidence import Outcome
from kvorum.testing.scenes.stage import WORKLOAD, Stage

QUOTA = 2_000_000  # bytes
FULL = ("no more writes", "space exceeded")  # how Kvorum and etcd say so
_WORKLOAD = msgspec.structs.replace(
    WORKLOAD, clients=16, value=lambda _, unique: unique.encode() + b"-" + b"x" * 6_000, keys=12
)


async def play(stage: Stage) -> None:
    """Cross the quota, make room (compact, defragment, disarm), and go on; again and again.

    Etcd applies the write that crosses it, and says that it has not.
    """
    clients = [await stage.open() for _ in range(2)]
    async with stage.busy(clients, _WORKLOAD):
        for _ in range(stage.rounds):
            await stage.strike("quota")
            refused = len(_refused(stage))
            await stage.until(lambda before=refused: len(_refused(stage)) >= before + 20)  # type: ignore[misc]
            stage.need("writes refused as there was no space", len(_refused(stage)) - refused)
            await stage.forget()
            await stage.operator.make_room()
            before = stage.done_writes()
            await stage.some_more()
            stage.need("writes done after there was room again", stage.done_writes() - before)


def _refused(stage: Stage) -> list[str]:
    return [
        call.error
        for call in stage.history.calls
        if call.outcome is not Outcome.DONE and any(text in call.error for text in FULL)
    ]
