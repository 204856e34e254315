"""Measure the cost of unread watches. Run by `test_watch_memory.py`, in a separate process.

Arguments: the URL, the process id of the server, the revision before the backlog, its last one, the
number of unread watches, and the number of revisions that each reads before that. It prints its
figures as JSON: memory in MiB, time in seconds.
"""

import asyncio
import os
import resource
import sys
import time
from pathlib import Path

import msgspec

import kvorum


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def settled(pid: int) -> float:
    """Wait until the server has prepared a message for each unread watch."""
    started, last = time.perf_counter(), -1.0
    while cpu_seconds(pid) - last > 0.02:
        last = cpu_seconds(pid)
        await asyncio.sleep(0.5)
    return time.perf_counter() - started


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


class Reading:
    """Reads a watch to the end of the backlog, and checks that nothing is missing."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.most = 0.0

    async def read(self, watch: kvorum.StorageWatch, last: int) -> int:
        """Return the number of changes."""
        number = 0
        while last < self.end:
            changes = await anext(watch)
            assert changes[0].revision == last + 1, (changes[0].revision, last)
            number, last = number + len(changes), changes[0].revision
            if last % 100 == 0:
                self.most = max(self.most, resident())
        return number


async def measure(
    client: kvorum.Client, pid: int, start: int, end: int, watchers: int, reads_first: int
) -> dict[str, object]:
    backend, alone, beside = client.backend, Reading(end), Reading(end)
    seconds: dict[str, float] = {}
    async with backend.watch("", since=start) as watch:
        started = time.perf_counter()
        await alone.read(watch, start)
        seconds["alone"] = time.perf_counter() - started
    before = resident()
    parked = [backend.watch("", since=start) for _ in range(watchers)]
    started = time.perf_counter()
    await asyncio.gather(*(each.open() for each in parked))
    seconds["opened"] = time.perf_counter() - started
    for each in parked:
        for _ in range(reads_first):
            await anext(each)
    seconds["settled"] = await settled(pid)
    idle = resident()
    async with backend.watch("", since=start) as watch:
        started = time.perf_counter()
        events = await beside.read(watch, start)
        seconds["beside"] = time.perf_counter() - started
    after = resident()
    buffered = [each.statistics().buffered for each in parked]
    started = time.perf_counter()
    woken = [await Reading(end).read(each, start + reads_first) for each in parked[::10]]
    seconds["woken"] = time.perf_counter() - started
    for each in parked:
        await each.aclose()
    return {
        "before": before,
        "idle": idle - before,
        "after": after - before,
        "most_alone": alone.most,
        "most_beside": beside.most,
        "events": events,
        "woken": woken,
        "buffered": max(buffered),
        "seconds": seconds,
    }


async def main() -> None:
    url, *numbers = sys.argv[1:]
    # Creating a watch waits for etcd's lock, which it holds while it reads a long backlog for
    # another one.
    async with kvorum.connect(url, settings=kvorum.EtcdSettings(timeout=30)) as client:
        figures = await measure(client, *map(int, numbers))
    sys.stdout.buffer.write(msgspec.json.encode(figures))


if __name__ == "__main__":
    asyncio.run(main())
