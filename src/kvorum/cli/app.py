"""The commands and their options."""

import sys
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.markup import escape

from kvorum.cli import demo as story
from kvorum.errors import KvorumError

app: cyclopts.App = cyclopts.App(name="kvorum", help="Kubernetes-style resources in etcd, for asyncio.")


@app.command
async def demo(
    *,
    target: Annotated[str | None, cyclopts.Parameter(help="an etcd to use, as etcd://host:2379")] = None,
    hold: Annotated[bool, cyclopts.Parameter(help="stay until Ctrl-C, to look at the data with etcdctl")] = False,
) -> None:
    """Play a day in the life of lab workers against a real etcd, and prove what it shows.

    Without a target it starts an etcd of its own. With one it works under a prefix of its own, and cleans that up.
    """
    console = Console(highlight=False)
    proven = False
    try:
        proven = await story.play(console, target, hold=hold)
    except* KvorumError as failures:  # one alone, or those of the tasks that the story runs
        for failure in failures.exceptions:
            console.print(f"[bold red]failed:[/] {escape(str(failure))}", soft_wrap=True)
    sys.exit(0 if proven else 1)
