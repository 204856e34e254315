"""The contenders: Kvorum, and other Python clients of etcd. All store the same bytes.

Each method that takes an item is one call of the kind that its name says, with a minimal check of
the result. Methods of blocking clients are not async, and are called from threads.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeAlias
from unittest import mock

import aetcd
import etcd_client
import msgspec
from benchmarks import sample
from benchmarks.race import Call
from google.protobuf import descriptor_pool

import kvorum
from kvorum.lab import LabWorker

# aetcd and etcd3 define etcd's messages under the same names, which one pool refuses.
with mock.patch.object(descriptor_pool, "Default", return_value=descriptor_pool.DescriptorPool()):
    import etcd3

Pair: TypeAlias = tuple[bytes, bytes]
Opened: TypeAlias = Callable[[], None]
Seen: TypeAlias = Callable[[int], None]

_UNLIMITED = {
    "grpc.max_receive_message_length": -1
}  # otherwise a list or a catch-up is limited to 4 MiB

# Kvorum, with non-default settings.
VARIANTS: dict[str, dict[str, Any]] = {"kvorum": {}, "kvorum single": {"pipeline": False}}

NAMES = [*VARIANTS, "aetcd", "etcd3", "etcd-client-py"]


class Contender(Protocol):
    """A client that stores workers in etcd.

    Attributes:
        prefix: the prefix of all its keys.
        get: reads a worker.
        add: stores a worker.
        update: reads a worker, changes it, and stores it if it is unchanged.
        increment: retries until it has counted up by one.
        list: reads all, and returns their number.
        turn: reads how often a worker was counted up.
        follow: (events, since, opened, seen) watches from a revision, or from now, with previous
            values, until `events` events were seen; calls `opened` once it watches, and `seen` with
            the revision of each.
        can_go_back: whether `follow` can start in the past.
    """

    prefix: str
    get: Call
    add: Call
    update: Call
    increment: Call
    list: Callable[[], Any]
    turn: Callable[[Any], Any]
    follow: Callable[[int, int | None, Opened, Seen], Any]
    can_go_back: bool

    def item(self, number: int) -> Any:
        """Prepare the arguments of the calls, before the clock runs."""
        ...


class Kvorum:
    """Typed workers, through the public API."""

    can_go_back = True

    def __init__(self, client: kvorum.Client) -> None:
        self.prefix = f"/{client.settings.prefix}/{sample.PLURAL}/"
        self._workers = client.repository(LabWorker)
        self._backend = client.backend
        self._turns = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: kvorum.EtcdSettings, prefix: str, **variant: Any
    ) -> AsyncIterator["Kvorum"]:
        async with kvorum.connect(
            msgspec.structs.replace(settings, prefix=prefix, **variant)
        ) as client:
            yield cls(client)

    def item(self, number: int) -> LabWorker:
        return sample.worker_of(number)

    async def get(self, item: LabWorker) -> None:
        worker = await self._workers.get(item.metadata.name)
        assert worker.metadata.name == item.metadata.name

    async def add(self, item: LabWorker) -> None:
        assert (await self._workers.add(item)).metadata.resource_version

    async def set(self, item: LabWorker) -> None:
        """Store a worker like the other clients: its bytes, unconditionally."""
        name = item.metadata.name
        assert await self._backend.set(
            f"{sample.PLURAL}/{name}", sample.stored_form_of(sample.number_of(name))
        )

    async def update(self, item: LabWorker) -> None:
        worker = await self._workers.get(item.metadata.name)
        sample.set_turn(worker, next(self._turns))
        await self._workers.update(worker)

    async def increment(self, item: LabWorker) -> None:
        await self._workers.mutate(item.metadata.name, _count_up)

    async def list(self) -> int:
        return len(await self._workers.list())

    async def turn(self, item: LabWorker) -> int:
        return sample.turn_of(await self._workers.get(item.metadata.name))

    async def follow(self, events: int, since: int | None, opened: Opened, seen: Seen) -> None:
        async with self._workers.watch(since=since) as watch:
            opened()
            async for event in watch:
                seen(event.resource_version)
                events -= 1
                if not events:
                    return

    async def follow_with_previous(
        self, events: int, since: int | None, opened: Opened, seen: Seen
    ) -> None:
        """Do as `follow` does, and read the previous worker of each event, which decodes it."""
        async with self._workers.watch(since=since) as watch:
            opened()
            async for event in watch:
                seen(event.resource_version)
                assert isinstance(event, kvorum.Modified)
                assert event.previous.metadata.name
                events -= 1
                if not events:
                    return


def _count_up(worker: LabWorker) -> None:
    sample.set_turn(worker, sample.turn_of(worker) + 1)


class _Untyped:
    """The common part of clients that store bytes."""

    can_go_back = True

    def __init__(self, client: Any, prefix: str) -> None:
        self.prefix = f"/{prefix}/{sample.PLURAL}/"
        self._client = client
        self._turns = itertools.count(1)

    def item(self, number: int) -> Pair:
        return sample.pair_of(self.prefix, number)


class Aetcd(_Untyped):
    """aetcd, the driver below Kvorum: asyncio, untyped."""

    @classmethod
    @asynccontextmanager
    async def open(cls, endpoint: str, prefix: str) -> AsyncIterator["Aetcd"]:
        host, _, port = endpoint.partition(":")
        async with aetcd.Client(host, int(port), options=_UNLIMITED) as client:
            yield cls(client, prefix)

    async def get(self, item: Pair) -> None:
        assert len((await self._client.get(item[0])).value) > sample.LEAST

    async def add(self, item: Pair) -> None:
        await self._client.put(*item)

    async def update(self, item: Pair) -> None:
        assert await self._swap(item[0], lambda _: next(self._turns))

    async def increment(self, item: Pair) -> None:
        while not await self._swap(item[0], lambda turn: turn + 1):
            pass

    async def _swap(self, key: bytes, change: Callable[[int], int]) -> bool:
        found = await self._client.get(key)
        put = self._client.transactions.put(
            key, sample.with_turn(found.value, change(sample.turn_in(found.value)))
        )
        is_as_read = self._client.transactions.mod(key) == found.mod_revision
        succeeded, _ = await self._client.transaction([is_as_read], [put], [])
        return bool(succeeded)

    async def list(self) -> int:
        return len(await self._client.get_prefix(self.prefix.encode()))

    async def turn(self, item: Pair) -> int:
        return sample.turn_in((await self._client.get(item[0])).value)

    async def follow(self, events: int, since: int | None, opened: Opened, seen: Seen) -> None:
        first = None if since is None else since + 1
        watch = await self._client.watch_prefix(
            self.prefix.encode(), start_revision=first, prev_kv=True
        )
        opened()
        async for event in watch:
            seen(event.kv.mod_revision)
            events -= 1
            if not events:
                break
        await watch.cancel()


class Etcd3(_Untyped):
    """etcd3 (its fork cslab-etcd3): synchronous, from threads."""

    @classmethod
    @asynccontextmanager
    async def open(cls, endpoint: str, prefix: str) -> AsyncIterator["Etcd3"]:
        host, _, port = endpoint.partition(":")
        client = etcd3.client(host, int(port), grpc_options=_UNLIMITED.items())
        yield cls(client, prefix)
        client.close()

    def get(self, item: Pair) -> None:
        assert len(self._client.get(item[0])[0]) > sample.LEAST

    def add(self, item: Pair) -> None:
        self._client.put(*item)

    def update(self, item: Pair) -> None:
        assert self._swap(item[0], lambda _: next(self._turns))

    def increment(self, item: Pair) -> None:
        while not self._swap(item[0], lambda turn: turn + 1):
            pass

    def _swap(self, key: bytes, change: Callable[[int], int]) -> bool:
        value, found = self._client.get(key)
        put = self._client.transactions.put(
            key, sample.with_turn(value, change(sample.turn_in(value)))
        )
        is_as_read = self._client.transactions.mod(key) == found.mod_revision
        succeeded, _ = self._client.transaction([is_as_read], [put], [])
        return bool(succeeded)

    def list(self) -> int:
        return len(list(self._client.get_prefix(self.prefix)))

    def turn(self, item: Pair) -> int:
        return sample.turn_in(self._client.get(item[0])[0])

    def follow(self, events: int, since: int | None, opened: Opened, seen: Seen) -> None:
        first = None if since is None else since + 1
        found, cancel = self._client.watch_prefix(self.prefix, start_revision=first, prev_kv=True)
        opened()
        for event in itertools.islice(found, events):
            seen(event.mod_revision)
        cancel()


class EtcdClientPy(_Untyped):
    """etcd-client-py, a binding of the Rust client.

    It exposes no revisions, so it compares values. Its watches support neither a start revision nor
    previous values.
    """

    can_go_back = False

    @classmethod
    @asynccontextmanager
    async def open(cls, endpoint: str, prefix: str) -> AsyncIterator["EtcdClientPy"]:
        async with etcd_client.Client([f"http://{endpoint}"]).connect() as client:
            yield cls(client, prefix)

    async def get(self, item: Pair) -> None:
        assert len(await self._client.get(item[0])) > sample.LEAST

    async def add(self, item: Pair) -> None:
        await self._client.put(*item)

    async def update(self, item: Pair) -> None:
        assert await self._swap(item[0], lambda _: next(self._turns))

    async def increment(self, item: Pair) -> None:
        while not await self._swap(item[0], lambda turn: turn + 1):
            pass

    async def _swap(self, key: bytes, change: Callable[[int], int]) -> bool:
        value = await self._client.get(key)
        is_as_read = etcd_client.Compare.value(key, etcd_client.CompareOp.EQUAL, value)
        put = etcd_client.TxnOp.put(key, sample.with_turn(value, change(sample.turn_in(value))))
        return bool(
            (
                await self._client.txn(etcd_client.Txn().when([is_as_read]).and_then([put]))
            ).succeeded()
        )

    async def list(self) -> int:
        return len(await self._client.get_prefix(self.prefix.encode()))

    async def turn(self, item: Pair) -> int:
        return sample.turn_in(await self._client.get(item[0]))

    async def follow(self, events: int, _: int | None, opened: Opened, seen: Seen) -> None:
        ready = etcd_client.CondVar()
        watch = self._client.watch_prefix(self.prefix.encode(), ready_event=ready)
        waiting = asyncio.ensure_future(ready.wait())  # only current waiters are woken
        first = asyncio.ensure_future(anext(watch))  # it starts with the first requested event
        await waiting
        opened()
        await first
        seen(0)
        for _ in range(events - 1):
            await anext(watch)
            seen(0)


@asynccontextmanager
async def lineup(
    settings: kvorum.EtcdSettings, shared: str | None = None
) -> AsyncIterator[dict[str, Contender]]:
    """Open all contenders on one server, each with its own prefix, or all with the same one."""
    endpoint = settings.endpoints[0]
    opening: dict[str, AbstractAsyncContextManager[Any]] = {
        name: Kvorum.open(settings, shared or name.replace(" ", "-"), **variant)
        for name, variant in VARIANTS.items()
    }
    opening["aetcd"] = Aetcd.open(endpoint, shared or "aetcd")
    opening["etcd3"] = Etcd3.open(endpoint, shared or "etcd3")
    opening["etcd-client-py"] = EtcdClientPy.open(endpoint, shared or "etcd-client-py")
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(each) for name, each in opening.items()}
