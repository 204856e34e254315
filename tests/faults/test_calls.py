"""Each kind of call under each fault: its outcomes, their time, and no duplicate write.

`pytest -s tests/faults/test_calls.py` prints the table "What each kind of call sees" of
docs/failures.md.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import anyio
import pytest
from aetcd import rpc
from anyio.abc import TaskStatus

import kvorum
from kvorum import (
    EmbeddedEtcd,
    EtcdSettings,
    KvorumError,
    Operation,
    StorageBackend,
    StorageFullError,
)
from kvorum.etcd.transport.versions import hazards_of
from kvorum.testing import (
    FaultProxy,
    History,
    RecordingBackend,
    WatchedStream,
    check_revisions,
    check_watch,
    read_server_history,
)

TIMEOUT: Final = 2.0
PREFIX: Final = "matrix"
ROOT: Final = "a secret"
BEHIND_A_PROXY: Final = frozenset({"answers are lost", "requests are late", "connections are cut"})

pytestmark = pytest.mark.timeout(120)


class Site:
    """Servers, a client behind faults, and one without."""

    def __init__(
        self, etcd: EmbeddedEtcd, proxy: FaultProxy, troubled: kvorum.Client, sound: kvorum.Client
    ) -> None:
        self.etcd = etcd
        self.proxy = proxy
        self.troubled = troubled
        self.sound = sound


# --- faults: each reports its start, and ends by itself -------------------------------------------

Began = TaskStatus[None]


async def answers_are_lost(site: Site, *, task_status: Began) -> None:
    site.proxy.drop("replies")
    task_status.started()
    await site.proxy.wait(lambda now: now.dropped > 0)
    await site.proxy.heal()


async def requests_are_late(site: Site, *, task_status: Began) -> None:
    """Later than their callers wait."""
    site.proxy.hold("requests")
    task_status.started()
    await site.proxy.wait(lambda now: now.held > 0)
    await anyio.sleep(1.2 * TIMEOUT)
    await site.proxy.heal()


async def connections_are_cut(site: Site, *, task_status: Began) -> None:
    """With the requests in flight."""
    site.proxy.hold("requests")
    task_status.started()
    await site.proxy.wait(lambda now: now.held > 0)
    site.proxy.cut()
    await site.proxy.heal()


async def the_server_hangs(site: Site, *, task_status: Began) -> None:
    await site.etcd.pause()
    task_status.started()
    await anyio.sleep(1.2 * TIMEOUT)
    await site.etcd.resume()


async def the_server_is_killed(site: Site, *, task_status: Began) -> None:
    """With the requests that it received; restarted within the deadline."""
    await site.etcd.pause()
    task_status.started()
    await anyio.sleep(0.1 * TIMEOUT)
    await site.etcd.kill()
    await site.etcd.restart()


async def the_quorum_is_lost(site: Site, *, task_status: Began) -> None:
    for member in (0, 1):
        await site.etcd.pause(member)
    task_status.started()
    await anyio.sleep(1.2 * TIMEOUT)
    for member in (0, 1):
        await site.etcd.resume(member)


async def the_quota_is_used_up(site: Site, *, task_status: Began) -> None:
    """Permanently."""
    filler = kvorum.EtcdStorageBackend(site.sound, "filler")
    while not await is_full(filler):
        pass
    task_status.started()


async def is_full(store: StorageBackend) -> bool:
    try:
        # Unique, so that the outcome of the write that crosses the quota can be found out.
        await store.set("a", uuid.uuid4().bytes + bytes(900_000), unique=True)
    except StorageFullError:
        return True
    return False


async def the_token_is_forgotten(site: Site, *, task_status: Began) -> None:
    await site.etcd.restart()
    task_status.started()


FAULTS: Final[dict[str, Callable[..., Coroutine[Any, Any, None]]]] = {
    "answers are lost": answers_are_lost,
    "requests are late": requests_are_late,
    "connections are cut": connections_are_cut,
    "the server hangs": the_server_hangs,
    "the server is killed": the_server_is_killed,
    "the quorum is lost": the_quorum_is_lost,
    "the quota is used up": the_quota_is_used_up,
    "the token is forgotten": the_token_is_forgotten,
}

# --- calls, and their possible outcomes -----------------------------------------------------------


def unmistakable(name: str) -> bytes:
    return b'{"metadata":{"writeToken":"%s"}}' % name.encode()


class Before:
    """The state before the fault: a key for each call, and a lease."""

    def __init__(self, revision: int, lease: int) -> None:
        self.revision = revision
        self.lease = lease


CALLS: Final[dict[str, Callable[[StorageBackend, Before], Awaitable[object]]]] = {
    "get": lambda store, _: store.get("swap"),
    "list": lambda store, _: store.list(""),
    "count": lambda store, _: store.count(""),
    "swap": lambda store, before: store.compare_and_swap(
        "swap", unmistakable("swap"), expected=before.revision, unique=True
    ),
    "commit": lambda store, before: store.commit(
        [
            Operation.swap("commit", unmistakable("commit"), expected=before.revision, unique=True),
            Operation.put("beside", b"1"),
        ]
    ),
    "create": lambda store, _: store.create("create", unmistakable("create"), unique=True),
    "set": lambda store, _: store.set("set", unmistakable("set"), unique=True),
    "delete": lambda store, before: store.delete("delete", expected=before.revision),
    "grant": lambda store, _: store.grant_lease(60),
    "revoke": lambda store, before: store.revoke_lease(before.lease),
}
READS, FENCED, SETTLED_BY_READS = {"get", "list", "count"}, {"swap", "commit"}, {"create", "set"}
ALL_CALLS = {*CALLS, "watch"}
UNKNOWN, UNAVAILABLE, FULL = "OutcomeUnknownError", "UnavailableError", "StorageFullError"
# Some of several concurrent writes may have been sent already. No unavailable write was applied:
# the history is checked.
TOO_LATE = [
    ({*READS, "grant"}, {UNAVAILABLE}),
    ({*SETTLED_BY_READS, "delete"}, {"done", UNKNOWN, UNAVAILABLE}),
    (ALL_CALLS, {"done"}),
]

EXPECTED: Final[dict[str, list[tuple[set[str], set[str]]]]] = {
    "answers are lost": [({*SETTLED_BY_READS, "delete"}, {"done", UNKNOWN}), (ALL_CALLS, {"done"})],
    "requests are late": TOO_LATE,
    "connections are cut": [
        ({*SETTLED_BY_READS, "delete"}, {"done", UNKNOWN}),
        (ALL_CALLS, {"done"}),
    ],
    "the server hangs": TOO_LATE,
    "the server is killed": [
        ({*SETTLED_BY_READS, "delete"}, {"done", UNKNOWN}),
        (ALL_CALLS, {"done"}),
    ],
    "the quorum is lost": [
        ({*READS, "grant"}, {UNAVAILABLE}),
        ({"watch"}, {"done"}),
        (ALL_CALLS, {"done", UNAVAILABLE, UNKNOWN}),
    ],
    "the quota is used up": [
        ({*FENCED, *SETTLED_BY_READS, "grant"}, {FULL}),
        (ALL_CALLS, {"done"}),
    ],
    "the token is forgotten": [(ALL_CALLS, {"done"})],
}


def expected(fault: str, name: str, hazards: set[str]) -> set[str]:
    if (fault, name) == (
        "the quota is used up",
        "delete",
    ) and "deletions-stop-at-the-quota" in hazards:
        return {FULL}
    return next(told for names, told in EXPECTED[fault] if name in names)


# --- the matrix -----------------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    fault: str, binary: Any, roles_of: Callable[[kvorum.Client], Any]
) -> AsyncIterator[Site]:
    flags = {
        "the quota is used up": ["--quota-backend-bytes", str(4 << 20)],
        "the token is forgotten": ["--auth-token=simple", "--bcrypt-cost=4"],
    }
    members = 3 if fault == "the quorum is lost" else 1
    async with AsyncExitStack() as stack:
        etcd = EmbeddedEtcd(binary=binary, members=members, arguments=flags.get(fault, []))
        await stack.enter_async_context(etcd)
        proxy = await stack.enter_async_context(FaultProxy(etcd.endpoints[0]))
        settings = EtcdSettings(endpoints=etcd.endpoints, prefix=PREFIX, timeout=TIMEOUT)
        if fault == "the token is forgotten":
            async with kvorum.connect(settings) as client:
                await roles_of(client).enable(ROOT)
            settings = EtcdSettings(
                endpoints=etcd.endpoints, prefix=PREFIX, timeout=TIMEOUT, user="root", password=ROOT
            )
        sound = await stack.enter_async_context(kvorum.connect(settings))
        if fault in BEHIND_A_PROXY:
            settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix=PREFIX, timeout=TIMEOUT)
        troubled = await stack.enter_async_context(kvorum.connect(settings))
        yield Site(etcd, proxy, troubled, sound)


class Told:
    """The outcomes of the callers, and how many seconds they took."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, float]] = {}

    async def by(self, name: str, call: Awaitable[object]) -> None:
        started, told = anyio.current_time(), "done"
        try:
            await call
        except KvorumError as exc:
            told = type(exc).__name__
        self.answers[name] = told, anyio.current_time() - started


async def follow(watch: kvorum.StorageWatch, stream: WatchedStream, *, until: str) -> None:
    """Record what a watch shows until a key is deleted."""
    async for changes in watch:
        stream.add_changes(changes)
        if (changes[0].key, changes[0].entry) == (until, None):
            return


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_call_has_the_documented_outcome(
    fault: str, kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    major, minor, patch = kvorum_etcd.version
    hazards = {hazard.name for hazard in hazards_of((major, minor, patch))}
    if fault == "the server is killed" and "lost-entries" in hazards:
        pytest.skip("this version may lose what it has promised when it is killed")
    history, told = History(), Told()
    async with opened(fault, kvorum_etcd.binary, roles_of) as site:
        store, sound = (
            RecordingBackend(c.backend, history, "c") for c in (site.troubled, site.sound)
        )
        start = (await sound.list("")).revision
        before = Before(
            await sound.commit(
                [Operation.put(name, b"0") for name in ("swap", "commit", "delete")]
            ),
            lease=await sound.grant_lease(60),
        )
        await sound.set("leased", b"0", lease=before.lease)
        last = await sound.grant_lease(60)
        await sound.set("last", b"0", lease=last)
        stream = WatchedStream(prefix="", since=start)
        async with store.watch("", since=start) as watch, anyio.create_task_group() as group:
            async with anyio.create_task_group() as trouble:
                await trouble.start(FAULTS[fault], site)
                for name, call in CALLS.items():
                    group.start_soon(told.by, name, call(store, before))
            while len(told.answers) < len(CALLS):  # noqa: ASYNC110 - it has no event
                await anyio.sleep(0.01)
            with kvorum.deadline(20):  # after a lost quorum it may take several elections
                await sound.revoke_lease(last)  # a full server accepts that, too
            await told.by("watch", follow(watch, stream, until="last"))
        if fault == "the token is forgotten":
            await roles_of(site.sound)._call("AuthDisable", rpc.AuthDisableRequest())
        server_history = await read_server_history(site.etcd.endpoints[0], PREFIX, since=start)

    print(
        f"\n{fault}: "
        + ", ".join(f"{name} {what} {after:.1f} s" for name, (what, after) in told.answers.items())
    )
    assert check_revisions(history, server_history) == []
    assert check_watch(stream, server_history) == []
    for name, (what, after) in told.answers.items():
        assert what in expected(fault, name, hazards), name
        assert after < 3 * TIMEOUT, name
