"""Leadership is transferred repeatedly."""

from kvorum.testing.faults import OperatorError
from kvorum.testing.scenes.stage import Stage

MOVES = 4  # in a round


async def play(stage: Stage) -> None:
    """Transfer leadership repeatedly.

    One client for each member, so that one of them always talks to the leader, which drops
    proposals.
    """
    clients = [await stage.open(endpoint) for endpoint in stage.etcd.endpoints]
    clients.append(await stage.open())
    moves = 0
    async with stage.busy(clients, watching=clients[:1] + clients[-1:]):
        for _ in range(MOVES * stage.rounds):
            await stage.some_more(40)
            await stage.strike("the leader hands over")
            try:
                await stage.operator.move_leader()
            except OperatorError:  # it is no longer the leader
                continue
            moves += 1
    stage.need("handovers", moves)
