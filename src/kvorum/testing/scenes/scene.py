"""A scene: what is done to a cluster while clients work on it."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from kvorum.embedded import EmbeddedEtcd
from kvorum.testing.evidence import Outcome, Rule
from kvorum.testing.scenes.stage import Stage
from kvorum.testing.trial import Verdict


class Scene(msgspec.Struct, frozen=True):
    """What is done to a cluster while clients work on it.

    Attributes:
        play: does it, on a stage.
        members: how many members the cluster has.
        arguments: further flags for each of them.
        is_judged: whether what was recorded is judged afterwards; a scene without looks after
            itself.
    """

    play: Callable[[Stage], Awaitable[None]]
    members: int = 1
    arguments: tuple[str, ...] = ()
    is_judged: bool = True

    @property
    def summary(self) -> str:
        """The first line of what it says of itself."""
        return (self.play.__doc__ or "").strip().partition("\n")[0]


class SceneVerdict(Verdict, frozen=True):
    """What came out of a scene.

    Attributes:
        version: that of the etcd.
        counts: what was seen on the way.
    """

    version: tuple[int, ...] = ()
    counts: Counter[str] = msgspec.field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{number:,} {what}" for what, number in sorted(self.counts.items()))
        idle = "".join(f"; it never came to: {fault.name}" for fault in self.history.idle_faults)
        return f"etcd {'.'.join(map(str, self.version))}: {super().__str__()} [{counts}]{idle}"


async def play_scene(
    scene: Scene,
    *,
    binary: str | Path | None = None,
    rounds: int = 1,
    seed: int = 0,
    newer: Path | None = None,
) -> SceneVerdict:
    """Play a scene on an etcd of its own, and judge what came of it.

    Args:
        scene: one of `SCENES`.
        binary: the etcd to run.
        rounds: how often to do what it does.
        seed: what is drawn from.
        newer: another etcd, for scenes that upgrade.

    Raises:
        UnplayableError: it cannot be played here; the message says what is missing.
        EmbeddedEtcdError: etcd did not start.
    """
    async with (
        EmbeddedEtcd(binary=binary, members=scene.members, arguments=scene.arguments) as etcd,
        AsyncExitStack() as stack,
    ):
        stage = Stage(etcd, stack, rounds=rounds, seed=seed, newer=newer)
        await scene.play(stage)
        if scene.is_judged:
            await stage.judge()
        return _verdict(stage)


def _verdict(stage: Stage) -> SceneVerdict:
    unknown = sum(call.outcome is Outcome.UNKNOWN for call in stage.history.calls)
    undecided = [each for each in stage.violations if each.rule is Rule.UNDECIDED]
    return SceneVerdict(
        history=stage.history,
        server_history=stage.server_history,
        streams=[
            stream for follower in stage.followers for chain in follower.chains for stream in chain
        ],
        violations=[each for each in stage.violations if each.rule is not Rule.UNDECIDED],
        undecided=undecided,
        version=stage.etcd.version,
        counts=stage.counts + Counter({"calls unknown": unknown}),
    )
