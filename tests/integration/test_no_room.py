"""Writes that etcd answers with "database space exceeded", which it also says of some that it has applied.

Which of them it applies depends on what is under way as the quota is used up. So most tests here
let a write be applied, or not, and then answer it like that; the last ones fill a store.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc.aio import Metadata as GrpcMetadata

import kvorum
from kvorum import Operation, OutcomeUnknownError, StorageBackend, StorageFullError
from kvorum.etcd.outcomes import SearchLimits
from kvorum.etcd.transport.errors import error_for
from kvorum.etcd.transport.server import Server

UNIQUE = b"only one write has these bytes"
QUOTA = 2_000_000

Write = Callable[[StorageBackend, int], Awaitable[int]]  # at the revision of key `a`

WRITES: dict[str, Write] = {
    "set": lambda store, _: store.set("a", UNIQUE, unique=True),
    "create": lambda store, _: store.create("new", UNIQUE, unique=True),
    "swap": lambda store, at: store.compare_and_swap("a", UNIQUE, expected=at, unique=True),
    "commit": lambda store, at: store.commit(
        [Operation.delete("a", expected=at), Operation.put("new", UNIQUE, unique=True)]
    ),
}
KEYS = {"set": "a", "create": "new", "swap": "a", "commit": "new"}


class Full:
    """Answers one write, or `times` of them, with "database space exceeded"; a function decides what happens before.

    Attributes:
        most_reads: how many reads at a revision were under way at once.
    """

    before: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]] | None = None
    times: int = 1

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        send = Server.call
        self.most_reads = reads = 0

        async def read(server: Server, *rest: Any) -> Any:
            nonlocal reads
            reads += 1
            self.most_reads = max(self.most_reads, reads)
            try:
                return await send(server, *rest)
            finally:
                reads -= 1

        async def call(server: Server, stub: Any, request: Any, call: Any, *rest: Any) -> Any:
            if call.revision:
                return await read(server, stub, request, call, *rest)
            if self.before is None or call.operation not in {"put", "transaction on", "grant"}:
                return await send(server, stub, request, call, *rest)
            before, self.times = self.before, self.times - 1
            if not self.times:
                self.before, self.times = None, 1
            await before(lambda: send(server, stub, request, call, *rest))
            words = "etcdserver: mvcc: database space exceeded"
            error = AioRpcError(
                StatusCode.RESOURCE_EXHAUSTED, GrpcMetadata(), GrpcMetadata(), details=words
            )
            raise error_for(error, call, server.address) from error

        patch.setattr(Server, "call", call)


async def applied(send: Callable[[], Awaitable[Any]]) -> None:
    await send()


async def refused(_: Callable[[], Awaitable[Any]]) -> None:
    pass


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


@pytest.fixture
async def other(kvorum_url: str) -> AsyncIterator[StorageBackend]:
    """The same store by another client, whose writes the first one learns nothing of."""
    async with kvorum.connect(kvorum_url) as client:
        yield client.backend


@pytest.fixture
def store(kvorum_client: kvorum.Client) -> StorageBackend:
    return kvorum_client.backend


# --- one write ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_was_applied_is_done_whatever_etcd_says(
    store: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")
    full.before = applied

    revision = await WRITES[name](store, first)
    entry = await store.get(KEYS[name])
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (UNIQUE, revision)


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_was_not_applied_is_refused(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    """Other writes have moved the store on; if nothing has, that is proof enough."""
    first = await store.set("a", b"1")
    await other.set("beside", b"")
    full.before = refused

    with pytest.raises(StorageFullError):
        await WRITES[name](store, first)
    entry = await store.get("a")
    assert entry is not None
    assert entry.mod_revision == first


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_was_applied_is_found_in_the_history_when_others_have_written_over_it(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")

    async def and_written_over(send: Callable[[], Awaitable[Any]]) -> None:
        await send()
        for number in range(3):
            await other.set(KEYS[name], b"%d" % number)

    full.before = and_written_over
    revision = await WRITES[name](store, first)

    entry = await store.get(KEYS[name], revision=revision)
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (UNIQUE, revision)


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_others_came_before_is_refused(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")

    async def and_written(_: Callable[[], Awaitable[Any]]) -> None:
        await other.set("a", b"2")
        await other.set("new", b"2")

    full.before = and_written
    with pytest.raises(StorageFullError):
        await WRITES[name](store, first)


@pytest.mark.parametrize("name", ["set", "create"])
async def test_a_write_that_was_applied_is_found_when_it_was_deleted_since(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")

    async def and_deleted(send: Callable[[], Awaitable[Any]]) -> None:
        await send()
        await other.delete(KEYS[name])

    full.before = and_deleted
    assert await WRITES[name](store, first) == first + 1


async def test_a_client_that_has_not_heard_for_long_looks_for_a_key_only_so_often(
    kvorum_client: kvorum.Client, other: StorageBackend, full: Full
) -> None:
    """A key that is gone is looked for at each revision since then, up to a limit."""
    store = kvorum.EtcdStorageBackend(
        kvorum_client, kvorum_client.settings.prefix, searches=SearchLimits(revisions=5)
    )
    await store.set("a", b"1")
    for number in range(6):
        await other.set("beside", b"%d" % number)
    full.before = refused
    with pytest.raises(OutcomeUnknownError):
        await store.create("new", UNIQUE, unique=True)
    full.before = refused
    with pytest.raises(StorageFullError):
        await store.create("new", UNIQUE, unique=True)


async def test_many_refused_writes_together_have_few_reads_under_way(
    kvorum_url: str, other: StorageBackend, full: Full
) -> None:
    """A search at each revision for each of them would otherwise block the event loop far beyond their deadlines."""
    async with kvorum.connect(kvorum_url, settings=kvorum.EtcdSettings(pipeline=False)) as client:
        await client.backend.set("a", b"1")
        for number in range(10):
            await other.set("beside", b"%d" % number)
        full.before, full.times = refused, 30
        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(refused_create, client.backend, f"new-{number}")

    assert 0 < full.most_reads <= 16


async def refused_create(store: StorageBackend, key: str) -> None:
    with pytest.raises(StorageFullError):
        await store.create(key, UNIQUE, unique=True)


async def test_a_value_that_others_may_have_written_leaves_it_unknown(
    store: StorageBackend, full: Full
) -> None:
    await store.set("a", b"1")
    full.before = applied

    with pytest.raises(OutcomeUnknownError) as caught:
        await store.set("a", b"2")
    assert caught.value.operations == (Operation.put("a", b"2"),)


async def test_a_deletion_that_was_applied_is_unknown_and_one_that_was_not_is_refused(
    store: StorageBackend, full: Full
) -> None:
    """Some versions refuse deletions, too, when they are full.

    What is gone may have been removed by another client.
    """
    first = await store.set("a", b"1")
    full.before, full.times = refused, 2
    with pytest.raises(StorageFullError):
        await store.delete("a", expected=first)
    full.before = applied
    with pytest.raises(OutcomeUnknownError):
        await store.delete("a", expected=first)


async def test_what_cannot_be_read_in_time_is_unknown(kvorum_url: str, full: Full) -> None:
    """Nothing is said to be refused because nobody answers the question."""

    async def applied_late(send: Callable[[], Awaitable[Any]]) -> None:
        await send()
        await anyio.sleep(0.25)

    async with kvorum.connect(kvorum_url) as client:
        full.before = applied_late
        with kvorum.deadline(0.2), pytest.raises(OutcomeUnknownError):
            await client.backend.set("a", UNIQUE, unique=True)


# --- leases ---------------------------------------------------------------------------------------


async def leases_of(endpoint: str, ask: Callable[..., str]) -> set[int]:
    text = await anyio.to_thread.run_sync(ask, endpoint, "POST", "/v3/lease/leases", b"{}")
    return {int(each["ID"]) for each in msgspec.json.decode(text).get("leases", [])}


async def test_a_lease_that_was_granted_although_the_store_is_full_is_revoked(
    store: StorageBackend,
    full: Full,
    kvorum_etcd: kvorum.EmbeddedEtcd,
    ask_etcd: Callable[..., str],
) -> None:
    before = await leases_of(kvorum_etcd.endpoints[0], ask_etcd)
    full.before = applied

    with pytest.raises(StorageFullError):
        await store.grant_lease(60)
    assert await leases_of(kvorum_etcd.endpoints[0], ask_etcd) == before


async def test_a_lease_whose_grant_got_no_answer_is_granted_anew_under_another_id(
    store: StorageBackend,
    kvorum_etcd: kvorum.EmbeddedEtcd,
    ask_etcd: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first may have been granted long ago, so it is left to end.

    Its id is taken, as etcd says.
    """
    send, asked = Server.call, []

    async def call(server: Server, stub: Any, request: Any, call: Any, *rest: Any) -> Any:
        answer = await send(server, stub, request, call, *rest)
        if call.operation == "grant":
            asked.append(answer.ID)
            if len(asked) == 1:
                raise kvorum.UnavailableError(server.address, "the answer is lost")
        return answer

    monkeypatch.setattr(Server, "call", call)
    lease = await store.grant_lease(60)

    assert asked == [asked[0], lease]
    assert {*asked} <= await leases_of(kvorum_etcd.endpoints[0], ask_etcd)
    assert lease != asked[0]


# --- a store that becomes full --------------------------------------------------------------------


@asynccontextmanager
async def small_store(
    binary: str | None, *, pipeline: bool
) -> AsyncIterator[tuple[StorageBackend, StorageBackend]]:
    async with kvorum.EmbeddedEtcd(
        binary=binary, arguments=[f"--quota-backend-bytes={QUOTA}"]
    ) as etcd:
        settings = kvorum.EtcdSettings(endpoints=etcd.endpoints, pipeline=pipeline)
        async with kvorum.connect(settings) as client, kvorum.connect(etcd.url) as judge:
            yield client.backend, judge.backend


class Filling:
    """Tasks that write until one of them is told that the store is full."""

    def __init__(self, store: StorageBackend, verb: str) -> None:
        self.store = store
        self.verb = verb
        self.is_over = False
        self.told: dict[
            str, tuple[bytes, int | None]
        ] = {}  # by key: the value, and its revision; None if refused

    async def write(self, task: int) -> None:
        number = revision = 0
        while not self.is_over:
            number += 1
            value = b"%d-%d" % (task, number) + b" " * 4000
            key = f"{task}/{number}" if self.verb == "create" else f"{task}"
            try:
                if self.verb == "create":
                    revision = await self.store.create(key, value, unique=True)
                elif self.verb == "set":
                    revision = await self.store.set(key, value, unique=True)
                else:
                    revision = await self.store.compare_and_swap(
                        key, value, expected=revision, unique=True
                    )
                self.told[key] = value, revision
            except StorageFullError:
                self.told[key] = value, None
                self.is_over = True


@pytest.mark.parametrize("pipeline", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("verb", ["create", "set", "swap"])
async def test_each_write_that_fills_the_store_is_done_or_refused_as_it_was_told(
    pytestconfig: pytest.Config, verb: str, *, pipeline: bool
) -> None:
    """None is refused and yet there, as most of those that are under way at that moment used to be."""
    async with small_store(pytestconfig.getoption("--kvorum-etcd-bin"), pipeline=pipeline) as (
        store,
        judge,
    ):
        filling = Filling(store, verb)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for task in range(32):
                    group.start_soon(filling.write, task)
        found = {entry.key: entry for entry in (await judge.list("")).entries}

    assert any(revision is None for _, revision in filling.told.values())
    for key, (value, revision) in filling.told.items():
        is_there = key in found and found[key].value == value
        assert is_there == (revision is not None), key
        assert revision in {None, found[key].mod_revision if key in found else None}
