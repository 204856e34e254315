"""Keys of other programs under a prefix: longer than any that Kvorum writes, or empty."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

import kvorum
from kvorum import (
    CorruptResourceError,
    EmbeddedEtcd,
    EtcdSettings,
    InvalidResourceError,
    NotFoundError,
    Operation,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.observer import Call
from kvorum.storage.keyspace import MAX_KEY_SIZE
from kvorum.testing import FaultProxy

DEADLINE = 20
LONG = "lab-workers/" + "x" * 1_600

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def etcd(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server of the test's own."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


@pytest.fixture
async def client(etcd: EmbeddedEtcd) -> AsyncIterator[kvorum.Client]:
    settings = EtcdSettings(endpoints=etcd.endpoints, prefix="lab", page_size=2)
    async with kvorum.connect(settings) as client:
        yield client


async def put(client: kvorum.Client, key: str, value: bytes = b"?") -> int:
    """Put a key as another program does."""
    request = rpc.PutRequest(key=f"/lab/{key}".encode(), value=value)
    call = Call("put", key[:20], writes=True)
    answer = await client.connection.send(lambda channel: channel.kv.Put, request, call)
    return answer.header.revision


@pytest.mark.parametrize("key", [LONG, ""])
@pytest.mark.parametrize("removed", [False, True])
async def test_a_watch_continues_after_a_key_that_is_too_long_to_write(
    etcd: EmbeddedEtcd, client: kvorum.Client, key: str, removed: bool
) -> None:
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(f"etcd://{proxy.endpoint}/lab") as watching,
        watching.backend.watch("") as watch,
    ):
        written = [await put(client, key)]
        if removed:
            written.append((await client.backend.delete(key, expected=written[0])).revision)
        with anyio.fail_after(DEADLINE):
            shown = [(await anext(watch))[0].revision for _ in written]
            waiting = asyncio.ensure_future(anext(watch))
            proxy.cut()
            written.append(await client.backend.set("a", b"1"))
            shown.append((await waiting)[0].revision)
    assert shown == written


async def test_a_list_goes_on_after_such_a_key(client: kvorum.Client) -> None:
    """Each page but the last one ends on one: of two keys, and of one."""
    workers = LabWorkerRepository(client)
    await workers.add(LabWorker.new("a", lab_track="x"))
    await put(client, LONG)
    await workers.add(LabWorker.new("z", lab_track="x"))

    found = await workers.list(on_corrupt="collect")
    assert [worker.metadata.name for worker in found] == ["a", "z"]
    assert len(found.corrupt) == 1
    pages = [page async for page in workers.scan(limit=1, on_corrupt="collect").pages()]
    assert [worker.metadata.name for page in pages for worker in page] == ["a", "z"]
    async with workers.watch(initial=True, on_corrupt="event") as watch:
        with anyio.fail_after(DEADLINE):
            first = await watch.next_revision()
    assert len(first) == 4  # with the bookmark


async def test_a_page_may_end_on_the_bare_prefix(client: kvorum.Client) -> None:
    await put(client, "")
    await client.backend.set("a", b"1")
    page = await client.backend.list("", limit=1)

    after = await client.backend.list("", after=page.entries[-1].key)
    assert [entry.key for entry in (*page.entries, *after.entries)] == ["", "a"]


async def test_what_lies_at_such_a_key_can_be_removed(client: kvorum.Client) -> None:
    workers = LabWorkerRepository(client)
    await put(client, LONG)
    (error,) = (await workers.list(on_corrupt="collect")).corrupt

    await workers.delete(error.name, resource_version=error.revision, corrupt=True)
    assert await client.backend.count(LONG) == 0
    with pytest.raises(NotFoundError):
        await workers.delete(error.name, corrupt=True)


async def test_what_such_a_key_has_held_is_known_when_it_is_removed(client: kvorum.Client) -> None:
    """A tolerant watch reads the key's history; no earlier value was readable either."""
    workers = LabWorkerRepository(client)
    await put(client, LONG, b"1")
    since = await put(client, LONG, b"2")
    async with workers.watch(since=since - 1, on_corrupt="event") as watch:
        await client.backend.delete(LONG, expected=since)
        await workers.add(LabWorker.new("a", lab_track="x"))
        with anyio.fail_after(DEADLINE):
            shown = [await anext(watch) for _ in range(2)]
    assert [type(event) for event in shown] == [kvorum.Corrupt, kvorum.Added]


@pytest.mark.parametrize("key", ["x" * MAX_KEY_SIZE, ""])
async def test_such_a_key_cannot_be_written(client: kvorum.Client, key: str) -> None:
    store = client.backend
    put_it = Operation.put(key, b"")
    for write in (store.set(key, b""), store.create(key, b""), store.commit([put_it])):
        with pytest.raises(InvalidResourceError):
            await write
    with pytest.raises(InvalidResourceError):
        await store.compare_and_swap(key, b"", expected=1)


async def test_a_value_at_such_a_key_is_refused_as_corrupt_where_that_is_asked_for(
    client: kvorum.Client,
) -> None:
    await put(client, LONG)
    with pytest.raises(CorruptResourceError):
        await LabWorkerRepository(client).list()
