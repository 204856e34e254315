"""Compare this checkout with another one, on the same etcd, in alternating rounds.

    uv run python -m benchmarks.compare ../before
    uv run python -m benchmarks.compare ../before --rounds 15 --verbs get,update --tasks 64,256

Each checkout runs in its own process, with the Python of its own `.venv`; they make the same calls
in turn. The table shows the median of the ratios of rates, round by round: above 1.00 this checkout
is faster. CPU is the ratio of the processor time that the process itself spends on a call: below
1.00 this checkout needs less.
"""

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import kvorum
from kvorum.lab import LabWorker, LabWorkerRepository

KEYS = 1024
CALLS = {
    "get": 60,
    "set": 40,
    "update": 20,
}  # for each task; more with few tasks, so that a round is long enough

Call = Callable[[int], Awaitable[object]]
Figure = tuple[float, float]  # calls per second, and CPU seconds of a call


# --- one checkout, in its own process: reads lines as `["get", 64]`, answers with a figure ---


async def serve(endpoint: str, prefix: str) -> None:
    settings = kvorum.EtcdSettings(endpoints=(endpoint,), prefix=prefix)
    async with kvorum.connect(settings) as client:
        workers = LabWorkerRepository(client)
        items = [await workers.add(LabWorker.new(f"w{n:04}", lab_track="x")) for n in range(KEYS)]
        entry = await client.backend.get("lab-workers/w0000")
        assert entry is not None
        value = entry.value

        async def get(number: int) -> None:
            await workers.get(f"w{number % KEYS:04}")

        async def set_(number: int) -> None:
            await client.backend.set(f"raw/{number % KEYS}", value)

        async def update(number: int) -> None:
            item = items[number % KEYS]
            item.metadata.annotations["turn"] = str(number)
            items[number % KEYS] = await workers.update(item)

        verbs: dict[str, Call] = {"get": get, "set": set_, "update": update}
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, tasks = json.loads(line)
            print(
                json.dumps(await _round(verbs[verb], tasks, CALLS[verb] * max(1, 32 // tasks))),
                flush=True,
            )


async def _round(call: Call, tasks: int, calls: int) -> Figure:
    async def make(first: int) -> None:
        for number in range(calls):
            await call(first + number * tasks)

    gc.collect()
    cpu, clock = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(tasks):
            group.create_task(make(first))
    seconds, spent = time.perf_counter() - clock, time.process_time() - cpu
    return calls * tasks / seconds, spent / (calls * tasks)


# --- the comparison ---


class Checkout:
    """A process that makes calls with the code of a checkout."""

    def __init__(self, folder: Path, endpoint: str, prefix: str) -> None:
        python, me = str(folder / ".venv/bin/python"), str(Path(__file__).resolve())
        self._process = subprocess.Popen(
            [python, me, "--serve", endpoint, prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, verb: str, tasks: int) -> Figure:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, tasks]) + "\n")
        self._process.stdin.flush()
        rate, cpu = json.loads(self._process.stdout.readline())
        return rate, cpu

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


@contextmanager
def checkouts(other: Path, endpoint: str) -> Iterator[tuple[Checkout, Checkout]]:
    mine, theirs = (
        Checkout(Path.cwd(), endpoint, "mine"),
        Checkout(other.resolve(), endpoint, "theirs"),
    )
    try:
        yield mine, theirs
    finally:
        mine.close()
        theirs.close()


def compare(pair: tuple[Checkout, Checkout], verb: str, tasks: int, rounds: int) -> str:
    """Return a row of the table: medians over the rounds except the first."""
    figures: list[tuple[Figure, Figure]] = []
    for number in range(rounds + 1):
        mine, theirs = pair if number % 2 else pair[::-1]
        measured = mine.measure(verb, tasks), theirs.measure(verb, tasks)
        figures.append(measured if number % 2 else measured[::-1])
    rates = [mine[0] / theirs[0] for mine, theirs in figures[1:]]
    cpus = [mine[1] / theirs[1] for mine, theirs in figures[1:]]
    rate = statistics.median(mine[0] for mine, _ in figures[1:])
    cpu = statistics.median(mine[1] for mine, _ in figures[1:])
    ratio, spread = statistics.median(rates), statistics.quantiles(rates, n=4)
    return (
        f"| {verb} | {tasks} | {rate:,.0f} | {ratio:.3f} ({spread[0]:.2f} to {spread[2]:.2f}) "
        f"| {1e6 * cpu:.1f} | {statistics.median(cpus):.3f} |"
    )


async def main(options: argparse.Namespace) -> None:
    async with kvorum.EmbeddedEtcd(binary=options.etcd_bin) as etcd:
        print("| call | tasks | rate, 1/s | ratio of rates (quartiles) | CPU, µs | ratio of CPU |")
        print("|---|---|---|---|---|---|")

        def run() -> None:
            with checkouts(options.other, etcd.endpoints[0]) as pair:
                for verb in options.verbs.split(","):
                    for tasks in map(int, options.tasks.split(",")):
                        print(compare(pair, verb, tasks, options.rounds), flush=True)

        await asyncio.to_thread(run)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(*sys.argv[2:4]))
    else:
        parser = argparse.ArgumentParser(description="Compare two checkouts.")
        parser.add_argument(
            "other", type=Path, help="the folder of the other checkout, with a `.venv`"
        )
        parser.add_argument("--rounds", type=int, default=11)
        parser.add_argument("--verbs", default="get,set,update")
        parser.add_argument("--tasks", default="1,64,256")
        parser.add_argument("--etcd-bin", default=None)
        asyncio.run(main(parser.parse_args()))
