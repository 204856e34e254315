"""Users and roles change while clients work."""

from itertools import count
from typing import Final

from kvorum.client import Client
from kvorum.testing.evidence import Outcome
from kvorum.testing.scenes.stage import PREFIX, Stage

PASSWORD: Final = "a password of a test"  # noqa: S105 - it opens nothing
ARGUMENTS: Final = ("--bcrypt-cost=4",)  # so that a change of a password is fast
_KEYS: Final = f"/{PREFIX}/"


async def play(stage: Stage) -> None:
    """Change users, roles, passwords and tokens, with clients of all rights, few rights and none.

    Every member refuses the same calls, so all members hold the same data at the end.
    """
    anonymous = await stage.open(lasts=False)
    app, limited = await with_users(stage)
    numbers = count()
    async with stage.busy([app], watching=[app], others=[anonymous, limited]):
        await stage.some_more()
        for _ in range(stage.rounds):
            for change in (_new_user, _new_password, _granted_for_a_while):
                await stage.strike(change.__name__.strip("_").replace("_", " "))
                await change(stage, next(numbers))
                await stage.some_more(10)
        # Tokens are in the memory of one member.
        for member in range(min(stage.rounds, len(stage.etcd.endpoints))):
            await stage.strike("a member forgets its tokens")
            await stage.etcd.restart(member)
            await stage.some_more(10)
    refused = [
        call
        for call in stage.history.calls
        if call.client.startswith("o") and call.outcome is Outcome.REFUSED
    ]
    stage.need("calls refused without permission", len(refused))


async def with_users(stage: Stage) -> tuple[Client, Client]:
    """Enable authentication.

    Return a client with all rights under its prefix, and one with none there.
    """
    operator = stage.operator
    for role, prefix in (("all", _KEYS), ("few", "/elsewhere/")):
        await operator.ask("auth/role/add", name=role)
        await operator.grant(role, prefix)
    await operator.add_user("app", PASSWORD, "all")
    await operator.add_user("limited", PASSWORD, "few")
    await operator.add_user("other", PASSWORD, "few")
    await operator.check_users(PASSWORD)
    app = await stage.open(user="app", password=PASSWORD)
    return app, await stage.open(user="limited", password=PASSWORD, lasts=False)


async def _new_user(stage: Stage, number: int) -> None:
    await stage.operator.add_user(f"user-{number}", PASSWORD, "few")


async def _new_password(stage: Stage, number: int) -> None:
    await stage.operator.ask("auth/user/changepw", name="other", password=f"{PASSWORD} {number}")


async def _granted_for_a_while(stage: Stage, number: int) -> None:
    """Grant the limited user write access, then revoke it."""
    del number
    await stage.operator.grant("few", _KEYS)
    await stage.some_more(10)
    await stage.operator.withdraw("few", _KEYS)
