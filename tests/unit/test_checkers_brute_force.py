"""On small histories the checkers agree with a brute-force search over all orders."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.storage.values import Change, Entry
from kvorum.testing.checkers.linearizability import Step, is_linearizable
from kvorum.testing.checkers.revision_order import check_revisions
from kvorum.testing.evidence.history import (
    Call,
    History,
    Observation,
    Write,
)
from kvorum.testing.evidence.server_history import ServerHistory


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
