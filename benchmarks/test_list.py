"""Listing typed workers: beside raw ranges with decoding, and beside one get for each key (the seed design)."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import kvorum
from kvorum._codec import codec_for
from kvorum.etcd import _rpc as rpc
from kvorum.keys import prefix_end
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.storage import Operation

FEW, MANY = 2_000, 20_000

pytestmark = pytest.mark.benchmark(min_rounds=7, warmup=True, warmup_iterations=1)


@pytest.fixture(scope="module", params=[FEW, MANY])
def number(request: pytest.FixtureRequest) -> int:
    """How many workers there are."""
    given: int = request.param
    return given


@pytest.fixture(scope="module")
def filled(
    number: int, client: kvorum.Client, run: Callable[..., Any], make_worker: Callable[[int], LabWorker]
) -> Iterator[kvorum.Client]:
    """A client of the same server, under whose prefix there are so many workers, each with a label of its own."""
    settings = msgspec.structs.replace(client.settings, prefix=f"list-{number}")
    filled = run(kvorum.connect(settings).__aenter__())

    async def fill() -> None:
        drafts = [codec_for(LabWorker).draft_new(make_worker(each)) for each in range(number)]
        values = [(draft.resource.metadata.name, draft.stored.value) for draft in drafts]
        print(f"{number} workers of {sum(len(value) for _, value in values) / number:.0f} bytes")
        for start in range(0, number, 100):
            batch = values[start : start + 100]
            await filled.backend.commit([Operation.put(f"lab-workers/{name}", value) for name, value in batch])

    run(fill())
    yield filled
    run(filled.aclose())


@pytest.fixture
def measure(benchmark: Any, run: Callable[..., Any], number: int) -> Callable[..., None]:
    def measure(work: Callable[[], Any], *, expected: int | None = None) -> None:
        benchmark.group = f"list {number} workers"
        count = benchmark(lambda: run(work()))
        assert count == (number if expected is None else expected)

    return measure


def test_typed_list(filled: kvorum.Client, measure: Callable[..., None]) -> None:
    workers = LabWorkerRepository(filled)

    async def work() -> int:
        return len(await workers.list())

    measure(work)


def test_raw_ranges_and_decoding(filled: kvorum.Client, measure: Callable[..., None]) -> None:
    """The same pages by the bare stub, each value decoded into the very same structs, and nothing else."""
    decoder = codec_for(LabWorker)._decoder
    prefix = f"/{filled.settings.prefix}/lab-workers/".encode()
    kv = filled.connection.cluster.current.calls.kv

    async def work() -> int:
        resources: list[object] = []
        key = prefix
        revision = 0
        more = True
        while more:
            request = rpc.RangeRequest(
                key=key, range_end=prefix_end(prefix), limit=filled.settings.page_size, revision=revision
            )
            answer = await kv.Range(request, timeout=30)
            resources += [decoder.decode(item.value) for item in answer.kvs]
            key, revision, more = answer.kvs[-1].key + b"\0", answer.header.revision, answer.more
        return len(resources)

    measure(work)


def test_the_one_with_a_label(filled: kvorum.Client, measure: Callable[..., None]) -> None:
    workers = LabWorkerRepository(filled)

    async def work() -> int:
        return len(await workers.list(labels="serial=777"))

    measure(work, expected=1)


def test_the_one_with_a_field(filled: kvorum.Client, measure: Callable[..., None]) -> None:
    """Fields need the whole value, so this decodes all; but it keeps none of them."""
    workers = LabWorkerRepository(filled)

    async def work() -> int:
        return len(await workers.list(fields="metadata.name=worker-000777"))

    measure(work, expected=1)


@pytest.mark.parametrize("number", [FEW], indirect=True)
def test_one_get_for_each_key(filled: kvorum.Client, measure: Callable[..., None]) -> None:
    repository = LabWorkerRepository(filled)

    async def work() -> int:
        names = [key.rpartition("/")[2] for key in await filled.backend.keys("lab-workers/*")]
        return len([await repository.get(name) for name in names])

    measure(work)


@pytest.mark.parametrize("number", [FEW], indirect=True)
def test_one_get_for_each_key_all_at_once(filled: kvorum.Client, measure: Callable[..., None]) -> None:
    repository = LabWorkerRepository(filled)

    async def work() -> int:
        names = [key.rpartition("/")[2] for key in await filled.backend.keys("lab-workers/*")]
        return len(await asyncio.gather(*map(repository.get, names)))

    measure(work)
