"""What a client may not write is refused by all members of a cluster alike.

Else they hold different data for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import anyio
import pytest
from aetcd import rpc

import kvorum
from kvorum import AuthenticationError, EmbeddedEtcd, EtcdSettings, PermissionDeniedError
from kvorum.etcd.transport.errors import Call

PREFIX = "lab"
ROOT = "a secret"
DEADLINE = 20

pytestmark = pytest.mark.timeout(120)


class State(NamedTuple):
    """What one member holds.

    Its revision, the hash of its history, and its keys below the prefix.
    """

    revision: int
    hash: int
    keys: tuple[str, ...]


async def state_of(endpoint: str) -> State:
    """Ask a member for its own state, without the others."""
    async with kvorum.connect(
        EtcdSettings(endpoints=(endpoint,), user="root", password=ROOT)
    ) as client:
        cluster, deadline = client.connection.cluster, anyio.current_time() + 5

        async def ask(method: Callable[[Any], Any], request: Any) -> Any:
            return await cluster.call(
                cluster.current, method, request, Call("ask", endpoint), deadline
            )

        hashed = await ask(lambda channel: channel.maintenance.HashKV, rpc.HashKVRequest())
        everything = rpc.RangeRequest(
            key=b"/lab/", range_end=b"/lab0", keys_only=True, serializable=True
        )
        found = await ask(lambda channel: channel.kv.Range, everything)
    return State(hashed.header.revision, hashed.hash, tuple(kv.key.decode() for kv in found.kvs))


async def states_of(etcd: EmbeddedEtcd) -> list[State]:
    """Return the states of all members, once they agree, or after some seconds."""
    states: list[State] = []
    with anyio.move_on_after(5):
        while len(set(states)) != 1:
            states = [await state_of(endpoint) for endpoint in etcd.endpoints]
    return states


async def all_of(*calls: Awaitable[Any]) -> list[Any]:
    """Make calls at once; return what each returned or raised."""
    with anyio.fail_after(DEADLINE):
        return await asyncio.gather(*calls, return_exceptions=True)


class Cluster(NamedTuple):
    """A cluster that checks users, with a client without a user at each member, opened before."""

    etcd: EmbeddedEtcd
    nobodies: list[kvorum.Client]


@pytest.fixture
async def cluster(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> AsyncIterator[Cluster]:
    """Three members. Alice may read and write `mine/`; Bob may write it, and not read."""
    flags = ["--bcrypt-cost=4", "--auth-token=simple"]
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3, arguments=flags) as etcd,
        kvorum.connect(etcd.url) as client,
        AsyncExitStack() as stack,
    ):
        nobodies = [
            await stack.enter_async_context(kvorum.connect(settings_of(each)))
            for each in etcd.endpoints
        ]
        roles = roles_of(client)
        await roles.add_role("owner", readwrite="/lab/mine/")
        await roles.add_role("sender", write="/lab/mine/")
        await roles.add_user("alice", "of alice", "owner")
        await roles.add_user("bob", "of bob", "sender")
        await roles.enable(ROOT)
        yield Cluster(etcd, nobodies)


def settings_of(endpoint: str, user: str | None = None) -> EtcdSettings:
    password = f"of {user}" if user else None
    return EtcdSettings(endpoints=(endpoint,), prefix=PREFIX, user=user, password=password)


async def test_writes_without_a_user_are_refused_by_every_member(cluster: Cluster) -> None:
    """The member that serves the client checks more than the others do.

    What it refuses they must refuse, too.
    """
    outcomes: list[Any] = []
    for number, nobody in enumerate(cluster.nobodies):
        store = nobody.backend
        # Not all at once: a plain put in a batch is looked at by every member.
        outcomes += await all_of(*(store.create(f"mine/{number}-{n}", b"1") for n in range(30)))
        outcomes += await all_of(*(store.delete(f"mine/{number}-{n}") for n in range(30)))
        outcomes += await all_of(*(store.set(f"mine/put-{number}-{n}", b"1") for n in range(30)))
        outcomes += await all_of(*(store.get(f"mine/{number}-{n}") for n in range(30)))

    assert {isinstance(outcome, AuthenticationError) for outcome in outcomes} == {True}
    states = await states_of(cluster.etcd)
    assert [state.keys for state in states] == [(), (), ()]
    assert len(set(states)) == 1


async def test_what_a_role_does_not_allow_is_refused_by_every_member(cluster: Cluster) -> None:
    """However much is under way together, and whoever serves it."""
    allowed: list[Any] = []
    forbidden: list[Any] = []
    for number, endpoint in enumerate(cluster.etcd.endpoints):
        async with kvorum.connect(settings_of(endpoint, "alice")) as alice:
            keys = [f"{'other' if n % 3 else 'mine'}/{number}-{n}" for n in range(60)]
            outcomes = await all_of(*(alice.backend.create(key, b"1") for key in keys))
            for key, outcome in zip(keys, outcomes, strict=True):
                (allowed if key.startswith("mine/") else forbidden).append(outcome)

    assert {type(outcome) for outcome in allowed} == {int}
    assert {type(outcome) for outcome in forbidden} == {PermissionDeniedError}
    states = await states_of(cluster.etcd)
    assert len(set(states)) == 1
    assert len(states[0].keys) == 60
    assert all(key.startswith("/lab/mine/") for key in states[0].keys)


async def test_a_user_that_may_only_write_puts_what_it_may(cluster: Cluster) -> None:
    """Nothing is compared for it that its puts do not compare.

    A comparison needs permission to read.
    """
    async with kvorum.connect(settings_of(cluster.etcd.endpoints[0], "bob")) as bob:
        put = await all_of(*(bob.backend.set(f"mine/{n}", b"1") for n in range(60)))
        created = await all_of(*(bob.backend.create(f"mine/new-{n}", b"1") for n in range(10)))

    assert {type(outcome) for outcome in put} == {int}
    assert {type(outcome) for outcome in created} == {PermissionDeniedError}
    states = await states_of(cluster.etcd)
    assert len(set(states)) == 1
    assert len(states[0].keys) == 60
