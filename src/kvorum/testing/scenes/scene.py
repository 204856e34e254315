"""A scene: an operation on a cluster while clients work."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from kvorum.embedded import EmbeddedEtcd
from kvorum.testing.evidence import Outcome, Rule
from kvorum.testing.scenes.stage import SceneLimits, Stage
from kvorum.testing.trial import Verdict


class Scene(msgspec.Struct, frozen=True):
    """An operation on a cluster while clients work.

    Attributes:
        play: performs it on a stage.
        members: the size of the cluster.
        arguments: further flags for each member.
        is_judged: whether the records are judged afterwards; otherwise the scene does so itself.
    """

    play: Callable[[Stage], Awaitable[None]]
    members: int = 1
    arguments: tuple[str, ...] = ()
    is_judged: bool = True

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.play.__doc__ or "").strip().partition("\n")[0]


class SceneVerdict(Verdict, frozen=True):
    """The result of a scene.

    Attributes:
        version: the version of etcd.
        counts: what was observed.
    """

    version: tuple[int, ...] = ()
    counts: Counter[str] = msgspec.field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{number:,} {what}" for what, number in sorted(self.counts.items()))
        idle = "".join(f"; never happened: {fault.name}" for fault in self.history.idle_faults)
        return f"etcd {'.'.join(map(str, self.version))}: {super().__str__()} [{counts}]{idle}"


async def play_scene(
    scene: Scene,
    *,
    binary: str | Path | None = None,
    rounds: int = 1,
    seed: int = 0,
    newer: Path | None = None,
    limits: SceneLimits | None = None,
) -> SceneVerdict:
    """Play a scene on its own etcd and judge the result.

    Args:
        scene: one of `SCENES`.
        binary: the etcd to run.
        rounds: how often to repeat the operation.
        seed: the seed of random choices.
        newer: another etcd, for scenes that upgrade.
        limits: waits and sizes; smaller ones make a failing scene end sooner.

    Raises:
        UnplayableError: the scene cannot be played here; the message says what is missing.
        EmbeddedEtcdError: etcd did not start.
    """
    async with (
        EmbeddedEtcd(binary=binary, members=scene.members, arguments=scene.arguments) as etcd,
        AsyncExitStack() as stack,
    ):
        stage = Stage(etcd, stack, rounds=rounds, seed=seed, newer=newer, limits=limits)
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
