"""Right histories that are easily taken for wrong ones, and searches that have to end."""

import time

import anyio
import pytest

import kvorum
from kvorum.cli.trial import UNDECIDED, exit_code
from kvorum.memory import MemoryStorageBackend
from kvorum.storage.values import Change, Entry
from kvorum.testing import (
    Call,
    History,
    Observation,
    Outcome,
    RecordingBackend,
    Rule,
    ServerHistory,
    Verdict,
    WatchedStream,
    Write,
    check_linearizability,
    check_resumed,
    check_revisions,
    check_watch,
)

ONE, TWO = Entry("a", b"1", 2, 2, 1), Entry("a", b"2", 3, 2, 2)


def history(*calls: Call) -> History:
    made = History()
    made.calls.extend(calls)
    return made


def call(name: str, started: int, ended: int, *requested: Write, revision: int = 0) -> Call:
    outcome = Outcome.DONE if revision else Outcome.UNKNOWN
    return Call(
        client="x",
        name=name,
        started=started,
        ended=ended,
        outcome=outcome,
        requested=requested,
        revision=revision,
    )


def get(started: int, entry: Entry | None) -> Call:
    return Call(
        client="y",
        name="get",
        started=started,
        ended=started + 1,
        observation=Observation.of("a", entry),
    )


# --- what was lost, and yet applied ---------------------------------------------------------------


def test_a_lost_deletion_may_have_ridden_with_another_call() -> None:
    """They share a revision, so it holds more than the deletion wanted."""
    gone, other = Change("a", 4, None, TWO), Change("b", 4, Entry("b", b"3", 4, 4, 1), None)
    made = history(
        call("set", 1, 2, Write("a", b"1"), revision=2),
        call("set", 3, 4, Write("a", b"2"), revision=3),
        call("delete", 5, 6, Write("a", None, 2)),  # too late
        call("delete", 7, 10, Write("a")),  # this was it
        call("set", 8, 11, Write("b", b"3"), revision=4),
    )
    server_history = ServerHistory(
        [(Change("a", 2, ONE, None),), (Change("a", 3, TWO, ONE),), (gone, other)], end=4
    )

    assert check_revisions(made, server_history) == []
    assert check_linearizability(made, server_history) == []
    assert check_linearizability(made) == []


def test_two_lost_deletions_may_have_ridden_together() -> None:
    b = Entry("b", b"1", 3, 3, 1)
    made = history(
        call("set", 1, 2, Write("a", b"1"), revision=2),
        call("set", 3, 4, Write("b", b"1"), revision=3),
        call("delete", 5, 6, Write("a")),
        call("delete", 7, 8, Write("b")),
    )
    log = [
        (Change("a", 2, ONE, None),),
        (Change("b", 3, b, None),),
        (Change("a", 4, None, ONE), Change("b", 4, None, b)),
    ]

    assert check_revisions(made, ServerHistory(log, end=4)) == []


def test_a_swap_may_name_the_revision_of_a_put_whose_answer_was_lost() -> None:
    """A watch has told it, say: no call of the history has."""
    made = history(
        call("set", 1, 2, Write("a", b"1")), call("swap", 3, 4, Write("a", b"2", 2), revision=3)
    )

    assert check_linearizability(made) == []


def test_but_it_may_not_name_the_revision_of_something_else() -> None:
    made = history(
        call("set", 1, 2, Write("a", b"1"), revision=5),
        call("set", 3, 4, Write("a", b"2")),
        call("swap", 5, 6, Write("a", b"3", 4), revision=7),
    )

    assert {each.rule for each in check_linearizability(made)} == {Rule.NOT_LINEARIZABLE}


async def test_a_lost_write_that_was_settled_is_known() -> None:
    """`settle` asks the backend; what it says belongs to the call that was lost."""

    class Loses(MemoryStorageBackend):
        async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
            self.revision = await super().set(key, value, lease=lease, unique=unique)
            raise kvorum.OutcomeUnknownError(key, "no answer")

        async def settle(self, lost: kvorum.OutcomeUnknownError) -> int:
            del lost
            return self.revision

    made, store = History(), Loses()
    recording = RecordingBackend(store, made, "x")
    with pytest.raises(kvorum.OutcomeUnknownError) as caught:
        await recording.set("a", b"1")
    entry = await recording.get("a")
    revision = await recording.settle(caught.value)

    assert entry is not None
    assert revision == entry.mod_revision
    server_history = ServerHistory([(Change("a", revision, entry, None),)], end=revision)
    assert check_revisions(made, server_history) == []
    assert check_linearizability(made) == []
    assert Rule.LOST_WRITE in {
        each.rule for each in check_revisions(made, ServerHistory([], end=revision))
    }


# --- leases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["revoked", "runs out"])
async def test_a_key_goes_with_its_lease(ends: str) -> None:
    made, store = History(), MemoryStorageBackend()
    recording = RecordingBackend(store, made, "x")
    lease = await recording.grant_lease(600 if ends == "revoked" else 0.1)
    revision = await recording.set("a", b"1", lease=lease)
    entry = await recording.get("a")
    if ends == "revoked":
        await recording.revoke_lease(lease)
    with anyio.fail_after(10):
        while await recording.get("a") is not None:  # noqa: ASYNC110 - a store has no event
            await anyio.sleep(0.05)
    again = await recording.create("a", b"2")
    log = [(Change("a", revision, entry, None),), (Change("a", revision + 1, None, entry),)]
    log.append((Change("a", again, await store.get("a"), None),))

    server_history = ServerHistory(log, end=again)
    assert check_revisions(made, server_history) == []
    assert check_linearizability(made) == []
    assert check_linearizability(made, server_history) == []


# --- watches --------------------------------------------------------------------------------------


def test_a_watch_with_a_selector_goes_on_from_its_checkpoint() -> None:
    """The checkpoint moves over what there was not to show."""
    log = [(Change("a", at, Entry("a", b"%d" % at, at, 2, at - 1), None),) for at in (2,)]
    log += [
        (Change(key, at, Entry(key, b"no", at, at, 1), None),) for at, key in ((3, "b"), (4, "c"))
    ]
    log += [(Change("d", 5, Entry("d", b"5", 5, 5, 1), None),)]
    one, other = (
        WatchedStream(prefix="", since=since, matches=lambda entry: entry.value != b"no")
        for since in (1, 4)
    )
    one.add_changes(log[0])
    other.add_changes(log[3])

    assert check_resumed([one, other], ServerHistory(log, end=5)) == []


@pytest.mark.parametrize("revision", [0, 3])
def test_a_bookmark_of_a_storage_watch_is_none_of_its_events(revision: int) -> None:
    log = [(Change("a", 2, ONE, None),), (Change("a", 3, TWO, ONE),)]
    stream = WatchedStream(prefix="", since=1)
    for changes in log:
        stream.add_changes(changes)
        stream.add_changes((), revision=min(revision, changes[0].revision))

    assert check_watch(stream, ServerHistory(log, end=3)) == []


# --- searches that end ----------------------------------------------------------------------------


def test_lost_puts_of_one_key_are_judged_in_no_time() -> None:
    """Two to the power of their number orders are possible; nearly all of them are alike."""
    lost = [
        call("set", 2 * number + 1, 2 * number + 2, Write("a", b"%d" % number))
        for number in range(24)
    ]
    made = history(*lost, get(100, Entry("a", b"7", 9, 2, 2)), get(102, Entry("a", b"3", 12, 2, 3)))
    started = time.monotonic()

    assert check_linearizability(made) == []
    made.calls.append(get(104, Entry("a", b"7", 9, 2, 2)))
    assert {each.rule for each in check_linearizability(made)} == {Rule.NOT_LINEARIZABLE}
    assert time.monotonic() - started < 5


def hopeless() -> History:
    """Make a history with very many orders, none of which explains the end."""
    lost = [call("swap", n + 1, 900, Write("a", b"%d" % n, 0)) for n in range(0, 60, 2)]
    lost += [call("delete", n + 2, 901, Write("a", None, None)) for n in range(0, 60, 2)]
    lost += [call("set", n + 100, 902, Write("a", b"x%d" % n)) for n in range(60)]
    made = history(*lost, *(get(200 + 2 * n, None) for n in range(30)))
    made.calls.append(get(903, Entry("a", b"no call's", 77, 77, 1)))
    return made


def test_a_search_that_is_given_up_is_neither_right_nor_wrong() -> None:
    (found,) = check_linearizability(hopeless(), limit=100)

    assert found.rule is Rule.UNDECIDED
    assert "gave up" in found.message


def test_with_a_truth_there_is_nothing_to_search() -> None:
    made = hopeless()
    made.calls.pop()

    assert check_linearizability(made, ServerHistory([], end=1), limit=100) == []


def test_a_verdict_says_what_is_undecided() -> None:
    verdict = Verdict(
        History(), ServerHistory([], end=1), [], [], check_linearizability(hopeless(), limit=100)
    )

    assert not verdict.is_right
    assert "undecided" in str(verdict)
    assert "nothing is wrong" not in str(verdict)


def test_the_command_has_an_exit_code_for_what_is_undecided() -> None:
    undecided = check_linearizability(hopeless(), limit=100)
    wrong = check_linearizability(
        history(call("set", 1, 2, Write("a", b"1"), revision=2), get(3, None))
    )

    assert exit_code(Verdict(History(), ServerHistory([], end=1), [], [])) == 0
    assert exit_code(Verdict(History(), ServerHistory([], end=1), [], wrong, undecided)) == 1
    assert exit_code(Verdict(History(), ServerHistory([], end=1), [], [], undecided)) == UNDECIDED
