"""Scripts of faults for a proxy: written by hand, or drawn from a seed."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import anyio
import msgspec

from kvorum.testing.evidence import History
from kvorum.testing.faults.proxy import FaultProxy


class Step(msgspec.Struct, frozen=True):
    """One fault of a script.

    Attributes:
        after: the pause before it, in seconds.
        fault: its name, as in `FAULTS`.
        lasts: seconds until it is healed.
    """

    after: float
    fault: str
    lasts: float = 0.0


_ACTIONS: Mapping[str, Callable[[FaultProxy], object]] = {
    "cut": lambda proxy: proxy.cut(),
    "cut in a request": lambda proxy: proxy.cut_after(100, "requests"),
    "cut in a reply": lambda proxy: proxy.cut_after(100, "replies"),
    "delay": lambda proxy: proxy.delay(0.02),
    "throttle": lambda proxy: proxy.throttle(100_000),
    "hold requests": lambda proxy: proxy.hold("requests"),
    "hold replies": lambda proxy: proxy.hold("replies"),
    "drop replies": lambda proxy: proxy.drop("replies"),
    "mute": lambda proxy: proxy.mute(),
}

FAULTS: Final = (*_ACTIONS, "refuse")
"""The names of all faults."""


class FaultScript(msgspec.Struct, frozen=True):
    """Faults, one after the other."""

    steps: Sequence[Step]

    @classmethod
    def random(cls, seed: int, *, number: int, pause: float = 0.3, lasts: float = 0.3) -> Self:
        """Draw `number` faults from a seed.

        Each lasts up to `lasts` seconds, after a pause of up to `pause` seconds.
        """
        source = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        return cls(
            [
                Step(
                    pause * source.uniform(0.3, 1),
                    source.choice(FAULTS),
                    lasts * source.uniform(0.3, 1),
                )
                for _ in range(number)
            ]
        )

    async def play(self, proxy: FaultProxy, history: History) -> None:
        """Inject the faults, and record in a history which calls each of them hit."""
        for step in self.steps:
            await anyio.sleep(step.after)
            history.mark(step.fault)
            if step.fault == "refuse":
                await proxy.refuse()
                proxy.cut()  # otherwise no client needs a new connection
            else:
                _ACTIONS[step.fault](proxy)
            await anyio.sleep(step.lasts)
            await proxy.heal()
