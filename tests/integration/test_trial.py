"""Workloads on real stores, recorded and judged; faulty stores are found."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable

import anyio
import msgspec
import pytest

import kvorum
from kvorum import (
    AlreadyExistsError,
    ConflictError,
    Entry,
    HistoryLostError,
    KvorumError,
    MemoryStorageBackend,
    NotFoundError,
    Operation,
    OutcomeUnknownError,
    Page,
    UnavailableError,
)
from kvorum.cli import main
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.testing import (
    FAULTS,
    Answer,
    FaultProxy,
    FaultScript,
    History,
    Observation,
    Outcome,
    RecordingBackend,
    RecordingRepository,
    Rule,
    ServerHistory,
    Step,
    Violation,
    Workload,
    check_linearizability,
    check_revisions,
    read_server_history,
    run_trial,
)

# --- healthy and troubled servers -----------------------------------------------------------------


@pytest.fixture
def endpoint(kvorum_etcd: kvorum.EmbeddedEtcd) -> str:
    return kvorum_etcd.endpoints[0]


async def test_a_healthy_server_is_found_right(endpoint: str, kvorum_client: kvorum.Client) -> None:
    verdict = await run_trial(
        endpoint, [kvorum_client], Workload(operations=2000, clients=16, keys=10)
    )

    assert verdict.is_right, str(verdict)
    assert len(verdict.history.calls) >= 2000
    assert len(verdict.server_history.revisions) > 300
    (stream,) = verdict.streams
    assert len(stream.shown) == len(verdict.server_history.revisions)
    names = Counter(call.name for call in verdict.history.calls)
    assert set(names) >= {
        "get",
        "set",
        "create",
        "compare_and_swap",
        "delete",
        "commit",
        "list",
        "count",
        "exists",
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_server_behind_a_bad_network_is_found_right(
    endpoint: str, kvorum_url: str, seed: int
) -> None:
    """Nothing is lost, invented or applied twice; unknown outcomes are reported as unknown."""
    prefix = kvorum_url.rpartition("/")[2]
    async with FaultProxy(endpoint) as proxy:
        settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=1.0)
        async with kvorum.connect(settings) as one, kvorum.connect(settings) as other:
            script = FaultScript.random(seed, number=15)
            workload = Workload(operations=500, clients=16, keys=10, seed=seed)
            verdict = await run_trial(endpoint, [one, other], workload, proxy=proxy, script=script)

    assert verdict.violations == []
    assert len(verdict.history.faults) == 15
    assert verdict.history.idle_faults == []
    assert any(call.outcome is Outcome.UNKNOWN for call in verdict.history.calls)


async def test_a_write_that_arrives_after_everybody_has_given_it_up_is_told_from_a_wrong_one(
    endpoint: str, kvorum_url: str
) -> None:
    """In flight for long, unknown, read as absent, then present: late is not wrong."""
    prefix = kvorum_url.rpartition("/")[2]
    history = History()
    async with FaultProxy(endpoint) as proxy, kvorum.connect(kvorum_url) as direct:
        start = (await direct.backend.list("")).revision
        settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=0.5)
        async with kvorum.connect(settings) as client:
            late = RecordingBackend(client.backend, history, "late")
            there = RecordingBackend(direct.backend, history, "there")
            # Not held: the end of the call, half a second later, would arrive together with its
            # beginning, and undo it.
            proxy.delay(1.5, "requests")
            async with direct.backend.watch("k") as watch:
                with pytest.raises(OutcomeUnknownError):
                    await late.set("k", b"late")
                assert await there.get("k") is None
                with anyio.fail_after(10):
                    await anext(watch)
            assert await there.get("k") is not None

    server_history = await read_server_history(endpoint, prefix, since=start)
    assert check_revisions(history, server_history) == []
    assert check_linearizability(history) == []


async def test_a_trial_needs_an_empty_prefix(endpoint: str, kvorum_client: kvorum.Client) -> None:
    """Earlier data belongs to no call and would be taken for invented."""
    await kvorum_client.backend.set("k0", b"")

    with pytest.raises(kvorum.InvalidResourceError, match="nothing in it"):
        await run_trial(endpoint, [kvorum_client], Workload())


async def test_a_workload_is_repeated_by_its_seed() -> None:
    """The requests of each client, that is; how they interleave is up to the store.

    A single client meets no other.
    """

    async def asked_for(seed: int) -> list[str]:
        history = History()
        await Workload(operations=200, clients=1, seed=seed).run([MemoryStorageBackend()], history)
        return [f"{call} {call.requested}" for call in history.calls]

    assert await asked_for(1) == await asked_for(1)
    assert await asked_for(1) != await asked_for(2)


def test_a_fault_that_hits_nothing_is_not_passed() -> None:
    history = History()
    history.mark("cut")
    call = history.start("c", "get")
    history.mark("cut")
    history.end(call, Outcome.DONE, Answer())

    assert [fault.in_flight for fault in history.faults] == [(), (call.started,)]
    assert history.idle_faults == [history.faults[0]]


def test_a_script_is_repeated_by_its_seed() -> None:
    assert FaultScript.random(1, number=20) == FaultScript.random(1, number=20)
    assert FaultScript.random(1, number=20) != FaultScript.random(2, number=20)
    assert {step.fault for step in FaultScript.random(1, number=200).steps} == set(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_fault_of_a_script_is_healed(
    endpoint: str, kvorum_url: str, fault: str
) -> None:
    prefix = kvorum_url.rpartition("/")[2]
    async with FaultProxy(endpoint) as proxy:
        settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=1.0)
        async with kvorum.connect(settings) as client:
            await FaultScript([Step(0.0, fault, 0.05)]).play(proxy, History())
            with anyio.fail_after(10):
                while True:
                    try:
                        await client.backend.get("a")
                        break
                    except KvorumError:
                        await anyio.sleep(0.01)


# --- faulty stores are found ----------------------------------------------------------------------


def truth_of(backend: MemoryStorageBackend) -> ServerHistory:
    timeline = backend._store.timeline
    return ServerHistory(
        [tuple(change for _, change in changed) for changed in timeline._log], end=timeline.revision
    )


async def judged(backend: MemoryStorageBackend, workload: Workload) -> set[Rule]:
    history = History()
    await workload.run([backend], history)
    violations: list[Violation] = [
        *check_revisions(history, truth_of(backend)),
        *check_linearizability(history),
    ]
    return {violation.rule for violation in violations}


CONTENDED = Workload(operations=1500, clients=8, keys=3, seed=1)


async def test_a_sound_store_in_memory_is_found_right() -> None:
    assert await judged(MemoryStorageBackend(), CONTENDED) == set()


class LosesUpdates(MemoryStorageBackend):
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
        del expected, expected_value
        return await self.set(key, value, lease=lease or 0, unique=unique)


class RemembersReads(MemoryStorageBackend):
    """A cache that is never updated."""

    def __init__(self) -> None:
        super().__init__()
        self._reads: dict[str, Entry | None] = {}

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        if key not in self._reads:
            self._reads[key] = await super().get(key, revision=revision)
            return self._reads[key]
        return self._reads.pop(key)


class ListsLag(MemoryStorageBackend):
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        now = (await super().list(prefix)).revision
        return await super().list(
            prefix, limit=limit, after=after, revision=revision or max(now - 3, 1)
        )


class WritesTwice(MemoryStorageBackend):
    """A retry of a write that was applied."""

    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        await super().set(key, value, lease=lease, unique=unique)
        return await super().set(key, value, lease=lease, unique=unique)


class ForgetsWrites(MemoryStorageBackend):
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        if value.endswith(b"7"):
            return (await self.list("", limit=1)).revision
        return await super().set(key, value, lease=lease, unique=unique)


class RefusesWhatItDoes(MemoryStorageBackend):
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        await self.set(key, value, lease=lease, unique=unique)
        raise AlreadyExistsError(key)


class TearsCommits(MemoryStorageBackend):
    async def commit(self, operations: list[Operation]) -> int:  # type: ignore[override]
        for operation in operations[1:]:
            if operation.writes:
                await super().commit([operation])
        return await super().commit(operations[:1])


@pytest.mark.parametrize(
    ("store", "rule"),
    [
        (LosesUpdates, Rule.BROKEN_EXPECTATION),
        (RemembersReads, Rule.STALE_READ),
        (ListsLag, Rule.STALE_READ),
        (WritesTwice, Rule.APPLIED_TWICE),
        (ForgetsWrites, Rule.LOST_WRITE),
        (RefusesWhatItDoes, Rule.FALSE_REFUSAL),
        (TearsCommits, Rule.LOST_WRITE),
    ],
)
async def test_a_wrong_store_is_found_out(
    store: Callable[[], MemoryStorageBackend], rule: Rule
) -> None:
    assert rule in await judged(store(), CONTENDED)


# --- what is recorded -----------------------------------------------------------------------------


async def test_every_call_is_recorded_with_what_it_wanted_and_what_it_was_told() -> None:
    history = History()
    backend = RecordingBackend(MemoryStorageBackend(), history, "c")
    revision = await backend.create("a", b"1")
    entry = await backend.get("a")
    with pytest.raises(AlreadyExistsError):
        await backend.create("a", b"2")
    with pytest.raises(ConflictError):
        await backend.compare_and_swap("a", b"2", expected=99)
    with pytest.raises(NotFoundError):
        await backend.delete("b")
    page = await backend.list("", limit=1)
    assert await backend.count("") == 1
    change = await backend.delete("a")

    created, got, refused, conflict, missing, listed, counted, deleted = history.calls
    assert [call.name for call in history.calls] == [
        *("create", "get", "create", "compare_and_swap", "delete", "list", "count", "delete")
    ]
    assert (created.outcome, created.revision, created.requested[0].expected) == (
        Outcome.DONE,
        revision,
        0,
    )
    assert got.observation == Observation.of("a", entry)
    assert (refused.outcome, refused.observation) == (
        Outcome.REFUSED,
        Observation("a", exists=True),
    )
    assert conflict.observation == Observation.of("a", entry, unlike=99)
    assert (missing.outcome, missing.observation) == (
        Outcome.REFUSED,
        Observation("b", exists=False),
    )
    assert listed.snapshot is not None
    assert (list(listed.snapshot.entries), listed.snapshot.revision) == (
        page.entries,
        page.revision,
    )
    assert counted.count is not None
    assert counted.count.number == 1
    assert deleted.change == change
    order = [number for call in history.calls for number in (call.started, call.ended)]
    assert order == sorted(order, key=lambda number: number or 0)
    assert "c's create('a')" in str(created)


async def test_what_becomes_of_a_call_that_fails_is_recorded_as_what_its_client_knows() -> None:
    class Failing(MemoryStorageBackend):
        error: BaseException = UnavailableError("nowhere", "down")

        async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
            del key, value, lease, unique
            raise self.error

    history, store = History(), Failing()
    backend = RecordingBackend(store, history, "c")
    for error, outcome in (
        (UnavailableError("nowhere", "down"), Outcome.REFUSED),
        (OutcomeUnknownError("a", "no answer"), Outcome.UNKNOWN),
        (asyncio.CancelledError(), Outcome.UNKNOWN),
    ):
        store.error = error
        with pytest.raises(type(error)):
            await backend.set("a", b"1")
        assert history.calls[-1].outcome is outcome
        assert (history.calls[-1].ended is None) == isinstance(error, asyncio.CancelledError)
        assert history.calls[-1].error


async def test_a_read_that_fails_is_recorded_with_what_it_was_about() -> None:
    class Failing(MemoryStorageBackend):
        async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
            del key, revision
            raise UnavailableError("nowhere", "down")

    history = History()
    async with kvorum.connect(Failing()) as client:
        backend, workers = (
            RecordingBackend(client.backend, history, "c"),
            LabWorkerRepository(client),
        )
        for call in (
            backend.get("a"),
            RecordingRepository(workers, history, "c").get("worker-001"),
        ):
            with pytest.raises(UnavailableError):
                await call

    assert [str(call).split(" [")[0] for call in history.calls] == [
        "c's get('a')",
        "c's get('worker-001')",
    ]


async def test_a_repository_is_held_to_what_it_returned() -> None:
    store = MemoryStorageBackend()
    async with kvorum.connect(store) as client:
        history = History()
        workers = RecordingRepository(LabWorkerRepository(client), history, "c")
        worker = await workers.add(LabWorker.new("w", lab_track="x"))
        worker.metadata.annotations["a"] = "1"
        worker = await workers.update(worker)
        worker = await workers.update_status(worker)  # changes nothing
        worker = await workers.mutate("w", lambda worker: worker.metadata.annotations.update(b="2"))
        worker = await workers.patch("w", {"metadata": {"finalizers": ["example.org/x"]}})
        assert await workers.get("w") == worker
        assert await workers.exists("w")
        with pytest.raises(ConflictError):
            await workers.delete("w", uid="another")
        worker = await workers.delete("w")  # only marked
        await LabWorkerRepository(client).mutate(
            "w", lambda worker: worker.metadata.finalizers.clear()
        )
        await workers.add(LabWorker.new("v", lab_track="x"))
        await workers.delete("v")

        assert check_revisions(history, truth_of(store), is_complete=False) == []
        assert check_linearizability(history) != []  # it says nothing about the authors of writes
        spoilt = msgspec.structs.replace(history.calls[3], observation=history.calls[0].observation)
        history.calls[3] = spoilt
        assert {
            each.rule for each in check_revisions(history, truth_of(store), is_complete=False)
        } == {Rule.STALE_READ}


# --- the server's history -------------------------------------------------------------------------


async def test_the_truth_is_the_whole_history_of_a_prefix(
    endpoint: str, kvorum_client: kvorum.Client, kvorum_url: str
) -> None:
    backend, prefix = kvorum_client.backend, kvorum_client.settings.prefix
    start = (await backend.list("")).revision
    first = await backend.set("a", b"1")
    async with kvorum.connect(f"{kvorum_url}-other") as other:
        await other.backend.set("a", b"not here")
    lease = await backend.grant_lease(600)
    second = await backend.commit(
        [Operation.put("a", b"2", lease=lease), Operation.create("b\udcff", bytes(range(256)))]
    )
    third = (await backend.delete("a")).revision

    server_history = await read_server_history(endpoint, prefix, since=start)
    one, two = Entry("a", b"1", first, first, 1), Entry("a", b"2", second, first, 2, lease)
    assert list(server_history.revisions) == [first, second, third]
    assert server_history.revisions[second] == (
        kvorum.Change("a", second, two, one),
        kvorum.Change(
            "b\udcff", second, Entry("b\udcff", bytes(range(256)), second, second, 1), None
        ),
    )
    assert server_history.revisions[third] == (kvorum.Change("a", third, None, two),)
    assert server_history.end >= third


async def test_a_truth_that_was_compacted_is_none(kvorum_etcd: kvorum.EmbeddedEtcd) -> None:
    async with (
        kvorum.EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd,
        kvorum.connect(etcd.url) as client,
    ):
        await client.backend.set("a", b"1")
        revision = await client.backend.set("a", b"2")
        await client.admin.compact(revision)

        with pytest.raises(HistoryLostError):
            await read_server_history(etcd.endpoints[0], client.settings.prefix)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("faults", ["0", "3"])
def test_the_command_exits_with_0_if_all_is_right(
    faults: str, capsys: pytest.CaptureFixture[str], kvorum_etcd: kvorum.EmbeddedEtcd
) -> None:
    arguments = ["--operations", "500", "--faults", faults, "--etcd-bin", str(kvorum_etcd.binary)]
    with pytest.raises(SystemExit) as caught:
        main(["trial", *arguments])

    printed = capsys.readouterr().out
    assert caught.value.code == 0, printed
    assert "nothing is wrong" in printed


def test_a_command_that_found_something_exits_with_1(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kvorum_etcd: kvorum.EmbeddedEtcd,
) -> None:
    get = kvorum.EtcdStorageBackend.get

    async def lie(
        self: kvorum.EtcdStorageBackend, key: str, *, revision: int | None = None
    ) -> Entry | None:
        found = await get(self, key, revision=revision)
        return (
            msgspec.structs.replace(found, value=b"a lie")
            if found is not None and key == "k0"
            else found
        )

    monkeypatch.setattr(kvorum.EtcdStorageBackend, "get", lie)
    with pytest.raises(SystemExit) as caught:
        main(["trial", "--operations", "300", "--keys", "3", "--etcd-bin", str(kvorum_etcd.binary)])

    assert caught.value.code == 1
    assert "invented read" in capsys.readouterr().out


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kvorum.testing", None)

    with pytest.raises(SystemExit, match=r"pip install 'kvorum\[cli,embedded,testing\]'"):
        main(["trial"])
