"""The checkers accept every correct history and find each planted fault."""

import itertools
from collections.abc import Callable

import msgspec
import pytest
from tests.unit.simulation import KEYS, Simulation, rules, simulated

from kvorum.storage.values import Change, Entry
from kvorum.testing.checkers.linearizability import check_linearizability
from kvorum.testing.checkers.revision_order import check_revisions
from kvorum.testing.checkers.watch_streams import (
    check_watch,
)
from kvorum.testing.evidence.history import (
    Call,
    Count,
    History,
    Observation,
    Outcome,
    Snapshot,
    Write,
)
from kvorum.testing.evidence.server_history import ServerHistory
from kvorum.testing.evidence.violation import Rule


@pytest.mark.parametrize("part", range(10))
def test_right_histories_pass(part: int) -> None:
    """Ten thousand of them in all."""
    for seed in range(1000 * part, 1000 * part + 1000):
        simulation = Simulation(seed)
        assert check_revisions(simulation.history, simulation.server_history) == [], seed
        assert check_linearizability(simulation.history) == [], seed
        for prefix in ("", "c", "x"):
            since = simulation.rng.randrange(simulation.server_history.end)
            assert (
                check_watch(
                    simulation.stream(prefix=prefix, since=since), simulation.server_history
                )
                == []
            ), seed


def test_the_simulation_has_everything_in_it() -> None:
    """Otherwise the tests below would prove nothing."""
    calls = [call for seed in range(20) for call in simulated(seed).history.calls]

    assert {call.outcome for call in calls} == set(Outcome)
    assert {call.name for call in calls} == {
        "get",
        "list",
        "count",
        "set",
        "swap",
        "delete",
        "commit",
    }
    overlapping = [a for a, b in itertools.pairwise(calls) if b.started < (a.ended or 0)]
    assert len(overlapping) > len(calls) / 3


def unknown(name: str, started: int, *requested: Write) -> Call:
    return Call(
        client="c",
        name=name,
        started=started,
        ended=started + 1,
        outcome=Outcome.UNKNOWN,
        requested=requested,
    )


@pytest.mark.parametrize("in_order", [True, False])
def test_of_two_lost_deletions_the_one_that_fits_is_taken_for_the_author(*, in_order: bool) -> None:
    """They look alike: neither has a value that would identify it."""
    one, two = Entry("a", b"1", 2, 2, 1), Entry("b", b"2", 4, 4, 1)
    creation = Call(
        client="c", name="set", started=1, ended=2, revision=2, requested=(Write("a", b"1"),)
    )
    log = [(Change("a", 2, one, None),), (Change("a", 3, None, one),)]
    with_b = [log[0], (Change("a", 3, None, one), Change("b", 3, two, None))]
    for calls, happened in (
        (
            [
                unknown("delete", 3, Write("a", None, 99)),
                unknown("delete", 5, Write("a", None, 2)),
            ],
            log,
        ),
        (
            [
                unknown("delete", 3, Write("a", None)),
                unknown("commit", 5, Write("a", None), Write("b", b"2")),
            ],
            with_b,
        ),
    ):
        history = History()
        history.calls = [creation, *(calls if in_order else calls[::-1])]
        assert check_revisions(history, ServerHistory(happened, end=3)) == []


# --- planted faults in histories ------------------------------------------------------------------

Plant = Callable[["Case"], bool]


class Case:
    """A correct history, about to be spoilt. A plant returns False if there is nothing to spoil."""

    def __init__(self, seed: int) -> None:
        simulation = simulated(seed)
        self.rng = simulation.rng
        self.history = simulation.history
        self.calls = simulation.history.calls
        self.log = list(simulation.log)
        self.end = simulation.server_history.end
        self.server_history = simulation.server_history

    def pick(self, fits: Callable[[Call], bool]) -> int | None:
        places = [place for place, call in enumerate(self.calls) if fits(call)]
        return self.rng.choice(places) if places else None

    def replace(self, place: int, **changes: object) -> None:
        self.calls[place] = msgspec.structs.replace(self.calls[place], **changes)

    def done(self, *names: str) -> Callable[[Call], bool]:
        return lambda call: call.outcome is Outcome.DONE and call.name in names


def a_done_write_never_happened(case: Case) -> bool:
    place = case.pick(case.done("set", "swap"))
    if place is None:
        return False
    revision = case.calls[place].revision
    case.log = [changes for changes in case.log if changes[0].revision != revision]
    return True


def a_change_was_made_that_no_call_requested(case: Case) -> bool:
    entry = Entry("a", b"from nowhere", case.end + 1, case.end + 1, 1)
    case.log.append((Change("a", case.end + 1, entry, case.server_history.entry("a", case.end)),))
    case.end += 1
    return True


def a_done_write_happened_twice(case: Case) -> bool:
    place = case.pick(case.done("set"))
    if place is None:
        return False
    (write,) = case.calls[place].requested
    before = case.server_history.entry(write.key, case.end)
    entry = Entry(write.key, write.value or b"", case.end + 1, case.end + 1, 1)
    case.log.append((Change(write.key, case.end + 1, entry, before),))
    case.end += 1
    return True


def a_write_was_told_the_next_revision(case: Case) -> bool:
    place = case.pick(lambda call: case.done("set", "swap")(call) and call.revision < case.end)
    if place is None:
        return False
    case.replace(place, revision=case.calls[place].revision + 1)
    return True


def a_write_was_told_a_revision_beyond_the_end(case: Case) -> bool:
    place = case.pick(case.done("set", "swap"))
    if place is None:
        return False
    case.replace(place, revision=case.end + 1)
    return True


def another_value_was_written(case: Case) -> bool:
    place = case.pick(case.done("set"))
    if place is None:
        return False
    (write,) = case.calls[place].requested
    case.replace(place, requested=(msgspec.structs.replace(write, value=b"other"),))
    return True


def a_swap_wrote_over_something_else(case: Case) -> bool:
    place = case.pick(case.done("swap"))
    if place is None:
        return False
    (write,) = case.calls[place].requested
    case.replace(
        place, requested=(msgspec.structs.replace(write, expected=(write.expected or 0) + 1),)
    )
    return True


def a_transaction_happened_in_part(case: Case) -> bool:
    place = case.pick(
        lambda call: (
            case.done("commit")(call) and len(case.server_history.revisions[call.revision]) > 1
        )
    )
    if place is None:
        return False
    revision = case.calls[place].revision
    case.log = [changes[:1] if changes[0].revision == revision else changes for changes in case.log]
    return True


def a_refused_write_happened(case: Case) -> bool:
    place = case.pick(case.done("set"))
    if place is None:
        return False
    case.replace(place, outcome=Outcome.REFUSED, revision=0)
    return True


def a_swap_was_refused_for_no_reason(case: Case) -> bool:
    place = case.pick(
        lambda call: (
            call.observation is not None
            and call.observation.unlike is not None
            and call.observation.revision > 0
        )
    )
    if place is None:
        return False
    observation = case.calls[place].observation
    assert observation is not None
    case.replace(
        place, observation=msgspec.structs.replace(observation, unlike=observation.revision)
    )
    return True


def a_read_saw_what_was_over(case: Case) -> bool:
    """Including a key that comes back from the dead."""
    for place, call in enumerate(case.calls):
        if call.name == "get" and call.observation is not None and call.observation.revision:
            key, entry = call.observation.key, call.observation.entry
            until = case.server_history.until(key, call.observation.revision)
            writers = [
                each
                for each in case.calls
                if each.revision == until and each.outcome is Outcome.DONE
            ]
            late = [
                at
                for at, each in enumerate(case.calls)
                if writers and each.name == "get" and each.started > (writers[0].ended or 0)
            ]
            if late and entry is not None:
                case.replace(late[-1], observation=Observation.of(key, entry))
                return late[-1] != place
    return False


def a_deleted_key_came_back(case: Case) -> bool:
    """For the store, not for a reader only.

    The key deleted last exists again, and no call wrote it.
    """
    gone = [change for changes in case.log for change in changes if change.entry is None]
    if not gone or case.server_history.entry(gone[-1].key, case.end) is not None:
        return False
    case.end += 1
    case.log.append((Change(gone[-1].key, case.end, gone[-1].previous, None),))
    return True


def a_deleted_key_was_seen_again(case: Case) -> bool:
    for call in case.calls:
        if (
            case.done("delete")(call)
            and call.change is not None
            and call.change.previous is not None
        ):
            entry = call.change.previous
            late = [
                at
                for at, each in enumerate(case.calls)
                if each.name == "get" and each.started > (call.ended or 0)
            ]
            if late:
                case.replace(late[0], observation=Observation.of(entry.key, entry))
                return True
    return False


def a_read_saw_what_never_was(case: Case) -> bool:
    place = case.pick(
        lambda call: (
            call.name == "get"
            and call.observation is not None
            and call.observation.entry is not None
        )
    )
    if place is None:
        return False
    observation = case.calls[place].observation
    assert observation is not None
    assert observation.entry is not None
    case.replace(
        place,
        observation=Observation.of(
            observation.key, msgspec.structs.replace(observation.entry, value=b"never")
        ),
    )
    return True


def a_key_was_not_seen(case: Case) -> bool:
    """One that was there all the time since a write that was over before."""
    for place, call in enumerate(case.calls):
        if case.done("set")(call):
            (write,) = call.requested
            until = case.server_history.until(write.key, call.revision)
            stays = case.server_history.first(write.key, exists=False, since=call.revision) is None
            late = [
                at
                for at, each in enumerate(case.calls)
                if each.name == "get" and each.started > (call.ended or 0)
            ]
            if stays and late and until and place:
                case.replace(late[0], observation=Observation(write.key, exists=False))
                return True
    return False


def two_writes_changed_places(case: Case) -> bool:
    """Who came first was told the greater revision."""
    writes = [place for place, call in enumerate(case.calls) if case.done("set")(call)]
    for one, other in itertools.combinations(writes, 2):
        first, second = case.calls[one], case.calls[other]
        if (first.ended or 0) < second.started:
            times = {"started": second.started, "ended": second.ended}
            case.replace(other, started=first.started, ended=first.ended)
            case.replace(one, **times)
            return True
    return False


def a_snapshot_lacks_a_key(case: Case) -> bool:
    place = case.pick(lambda call: call.snapshot is not None and len(call.snapshot.entries) > 0)
    if place is None:
        return False
    snapshot = case.calls[place].snapshot
    assert snapshot is not None
    case.replace(place, snapshot=msgspec.structs.replace(snapshot, entries=snapshot.entries[1:]))
    return True


def a_snapshot_is_out_of_order(case: Case) -> bool:
    place = case.pick(lambda call: call.snapshot is not None and len(call.snapshot.entries) > 1)
    if place is None:
        return False
    snapshot = case.calls[place].snapshot
    assert snapshot is not None
    case.replace(place, snapshot=msgspec.structs.replace(snapshot, entries=snapshot.entries[::-1]))
    return True


def a_snapshot_miscounts_what_remains(case: Case) -> bool:
    place = case.pick(lambda call: call.snapshot is not None)
    if place is None:
        return False
    snapshot = case.calls[place].snapshot
    assert snapshot is not None
    case.replace(
        place, snapshot=msgspec.structs.replace(snapshot, remaining=snapshot.remaining + 1)
    )
    return True


def a_snapshot_is_of_the_past(case: Case) -> bool:
    for place, call in enumerate(case.calls):
        earlier = [
            each for each in case.calls if each.revision > 5 and (each.ended or 0) < call.started
        ]
        if call.snapshot is not None and call.snapshot.prefix == "" and earlier:
            case.replace(place, snapshot=Snapshot("", None, None, (), 0, 1))
            return True
    return False


def there_were_never_so_many_keys(case: Case) -> bool:
    place = case.pick(lambda call: call.count is not None)
    if place is None:
        return False
    case.replace(place, count=Count("", len(KEYS) + 1))
    return True


def a_deletion_was_told_another_last_value(case: Case) -> bool:
    place = case.pick(case.done("delete"))
    if place is None:
        return False
    change = case.calls[place].change
    assert change is not None
    assert change.previous is not None
    previous = msgspec.structs.replace(change.previous, value=b"other")
    case.replace(place, change=msgspec.structs.replace(change, previous=previous))
    return True


BY_REVISIONS: list[tuple[Plant, set[Rule]]] = [
    (a_done_write_never_happened, {Rule.LOST_WRITE}),
    (a_change_was_made_that_no_call_requested, {Rule.INVENTED_WRITE}),
    (a_done_write_happened_twice, {Rule.APPLIED_TWICE}),
    (a_write_was_told_the_next_revision, {Rule.LOST_WRITE, Rule.WRONG_VALUE}),
    (a_write_was_told_a_revision_beyond_the_end, {Rule.LOST_WRITE}),
    (another_value_was_written, {Rule.WRONG_VALUE}),
    (a_swap_wrote_over_something_else, {Rule.BROKEN_EXPECTATION}),
    (a_transaction_happened_in_part, {Rule.LOST_WRITE}),
    (a_refused_write_happened, {Rule.FALSE_REFUSAL}),
    (a_swap_was_refused_for_no_reason, {Rule.FALSE_REFUSAL}),
    (a_read_saw_what_was_over, {Rule.STALE_READ}),
    (a_deleted_key_came_back, {Rule.APPLIED_TWICE, Rule.INVENTED_WRITE}),
    (a_deleted_key_was_seen_again, {Rule.STALE_READ}),
    (a_read_saw_what_never_was, {Rule.INVENTED_READ}),
    (a_key_was_not_seen, {Rule.STALE_READ}),
    (two_writes_changed_places, {Rule.REAL_TIME}),
    (a_snapshot_lacks_a_key, {Rule.WRONG_SNAPSHOT}),
    (a_snapshot_is_out_of_order, {Rule.WRONG_SNAPSHOT}),
    (a_snapshot_miscounts_what_remains, {Rule.WRONG_SNAPSHOT}),
    (a_snapshot_is_of_the_past, {Rule.STALE_READ}),
    (there_were_never_so_many_keys, {Rule.STALE_READ}),
    (a_deletion_was_told_another_last_value, {Rule.WRONG_CHANGE}),
]


@pytest.mark.parametrize(
    ("plant", "expected"), BY_REVISIONS, ids=[plant.__name__ for plant, _ in BY_REVISIONS]
)
def test_a_planted_fault_is_found_by_revisions(plant: Plant, expected: set[Rule]) -> None:
    planted = 0
    for seed in range(60):
        case = Case(seed)
        if plant(case):
            planted += 1
            found = rules(check_revisions(case.history, ServerHistory(case.log, end=case.end)))
            assert found & expected, (seed, found)
    assert planted >= 20


BY_SEARCH: list[Plant] = [
    a_read_saw_what_was_over,
    a_deleted_key_was_seen_again,
    a_read_saw_what_never_was,
    a_key_was_not_seen,
]


@pytest.mark.parametrize("plant", BY_SEARCH)
def test_a_planted_fault_is_found_by_search(plant: Plant) -> None:
    """Without a server history: what contradicts itself.

    A read of what never was can be true for all that clients know.
    """
    found = planted = 0
    for seed in range(60):
        case = Case(seed)
        if plant(case):
            planted += 1
            found += bool(check_linearizability(case.history))
    assert planted >= 20
    assert found >= planted * 0.6


@pytest.mark.parametrize(
    ("checkers", "expected"), [("ab", {Rule.WRITE_SKEW}), ("a", set()), ("", set())]
)
def test_calls_of_one_revision_of_which_each_checked_what_the_other_wrote_are_found(
    checkers: str, expected: set[Rule]
) -> None:
    """Each finds what it expects in the state before, but no order of two checks explains both."""
    before = tuple(Change(key, 2, Entry(key, b"0", 2, 2, 1), None) for key in "ab")
    after = tuple(
        Change(change.key, 3, Entry(change.key, b"1", 3, 2, 2), change.entry) for change in before
    )
    history = History()
    history.calls = [
        Call(
            client=key,
            name="commit",
            started=1 + n,
            ended=5 + n,
            revision=3,
            requested=(
                Write(key, b"1"),
                *([Write(other, expected=2, writes=False)] if key in checkers else []),
            ),
        )
        for n, (key, other) in enumerate([("a", "b"), ("b", "a")])
    ]

    assert (
        rules(check_revisions(history, ServerHistory([before, after], end=3), is_complete=False))
        == expected
    )


def both_of(expected: int, values: tuple[bytes, bytes]) -> History:
    history = History()
    history.calls = [
        Call(
            client=f"c{n}",
            name="swap",
            started=1 + n,
            ended=5 + n,
            revision=10 + n,
            requested=(Write("a", value, expected),),
        )
        for n, value in enumerate(values)
    ]
    return history


def test_two_swaps_from_one_revision_are_a_lost_update() -> None:
    assert check_linearizability(both_of(0, (b"1", b"2"))) != []


def test_a_write_of_unknown_outcome_may_have_happened_or_not() -> None:
    unknown = Call(
        client="c",
        name="set",
        started=1,
        ended=2,
        outcome=Outcome.UNKNOWN,
        requested=(Write("a", b"1"),),
    )
    seen = Call(
        client="d",
        name="get",
        started=5,
        ended=6,
        observation=Observation("a", exists=True, revision=7, value=b"1"),
    )
    absent = Call(
        client="d", name="get", started=3, ended=4, observation=Observation("a", exists=False)
    )
    again = Call(
        client="d", name="get", started=7, ended=8, observation=Observation("a", exists=False)
    )
    for calls, is_right in (
        ([unknown, absent], True),
        ([unknown, seen], True),
        ([unknown, absent, seen], True),  # it took effect late
        ([unknown, seen, again], False),  # it cannot be undone
        ([absent, seen], False),  # no call wrote it
    ):
        history = History()
        history.calls = list(calls)
        assert (check_linearizability(history) == []) == is_right, calls
