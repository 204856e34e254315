"""The same steps on etcd and in memory give the same answers. A difference is a bug in one."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import kvorum
from kvorum import (
    Change,
    Entry,
    KvorumError,
    MemoryStorageBackend,
    Operation,
    Page,
    StorageBackend,
    StorageWatch,
)
from kvorum.storage.values import Selection

DEADLINE = 10.0
ALL_SYNCED = "\netcd_debugging_mvcc_slow_watcher_total 0\n"
KEYS = ["a", "a/b", "a\0", "\udcff"]
PREFIXES = ["", "a", "a/", "\udcff", "x"]
LEASES = 2

# Facts of errors that the port leaves open: the missing lease of a transaction, the compacted
# revision, and the text of a problem, which may contain keys as they are stored.
UNTOLD = frozenset({"lease", "compact_revision", "problems"})
LABELLED = [
    b'{"metadata":{"labels":{"a":"1"}}}',
    b'{"metadata":{"labels":{"a":"2"}}}',
    b'{"metadata":{}}',
]


class World:
    """A backend, and names for its revisions and leases that are the same in both worlds."""

    def __init__(self, backend: StorageBackend, start: int) -> None:
        self.backend = backend
        self.start = start
        self.leases: list[int] = []
        self.watches: list[StorageWatch] = []
        self.shown: list[list[Any]] = []  # by each watch

    async def compact(self, revision: int) -> None:
        raise NotImplementedError

    # --- names, in and out ---

    def revision(self, relative: int) -> int:
        return self.start + relative

    def lease(self, number: int | None) -> int | None:
        """Turn a number into a lease.

        None keeps the current one, 0 is none, the others are granted leases, or an unknown one.
        """
        if not number:
            return number
        return self.leases[number - 1] if number <= len(self.leases) else 0x7E57

    def plain(self, value: Any) -> Any:  # noqa: PLR0911 - one for each kind of answer
        """Convert an answer to a form that is comparable with the other world."""
        match value:
            case Entry():
                lease = self.leases.index(value.lease) + 1 if value.lease else 0
                revisions = [
                    revision - self.start
                    for revision in (value.mod_revision, value.create_revision)
                ]
                return value.key, value.value, *revisions, value.version, lease
            case Change():
                return (
                    value.key,
                    value.revision - self.start,
                    self.plain(value.entry),
                    self.plain(value.previous),
                )
            case Page():
                return self.plain(value.entries), value.revision - self.start, value.remaining
            case Selection():
                return (
                    self.plain(value.items),
                    value.revision - self.start,
                    value.remaining,
                    value.last,
                )
            case KvorumError():
                return self._plain_error(value)
            case list() | tuple():
                return [self.plain(each) for each in value]
            case _:
                return value

    def _plain_error(self, error: KvorumError) -> Any:
        facts = {
            name: self.plain(value) for name, value in vars(error).items() if name not in UNTOLD
        }
        for name in ("revision", "expected", "current"):
            if isinstance(facts.get(name), int) and facts[name] > 0:
                facts[name] -= self.start
        if "subject" in facts:
            facts["subject"] = (
                facts["subject"].removeprefix(self.backend.location("")).removeprefix("/")
            )
        return type(error).__name__, facts

    async def run(self, step: tuple[Any, ...]) -> Any:
        """Return the answer of a step: a result or an error."""
        try:
            return self.plain(await STEPS[step[0]](self, *step[1:]))
        except KvorumError as exc:
            return self.plain(exc)

    # --- steps ---

    async def get(self, key: str, at: int | None) -> Any:
        return await self.backend.get(key, revision=None if at is None else self.revision(at))

    async def page(self, prefix: str, limit: int | None, after: str | None, at: int | None) -> Any:
        revision = None if at is None else self.revision(at)
        return await self.backend.list(prefix, limit=limit, after=after, revision=revision)

    async def list_with_labels(self, prefix: str, labels: str, limit: int | None) -> Any:
        return await self.backend.list_with_labels(prefix, labels, limit=limit)

    async def count(self, prefix: str, at: int | None) -> Any:
        return await self.backend.count(prefix, revision=None if at is None else self.revision(at))

    async def keys(self, pattern: str) -> Any:
        return list(await self.backend.keys(pattern))

    async def exists(self, key: str) -> Any:
        return await self.backend.exists(key)

    async def set(self, key: str, value: bytes, lease: int) -> Any:
        return await self.backend.set(key, value, lease=self.lease(lease) or 0) - self.start

    async def create(self, key: str, value: bytes, lease: int) -> Any:
        return await self.backend.create(key, value, lease=self.lease(lease) or 0) - self.start

    async def swap(self, key: str, value: bytes, expected: str | int, lease: int | None) -> Any:
        found = await self._expected(key, expected)
        revision = await self.backend.compare_and_swap(
            key, value, expected=found or 0, lease=self.lease(lease)
        )
        return revision - self.start

    async def delete(self, key: str, expected: str | int | None) -> Any:
        return await self.backend.delete(key, expected=await self._expected(key, expected))

    async def commit(self, parts: list[tuple[str, str, bytes, str | int, int | None]]) -> Any:
        operations = [await self._operation(*part) for part in parts]
        return await self.backend.commit(operations) - self.start

    async def _operation(
        self, kind: str, key: str, value: bytes, expected: str | int, lease: int | None
    ) -> Operation:
        found = await self._expected(key, expected) or 0
        match kind:
            case "put":
                return Operation.put(key, value, lease=self.lease(lease) or 0)
            case "create":
                return Operation.create(key, value, lease=self.lease(lease) or 0)
            case "swap":
                return Operation.swap(key, value, expected=found, lease=self.lease(lease))
            case "delete":
                return Operation.delete(key, expected=found or None)
            case _:
                return Operation.check(key, expected=found)

    async def _expected(self, key: str, expected: str | int | None) -> int | None:
        if not isinstance(expected, str):
            return self.revision(expected) if expected else expected
        entry = await self.backend.get(key)
        if entry is None:
            return 0
        return entry.create_revision if expected == "created" else entry.mod_revision

    async def grant(self, ttl: int) -> Any:
        self.leases.append(await self.backend.grant_lease(ttl))

    async def revoke(self, number: int) -> Any:
        await self.backend.revoke_lease(self.lease(number) or 0)

    async def forget(self, relative: int) -> Any:
        """Compact if possible: the port does not define how an impossible compaction is refused.

        The watches are read first: what a slow one still shows of compacted history is up to the
        store.
        """
        current = (await self.backend.list("", limit=1)).revision
        if self.start < self.revision(relative) <= current:
            await self.catch_up()
            await self.compact(self.revision(relative))

    async def watch(self, prefix: str, since: int | None) -> Any:
        watch = self.backend.watch(prefix, since=None if since is None else self.revision(since))
        self.watches.append(watch)
        self.shown.append([])
        await watch.open()
        return watch.revision - self.start

    async def catch_up(self) -> None:
        """Record everything that the watches have shown by now."""
        last = await self.backend.commit(
            [Operation.put(f"{prefix}zz-end", b"") for prefix in PREFIXES]
        )
        for watch, shown in zip(self.watches, self.shown, strict=True):
            shown.extend(await self.read(watch, last))

    async def read(self, watch: StorageWatch, last: int) -> list[Any]:
        """Return everything that a watch shows up to a revision with a change of every prefix."""
        shown: list[Any] = []
        with anyio.fail_after(DEADLINE):
            while watch.revision < last:
                try:
                    shown.append(self.plain(await anext(watch)))
                except StopAsyncIteration:
                    break
                except KvorumError as exc:
                    shown.append(type(exc).__name__)
        return shown


STEPS = {
    name: getattr(World, name)
    for name in (
        *(
            "get",
            "page",
            "list_with_labels",
            "count",
            "keys",
            "exists",
            "set",
            "create",
            "swap",
            "delete",
            "commit",
        ),
        *("grant", "revoke", "forget", "watch"),
    )
}


class EtcdWorld(World):
    def __init__(self, client: kvorum.Client, prefix: str, start: int) -> None:
        super().__init__(kvorum.EtcdStorageBackend(client, prefix), start)
        self._client = client
        self._host, _, self._port = client.settings.endpoints[0].partition(":")

    async def compact(self, revision: int) -> None:
        """Compact once all watches are in sync: only then is it defined that they lose nothing."""
        with anyio.fail_after(DEADLINE):
            while ALL_SYNCED not in await self._metrics():  # noqa: ASYNC110 - it has no event
                await anyio.sleep(0.01)
        with suppress(kvorum.HistoryLostError):  # already compacted
            await self._client.admin.compact(revision)

    async def _metrics(self) -> str:
        async with await anyio.connect_tcp(self._host, int(self._port)) as stream:
            await stream.send(b"GET /metrics HTTP/1.0\r\n\r\n")
            return b"".join([part async for part in stream]).decode()


class MemoryWorld(World):
    def __init__(self, backend: MemoryStorageBackend) -> None:
        super().__init__(backend, 1)

    async def compact(self, revision: int) -> None:
        assert isinstance(self.backend, MemoryStorageBackend)
        with suppress(kvorum.HistoryLostError):
            await self.backend.compact(revision)


# --- possible steps ------------------------------------------------------------------------------

_key = st.sampled_from(KEYS)
_prefix = st.sampled_from(PREFIXES)
_value = st.one_of(st.binary(max_size=3), st.sampled_from(LABELLED))
_lease = st.integers(0, LEASES + 1)  # one more than exist
_past = st.integers(1, 15)
_at = st.none() | st.integers(0, 15)
_since = st.none() | st.integers(
    -1, 15
)  # relative to the start, which is 1 in memory: -1 is revision 0
_expected = st.one_of(st.just("current"), st.just("current"), st.just("created"), st.just(0), _past)
_part = st.tuples(
    st.sampled_from(["put", "create", "swap", "delete", "check"]),
    _key,
    _value,
    _expected,
    st.none() | _lease,
)
_step = st.one_of(
    st.tuples(st.just("set"), _key, _value, _lease),
    st.tuples(st.just("set"), _key, _value, st.just(0)),
    st.tuples(st.just("create"), _key, _value, _lease),
    st.tuples(st.just("swap"), _key, _value, _expected, st.none() | _lease),
    st.tuples(st.just("delete"), _key, st.none() | _expected),
    st.tuples(st.just("commit"), st.lists(_part, max_size=4)),
    st.tuples(st.just("get"), _key, _at),
    st.tuples(st.just("page"), _prefix, st.none() | st.integers(0, 3), st.none() | _key, _at),
    st.tuples(
        st.just("list_with_labels"),
        _prefix,
        st.sampled_from(["a=1", "a", "!a"]),
        st.none() | st.integers(1, 3),
    ),
    st.tuples(st.just("count"), _prefix, _at),
    st.tuples(st.just("keys"), st.sampled_from(["*", "a*", "?", "a/?", "[!a]*", "a"])),
    st.tuples(st.just("exists"), _key),
    st.tuples(st.just("grant"), st.integers(500, 1000)),
    st.tuples(st.just("revoke"), st.integers(1, LEASES + 1)),
    st.tuples(st.just("forget"), _past),
    st.tuples(st.just("watch"), _prefix, _since),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def client(runner: asyncio.Runner, pytestconfig: pytest.Config) -> Iterator[kvorum.Client]:
    """A client of a dedicated server: other writers would change its revisions."""
    etcd = kvorum.EmbeddedEtcd(binary=pytestconfig.getoption("--kvorum-etcd-bin"))
    runner.run(etcd.__aenter__())
    client = runner.run(kvorum.connect(etcd.url).__aenter__())
    yield client
    runner.run(client.aclose())
    runner.run(etcd.__aexit__(None, None, None))


Steps: TypeAlias = list[tuple[Any, ...]]


class Transcript(NamedTuple):
    """What a world answered to each step, and what its watches showed."""

    answers: list[Any]
    shown: list[list[Any]]


def framed(steps: Steps) -> Steps:
    """Put a key and leases before the steps, and a list of everything after them."""
    beginning = [("set", "seed", b"", 0), *[("grant", 600)] * LEASES]
    return [*beginning, *steps, ("page", "", None, None, None)]


async def finish(world: World) -> list[list[Any]]:
    await world.catch_up()
    for watch in world.watches:
        await watch.aclose()
    return world.shown


async def play(world: World, steps: Steps) -> Transcript:
    return Transcript([await world.run(step) for step in framed(steps)], await finish(world))


async def compare(expected: Transcript, world: World, steps: Steps) -> None:
    """Stop at the first step that a world answers differently: what follows it says nothing."""
    for step, answer in zip(framed(steps), expected.answers, strict=True):
        assert answer == await world.run(step), step
    assert expected.shown == await finish(world)


@pytest.fixture(scope="module")
def on_etcd(client: kvorum.Client) -> Callable[[Steps], Awaitable[Transcript]]:
    """Play steps on etcd, under a prefix of their own."""
    numbers = count()

    async def on_etcd(steps: Steps) -> Transcript:
        start = (await client.backend.list("", limit=1)).revision
        return await play(EtcdWorld(client, f"world-{next(numbers)}", start), steps)

    return on_etcd


@pytest.fixture(scope="module")
def check(
    on_etcd: Callable[[Steps], Awaitable[Transcript]], runner: asyncio.Runner
) -> Callable[..., None]:
    """Compare etcd with backends of a kind in so many sequences of steps.

    `derandomize` draws the same sequences in each test. Etcd plays each of them once: all planted
    faults are compared with that transcript.
    """
    known: dict[str, Transcript] = {}

    async def transcript(steps: Steps, *, keep: bool) -> Transcript:
        name = repr(steps)
        found = known.get(name) or await on_etcd(steps)
        if keep:
            known[name] = found
        return found

    def check(
        make: Callable[[], MemoryStorageBackend], examples: int, *, derandomize: bool = False
    ) -> None:
        async def run(steps: Steps) -> None:
            expected = await transcript(steps, keep=derandomize)
            await compare(expected, MemoryWorld(make()), steps)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=derandomize,
            # Steps are few, and shrinking them takes longer than reading them.
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(st.lists(_step, min_size=10, max_size=40))
        def sequences(steps: Steps) -> None:
            runner.run(run(steps))

        sequences()

    return check


def test_etcd_and_memory_answer_the_same(check: Callable[..., None]) -> None:
    check(MemoryStorageBackend, 250)


# --- planted faults --------------------------------------------------


class SetKeepsLeases(MemoryStorageBackend):
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        current = await self.get(key)
        return await super().set(
            key, value, lease=lease or (current.lease if current else 0), unique=unique
        )


class EveryDeleteIsARevision(MemoryStorageBackend):
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        if not await self.exists(key):
            self._store.timeline.revision += 1
            self._store.timeline._log.append(())
        return await super().delete(key, expected=expected, expected_value=expected_value)


class SwapsCompareVersions(MemoryStorageBackend):
    async def compare_and_swap(
        self,
        key: str,
        value: bytes,
        *,
        expected: int,
        lease: int | None = None,
        unique: bool = False,
        expected_value: bytes | None = None,
    ) -> int:
        current = await self.get(key)
        if current is not None and expected == current.create_revision:
            expected = current.mod_revision
        return await super().compare_and_swap(
            key, value, expected=expected, lease=lease, unique=unique, expected_value=expected_value
        )


class PagesRepeatTheirFirstKey(MemoryStorageBackend):
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        return await super().list(
            prefix, limit=limit, after=after[:-1] or None if after else None, revision=revision
        )


class WatchesShowTheirStart(MemoryStorageBackend):
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        return super().watch(
            prefix, since=max(since - 1, 0) if since else since, bookmarks=bookmarks
        )


class RevocationsTakeARevisionForEachKey(MemoryStorageBackend):
    async def revoke_lease(self, lease: int) -> None:
        for entry in (await self.list("")).entries:
            if lease and entry.lease == lease:
                await self.delete(entry.key)
        await super().revoke_lease(lease)


class CommitsAreNotAtomic(MemoryStorageBackend):
    async def commit(self, operations: Sequence[Operation]) -> int:
        for operation in operations[:-1]:
            if operation.writes:
                await super().commit([operation])
        return await super().commit(operations[-1:])


class CompactionsForgetTheirRevision(MemoryStorageBackend):
    async def compact(self, revision: int) -> None:
        await super().compact(revision)
        self._store.timeline.compacted += 1


FAULTS = [
    SetKeepsLeases,
    EveryDeleteIsARevision,
    SwapsCompareVersions,
    PagesRepeatTheirFirstKey,
    WatchesShowTheirStart,
    RevocationsTakeARevisionForEachKey,
    CommitsAreNotAtomic,
    CompactionsForgetTheirRevision,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(
    check: Callable[..., None], fault: type[MemoryStorageBackend]
) -> None:
    with pytest.raises(AssertionError):
        check(fault, 1000, derandomize=True)
