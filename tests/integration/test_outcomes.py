"""Calls whose answers are lost: they are sent again where that is safe, and never applied twice."""

from collections.abc import AsyncIterator

import anyio
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc.aio import Metadata as GrpcMetadata
from tests.kinds import Counter, CounterSpec, CounterStatus
from typing_extensions import override

import kvorum
from kvorum import (
    ConflictError,
    Metadata,
    Observer,
    Operation,
    OutcomeUnknownError,
    UnavailableError,
)
from kvorum.observer import Call
from kvorum.testing import (
    FaultProxy,
    FaultScript,
    History,
    RecordingBackend,
    check_revisions,
    read_server_history,
)
from kvorum.testing.conformance.store import Compact

TIMEOUT = 0.5
A_REQUEST = 400  # bytes
UNMISTAKABLE = b"only one write has these bytes: %d" + b"." * 400


@pytest.fixture
async def proxy(kvorum_etcd: kvorum.EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
def prefix(kvorum_url: str) -> str:
    return kvorum_url.rpartition("/")[2]


@pytest.fixture
async def troubled(proxy: FaultProxy, prefix: str) -> AsyncIterator[kvorum.Client]:
    """A client behind the proxy, with a short timeout."""
    settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=TIMEOUT)
    async with kvorum.connect(settings) as client:
        yield client


@pytest.fixture
def lost(troubled: kvorum.Client) -> kvorum.StorageBackend:
    """The backend whose answers are lost."""
    return troubled.backend


@pytest.fixture
def sound(kvorum_client: kvorum.Client) -> kvorum.StorageBackend:
    """The same store by a sound connection."""
    return kvorum_client.backend


async def once_dropped(proxy: FaultProxy, number: int = 1) -> None:
    """Heal the proxy when so many bytes are lost.

    The first bytes may be gRPC's own, and gRPC resends a request that has not been sent when the
    connection breaks. A test that must lose a request waits for `A_REQUEST` bytes, which only a
    request has.
    """
    with anyio.fail_after(10):
        await proxy.wait(lambda now: now.dropped >= number)
    await proxy.heal()


async def once_applied(proxy: FaultProxy, sound: kvorum.StorageBackend, since: int) -> None:
    """Heal the proxy when a write after a revision was applied, and its answer is lost."""
    with anyio.fail_after(10):
        async with sound.watch("", since=since) as watch:
            await anext(watch)
        await proxy.wait(lambda now: now.dropped > 0)
    await proxy.heal()


# --- compare-and-swap -----------------------------------------------------------------------------


async def test_a_swap_whose_answer_was_lost_is_known_to_have_been_applied(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        revision = await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)

    entry = await sound.get("a")
    assert entry is not None
    assert (entry.value, entry.mod_revision, entry.version) == (UNMISTAKABLE % 2, revision, 2)


async def test_a_swap_whose_answer_was_lost_and_that_was_overwritten_is_known_too(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """The value is overwritten; the history of the key still has it."""
    first = await lost.set("a", b"1")

    async def write_over() -> None:
        async with sound.watch("a", since=first) as watch:
            await anext(watch)
        await sound.set("a", b"3")
        await proxy.heal()

    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(write_over)
        revision = await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)

    entry = await sound.get("a", revision=revision)
    assert entry is not None
    assert entry.value == UNMISTAKABLE % 2
    assert await sound.get("a") != entry


async def test_a_swap_that_never_arrived_is_sent_again(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")

    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy)
        revision = await lost.compare_and_swap("a", b"2", expected=first)

    entry = await sound.get("a")
    assert entry is not None
    assert (entry.mod_revision, entry.version) == (revision, 2)


async def test_a_swap_that_another_write_preceded_is_a_conflict_although_its_answer_was_lost(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    second = await sound.set("a", b"faster")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy)
        with pytest.raises(ConflictError) as caught:
            await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)

    assert caught.value.current == kvorum.Entry("a", b"faster", second, first, 2)


async def test_a_swap_that_never_arrived_and_expects_another_value_is_a_conflict(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """In a store that was put back: the revision is as expected, but the value never will be."""
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy, A_REQUEST)
        with pytest.raises(ConflictError) as caught:
            await lost.compare_and_swap(
                "a", UNMISTAKABLE % 2, expected=first, unique=True, expected_value=b"another"
            )

    assert caught.value.current == await sound.get("a") == kvorum.Entry("a", b"1", first, first, 1)


async def test_a_value_that_another_client_could_have_written_proves_nothing(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """Two clients that count from 1 to 2 write the same bytes.

    A client that took the other's write for its own would lose an increment.
    """
    first = await lost.set("a", b"1")
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        with pytest.raises(OutcomeUnknownError):
            await lost.compare_and_swap("a", b"2", expected=first)


async def test_a_swap_whose_history_was_compacted_stays_unknown(
    proxy: FaultProxy,
    lost: kvorum.StorageBackend,
    sound: kvorum.StorageBackend,
    compact_etcd: Compact,
) -> None:
    first = await lost.set("a", b"1")

    async def forget() -> None:
        async with sound.watch("a", since=first) as watch:
            await anext(watch)
        await sound.set("a", b"3")
        await compact_etcd(await sound.set("a", b"4"))
        await proxy.heal()

    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(forget)
        with pytest.raises(OutcomeUnknownError):
            await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)


async def test_a_swap_that_stays_without_an_answer_is_unknown_after_two_deadlines(
    proxy: FaultProxy, lost: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.mute()
    started = anyio.current_time()
    with pytest.raises(OutcomeUnknownError):
        await lost.compare_and_swap("a", b"2", expected=first)

    assert anyio.current_time() - started < 4 * TIMEOUT


async def test_the_search_is_retried_until_the_deadline_while_connections_break(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """The value is overwritten, so history has to tell, and each read of it breaks for a while."""
    first = await lost.set("a", b"1")

    async def write_over_and_break() -> None:
        async with sound.watch("a", since=first) as watch:
            await anext(watch)
        await sound.set("a", b"3")
        await proxy.heal()
        for _ in range(20):
            proxy.cut()
            await anyio.sleep(0.02)

    proxy.drop("replies")
    with kvorum.deadline(10):
        async with anyio.create_task_group() as group:
            group.start_soon(write_over_and_break)
            revision = await lost.compare_and_swap(
                "a", UNMISTAKABLE % 2, expected=first, unique=True
            )

    entry = await sound.get("a", revision=revision)
    assert entry is not None
    assert entry.value == UNMISTAKABLE % 2


# --- create and set -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["create", "set"])
async def test_a_create_or_set_whose_answer_was_lost_is_known_by_its_value(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend, verb: str
) -> None:
    first = await lost.set("other", b"")
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        revision = await getattr(lost, verb)("a", UNMISTAKABLE % 1, unique=True)

    entry = await sound.get("a")
    assert entry is not None
    assert (entry.mod_revision, entry.version) == (revision, 1)


@pytest.mark.parametrize("verb", ["create", "set"])
async def test_a_create_or_set_that_never_arrived_is_not_sent_again(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend, verb: str
) -> None:
    """It may still arrive; its absence proves nothing."""
    await lost.set("other", b"")
    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy, A_REQUEST)
        with pytest.raises(OutcomeUnknownError):
            await getattr(lost, verb)("a", UNMISTAKABLE % 1, unique=True)

    assert not await sound.exists("a")


async def test_a_set_that_never_arrived_is_not_known_by_the_same_bytes_from_before(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """They were written before this client connected, for example by a restore."""
    first = await sound.set("a", UNMISTAKABLE % 1, unique=True)
    await lost.get("a")
    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy, A_REQUEST)
        with pytest.raises(OutcomeUnknownError) as caught:
            await lost.set("a", UNMISTAKABLE % 1, unique=True)

    assert caught.value.since >= first


async def test_a_set_on_a_lease_is_not_known_by_the_same_bytes_on_another(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"")
    lease = await lost.grant_lease(60)

    async def move() -> None:
        async with sound.watch("a", since=first) as watch:
            await anext(watch)
        await sound.set("a", UNMISTAKABLE % 1)
        await proxy.heal()

    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(move)
        with pytest.raises(OutcomeUnknownError):
            await lost.set("a", UNMISTAKABLE % 1, lease=lease, unique=True)


async def test_bytes_are_no_proof_unless_the_writer_says_that_no_other_write_has_them(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """Even if they look like a resource with a token: nothing here reads them."""
    first = await lost.set("other", b"")
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        with pytest.raises(OutcomeUnknownError):
            await lost.set("a", b'{"metadata":{"writeToken":"1"}}')


# --- commit and delete ----------------------------------------------------------------------------


async def test_a_deletion_that_never_arrived_is_sent_again(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy)
        change = await lost.delete("a", expected=first)

    assert change.previous == kvorum.Entry("a", b"1", first, first, 1)
    assert not await sound.exists("a")


async def test_a_deletion_whose_answer_was_lost_stays_unknown(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """A tombstone has no token: if two clients delete the same revision, nothing tells which."""
    first = await lost.set("a", b"1")
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        with pytest.raises(OutcomeUnknownError):
            await lost.delete("a", expected=first)


@pytest.mark.parametrize("verb", ["delete", "commit"])
async def test_a_deletion_that_is_compacted_at_its_own_revision_is_not_taken_for_a_refused_one(
    proxy: FaultProxy,
    lost: kvorum.StorageBackend,
    sound: kvorum.StorageBackend,
    compact_etcd: Compact,
    verb: str,
) -> None:
    """Old versions forget the tombstone, and let a watch start there.

    The first change that it delivers is another client's creation.
    """
    first = await lost.set("a", b"1")
    steps = [Operation.delete("a", expected=first), Operation.put("b", b"")]

    async def forget() -> None:
        async with sound.watch("a", since=first) as watch:
            (gone,) = await anext(watch)
        await compact_etcd(gone.revision)
        await sound.create("a", b"another's")
        await proxy.heal()

    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(forget)
        with pytest.raises(OutcomeUnknownError):
            await (lost.delete("a", expected=first) if verb == "delete" else lost.commit(steps))


async def test_a_commit_is_known_by_a_value_that_is_there_although_history_is_lost(
    proxy: FaultProxy,
    lost: kvorum.StorageBackend,
    sound: kvorum.StorageBackend,
    compact_etcd: Compact,
) -> None:
    first = await lost.set("a", b"1")

    async def forget() -> None:
        async with sound.watch("a", since=first) as watch:
            (gone,) = await anext(watch)
        await compact_etcd(gone.revision)
        await sound.create("a", b"another's")
        await proxy.heal()

    proxy.drop("replies")
    steps = [
        Operation.delete("a", expected=first),
        Operation.put("b", UNMISTAKABLE % 1, unique=True),
    ]
    async with anyio.create_task_group() as group:
        group.start_soon(forget)
        revision = await lost.commit(steps)

    entry = await sound.get("b")
    assert entry is not None
    assert entry.mod_revision == revision


async def test_a_deletion_that_another_write_preceded_is_a_conflict(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    second = await sound.set("a", b"2")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy)
        with pytest.raises(ConflictError) as caught:
            await lost.delete("a", expected=first)

    assert caught.value.current == kvorum.Entry("a", b"2", second, first, 2)


async def test_a_commit_is_known_by_any_of_its_values(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """The deleted key tells nothing; the key that is written with it does."""
    first = await lost.set("a", b"1")
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        revision = await lost.commit(
            [
                Operation.delete("a", expected=first),
                Operation.put("b", UNMISTAKABLE % 1, unique=True),
            ]
        )

    entry = await sound.get("b")
    assert entry is not None
    assert (entry.mod_revision, entry.version) == (revision, 1)
    assert not await sound.exists("a")


async def test_a_commit_that_another_write_preceded_is_a_conflict(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    await sound.set("b", UNMISTAKABLE % 7)
    await sound.set("a", b"faster")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy)
        with pytest.raises(ConflictError):
            await lost.commit(
                [
                    Operation.swap("a", b"2", expected=first),
                    Operation.put("b", UNMISTAKABLE % 8, unique=True),
                ]
            )

    entry = await sound.get("b")
    assert entry is not None
    assert entry.value == UNMISTAKABLE % 7


async def test_a_commit_whose_other_comparison_fails_for_good_is_a_conflict(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """The key that fences it is unchanged; the other key has changed for good."""
    first, second = await lost.set("a", b"1"), await lost.set("b", b"1")
    third = await sound.set("b", b"2")
    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy)
        with pytest.raises(ConflictError) as caught:
            await lost.commit(
                [Operation.swap("a", b"2", expected=first), Operation.check("b", expected=second)]
            )

    assert caught.value.current == kvorum.Entry("b", b"2", third, second, 2)


async def test_a_commit_whose_other_comparison_may_hold_later_stays_unknown(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """Once the other key is deleted, the first copy may arrive and be applied."""
    first = await lost.set("a", b"1")
    await sound.set("b", b"here")
    proxy.drop("requests")
    async with anyio.create_task_group() as group:
        group.start_soon(once_dropped, proxy, A_REQUEST)
        with pytest.raises(OutcomeUnknownError):
            await lost.commit(
                [Operation.swap("a", bytes(A_REQUEST), expected=first), Operation.create("b", b"")]
            )


async def test_a_lease_whose_revocation_got_no_answer_is_gone(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    lease = await lost.grant_lease(60)
    first = await lost.set("a", b"1", lease=lease)
    proxy.drop("replies")
    async with anyio.create_task_group() as group:
        group.start_soon(once_applied, proxy, sound, first)
        await lost.revoke_lease(lease)

    assert not await sound.exists("a")


# --- later ----------------------------------------------------------------------------------------


async def test_what_was_unknown_can_be_settled_later(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """The error has the operations, so the outcome can be found once the network is sound."""
    first = await lost.set("a", b"1")
    proxy.drop("replies")
    with pytest.raises(OutcomeUnknownError) as caught:
        await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)
    assert caught.value.operations == (
        Operation.swap("a", UNMISTAKABLE % 2, expected=first, unique=True),
    )
    await proxy.heal()

    revision = await lost.settle(caught.value)
    entry = await sound.get("a")
    assert entry is not None
    assert (entry.value, entry.mod_revision, entry.version) == (UNMISTAKABLE % 2, revision, 2)
    assert await sound.settle(caught.value) == revision  # any number of times


async def test_what_was_unknown_and_never_arrived_is_written_by_settling_it(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    with pytest.raises(OutcomeUnknownError) as caught:
        await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)
    await proxy.heal()

    revision = await sound.settle(caught.value)
    entry = await sound.get("a")
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (UNMISTAKABLE % 2, revision)


async def test_what_was_unknown_and_is_overtaken_is_a_conflict(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    first = await lost.set("a", b"1")
    proxy.drop("requests")
    with pytest.raises(OutcomeUnknownError) as caught:
        await lost.compare_and_swap("a", UNMISTAKABLE % 2, expected=first, unique=True)
    await sound.set("a", b"3")

    with pytest.raises(ConflictError):
        await sound.settle(caught.value)


async def test_what_cannot_be_settled_stays_unknown(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    proxy.drop("requests")
    with pytest.raises(OutcomeUnknownError) as caught:
        await lost.create("a", UNMISTAKABLE % 1, unique=True)

    with pytest.raises(OutcomeUnknownError):
        await sound.settle(caught.value)


async def test_a_swap_that_arrives_after_a_later_read_is_not_taken_for_lost(
    proxy: FaultProxy, lost: kvorum.StorageBackend, sound: kvorum.StorageBackend
) -> None:
    """A read cannot decide this case: it finds nothing, and then the write arrives.

    The client cancels the request when it gives up. If the server sees that first, the write never
    arrives, and the test tries once more. `settle` is right in both cases.
    """
    arrived = False
    for number in range(20):
        key, value = f"a{number}", UNMISTAKABLE % number
        first = await lost.set(key, b"1")
        proxy.hold("requests")
        with pytest.raises(OutcomeUnknownError) as caught:
            await lost.compare_and_swap(key, value, expected=first, unique=True)
        entry = await sound.get(key)
        assert entry is not None
        assert entry.value == b"1"
        await proxy.heal()
        async with sound.watch(key, since=first) as watch:
            with anyio.move_on_after(0.5):
                await anext(watch)
                arrived = True

        revision = await lost.settle(caught.value)
        entry = await sound.get(key)
        assert entry is not None
        assert (entry.value, entry.mod_revision, entry.version) == (value, revision, 2)
        if arrived:
            break
    assert arrived


# --- overload -------------------------------------------------------------------------------------


class Overload(Observer):
    """Rejects the first three puts and the first three reads, as an overloaded server does.

    etcd itself takes 5,000 pending entries to do so.

    Attributes:
        refused: the operations that were rejected.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if call.operation in {"put", "read"} and self.refused.count(call.operation) < 3:
            self.refused.append(call.operation)
            words = "etcdserver: too many requests"
            raise AioRpcError(
                StatusCode.RESOURCE_EXHAUSTED, GrpcMetadata(), GrpcMetadata(), details=words
            )


async def test_calls_to_an_overloaded_server_are_retried(
    kvorum_url: str, sound: kvorum.StorageBackend
) -> None:
    """etcd refuses before it proposes, so even a write may be retried."""
    overload = Overload()
    async with kvorum.connect(kvorum_url, observer=overload) as client:
        with kvorum.deadline(20):
            await client.backend.set("a", b"1")
            assert await client.backend.exists("a")

    assert overload.refused.count("put") == overload.refused.count("read") == 3
    entry = await sound.get("a")
    assert entry is not None
    assert entry.version == 1


# --- calls that had no effect ---------------------------------------------------------------------


async def test_a_read_is_retried_until_it_is_answered(
    proxy: FaultProxy, lost: kvorum.StorageBackend
) -> None:
    await lost.set("a", b"1")
    proxy.cut()

    entry = await lost.get("a")
    assert entry is not None


async def test_calls_wait_for_a_server_that_comes_back_within_their_deadline() -> None:
    async with (
        kvorum.EmbeddedEtcd() as etcd,
        kvorum.connect(etcd.url, settings=kvorum.EtcdSettings(timeout=20)) as client,
    ):
        await client.backend.set("a", b"1")
        await etcd.kill()
        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(etcd.restart)
                assert await client.backend.exists("a")
            await client.backend.set("b", b"1")


async def test_a_server_that_stays_away_is_unavailable_at_the_deadline(
    proxy: FaultProxy, lost: kvorum.StorageBackend
) -> None:
    await proxy.refuse()
    proxy.cut()
    started = anyio.current_time()
    for call in (lost.get("a"), lost.set("a", b"")):
        with pytest.raises((UnavailableError, OutcomeUnknownError)):
            await call

    assert anyio.current_time() - started < 6 * TIMEOUT


# --- all of it ------------------------------------------------------------------------------------


class Counting:
    """Tasks that increment one resource, and the outcomes that they were given."""

    def __init__(self, counters: kvorum.Repository[Counter]) -> None:
        self.counters = counters
        self.counted = 0
        self.unknown = 0
        self.is_over = False

    async def count(self) -> None:
        while not self.is_over:
            try:
                await self.counters.mutate("c", self.increment)
            except OutcomeUnknownError:
                self.unknown += 1
            except (UnavailableError, ConflictError):
                continue
            else:
                self.counted += 1

    @staticmethod
    def increment(counter: Counter) -> None:
        counter.spec.number += 1


class Recorded:
    """A client whose calls are recorded."""

    def __init__(self, client: kvorum.Client, history: History) -> None:
        self.backend = RecordingBackend(client.backend, history, "c")


@pytest.mark.timeout(120)
async def test_no_increment_is_lost_or_counted_twice_on_a_bad_network(
    proxy: FaultProxy,
    troubled: kvorum.Client,
    kvorum_client: kvorum.Client,
    prefix: str,
    kvorum_etcd: kvorum.EmbeddedEtcd,
) -> None:
    """Sixteen tasks increment one resource while answers are dropped and requests delayed."""
    history = History()
    start = (await kvorum_client.backend.list("", limit=1)).revision
    counter = Counter(metadata=Metadata(name="c"), spec=CounterSpec(), status=CounterStatus())
    await kvorum.Repository(Recorded(kvorum_client, history), Counter).add(counter)
    counting = Counting(kvorum.Repository(Recorded(troubled, history), Counter))

    async with anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(counting.count)
        await FaultScript.random(5, number=25).play(proxy, history)
        counting.is_over = True

    number = (await kvorum_client.repository(Counter).get("c")).spec.number
    server_history = await read_server_history(kvorum_etcd.endpoints[0], prefix, since=start)
    assert check_revisions(history, server_history) == []
    assert len(server_history.revisions) == 1 + number
    assert counting.counted <= number <= counting.counted + counting.unknown
    assert counting.counted > 100
