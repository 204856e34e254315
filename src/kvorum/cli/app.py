"""The commands and their options."""

import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.markup import escape

from kvorum.cli import demo as story
from kvorum.errors import KvorumError

app: cyclopts.App = cyclopts.App(
    name="kvorum", help="Kubernetes-style resources in etcd, for asyncio."
)


@app.command
async def demo(
    *,
    target: Annotated[
        str | None, cyclopts.Parameter(help="an etcd to use, as etcd://host:2379")
    ] = None,
    hold: Annotated[
        bool, cyclopts.Parameter(help="stay until Ctrl-C, to look at the data with etcdctl")
    ] = False,
) -> None:
    """Play a day in the life of lab workers against a real etcd, and prove what it shows.

    Without a target it starts an etcd of its own. With one it works under a prefix of its own, and
    cleans that up.
    """
    console = Console(highlight=False)
    proven = False
    try:
        proven = await story.play(console, target, hold=hold)
    except* KvorumError as failures:  # one alone, or those of the tasks that the story runs
        for failure in failures.exceptions:
            console.print(f"[bold red]failed:[/] {escape(str(failure))}", soft_wrap=True)
    sys.exit(0 if proven else 1)


@app.command
async def trial(
    *,
    operations: Annotated[int, cyclopts.Parameter(help="how many calls in all")] = 100_000,
    clients: Annotated[int, cyclopts.Parameter(help="how many clients make them")] = 32,
    keys: Annotated[
        int, cyclopts.Parameter(help="how many keys there are: the fewer, the more clients meet")
    ] = 40,
    seed: Annotated[int, cyclopts.Parameter(help="what all is drawn from")] = 0,
    faults: Annotated[
        int, cyclopts.Parameter(help="how many faults to put between clients and server")
    ] = 0,
    etcd_bin: Annotated[Path | None, cyclopts.Parameter(help="the etcd to run")] = None,
    scene: Annotated[
        str | None, cyclopts.Parameter(help="play this scene instead, or `all` of them")
    ] = None,
    rounds: Annotated[int, cyclopts.Parameter(help="how often a scene does what it does")] = 5,
    upgrade_to: Annotated[
        Path | None, cyclopts.Parameter(help="the etcd that a scene upgrades to")
    ] = None,
    list_scenes: Annotated[bool, cyclopts.Parameter(help="list the scenes", negative="")] = False,
) -> None:
    """Record many calls on a real etcd, and judge every one of them by what really happened.

    It starts an etcd of its own. Needs the extra `testing`. Exits with 0 if all is right, with 1 if
    something is wrong, with 2 if a scene cannot be played here, and with 3 if something could be
    found neither right nor wrong.
    """
    console = Console(highlight=False)
    try:
        # Here, not above: the demo must run without the extra.
        from kvorum.cli import trial as court  # noqa: PLC0415
        from kvorum.testing import Workload  # noqa: PLC0415
        from kvorum.testing.scenes import SCENES  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        sys.exit(f"kvorum trial needs {exc.name}: pip install 'kvorum[cli,embedded,testing]'")
    if list_scenes:
        court.list_scenes(console)
        return
    if scene not in {None, "all", *SCENES}:
        sys.exit(f"there is no scene {scene!r}; there are: {', '.join(SCENES)}")
    workload = Workload(operations=operations, clients=clients, keys=keys, seed=seed)
    code = 1
    try:
        if scene is not None:
            code = await court.play(
                console, scene, rounds=rounds, seed=seed, binary=etcd_bin, newer=upgrade_to
            )
        else:
            code = await court.hold(console, workload, faults=faults, binary=etcd_bin)
    except* KvorumError as failures:
        for failure in failures.exceptions:
            console.print(f"[bold red]failed:[/] {escape(str(failure))}", soft_wrap=True)
    sys.exit(code)
