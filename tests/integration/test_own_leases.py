"""A resource that was added with a TTL has a lease of its own, which is revoked with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
from aetcd import rpc
from typing_extensions import override

import kvorum
from kvorum import (
    EmbeddedEtcd,
    EtcdSettings,
    Kind,
    Metadata,
    Observer,
    Operation,
    OutcomeUnknownError,
    Repository,
    Resource,
)
from kvorum.observer import Call
from kvorum.testing import FaultProxy

ROOT = "a secret"
DEADLINE = 10.0

Count = Callable[[], Awaitable[set[int]]]


class NoteSpec(msgspec.Struct):
    text: str = ""


class Note(Resource[NoteSpec, None]):
    kind: ClassVar[Kind] = Kind("Note", plural="notes", api_version="test.kvorum.dev/v1")


def note(name: str = "a", **metadata: Any) -> Note:
    return Note(metadata=Metadata(name=name, **metadata), spec=NoteSpec(), status=None)


@pytest.fixture
def notes(client: kvorum.Client) -> Repository[Note]:
    return client.repository(Note)


@pytest.fixture
def store(client: kvorum.Client) -> kvorum.StorageBackend:
    return client.backend


async def leases_of(client: kvorum.Client) -> set[int]:
    """Return the leases that a store holds."""
    backend = client.backend
    if isinstance(backend, kvorum.MemoryStorageBackend):
        return set(backend._store.leases._leases)
    cluster, deadline = client.connection.cluster, anyio.current_time() + 5
    answer: Any = await cluster.call(
        cluster.current,
        lambda channel: getattr(channel.lease, "LeaseLeases"),  # noqa: B009 - the types do not know it
        rpc.LeaseLeasesRequest(),
        Call("list", "the leases"),
        deadline,
    )
    return {lease.ID for lease in answer.leases}


@pytest.fixture
async def leases(client: kvorum.Client) -> Count:
    """Tell which leases the store holds that it did not hold before the test."""
    before = await leases_of(client)

    async def new() -> set[int]:
        return await leases_of(client) - before

    return new


async def lease_of(store: kvorum.StorageBackend, key: str) -> int:
    entry = await store.get(key)
    assert entry is not None
    return entry.lease


async def until(leases: Count, number: int) -> None:
    """Wait until there is this number of leases."""
    with anyio.fail_after(DEADLINE):
        while len(await leases()) != number:  # noqa: ASYNC110 - the server sends no event
            await anyio.sleep(0.02)


# --- which lease ends -----------------------------------------------------------------------------


async def test_no_lease_is_left_of_resources_that_were_deleted(
    notes: Repository[Note], store: kvorum.StorageBackend, leases: Count
) -> None:
    """If they stayed for their TTL, adding and deleting all day would fill the server with them."""
    other = await store.grant_lease(600)
    await store.set("held", b"", lease=other)
    names = [f"n{number}" for number in range(50)]

    await asyncio.gather(*(notes.add(note(name), ttl=600) for name in names))
    assert len(await leases()) == 51
    await asyncio.gather(*(notes.delete(name) for name in names))

    assert await leases() == {other}
    assert await store.exists("held")


async def test_a_lease_ends_when_the_last_finalizer_is_taken_off(
    notes: Repository[Note], leases: Count
) -> None:
    added = await notes.add(note(finalizers=["test.kvorum.dev/f"]), ttl=600)
    ending = await notes.delete("a")
    assert len(await leases()) == 1

    ending.metadata.finalizers.clear()
    await notes.update(ending)

    assert await notes.get("a", None) is None
    assert await leases() == set()
    assert added.metadata.uid == ending.metadata.uid


async def test_a_lease_ends_with_a_resource_that_has_become_unreadable(
    notes: Repository[Note], store: kvorum.StorageBackend, leases: Count
) -> None:
    added = await notes.add(note(), ttl=600)
    await store.compare_and_swap("notes/a", b"rubbish", expected=added.metadata.resource_version)

    await notes.delete("a", corrupt=True)

    assert await leases() == set()


async def test_another_client_ends_the_lease_as_well(
    notes: Repository[Note], client: kvorum.Client, store: kvorum.StorageBackend, leases: Count
) -> None:
    await notes.add(note(), ttl=600)

    if isinstance(store, kvorum.MemoryStorageBackend):
        await kvorum.Repository(client, Note).delete("a")
    else:
        async with kvorum.connect(client.settings) as another:
            await another.repository(Note).delete("a")

    assert await leases() == set()


async def test_a_lease_that_is_not_for_one_key_stays(
    notes: Repository[Note], store: kvorum.StorageBackend, leases: Count
) -> None:
    """Its holder may attach more keys to it."""
    lease = await store.grant_lease(600)
    added = await notes.add(note())
    stored = await store.get("notes/a")
    assert stored is not None
    await store.compare_and_swap(
        "notes/a", stored.value, expected=added.metadata.resource_version, lease=lease, unique=True
    )

    await notes.delete("a")

    assert await leases() == {lease}


async def test_what_others_have_put_on_the_lease_stays_until_the_ttl(
    notes: Repository[Note], store: kvorum.StorageBackend, leases: Count
) -> None:
    await notes.add(note(), ttl=600)
    lease = await lease_of(store, "notes/a")
    await store.set("other", b"", lease=lease)

    await notes.delete("a")
    assert await lease_of(store, "other") == lease
    await store.delete("other")

    assert await leases() == {lease}  # it was not for that key


async def test_another_key_that_goes_does_not_end_the_lease(
    notes: Repository[Note], store: kvorum.StorageBackend, leases: Count
) -> None:
    await notes.add(note(), ttl=600)
    lease = await lease_of(store, "notes/a")
    await store.set("other", b"", lease=lease)

    await store.delete("other")

    assert await leases() == {lease}
    assert await notes.exists("a")


async def test_a_resource_that_was_put_on_another_lease_leaves_that_one(
    notes: Repository[Note], store: kvorum.StorageBackend, leases: Count
) -> None:
    await notes.add(note(), ttl=600)
    stored, lease = await store.get("notes/a"), await store.grant_lease(600)
    assert stored is not None
    await store.compare_and_swap(
        "notes/a", stored.value, expected=stored.mod_revision, lease=lease, unique=True
    )

    await notes.delete("a")

    assert lease in await leases()


# --- while the lease is being revoked -------------------------------------------------------------


Act = Callable[[str], Awaitable[None]]


class Acts(Observer):
    """Runs an act before each request, given its operation."""

    act: Act | None = None

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if self.act is not None:
            await self.act(call.operation)


@pytest.fixture
def acts() -> Acts:
    return Acts()


@pytest.fixture
async def observed(kvorum_url: str, acts: Acts) -> AsyncIterator[kvorum.Client]:
    """A client with the acts."""
    async with kvorum.connect(kvorum_url, observer=acts) as client:
        yield client


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def troubled(
    kvorum_client: kvorum.Client, proxy: FaultProxy, acts: Acts
) -> AsyncIterator[kvorum.Client]:
    """A client with the acts, behind the proxy."""
    settings = EtcdSettings(
        endpoints=(proxy.endpoint,), prefix=kvorum_client.settings.prefix, timeout=2.0
    )
    async with kvorum.connect(settings, observer=acts) as client:
        yield client


@pytest.fixture
async def left(kvorum_client: kvorum.Client) -> Count:
    """Tell which leases the server holds that it did not hold before the test."""
    before = await leases_of(kvorum_client)

    async def new() -> set[int]:
        return await leases_of(kvorum_client) - before

    return new


async def test_a_resource_that_is_added_again_meanwhile_stays(
    observed: kvorum.Client, acts: Acts, left: Count
) -> None:
    notes = observed.repository(Note)
    await notes.add(note(), ttl=600)
    added: list[Note] = []

    async def add_again(operation: str) -> None:
        if operation == "revoke" and not added:
            added.append(note())
            added.append(await notes.add(note(), ttl=600))

    acts.act = add_again
    await notes.delete("a")

    assert await notes.get("a") == added[1]
    assert await left() == {await lease_of(observed.backend, "notes/a")}


async def test_a_deletion_that_is_cancelled_meanwhile_ends_the_lease(
    observed: kvorum.Client, acts: Acts, left: Count
) -> None:
    notes = observed.repository(Note)
    await notes.add(note(), ttl=600)

    async def cancel(operation: str) -> None:
        if operation == "inspect":
            deleting.cancel()

    acts.act = cancel
    deleting = asyncio.create_task(notes.delete("a"))
    await asyncio.wait([deleting])

    assert deleting.cancelled()
    await until(left, 0)


@pytest.mark.parametrize("operation", ["inspect", "revoke"])
@pytest.mark.parametrize("deadline", [0.3, 30.0])
async def test_a_deletion_is_done_though_the_server_falls_silent_afterwards(
    troubled: kvorum.Client,
    proxy: FaultProxy,
    acts: Acts,
    operation: str,
    deadline: float,
) -> None:
    """It waits for a second, or until its deadline."""
    notes = troubled.repository(Note)
    added = await notes.add(note(), ttl=600)

    async def fall_silent(now: str) -> None:
        if now == operation:
            proxy.hold("replies")

    acts.act = fall_silent
    started = anyio.current_time()
    with kvorum.deadline(deadline):
        deleted = await notes.delete("a")
    acts.act = None
    await proxy.heal()

    assert anyio.current_time() - started < min(deadline, 1.0) + 0.7
    assert deleted.metadata.uid == added.metadata.uid
    assert not await notes.exists("a")


async def test_a_deletion_that_is_settled_later_ends_the_lease(
    kvorum_client: kvorum.Client, troubled: kvorum.Client, proxy: FaultProxy, left: Count
) -> None:
    added = await kvorum_client.repository(Note).add(note(), ttl=600)
    proxy.drop("requests")
    with kvorum.deadline(0.3), pytest.raises(OutcomeUnknownError) as caught:
        await troubled.backend.delete("notes/a", expected=added.metadata.resource_version)

    await kvorum_client.backend.settle(caught.value)

    assert not await kvorum_client.backend.exists("notes/a")
    assert await left() == set()


async def test_a_lease_is_ended_that_is_granted_while_the_add_is_cancelled(
    troubled: kvorum.Client, proxy: FaultProxy, left: Count, acts: Acts
) -> None:
    notes = troubled.repository(Note)

    async def hold(operation: str) -> None:
        if operation == "grant":
            proxy.hold("replies")

    acts.act = hold
    adding = asyncio.create_task(notes.add(note(), ttl=600))
    await until(left, 1)
    adding.cancel()
    await asyncio.wait([adding])

    assert adding.cancelled()
    await until(left, 0)


async def test_a_lease_is_ended_of_an_add_that_has_spent_its_deadline(
    troubled: kvorum.Client, proxy: FaultProxy, left: Count, acts: Acts
) -> None:
    notes = troubled.repository(Note)

    async def hold(operation: str) -> None:
        if operation == "transaction":
            proxy.hold("requests")
        if operation == "revoke":
            await proxy.heal()

    acts.act = hold
    with kvorum.deadline(0.4), pytest.raises(OutcomeUnknownError):
        await notes.add(note(), ttl=600)

    await until(left, 0)
    assert not await notes.exists("a")


async def test_a_user_without_permission_to_inspect_the_lease_can_delete(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    """The deletion is done, and does not fail because the lease cannot be revoked."""
    async with AsyncExitStack() as stack:
        flags = ["--bcrypt-cost=4", "--auth-token=simple"]
        etcd = await stack.enter_async_context(
            EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=flags)
        )
        async with kvorum.connect(EtcdSettings(endpoints=etcd.endpoints)) as client:
            roles = roles_of(client)
            await roles.add_role("mine", readwrite="/kvorum/notes/")
            await roles.add_user("ann", ROOT, "mine")
            await roles.enable(ROOT)
        ann, root = (
            EtcdSettings(endpoints=etcd.endpoints, user=user, password=ROOT)
            for user in ("ann", "root")
        )
        hers = await stack.enter_async_context(kvorum.connect(ann))
        all_ = await stack.enter_async_context(kvorum.connect(root))
        notes = hers.repository(Note)
        for name in "ab":
            await notes.add(note(name), ttl=600)
        lease = await lease_of(hers.backend, "notes/a")
        await all_.backend.commit([Operation.put("theirs/x", b"", lease=lease)])

        for name in "ab":
            await notes.delete(name)

        assert await notes.count() == 0
        assert await all_.backend.exists("theirs/x")
        assert await leases_of(all_) == {lease}
