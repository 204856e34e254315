"""Bursts of writes by clients with all rights, few rights and none."""

from itertools import count

import anyio

from kvorum.client import Client
from kvorum.errors import KvorumError
from kvorum.testing.evidence import Outcome, RecordingBackend
from kvorum.testing.scenes.stage import Stage, UnplayableError
from kvorum.testing.scenes.users import with_users


async def play(stage: Stage) -> None:
    """Write a thousand keys at once: without a user, with few rights, with all rights; repeatedly.

    All members refuse the same writes.
    """
    anonymous = await stage.open(lasts=False)
    app, limited = await with_users(stage)
    async with stage.busy([app]):
        for _ in range(stage.rounds):
            for name, client in (("anonymous", anonymous), ("limited", limited), ("app", app)):
                await stage.strike(f"a thousand writes of {name}")
                await crowd(stage, name, client)
    _need_all(stage)


async def play_upgrade(stage: Stage) -> None:
    """Upgrade the members in turn, with users on, during bursts of writes by all clients."""
    if stage.newer is None:
        raise UnplayableError("there is no etcd to upgrade to: name one with --upgrade-to")
    anonymous = await stage.open(lasts=False)
    app, limited = await with_users(stage)
    async with stage.busy([app]):
        for member in range(len(stage.etcd.endpoints)):
            await stage.strike("a member is upgraded")
            async with anyio.create_task_group() as group:
                for name, client in (("anonymous", anonymous), ("limited", limited), ("app", app)):
                    group.start_soon(crowd, stage, name, client)
                await stage.etcd.restart(member, binary=stage.newer)
            for name, client in (("anonymous", anonymous), ("limited", limited), ("app", app)):
                await crowd(stage, name, client)
    _need_all(stage)


_numbers = count()


async def crowd(stage: Stage, name: str, client: Client) -> None:
    """Write many keys at once."""
    backend = RecordingBackend(client.backend, stage.history, name)

    async def write(number: int) -> None:
        try:
            await backend.set(f"crowd/{number % 500}", f"{name}-{number}".encode())
        except KvorumError:
            return  # it is recorded

    async with anyio.create_task_group() as group:
        for _ in range(stage.limits.burst):
            group.start_soon(write, next(_numbers))


def _need_all(stage: Stage) -> None:
    outcomes = [(call.client, call.outcome) for call in stage.history.calls if call.writes]
    stage.need("writes refused without a user", outcomes.count(("anonymous", Outcome.REFUSED)))
    stage.need("writes refused with few rights", outcomes.count(("limited", Outcome.REFUSED)))
    stage.need("writes done with all rights", outcomes.count(("app", Outcome.DONE)))
