"""`kvorum trial`: a recorded workload on a real etcd, perhaps with faults, judged by what really happened."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

import kvorum
from kvorum.testing import FaultProxy, FaultScript, Verdict, Workload, run_trial

TIMEOUT = 2.0  # seconds for a call: a fault should cost a call, not the trial


async def hold(console: Console, workload: Workload, *, faults: int, binary: Path | None) -> bool:
    """Hold a trial on an etcd of its own, print the verdict, and tell whether all is right.

    Args:
        console: where to print.
        workload: what the clients do.
        faults: how many faults to draw from the workload's seed.
        binary: the etcd to run.

    Raises:
        KvorumError: etcd could not be started.
    """
    async with kvorum.EmbeddedEtcd(binary=binary) as etcd, FaultProxy(etcd.endpoints[0]) as proxy:
        endpoint = proxy.endpoint if faults else etcd.endpoints[0]
        settings = kvorum.EtcdSettings(endpoints=(endpoint,), timeout=TIMEOUT)
        async with kvorum.connect(settings) as one, kvorum.connect(settings) as other:
            version = ".".join(map(str, one.connection.version))
            console.print(f"etcd {version}, {workload.operations:,} calls, {workload.clients} clients, {faults} faults")
            script = FaultScript.random(workload.seed, number=faults) if faults else None
            verdict = await run_trial(etcd.endpoints[0], [one, other], workload, proxy=proxy, script=script)
    _show(console, verdict)
    return verdict.is_right


def _show(console: Console, verdict: Verdict) -> None:
    console.print(escape(str(verdict)), soft_wrap=True)
    for fault in verdict.history.idle_faults:
        console.print(f"[bold red]idle:[/] {fault.name} hit nothing, so it has shown nothing")
