"""Writes that etcd answers with "database space exceeded", although it has applied some of them.

Which ones depends on what is under way when the quota is used up. So most tests here apply a write,
or do not, and then replace its answer; the last ones fill a store.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import anyio.to_thread
import msgspec
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc.aio import Metadata as GrpcMetadata
from typing_extensions import override

import kvorum
from kvorum import Observer, Operation, OutcomeUnknownError, StorageBackend, StorageFullError
from kvorum.etcd.outcomes import SearchLimits
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport import _rpc as rpc
from kvorum.observer import Call

UNIQUE = b"only one write has these bytes"
QUOTA = 2_000_000

Meanwhile: TypeAlias = Callable[[], Awaitable[None]]
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


class Full(Observer):
    """Answers writes with "database space exceeded", after they were applied or without that.

    Attributes:
        applies: whether etcd applies those writes.
        left: how many writes are still to be answered so.
        meanwhile: run before that answer.
        most_reads: how many reads at a revision were under way at once.
    """

    def __init__(self) -> None:
        self.applies = False
        self.left = 0
        self.meanwhile: Meanwhile = nothing
        self.most_reads = 0
        self._reads = 0

    def answer(self, *, applies: bool, times: int = 1, meanwhile: Meanwhile | None = None) -> None:
        """Begin with the next write."""
        self.applies, self.left, self.meanwhile = applies, times, meanwhile or nothing

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if call.revision:
            self._reads += 1
            self.most_reads = max(self.most_reads, self._reads)
        if not self.applies:
            await self._answer(call)

    @override
    async def after_request(self, call: Call, endpoint: str, answer: object, /) -> None:
        self._reads -= call.revision > 0
        if self.applies:
            await self._answer(call)

    @override
    def request_failed(self, call: Call, endpoint: str, error: kvorum.KvorumError, /) -> None:
        self._reads -= call.revision > 0

    async def _answer(self, call: Call) -> None:
        if self.left and call.operation in {"put", "transaction", "grant"}:
            self.left -= 1
            await self.meanwhile()
            words = "etcdserver: mvcc: database space exceeded"
            raise AioRpcError(
                StatusCode.RESOURCE_EXHAUSTED, GrpcMetadata(), GrpcMetadata(), details=words
            )


async def nothing() -> None:
    pass


@pytest.fixture
def full() -> Full:
    return Full()


@pytest.fixture
async def client(kvorum_url: str, full: Full) -> AsyncIterator[kvorum.Client]:
    """A client whose writes find the store full."""
    async with kvorum.connect(kvorum_url, observer=full) as client:
        yield client


@pytest.fixture
def store(client: kvorum.Client) -> StorageBackend:
    return client.backend


@pytest.fixture
async def other(kvorum_url: str) -> AsyncIterator[StorageBackend]:
    """The same store by another client: the first one does not learn of its writes."""
    async with kvorum.connect(kvorum_url) as client:
        yield client.backend


# --- one write ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_was_applied_is_done_whatever_etcd_says(
    store: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")
    full.answer(applies=True)

    revision = await WRITES[name](store, first)
    entry = await store.get(KEYS[name])
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (UNIQUE, revision)


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_was_not_applied_is_refused(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    """The search reads, because other writes have changed the store since."""
    first = await store.set("a", b"1")
    await other.set("beside", b"")
    full.answer(applies=False)

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

    async def write_over() -> None:
        for number in range(3):
            await other.set(KEYS[name], b"%d" % number)

    full.answer(applies=True, meanwhile=write_over)
    revision = await WRITES[name](store, first)

    entry = await store.get(KEYS[name], revision=revision)
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (UNIQUE, revision)


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_others_came_before_is_refused(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")

    async def write_before() -> None:
        await other.set("a", b"2")
        await other.set("new", b"2")

    full.answer(applies=False, meanwhile=write_before)
    with pytest.raises(StorageFullError):
        await WRITES[name](store, first)


@pytest.mark.parametrize("name", ["set", "create"])
async def test_a_write_that_was_applied_is_found_when_it_was_deleted_since(
    store: StorageBackend, other: StorageBackend, full: Full, name: str
) -> None:
    first = await store.set("a", b"1")

    async def delete() -> None:
        await other.delete(KEYS[name])

    full.answer(applies=True, meanwhile=delete)
    assert await WRITES[name](store, first) == first + 1


async def test_the_search_for_a_key_reads_a_limited_number_of_revisions(
    kvorum_url: str, other: StorageBackend, full: Full
) -> None:
    """A key that is gone is looked for at each revision since then, up to a limit."""
    policies = Policies(searches=SearchLimits(revisions=5))
    async with kvorum.connect(kvorum_url, observer=full, policies=policies) as client:
        await client.backend.set("a", b"1")
        for number in range(6):
            await other.set("beside", b"%d" % number)
        full.answer(applies=False)
        with pytest.raises(OutcomeUnknownError):
            await client.backend.create("new", UNIQUE, unique=True)
        full.answer(applies=False)
        with pytest.raises(StorageFullError):
            await client.backend.create("new", UNIQUE, unique=True)


async def test_many_refused_writes_together_have_few_reads_under_way(
    kvorum_url: str, other: StorageBackend, full: Full
) -> None:
    """Unlimited searches would block the event loop far beyond their deadlines."""
    settings = kvorum.EtcdSettings(pipeline=False)
    async with kvorum.connect(kvorum_url, settings=settings, observer=full) as client:
        await client.backend.set("a", b"1")
        for number in range(10):
            await other.set("beside", b"%d" % number)
        full.answer(applies=False, times=30)
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
    full.answer(applies=True)

    with pytest.raises(OutcomeUnknownError) as caught:
        await store.set("a", b"2")
    assert caught.value.operations == (Operation.put("a", b"2"),)


async def test_a_deletion_that_was_applied_is_unknown_and_one_that_was_not_is_refused(
    store: StorageBackend, full: Full
) -> None:
    """Some versions refuse deletions, too, when they are full.

    If the key is gone, another client may have deleted it.
    """
    first = await store.set("a", b"1")
    full.answer(applies=False, times=2)
    with pytest.raises(StorageFullError):
        await store.delete("a", expected=first)
    full.answer(applies=True)
    with pytest.raises(OutcomeUnknownError):
        await store.delete("a", expected=first)


async def test_what_cannot_be_read_in_time_is_unknown(store: StorageBackend, full: Full) -> None:
    """A write is not reported as refused because the search for it has no answer."""

    async def wait() -> None:
        await anyio.sleep(0.25)  # beyond the deadline

    full.answer(applies=True, meanwhile=wait)
    with kvorum.deadline(0.2), pytest.raises(OutcomeUnknownError):
        await store.set("a", UNIQUE, unique=True)


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
    full.answer(applies=True)

    with pytest.raises(StorageFullError):
        await store.grant_lease(60)
    assert await leases_of(kvorum_etcd.endpoints[0], ask_etcd) == before


class FirstGrantLost(Observer):
    """Loses the answer to the first grant of a lease.

    Attributes:
        granted: the ids of all leases that were granted.
    """

    def __init__(self) -> None:
        self.granted: list[int] = []

    @override
    async def after_request(self, call: Call, endpoint: str, answer: object, /) -> None:
        if isinstance(answer, rpc.LeaseGrantResponse):
            self.granted.append(answer.ID)
            if len(self.granted) == 1:
                raise kvorum.UnavailableError(endpoint, "the answer is lost")


async def test_a_lease_whose_grant_got_no_answer_is_granted_under_another_id(
    kvorum_url: str, kvorum_etcd: kvorum.EmbeddedEtcd, ask_etcd: Callable[..., str]
) -> None:
    """The first one may be old by now, so it expires. etcd does not grant its id again."""
    lost = FirstGrantLost()
    async with kvorum.connect(kvorum_url, observer=lost) as client:
        lease = await client.backend.grant_lease(60)

    assert lost.granted == [lost.granted[0], lease]
    assert {*lost.granted} <= await leases_of(kvorum_etcd.endpoints[0], ask_etcd)
    assert lease != lost.granted[0]


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
    """Tasks that write until the store is full."""

    def __init__(self, store: StorageBackend, verb: str) -> None:
        self.store = store
        self.verb = verb
        self.is_over = False
        # By key: the value, and its revision, or None if it was refused.
        self.told: dict[str, tuple[bytes, int | None]] = {}

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
async def test_each_write_that_fills_the_store_is_applied_or_refused_as_reported(
    pytestconfig: pytest.Config, verb: str, *, pipeline: bool
) -> None:
    """No write is reported as refused and yet applied."""
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
