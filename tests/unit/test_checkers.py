"""The checkers, judged: right histories pass, each planted fault is found, and brute force agrees on small ones.

A simulation makes the histories: clients whose calls overlap, take effect somewhere between start
and end (or long after the client has given up), on a timeline that is plainly right.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.memory import timeline
from kvorum.storage.values import Change, Entry
from kvorum.testing.checkers.linearizability import Step, check_linearizability, is_linearizable
from kvorum.testing.checkers.revision_order import check_revisions
from kvorum.testing.checkers.watch_streams import (
    BookmarkSeen,
    Relist,
    ShownChange,
    WatchedStream,
    check_resumed,
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

KEYS = ["a", "b", "c/1"]


# --- a simulation ---------------------------------------------------------------------------------


class Simulation:
    """Clients and a store in a time of its own. Everything that it makes is right."""

    def __init__(self, seed: int, *, clients: int = 3, calls: int = 25) -> None:
        self.rng = random.Random(seed)
        self.timeline = timeline.Timeline()
        self.history = History()
        self.log: list[tuple[Change, ...]] = []
        self.numbers = itertools.count(1)
        self.values = itertools.count(1)
        self._known: dict[str, int] = {}  # what some client has seen of a key
        self._ties = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        for client in range(clients):
            self._at(self.rng.random(), self._starts(f"c{client}", calls))
        while self._agenda:
            now, _, act = heapq.heappop(self._agenda)
            act(now)
        self.server_history = ServerHistory(self.log, end=self.timeline.revision)

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._ties), act))

    def _starts(self, client: str, calls: int) -> Callable[[float], None]:
        def start(now: float) -> None:
            if not calls:
                return
            made = getattr(
                self,
                f"_{self.rng.choice(['get', 'get', 'list', 'count', 'set', 'swap', 'delete', 'commit'])}",
            )()
            number = next(self.numbers)
            is_unknown = bool(made.requested) and self.rng.random() < 0.15
            effect = now + self.rng.random()
            end = effect + self.rng.random()
            answer: list[Call] = []

            def act(_: float) -> None:
                answer.append(self._effect(made))

            def finish(now: float) -> None:
                call = (
                    answer[0]
                    if answer and not is_unknown
                    else msgspec.structs.replace(made, outcome=Outcome.UNKNOWN)
                )
                ended = next(self.numbers)
                self.history.calls.append(
                    msgspec.structs.replace(call, client=client, started=number, ended=ended)
                )
                self._at(now + self.rng.random() / 2, self._starts(client, calls - 1))

            if is_unknown and self.rng.random() < 0.5:
                if self.rng.random() < 0.5:
                    self._at(
                        effect + 5 * self.rng.random(), act
                    )  # perhaps long after the client has given up
            else:
                self._at(effect, act)
            self._at(end, finish)

        return start

    # --- what is asked for ---

    def _call(self, name: str, *requested: Write) -> Call:
        return Call(client="", name=name, started=0, ended=None, requested=requested)

    def _value(self) -> bytes:
        return b"v%d" % next(self.values)

    def _now(self, key: str) -> Entry | None:
        return self.timeline.entry(key.encode(), self.timeline.revision)

    def _expected(self, key: str) -> int:
        return self.rng.choice([self._known.get(key, 0), self._known.get(key, 0), 0, 999])

    def _get(self) -> Call:
        return msgspec.structs.replace(
            self._call("get"), observation=Observation(self.rng.choice(KEYS), exists=False)
        )

    def _list(self) -> Call:
        snapshot = Snapshot(
            "c" if self.rng.random() < 0.3 else "", None, self.rng.choice([None, 1, 2]), (), 0, 0
        )
        return msgspec.structs.replace(self._call("list"), snapshot=snapshot)

    def _count(self) -> Call:
        return msgspec.structs.replace(self._call("count"), count=Count("", 0))

    def _set(self) -> Call:
        return self._call("set", Write(self.rng.choice(KEYS), self._value()))

    def _swap(self) -> Call:
        key = self.rng.choice(KEYS)
        return self._call("swap", Write(key, self._value(), self._expected(key)))

    def _delete(self) -> Call:
        key = self.rng.choice(KEYS)
        return self._call(
            "delete", Write(key, None, self.rng.choice([None, self._known.get(key) or None]))
        )

    def _commit(self) -> Call:
        one, other = self.rng.sample(KEYS, 2)
        seconds = [
            *(Write(other, self._value()) for _ in range(5)),
            Write(other, None),
            *(Write(other, None, self._expected(other), False) for _ in range(2)),
        ]
        return self._call("commit", Write(one, self._value()), self.rng.choice(seconds))

    # --- what happens ---

    def _effect(self, call: Call) -> Call:
        now = self.timeline.revision
        if call.observation is not None:
            observation = Observation.of(call.observation.key, self._now(call.observation.key))
            self._known[observation.key] = observation.revision
            return msgspec.structs.replace(call, observation=observation)
        if call.snapshot is not None:
            start = call.snapshot.prefix.encode()
            entries = list(self.timeline.entries(start, b"\xff", now))
            entries = [entry for entry in entries if entry.key.startswith(call.snapshot.prefix)]
            shown = tuple(entries[: call.snapshot.limit])
            snapshot = msgspec.structs.replace(
                call.snapshot, entries=shown, remaining=len(entries) - len(shown), revision=now
            )
            return msgspec.structs.replace(call, snapshot=snapshot)
        if call.count is not None:
            number = sum(1 for _ in self.timeline.entries(b"", b"\xff", now))
            return msgspec.structs.replace(call, count=Count("", number))
        return self._write(call)

    def _write(self, call: Call) -> Call:
        for write in call.requested:
            current = self._now(write.key)
            found = current.mod_revision if current else 0
            if write.expected not in {None, found}:
                observation = Observation.of(write.key, current, unlike=write.expected)
                return msgspec.structs.replace(
                    call, outcome=Outcome.REFUSED, observation=observation
                )
            if call.name == "delete" and current is None:
                return msgspec.structs.replace(
                    call, outcome=Outcome.REFUSED, observation=Observation(write.key, exists=False)
                )
        changes = self.timeline.write(
            {
                each.key.encode(): timeline.Write(each.key, each.value)
                for each in call.requested
                if each.writes
            }
        )
        self.log.append(tuple(changes))
        change = changes[0] if call.name == "delete" else None
        return msgspec.structs.replace(call, revision=self.timeline.revision, change=change)

    # --- what a watch of it shows ---

    def stream(self, *, prefix: str = "", since: int = 0) -> WatchedStream:
        stream = WatchedStream(prefix=prefix, since=since, complete_to=self.server_history.end)
        for revision, changes in self.server_history.revisions.items():
            mine = [change for change in changes if change.key.startswith(prefix)]
            if mine and revision > since:
                stream.add_changes(mine)
                if self.rng.random() < 0.2:
                    stream.shown.append(BookmarkSeen(revision))
        return stream


def rules(violations: Iterable[object]) -> set[Rule]:
    return {violation.rule for violation in violations}  # type: ignore[attr-defined]  # all are violations


# --- right histories pass -------------------------------------------------------------------------


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
    """Else the tests below would pass for nothing."""
    calls = [call for seed in range(20) for call in Simulation(seed).history.calls]

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
    """They look alike: neither carries a value by which it would be known again."""
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
    """A right history, about to be spoilt.

    A plant returns False where there is nothing to spoil.
    """

    def __init__(self, seed: int) -> None:
        simulation = Simulation(seed)
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


def something_happened_that_nobody_wanted(case: Case) -> bool:
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

    What was deleted last is there again, and nobody wrote it.
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
    (something_happened_that_nobody_wanted, {Rule.INVENTED_WRITE}),
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
    """All find what they expect in the state before the revision.

    But no order of two who both check explains them.
    """
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
        ([unknown, absent, seen], True),  # it came late
        ([unknown, seen, again], False),  # it cannot be taken back
        ([absent, seen], False),  # nobody wrote it
    ):
        history = History()
        history.calls = list(calls)
        assert (check_linearizability(history) == []) == is_right, calls


# --- brute force agrees ---------------------------------------------------------------------------


@st.composite
def some_steps(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 8))
        end = draw(st.one_of(st.none(), st.integers(start + 1, 10)))
        kind = draw(st.sampled_from(["read", "absent", "write", "swap", "delete"]))
        revision, expected = draw(st.integers(1, 4)), draw(st.integers(0, 4))
        call = Call(client="c", name=kind, started=start, ended=end)
        steps.append(
            {
                "read": Step(2 * start, end and 2 * end - 1, revision, True, None, call),
                "absent": Step(2 * start, end and 2 * end - 1, None, False, None, call),
                "write": Step(2 * start, end and 2 * end - 1, None, None, revision, call),
                "swap": Step(2 * start, end and 2 * end - 1, expected, None, 10 + number, call),
                "delete": Step(2 * start, end and 2 * end - 1, None, True, 0, call),
            }[kind]
        )
    return steps


def fits_by_brute_force(steps: list[Step]) -> bool:
    """Try every order of every choice of the steps that may be left out."""
    optional = [step for step in steps if step.ended is None]
    needed = [step for step in steps if step.ended is not None]
    return any(
        _fits_in_order(order)
        for size in range(len(optional) + 1)
        for chosen in itertools.combinations(optional, size)
        for order in itertools.permutations([*needed, *chosen])
    )


def _fits_in_order(order: tuple[Step, ...]) -> bool:
    for one, other in itertools.combinations(order, 2):
        if other.ended is not None and other.ended < one.started:
            return False
    state = floor = 0
    for step in order:
        if step.expected is not None and step.expected != state:
            return False
        if step.there is not None and step.there != (state != 0):
            return False
        if step.becomes is not None:
            if step.becomes and step.becomes <= floor:
                return False
            state, floor = step.becomes, max(floor, step.becomes)
    return True


@settings(max_examples=2000, deadline=None)
@given(some_steps())
def test_the_search_agrees_with_brute_force(steps: list[Step]) -> None:
    assert is_linearizable(steps) == fits_by_brute_force(steps)


@st.composite
def some_reads(draw: st.DrawFn) -> tuple[list[Call], ServerHistory]:
    """One key with a history of its own, the writes that made it, and reads that may be wrong."""
    log: list[tuple[Change, ...]] = []
    entry: Entry | None = None
    calls: list[Call] = []
    times = draw(st.permutations(range(20)))
    for number in range(draw(st.integers(1, 3))):
        revision = number + 2
        removes = entry is not None and draw(st.booleans())
        after = None if removes else Entry("a", b"%d" % revision, revision, revision, 1)
        log.append((Change("a", revision, after, entry),))
        start, end = sorted(times[2 * number : 2 * number + 2])
        value = after.value if after is not None else None
        calls.append(
            Call(
                client="w",
                name="set",
                started=start,
                ended=end,
                revision=revision,
                requested=(Write("a", value),),
            )
        )
        entry = after
    for number in range(draw(st.integers(1, 3))):
        start, end = sorted(times[2 * number + 6 : 2 * number + 8])
        seen = draw(st.sampled_from([None, *[changes[0].entry for changes in log]]))
        calls.append(
            Call(
                client="r",
                name="get",
                started=start,
                ended=end,
                observation=Observation.of("a", seen),
            )
        )
    return calls, ServerHistory(log, end=len(log) + 1)


def agrees_by_brute_force(calls: list[Call], server_history: ServerHistory) -> bool:
    """Try to give every call a revision at which it happened."""
    revisions = range(server_history.end + 1)

    def is_right(places: tuple[int, ...]) -> bool:
        for call, place in zip(calls, places, strict=True):
            if call.requested and place != call.revision:
                return False
            if (
                call.observation is not None
                and server_history.entry("a", place) != call.observation.entry
            ):
                return False
        return all(
            places[a] < places[b] if calls[b].requested else places[a] <= places[b]
            for a, b in itertools.permutations(range(len(calls)), 2)
            if (calls[a].ended or 0) < calls[b].started
        )

    return any(is_right(places) for places in itertools.product(revisions, repeat=len(calls)))


@settings(max_examples=1000, deadline=None)
@given(some_reads())
def test_the_order_of_revisions_agrees_with_brute_force(
    given: tuple[list[Call], ServerHistory],
) -> None:
    calls, server_history = given
    history = History()
    history.calls = calls

    assert (check_revisions(history, server_history) == []) == agrees_by_brute_force(
        calls, server_history
    )


# --- planted faults in watches --------------------------------------------------------------------

Shown_ = tuple[ShownChange, ...]


Spoil = Callable[
    [WatchedStream, int, int], bool | None
]  # a place, and the one after it; False: nothing to spoil


def events_at(stream: WatchedStream, place: int) -> Shown_:
    events = stream.shown[place]
    assert isinstance(events, tuple)
    return events


def with_first(stream: WatchedStream, place: int, **changes: object) -> None:
    first, *others = events_at(stream, place)
    stream.shown[place] = (msgspec.structs.replace(first, **changes), *others)


def drop(stream: WatchedStream, place: int, _: int) -> None:
    del stream.shown[place]


def drop_the_last(stream: WatchedStream, _: int, __: int) -> None:
    del stream.shown[-1]


def duplicate(stream: WatchedStream, place: int, _: int) -> None:
    stream.shown.insert(place, stream.shown[place])


def swap(stream: WatchedStream, place: int, following: int) -> None:
    stream.shown[place], stream.shown[following] = stream.shown[following], stream.shown[place]


def split(stream: WatchedStream, _: int, __: int) -> bool:
    for place in range(len(stream.shown)):
        events = events_at(stream, place)
        if len(events) > 1:
            stream.shown[place : place + 1] = [events[:1], events[1:]]
            return True
    return False


def merge(stream: WatchedStream, place: int, following: int) -> None:
    stream.shown[place] = events_at(stream, place) + events_at(stream, following)
    del stream.shown[following]


def off_by_one(stream: WatchedStream, place: int, _: int) -> None:
    events = events_at(stream, place)
    stream.shown[place] = tuple(
        msgspec.structs.replace(each, revision=each.revision + 1) for each in events
    )


def invent(stream: WatchedStream, place: int, _: int) -> None:
    events = events_at(stream, place)
    stream.shown[place] = (*events, ShownChange("added", events[0].revision, "invented", b""))


def before_the_start(stream: WatchedStream, _: int, __: int) -> None:
    stream.shown.insert(0, (ShownChange("added", stream.since or 0, "a", b"", None),))


def wrong_kind(stream: WatchedStream, place: int, _: int) -> None:
    is_added = events_at(stream, place)[0].kind == "added"
    with_first(stream, place, kind="modified" if is_added else "added")


def wrong_value(stream: WatchedStream, place: int, _: int) -> None:
    with_first(stream, place, value=b"other")


def wrong_previous(stream: WatchedStream, place: int, _: int) -> bool:
    if events_at(stream, place)[0].kind != "modified":
        return False
    with_first(stream, place, previous=b"other")
    return True


def bookmark_ahead(stream: WatchedStream, place: int, _: int) -> None:
    stream.shown.insert(place, BookmarkSeen(events_at(stream, place)[0].revision))


def bookmark_back(stream: WatchedStream, place: int, _: int) -> None:
    stream.shown.insert(place + 1, BookmarkSeen(events_at(stream, place)[0].revision - 1))


def another_prefix(stream: WatchedStream, _: int, __: int) -> None:
    stream.prefix = "b"


SPOILT: list[tuple[Spoil, set[Rule]]] = [
    (drop, {Rule.LOST_EVENT}),
    (drop_the_last, {Rule.LOST_EVENT}),
    (duplicate, {Rule.DUPLICATE_EVENT}),
    (swap, {Rule.EVENT_ORDER, Rule.LOST_EVENT}),
    (split, {Rule.SPLIT_REVISION}),
    (merge, {Rule.SPLIT_REVISION}),
    (off_by_one, {Rule.LOST_EVENT, Rule.INVENTED_EVENT}),
    (invent, {Rule.INVENTED_EVENT}),
    (before_the_start, {Rule.DUPLICATE_EVENT}),
    (wrong_kind, {Rule.WRONG_EVENT}),
    (wrong_value, {Rule.WRONG_EVENT}),
    (wrong_previous, {Rule.WRONG_PREVIOUS}),
    (bookmark_ahead, {Rule.LOST_EVENT}),
    (bookmark_back, {Rule.WRONG_BOOKMARK}),
    (another_prefix, {Rule.INVENTED_EVENT}),
]


@pytest.mark.parametrize(("spoil", "expected"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_a_planted_fault_in_a_watch_is_found(spoil: Spoil, expected: set[Rule]) -> None:
    planted = 0
    for seed in range(40):
        simulation = Simulation(seed)
        stream = simulation.stream(since=3)
        stream.shown = [each for each in stream.shown if not isinstance(each, BookmarkSeen)]
        place = simulation.rng.randrange(1, len(stream.shown) - 1)
        if spoil(stream, place, place + 1) is not False:
            planted += 1
            found = rules(check_watch(stream, simulation.server_history))
            assert found & expected, (seed, found)
    assert planted >= 15


def test_a_watch_that_begins_with_all_there_is_is_checked_against_it() -> None:
    simulation = Simulation(1)
    middle = simulation.server_history.end // 2
    there = [
        entry for key in KEYS if (entry := simulation.server_history.entry(key, middle)) is not None
    ]
    assert there
    initial = [
        (ShownChange("added", entry.mod_revision, entry.key, entry.value),) for entry in there
    ]
    rest = simulation.stream(since=middle).shown
    right = WatchedStream(
        prefix="",
        since=None,
        shown=[*initial, BookmarkSeen(middle), *rest],
        complete_to=simulation.server_history.end,
    )

    assert check_watch(right, simulation.server_history) == []
    for spoilt, rule in (
        ([*initial[1:], BookmarkSeen(middle), *rest], Rule.LOST_EVENT),
        ([*initial, initial[0], BookmarkSeen(middle), *rest], Rule.DUPLICATE_EVENT),
        (
            [*initial, (ShownChange("added", 1, "x", b""),), BookmarkSeen(middle), *rest],
            Rule.INVENTED_EVENT,
        ),
        ([*initial, *rest], Rule.WRONG_BOOKMARK),
    ):
        stream = WatchedStream(prefix="", since=None, shown=list(spoilt))
        if rule is Rule.WRONG_BOOKMARK:
            stream.shown = [each for each in stream.shown if not isinstance(each, BookmarkSeen)]
        assert rule in rules(check_watch(stream, simulation.server_history))


def difference(server_history: ServerHistory, before: int, at: int) -> tuple[ShownChange, ...]:
    """Return what a watch shows that has shown the state at one revision, and lists at another."""
    was = {key: entry for key in KEYS if (entry := server_history.entry(key, before)) is not None}
    now = {key: entry for key in KEYS if (entry := server_history.entry(key, at)) is not None}
    gone = [
        ShownChange("deleted", at, key, was[key].value, was[key].value)
        for key in was.keys() - now.keys()
    ]
    others = [
        ShownChange("modified", entry.mod_revision, key, entry.value, was[key].value)
        if key in was
        else ShownChange("added", entry.mod_revision, key, entry.value)
        for key, entry in now.items()
        if key not in was or was[key].mod_revision != entry.mod_revision
    ]
    return (*gone, *sorted(others, key=lambda event: event.revision))


def listing_again(simulation: Simulation) -> tuple[WatchedStream, int]:
    """Return a stream that begins with a list and has listed again in its middle, and the place of that."""
    server_history = simulation.server_history
    first, lost, again = (
        server_history.end // 4,
        server_history.end // 2,
        server_history.end * 3 // 4,
    )
    initial = [
        (ShownChange("added", entry.mod_revision, entry.key, entry.value),)
        for entry in entries(server_history, first)
    ]
    rest = [each for each in simulation.stream(since=first).shown if isinstance(each, tuple)]
    before = [each for each in rest if each[0].revision <= lost]
    listing = Relist(
        again, difference(server_history, before[-1][0].revision if before else first, again)
    )
    shown: list[Shown_ | BookmarkSeen | Relist]
    shown = [
        *initial,
        BookmarkSeen(first),
        *before,
        listing,
        *[each for each in rest if each[0].revision > again],
    ]
    return WatchedStream(
        prefix="", since=None, shown=shown, complete_to=server_history.end
    ), shown.index(listing)


def entries(server_history: ServerHistory, revision: int) -> list[Entry]:
    return [entry for key in KEYS if (entry := server_history.entry(key, revision)) is not None]


def test_a_watch_that_lists_again_shows_the_difference() -> None:
    for seed in range(40):
        simulation = Simulation(seed)
        stream, _ = listing_again(simulation)
        assert check_watch(stream, simulation.server_history) == [], seed


SPOILT_DIFFERENCES: dict[str, tuple[Callable[[ShownChange], list[ShownChange]], set[Rule]]] = {
    "one is missing": (lambda _: [], {Rule.LOST_EVENT}),
    "one comes twice": (
        lambda event: [event, event],
        {Rule.WRONG_EVENT, Rule.INVENTED_EVENT, Rule.WRONG_PREVIOUS},
    ),
    "another value": (
        lambda event: [msgspec.structs.replace(event, value=b"other")],
        {Rule.INVENTED_EVENT, Rule.WRONG_PREVIOUS},
    ),
    "another revision": (
        lambda event: [msgspec.structs.replace(event, revision=event.revision - 1)],
        {Rule.INVENTED_EVENT},
    ),
    "one that never was": (
        lambda event: [event, ShownChange("deleted", event.revision, "x", b"", b"")],
        {Rule.INVENTED_EVENT},
    ),
}


@pytest.mark.parametrize("name", SPOILT_DIFFERENCES)
def test_a_planted_fault_in_a_difference_is_found(name: str) -> None:
    spoil, expected = SPOILT_DIFFERENCES[name]
    planted = 0
    for seed in range(40):
        simulation = Simulation(seed)
        stream, place = listing_again(simulation)
        listing = stream.shown[place]
        assert isinstance(listing, Relist)
        for number, event in enumerate(listing.events):
            events = (*listing.events[:number], *spoil(event), *listing.events[number + 1 :])
            stream.shown[place] = msgspec.structs.replace(listing, events=events)
            planted += 1
            found = rules(check_watch(stream, simulation.server_history))
            assert found & expected, (seed, event, found)
    assert planted >= 15


def test_a_list_again_at_an_older_revision_is_found() -> None:
    simulation = Simulation(3)
    stream, place = listing_again(simulation)
    listing = stream.shown[place]
    assert isinstance(listing, Relist)
    stream.shown.append(listing)

    assert Rule.WRONG_BOOKMARK in rules(check_watch(stream, simulation.server_history))


def test_a_selector_makes_coming_in_an_addition_and_going_out_a_deletion() -> None:
    def entry(revision: int, value: bytes) -> Entry:
        return Entry("a", value, revision, 2, revision)

    states = [
        None,
        entry(2, b"no"),
        entry(3, b"yes"),
        entry(4, b"yes too"),
        entry(5, b"no more"),
        None,
    ]
    log = [(Change("a", at + 1, states[at], states[at - 1]),) for at in range(1, 6)]
    shown: list[Shown_ | BookmarkSeen | Relist] = [
        (ShownChange("added", 3, "a", b"yes"),),
        (ShownChange("modified", 4, "a", b"yes too", b"yes"),),
        (ShownChange("deleted", 5, "a", b"yes too", b"yes too"),),
    ]
    stream = WatchedStream(
        prefix="",
        since=0,
        shown=shown,
        matches=lambda entry: entry.value.startswith(b"yes"),
        complete_to=6,
    )

    assert check_watch(stream, ServerHistory(log, end=6)) == []
    stream.matches = lambda _: True
    assert check_watch(stream, ServerHistory(log, end=6)) != []


def test_resumed_watches_neither_leave_out_nor_repeat() -> None:
    simulation = Simulation(2)
    whole = simulation.stream().shown
    whole = [each for each in whole if not isinstance(each, BookmarkSeen)]
    middle = whole[len(whole) // 2][0].revision  # type: ignore[index]  # no marks
    front = [each for each in whole if each[0].revision <= middle]  # type: ignore[index]  # no marks
    first = WatchedStream(prefix="", since=0, shown=front)
    for since, is_right in ((middle, True), (middle + 1, False), (middle - 1, False)):
        second = simulation.stream(since=since)
        assert (check_resumed([first, second], simulation.server_history) == []) == is_right
