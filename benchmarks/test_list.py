"""Lists of all workers, compared with other clients, raw ranges with decoding, and single gets."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec
import pytest
from benchmarks import sample
from benchmarks.conftest import Compete
from benchmarks.contenders import NAMES, Contender, lineup
from benchmarks.race import Heat, Run, wait_for
from benchmarks.referee import Referee

import kvorum
from kvorum.encoding.stored import codec_for
from kvorum.etcd.transport import _rpc as rpc
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.resources.keys import prefix_end

FEW, MANY = 2_000, 20_000
TOO_MANY_FOR = {"etcd-client-py": MANY}  # limited to 4 MiB, without pages

DECODED = "stub and decoding"
LABEL, FIELD = "kvorum, one by label", "kvorum, one by field"
EACH_AT_ONCE, EACH = "kvorum, get each at once", "kvorum, get each in turn"


@pytest.fixture(scope="module")
def open_filled(
    settings: kvorum.EtcdSettings, referee: Referee, run: Run
) -> Iterator[Callable[[int], tuple[kvorum.Client, dict[str, Contender]]]]:
    """Fill a prefix, and open all contenders and another client on it."""
    closing: list[Any] = []

    def open_filled(number: int) -> tuple[kvorum.Client, dict[str, Contender]]:
        prefix = f"list-{number}"
        opening = lineup(settings, prefix)
        contenders = run(opening.__aenter__())
        client = kvorum.connect(msgspec.structs.replace(settings, prefix=prefix))
        run(client.__aenter__())
        closing.extend([opening, client])
        referee.fill([sample.pair_of(contenders["aetcd"].prefix, each) for each in range(number)])
        return client, contenders

    yield open_filled
    for each in closing:
        run(each.__aexit__(None, None, None))


@pytest.mark.parametrize("number", [FEW, MANY])
@pytest.mark.parametrize("name", [*NAMES, DECODED, LABEL, FIELD, EACH_AT_ONCE, EACH])
def test_list(
    compete: Compete,
    open_filled: Callable[[int], tuple[kvorum.Client, dict[str, Contender]]],
    run: Run,
    is_quick: bool,
    name: str,
    number: int,
) -> None:
    if is_quick and number == MANY:
        pytest.skip("not in the quick form")

    def heat(work: Callable[[], Any], found: int) -> Heat:
        started = time.perf_counter()
        count = run(wait_for(work))
        seconds = time.perf_counter() - started
        assert count == found
        return Heat(seconds, number)

    def heats() -> Mapping[str, Callable[[], Heat]]:
        client, contenders = open_filled(number)
        able = {
            name: each
            for name, each in contenders.items()
            if TOO_MANY_FOR.get(name, MANY + 1) > number
        }
        heats = {name: partial(heat, each.list, number) for name, each in able.items()}
        heats[DECODED] = partial(heat, partial(_stub_and_decoding, client), number)
        heats[LABEL] = partial(heat, partial(_selected, client, labels="serial=777"), 1)
        heats[FIELD] = partial(
            heat, partial(_selected, client, fields="metadata.name=worker-000777"), 1
        )
        if number == FEW:
            heats[EACH_AT_ONCE] = partial(heat, partial(_each_at_once, client), number)
        if number == FEW and not is_quick:
            heats[EACH] = partial(heat, partial(_each, client), number)
        return heats

    compete("list", f"{number:,} workers", name, heats)


async def _stub_and_decoding(client: kvorum.Client) -> int:
    """Read the same pages with the bare stub and decode each value into the same structs."""
    decoder = codec_for(LabWorker)._decoder
    prefix = f"/{client.settings.prefix}/{sample.PLURAL}/".encode()
    kv = client.connection.cluster.current.calls.kv
    resources: list[object] = []
    key = prefix
    revision = 0
    more = True
    while more:
        request = rpc.RangeRequest(
            key=key,
            range_end=prefix_end(prefix),
            limit=client.settings.page_size,
            revision=revision,
        )
        answer = await kv.Range(request, timeout=30)
        resources += [decoder.decode(item.value) for item in answer.kvs]
        key, revision, more = answer.kvs[-1].key + b"\0", answer.header.revision, answer.more
    return len(resources)


async def _selected(
    client: kvorum.Client, *, labels: str | None = None, fields: str | None = None
) -> int:
    """List one worker. Of the others, a label needs the labels only, a field the whole value."""
    return len(await LabWorkerRepository(client).list(labels=labels, fields=fields))


async def _each(client: kvorum.Client) -> int:
    """Get one after the other, as the first design did."""
    return len([await LabWorkerRepository(client).get(name) for name in await _names(client)])


async def _each_at_once(client: kvorum.Client) -> int:
    return len(await asyncio.gather(*map(LabWorkerRepository(client).get, await _names(client))))


async def _names(client: kvorum.Client) -> list[str]:
    return [key.rpartition("/")[2] for key in await client.backend.keys(f"{sample.PLURAL}/*")]
