"""Incorrect histories, each with the rule that it breaks."""

import msgspec
import pytest

import kvorum
from kvorum.lab import LabWorker, LabWorkerRepository
from kvorum.memory import MemoryStorageBackend
from kvorum.storage.port import StorageBackend
from kvorum.storage.values import Change, Entry
from kvorum.testing import (
    Call,
    Count,
    History,
    Observation,
    Outcome,
    RecordingBackend,
    RecordingRepository,
    Rule,
    ServerHistory,
    Violation,
    WatchedStream,
    Write,
    check_linearizability,
    check_resumed,
    check_revisions,
    check_watch,
)

A = Change("a", 2, Entry("a", b"1", 2, 2, 1), None)
B = Change("b", 3, Entry("b", b"2", 3, 3, 1), None)
TWO_KEYS = ServerHistory([(A,), (B,)], end=3)


def history(*calls: Call) -> History:
    made = History()
    made.calls.extend(calls)
    return made


def done(name: str, started: int, write: Write, revision: int, *, ended: int = 0) -> Call:
    return Call(
        client="x",
        name=name,
        started=started,
        ended=ended or started + 1,
        requested=(write,),
        revision=revision,
    )


def rules(violations: list[Violation]) -> set[Rule]:
    return {violation.rule for violation in violations}


def reads_at(revision: int) -> list[Call]:
    """Return reads of the past, each of which ended before "b" was written."""
    entry = TWO_KEYS.entry("b", revision)
    return [
        Call(
            client="y",
            name="get",
            started=3,
            ended=4,
            observation=Observation.of("b", entry, at=revision),
        ),
        Call(client="y", name="count", started=3, ended=4, count=Count("", 2, at=revision)),
    ]


@pytest.mark.parametrize("read", reads_at(3), ids=lambda call: call.name)
def test_nothing_can_be_read_at_a_revision_that_is_written_later(read: Call) -> None:
    made = history(done("set", 1, Write("a", b"1"), 2), read, done("set", 5, Write("b", b"2"), 3))

    assert rules(check_revisions(made, TWO_KEYS)) == {Rule.REAL_TIME}


@pytest.mark.parametrize("read", reads_at(9), ids=lambda call: call.name)
def test_nothing_can_be_read_beyond_the_end(read: Call) -> None:
    made = history(done("set", 1, Write("a", b"1"), 2), done("set", 3, Write("b", b"2"), 3))
    made.calls.append(msgspec.structs.replace(read, started=5, ended=6))

    assert rules(check_revisions(made, TWO_KEYS)) == {Rule.INVENTED_READ}


def test_revisions_do_not_go_back_from_one_key_to_another() -> None:
    """Each key alone is correct: clients see one order over all keys."""
    made = history(done("set", 1, Write("a", b"1"), 10), done("set", 3, Write("b", b"2"), 5))

    assert rules(check_linearizability(made)) == {Rule.REAL_TIME}


def test_revisions_do_not_go_back_over_a_deletion() -> None:
    made = history(
        done("set", 1, Write("a", b"1"), 3),
        done("delete", 3, Write("a"), 10),
        done("set", 5, Write("a", b"2"), 5),
    )

    assert Rule.REAL_TIME in rules(check_linearizability(made))


def test_what_was_removed_at_a_later_revision_is_not_read_after_that() -> None:
    """The write and the deletion overlap, so their revisions alone put them in order."""
    made = history(
        done("set", 1, Write("a", b"1"), 5, ended=4),
        done("delete", 2, Write("a"), 10, ended=5),
        Call(
            client="y",
            name="get",
            started=6,
            ended=7,
            observation=Observation("a", exists=True, revision=5, value=b"1"),
        ),
    )

    assert rules(check_linearizability(made)) == {Rule.NOT_LINEARIZABLE}


def test_a_swap_is_not_refused_at_the_revision_that_it_expects() -> None:
    conflict = Observation("a", exists=True, revision=2, value=b"1", unlike=2)
    refused = Call(
        client="y", name="swap", started=3, ended=4, outcome=Outcome.REFUSED, observation=conflict
    )

    made = history(done("set", 1, Write("a", b"1"), 2), refused)

    assert rules(check_linearizability(made)) == {Rule.FALSE_REFUSAL}


# --- leases ---------------------------------------------------------------------------------------


async def leased(ttl: float) -> tuple[History, StorageBackend, Entry]:
    """Return the record of a key with a lease, and the key."""
    made = History()
    recording = RecordingBackend(MemoryStorageBackend(), made, "x")
    await recording.set("a", b"1", lease=await recording.grant_lease(ttl))
    entry = await recording.get("a")
    assert entry is not None
    return made, recording, entry


def gone(entry: Entry, *, end: int = 0) -> ServerHistory:
    after = entry.mod_revision + 1
    return ServerHistory(
        [(Change("a", entry.mod_revision, entry, None),), (Change("a", after, None, entry),)],
        end=end or after,
    )


async def test_a_key_is_not_gone_before_its_lease() -> None:
    made, _, entry = await leased(3600)

    assert rules(check_revisions(made, gone(entry))) == {Rule.LEASE_ENDED_EARLY}


async def test_a_key_is_not_gone_before_its_lease_is_revoked() -> None:
    made, recording, entry = await leased(3600)
    after = entry.mod_revision + 1
    made.calls.append(
        Call(client="y", name="get", started=90, ended=91, observation=Observation.of("a", entry)),
    )
    await recording.set("b", b"2")
    told = msgspec.structs.replace(made.calls[-1], started=100, ended=101, revision=after + 1)
    made.calls[-1] = told
    made._numbers = iter(range(200, 300))  # type: ignore[assignment]
    await recording.revoke_lease(entry.lease)
    written = Change("b", after + 1, Entry("b", b"2", after + 1, after + 1, 1), None)
    server_history = ServerHistory([*gone(entry).revisions.values(), (written,)], end=after + 1)

    assert rules(check_revisions(made, server_history)) == {Rule.LEASE_ENDED_EARLY}


async def test_without_a_truth_a_key_is_not_gone_before_its_lease_either() -> None:
    made, _, _ = await leased(3600)
    number = made.calls[-1].ended or 0
    made.calls.append(
        Call(
            client="y",
            name="get",
            started=number + 1,
            ended=number + 2,
            observation=Observation.of("a", None),
        )
    )

    assert rules(check_linearizability(made)) == {Rule.NOT_LINEARIZABLE}


async def test_a_key_does_not_outlive_its_lease() -> None:
    made, recording, entry = await leased(3600)
    await recording.revoke_lease(entry.lease)
    server_history = ServerHistory(
        [(Change("a", entry.mod_revision, entry, None),)], end=entry.mod_revision
    )

    assert rules(check_revisions(made, server_history)) == {Rule.LEASE_OUTLIVED}


async def test_a_key_is_on_the_lease_that_was_asked_for() -> None:
    made, _, entry = await leased(3600)
    without = msgspec.structs.replace(entry, lease=0)
    made.calls.pop()  # the read that observed it
    server_history = ServerHistory(
        [(Change("a", entry.mod_revision, without, None),)], end=entry.mod_revision
    )

    assert rules(check_revisions(made, server_history)) == {Rule.WRONG_VALUE}


async def test_a_swap_keeps_the_lease_unless_it_is_given_another() -> None:
    made, recording, entry = await leased(3600)
    await recording.compare_and_swap("a", b"2", expected=entry.mod_revision)
    after = Entry("a", b"2", entry.mod_revision + 1, entry.create_revision, 2, lease=0)
    first = Change("a", entry.mod_revision, entry, None)
    server_history = ServerHistory(
        [(first,), (Change("a", after.mod_revision, after, entry),)], end=after.mod_revision
    )

    assert rules(check_revisions(made, server_history)) == {Rule.WRONG_VALUE}


async def test_a_lease_that_is_there_is_not_missing() -> None:
    made, recording, entry = await leased(3600)
    await recording._backend.revoke_lease(entry.lease)  # type: ignore[attr-defined]  # unrecorded
    with pytest.raises(kvorum.LeaseNotFoundError):
        await recording.set("b", b"2", lease=entry.lease)

    assert Rule.FALSE_REFUSAL in rules(check_revisions(made, gone(entry)))


# --- refusals -------------------------------------------------------------------------------------


def test_a_revision_that_was_reached_is_not_the_future() -> None:
    refused = Call(
        client="y",
        name="get",
        started=5,
        ended=6,
        outcome=Outcome.REFUSED,
        subject="a",
        error=str(kvorum.FutureRevisionError(revision=3)),
    )
    made = history(
        done("set", 1, Write("a", b"1"), 2), done("set", 3, Write("b", b"2"), 3), refused
    )

    assert rules(check_revisions(made, TWO_KEYS)) == {Rule.FALSE_REFUSAL}


class FindsNothing(MemoryStorageBackend):
    """Finds nothing."""

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        del key, revision
        return None


async def test_a_resource_that_is_there_is_not_missing() -> None:
    made, store = History(), FindsNothing()
    async with kvorum.connect(store) as client:
        workers = RecordingRepository(LabWorkerRepository(client), made, "x")
        worker = await workers.add(LabWorker.new("w", lab_track="t"))
        for call in (workers.get("w"), workers.mutate("w", lambda _: None)):
            with pytest.raises(kvorum.NotFoundError):
                await call
        entry = await MemoryStorageBackend.get(store, "lab-workers/w")
    server_history = ServerHistory(
        [(Change("lab-workers/w", worker.metadata.resource_version, entry, None),)], end=10
    )

    found = check_revisions(made, server_history, is_complete=False)
    assert [violation.rule for violation in found] == [Rule.STALE_READ, Rule.STALE_READ]


async def test_two_answers_about_one_lost_write_agree() -> None:
    class Wavers(MemoryStorageBackend):
        async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
            await super().set(key, value, lease=lease, unique=unique)
            raise kvorum.OutcomeUnknownError(key, "no answer")

        async def settle(self, lost: kvorum.OutcomeUnknownError) -> int:
            found = await self.get(lost.subject)
            assert found is not None
            self.said = getattr(self, "said", 1) + 1
            return self.said

    made = History()
    recording = RecordingBackend(Wavers(), made, "x")
    with pytest.raises(kvorum.OutcomeUnknownError) as caught:
        await recording.set("a", b"1")
    for _ in range(2):
        await recording.settle(caught.value)

    assert rules(check_revisions(made, ServerHistory([(A,)], end=3))) == {Rule.WRONG_CHANGE}


# --- watches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("version", Rule.WRONG_EVENT),
        ("create_revision", Rule.WRONG_EVENT),
        ("lease", Rule.WRONG_EVENT),
    ],
)
def test_a_watch_tells_all_of_an_entry(field: str, rule: Rule) -> None:
    entry = Entry("a", b"1", 2, 2, 1, 77)
    wrong = msgspec.structs.replace(entry, **{field: 9})
    stream = WatchedStream(prefix="", since=1)
    stream.add_changes([Change("a", 2, wrong, None)])

    assert rules(check_watch(stream, ServerHistory([(Change("a", 2, entry, None),)], end=2))) == {
        rule
    }


def test_a_watch_tells_all_of_what_was_before() -> None:
    one, two = Entry("a", b"1", 2, 2, 1), Entry("a", b"2", 3, 2, 2)
    stream = WatchedStream(prefix="", since=2)
    stream.add_changes([Change("a", 3, two, msgspec.structs.replace(one, lease=77))])
    server_history = ServerHistory(
        [(Change("a", 2, one, None),), (Change("a", 3, two, one),)], end=3
    )

    assert rules(check_watch(stream, server_history)) == {Rule.WRONG_PREVIOUS}


@pytest.mark.parametrize("since", [1, 3, 9], ids=["before", "over an event", "beyond the end"])
def test_a_watch_goes_on_where_it_has_got_to(since: int) -> None:
    one, other = WatchedStream(prefix="", since=1), WatchedStream(prefix="", since=since)
    one.add_changes([A])
    other.complete_to = 0

    assert Rule.WRONG_RESUMPTION in rules(check_resumed([one, other], TWO_KEYS))
