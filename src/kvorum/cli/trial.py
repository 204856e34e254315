"""`kvorum trial`: a recorded workload on a real etcd, checked against the server's history."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

import kvorum
from kvorum.testing import FaultProxy, FaultScript, Verdict, Workload, run_trial
from kvorum.testing.scenes import SCENES, UnplayableError, play_scene

TIMEOUT = 2.0  # seconds for a call: a fault should cost one call, not the trial
UNPLAYABLE = 2  # exit code: the scene cannot run here
UNDECIDED = 3  # exit code: neither right nor wrong


async def run_workload(
    console: Console, workload: Workload, *, faults: int, binary: Path | None
) -> int:
    """Run a workload on an etcd of its own, print the verdict, and return the exit code.

    Args:
        console: where to print.
        workload: what the clients do.
        faults: how many faults to inject, drawn from the workload's seed.
        binary: the etcd to run.

    Raises:
        KvorumError: etcd could not be started.
    """
    async with kvorum.EmbeddedEtcd(binary=binary) as etcd, FaultProxy(etcd.endpoints[0]) as proxy:
        endpoint = proxy.endpoint if faults else etcd.endpoints[0]
        settings = kvorum.EtcdSettings(endpoints=(endpoint,), timeout=TIMEOUT)
        async with kvorum.connect(settings) as one, kvorum.connect(settings) as other:
            version = ".".join(map(str, one.connection.version))
            console.print(
                f"etcd {version}, {workload.operations:,} calls, "
                f"{workload.clients} clients, {faults} faults"
            )
            script = FaultScript.random(workload.seed, number=faults) if faults else None
            verdict = await run_trial(
                etcd.endpoints[0], [one, other], workload, proxy=proxy, script=script
            )
    _show(console, verdict)
    return exit_code(verdict)


async def run_scenes(
    console: Console, name: str, *, rounds: int, seed: int, binary: Path | None, newer: Path | None
) -> int:
    """Run a scene, or "all" of them, print each verdict, and return the worst exit code.

    Raises:
        KvorumError: etcd could not be started.
    """
    codes = [
        await _run_scene(console, each, rounds=rounds, seed=seed, binary=binary, newer=newer)
        for each in (SCENES if name == "all" else [name])
    ]
    return next((code for code in (1, UNDECIDED, UNPLAYABLE) if code in codes), 0)


async def _run_scene(
    console: Console, name: str, *, rounds: int, seed: int, binary: Path | None, newer: Path | None
) -> int:
    try:
        verdict = await play_scene(
            SCENES[name], binary=binary, rounds=rounds, seed=seed, newer=newer
        )
    except UnplayableError as exc:
        console.print(f"[bold]{name}[/] cannot run here: {escape(str(exc))}", soft_wrap=True)
        return UNPLAYABLE
    console.print(f"[bold]{name}[/]: {escape(str(verdict))}", soft_wrap=True)
    return exit_code(verdict)


def list_scenes(console: Console) -> None:
    """Print the names and summaries of all scenes."""
    for name, scene in SCENES.items():
        console.print(f"[bold]{name:16}[/] {escape(scene.summary)}", soft_wrap=True)


def exit_code(verdict: Verdict) -> int:
    """Return 0 if all is right, 1 if something is wrong or a fault hit nothing, 3 if undecided."""
    if verdict.is_right:
        return 0
    return (
        UNDECIDED
        if verdict.undecided and not verdict.violations and not verdict.history.idle_faults
        else 1
    )


def _show(console: Console, verdict: Verdict) -> None:
    console.print(escape(str(verdict)), soft_wrap=True)
    for fault in verdict.history.idle_faults:
        console.print(f"[bold red]idle:[/] {fault.name} hit nothing, so it proves nothing")
