"""The commands and their options."""

import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.markup import escape

from kvorum.cli.demo import run_demo
from kvorum.errors import KvorumError

app: cyclopts.App = cyclopts.App(
    name="kvorum", help="Kubernetes-style resources in etcd, for asyncio."
)


@app.command
async def demo(
    *,
    target: Annotated[
        str | None, cyclopts.Parameter(help="an etcd to use, such as etcd://host:2379")
    ] = None,
    hold: Annotated[
        bool, cyclopts.Parameter(help="keep running until Ctrl-C, to look at the data with etcdctl")
    ] = False,
) -> None:
    """Show the life of a few lab workers on a real etcd, and verify every claim.

    Without a target it starts its own etcd. With one it uses a new prefix, and removes it at the
    end.
    """
    console = Console(highlight=False)
    proven = False
    try:
        proven = await run_demo(console, target, hold=hold)
    except* KvorumError as failures:  # a single one, or those of the demo's tasks
        for failure in failures.exceptions:
            console.print(f"[bold red]failed:[/] {escape(str(failure))}", soft_wrap=True)
    sys.exit(0 if proven else 1)


@app.command
async def trial(
    *,
    operations: Annotated[int, cyclopts.Parameter(help="how many calls in all")] = 100_000,
    clients: Annotated[int, cyclopts.Parameter(help="how many concurrent clients make them")] = 32,
    keys: Annotated[
        int, cyclopts.Parameter(help="how many keys there are: the fewer, the more contention")
    ] = 40,
    seed: Annotated[int, cyclopts.Parameter(help="the seed of all random choices")] = 0,
    faults: Annotated[
        int, cyclopts.Parameter(help="how many faults to inject between clients and server")
    ] = 0,
    etcd_bin: Annotated[Path | None, cyclopts.Parameter(help="the etcd to run")] = None,
    scene: Annotated[
        str | None, cyclopts.Parameter(help="run this scene instead, or `all` of them")
    ] = None,
    rounds: Annotated[int, cyclopts.Parameter(help="how many rounds a scene has")] = 5,
    upgrade_to: Annotated[
        Path | None, cyclopts.Parameter(help="the etcd that a scene upgrades to")
    ] = None,
    list_scenes: Annotated[bool, cyclopts.Parameter(help="list the scenes", negative="")] = False,
) -> None:
    """Record many calls on a real etcd, and check each of them against the server's history.

    It starts its own etcd. Needs the extra `testing`. The exit code is 0 if everything is right, 1
    if something is wrong, 2 if a scene cannot run here, and 3 if something could not be decided.
    """
    console = Console(highlight=False)
    try:
        # Not at the top: the demo must run without the extra.
        from kvorum.cli.trial import list_scenes as print_scenes  # noqa: PLC0415
        from kvorum.cli.trial import run_scenes, run_workload  # noqa: PLC0415
        from kvorum.testing import Workload  # noqa: PLC0415
        from kvorum.testing.scenes import SCENES  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        sys.exit(f"kvorum trial needs {exc.name}: pip install 'kvorum[cli,embedded,testing]'")
    if list_scenes:
        print_scenes(console)
        return
    if scene not in {None, "all", *SCENES}:
        sys.exit(f"there is no scene {scene!r}; there are: {', '.join(SCENES)}")
    workload = Workload(operations=operations, clients=clients, keys=keys, seed=seed)
    code = 1
    try:
        if scene is not None:
            code = await run_scenes(
                console, scene, rounds=rounds, seed=seed, binary=etcd_bin, newer=upgrade_to
            )
        else:
            code = await run_workload(console, workload, faults=faults, binary=etcd_bin)
    except* KvorumError as failures:
        for failure in failures.exceptions:
            console.print(f"[bold red]failed:[/] {escape(str(failure))}", soft_wrap=True)
    sys.exit(code)
