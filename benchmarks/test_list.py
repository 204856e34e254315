"""Listing 2,000 typed workers: beside raw ranges with decoding, and beside one get for each key (the seed design)."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import kvorum
from kvorum._codec import codec_for
from kvorum.etcd import _rpc as rpc
from kvorum.keys import prefix_end
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.storage import Operation

COUNT = 2_000
PREFIX = b"/kvorum/lab-workers/"

pytestmark = pytest.mark.benchmark(group=f"list {COUNT} workers", min_rounds=7, warmup=True, warmup_iterations=1)


@pytest.fixture(scope="module", autouse=True)
def workers(client: kvorum.Client, run: Callable[..., Any], make_worker: Callable[[int], LabWorker]) -> None:
    async def fill() -> None:
        drafts = [codec_for(LabWorker).draft_new(make_worker(number)) for number in range(COUNT)]
        values = [(draft.resource.metadata.name, draft.stored.value) for draft in drafts]
        print(f"{COUNT} workers of {sum(len(value) for _, value in values) / COUNT:.0f} bytes")
        for start in range(0, COUNT, 100):
            batch = values[start : start + 100]
            await client.backend.commit([Operation.put(f"lab-workers/{name}", value) for name, value in batch])

    run(fill())


@pytest.fixture
def measure(benchmark: Any, run: Callable[..., Any]) -> Callable[[Callable[[], Any]], None]:
    def measure(work: Callable[[], Any]) -> None:
        count = benchmark(lambda: run(work()))
        assert count == COUNT

    return measure


def test_typed_list(client: kvorum.Client, measure: Callable[..., None]) -> None:
    workers = LabWorkerRepository(client)

    async def work() -> int:
        return len(await workers.list())

    measure(work)


def test_raw_ranges_and_decoding(client: kvorum.Client, measure: Callable[..., None]) -> None:
    """The same pages by the bare stub, each value decoded into the very same structs, and nothing else."""
    decoder = codec_for(LabWorker)._decoder
    kv = client.connection._open_driver().kvstub

    async def work() -> int:
        resources: list[object] = []
        key = PREFIX
        more = True
        while more:
            request = rpc.RangeRequest(key=key, range_end=prefix_end(PREFIX), limit=client.settings.page_size)
            answer = await kv.Range(request, timeout=30)
            resources += [decoder.decode(item.value) for item in answer.kvs]
            key, more = answer.kvs[-1].key + b"\0", answer.more
        return len(resources)

    measure(work)


def test_one_get_for_each_key(client: kvorum.Client, measure: Callable[..., None]) -> None:
    workers = LabWorkerRepository(client)

    async def work() -> int:
        names = [key.rpartition("/")[2] for key in await client.backend.keys("lab-workers/*")]
        return len([await workers.get(name) for name in names])

    measure(work)


def test_one_get_for_each_key_all_at_once(client: kvorum.Client, measure: Callable[..., None]) -> None:
    workers = LabWorkerRepository(client)

    async def work() -> int:
        names = [key.rpartition("/")[2] for key in await client.backend.keys("lab-workers/*")]
        return len(await asyncio.gather(*map(workers.get, names)))

    measure(work)
