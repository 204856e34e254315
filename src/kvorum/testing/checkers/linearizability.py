"""Find an order of the calls on each key that explains their answers, or show there is none.

Linearizability is local: a history is linearizable if it is so for each key. For each key, the
calls are tried in every order that real time allows, earliest first; visited states are remembered
as (calls placed, state). A call of unknown outcome may have taken effect at any time after its
start, or never. A key may disappear when its lease was revoked or has expired. Values should be
unique, because a write of unknown outcome is identified by its value.

Three rules keep the search small without missing an order: a read that fits is placed at once,
since it changes nothing; writes of known revision are placed in the order of their revisions; of
several calls of unknown outcome with the same effect, the first to start is placed first. The
search can still be too large; the result is then `Rule.UNDECIDED`. With a server history no search
is needed: it tells what was applied, and in which order.

Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for
linearizability" (2017).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from kvorum.testing.checkers.lease_ends import LeaseEnds
from kvorum.testing.evidence import (
    Call,
    History,
    Observation,
    Outcome,
    Rule,
    ServerHistory,
    Violation,
    Write,
    settled_calls,
)

ABSENT: Final = 0
UNSEEN: Final = -1  # the state after a write of unknown outcome whose value was never seen
LIMIT: Final = 100_000  # states visited for one key before giving up: a second or two


class Step(NamedTuple):
    """The effect of a call on one key, or what it observed.

    A state is a mod_revision, or `ABSENT`, or `UNSEEN`.

    Attributes:
        started: the number of the call's start.
        ended: the number of its end; None if it may take effect later, or never.
        expected: the state that it requires; None for any.
        there: whether it requires the key to exist (True) or be absent (False); None for either.
        becomes: the state that it leaves; None for the same.
        call: its call; None for the end of a lease, and for a change known from the server's
            history only.
        revision: the revision of a deletion, if known; else 0.
        is_applied: it took effect, although it has no end.
        names: nothing else tells of its `expected`, so a value that was never seen may have been
            written at that revision.
    """

    started: int
    ended: int | None
    expected: int | None
    there: bool | None
    becomes: int | None
    call: Call | None
    revision: int = 0
    is_applied: bool = False
    names: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether every order must contain it."""
        return self.ended is not None or self.is_applied

    @property
    def known(self) -> int:
        """The revision of its change; 0 if unknown, or if it changed nothing."""
        return max(self.revision, self.becomes or 0)


def check_linearizability(
    history: History, server_history: ServerHistory | None = None, *, limit: int = LIMIT
) -> list[Violation]:
    """Return the keys whose calls no order explains.

    It judges calls on single keys and the parts of transactions; reads of the past are left to
    `check_revisions`. Across all keys, revisions must increase in real time.

    A key with `Rule.UNDECIDED` is neither right nor wrong: no order was found within `limit`.

    Args:
        history: what the clients were told.
        server_history: the server's history, if available; it replaces the search.
        limit: the number of states to visit for each key before giving up.
    """
    calls = settled_calls(history.calls)
    steps = steps_by_key(calls, server_history)
    return [
        *_wrong_values(calls),
        *_wrong_order(calls),
        *(
            found
            for key, of_key in sorted(steps.items())
            if (found := _judge(key, of_key, limit)) is not None
        ),
    ]


def _judge(key: str, steps: Sequence[Step], limit: int) -> Violation | None:
    found = is_linearizable(steps, limit=limit)
    if found is None:
        what = f"no order of the {len(steps)} calls on {key!r} within {limit:,} states; gave up"
        return Violation(Rule.UNDECIDED, what)
    if found:
        return None
    return Violation(
        Rule.NOT_LINEARIZABLE, f"no order of the {len(steps)} calls on {key!r} explains them"
    )


# --- findings without a search ----------------------------------------------------------------


def _wrong_values(calls: Sequence[Call]) -> list[Violation]:
    """Report values that differ from what was written at their revision, and false refusals."""
    done = [
        (call, write) for call in calls if call.outcome is Outcome.DONE for write in call.requested
    ]
    written = {(write.key, call.revision): write.value for call, write in done if write.writes}
    observations = [(call, call.observation) for call in calls if call.observation is not None]
    invented = [
        Violation(
            Rule.INVENTED_READ,
            f"{call}: revision {observation.revision} wrote something else",
            call,
        )
        for call, observation in observations
        if observation.value is not None
        and written.get((observation.key, observation.revision), observation.value)
        != observation.value
    ]
    return invented + [
        Violation(
            Rule.FALSE_REFUSAL,
            f"{call}: {observation.key!r} was at {observation.unlike}, as expected",
            call,
        )
        for call, observation in observations
        if observation.unlike is not None and observation.revision == observation.unlike
    ]


def _wrong_order(calls: Sequence[Call]) -> list[Violation]:
    """Report calls that were told a smaller revision than was told before they started."""
    found: list[Violation] = []
    reached, lows = 0, dict[int, int]()
    for is_end, call in _moments(calls):
        if not is_end:
            lows[call.started] = reached
            continue
        low, told = lows[call.started], _revision_told(call)
        is_state = call.outcome is Outcome.DONE and call.writes
        is_new = is_state and _makes_a_revision(call)
        is_state |= call.snapshot is not None and call.snapshot.at is None
        if is_state and told < low + is_new:
            what = f"{call}: it got revision {told}, but {low} was reached before it started"
            found.append(Violation(Rule.REAL_TIME, what, call))
        reached = max(reached, told)
    return found


def _revision_told(call: Call) -> int:
    """Return a revision that had been reached when a call ended."""
    if call.outcome is Outcome.DONE and call.writes:
        return call.revision
    if call.observation is not None:
        return max(call.observation.revision, call.observation.at or 0)
    return call.snapshot.revision if call.snapshot is not None else 0


def _makes_a_revision(call: Call) -> bool:
    """Return whether a done write certainly changed something.

    A transaction that only deletes may find nothing to delete.
    """
    return call.name == "delete" or any(
        write.writes and write.value is not None for write in call.requested
    )


def _moments(calls: Sequence[Call]) -> Iterator[tuple[bool, Call]]:
    moments = [(call.started, False, call) for call in calls]
    moments += [
        (call.ended, True, call)
        for call in calls
        if call.ended is not None and call.outcome is not Outcome.UNKNOWN
    ]
    return ((is_end, call) for _, is_end, call in sorted(moments, key=lambda moment: moment[0]))


# --- what each call did to each key ---------------------------------------------------------------


def steps_by_key(
    calls: Sequence[Call], server_history: ServerHistory | None = None
) -> dict[str, list[Step]]:
    """Return the steps of each key: what calls did to it, and which other changes are known."""
    seen = _revisions_of_values(calls)
    steps: dict[str, list[Step]] = defaultdict(list)
    for call in calls:
        if call.outcome is Outcome.DONE or (
            call.outcome is Outcome.UNKNOWN and server_history is None
        ):
            for write in call.requested:
                steps[write.key].append(_step_of_write(call, write, seen))
        if (
            call.observation is not None
            and call.observation.at is None
            and call.outcome is not Outcome.UNKNOWN
        ):
            steps[call.observation.key].append(_step_of_observation(call, call.observation))
    if server_history is None:
        _add_lease_ends(calls, steps)
    else:
        _add_what_was_not_told(calls, steps, server_history)
    return {key: _named(of_key) for key, of_key in steps.items()}


def _revisions_of_values(calls: Sequence[Call]) -> dict[tuple[str, bytes], int]:
    """Return the revision of each observed value, which is that of the write of unknown outcome."""
    found: dict[tuple[str, bytes], int] = {}
    for call in calls:
        if call.observation is not None and call.observation.value is not None:
            found[call.observation.key, call.observation.value] = call.observation.revision
        entries = call.snapshot.entries if call.snapshot is not None else ()
        previous = call.change.previous if call.change is not None else None
        for entry in (*entries, *([previous] if previous is not None else [])):
            found[entry.key, entry.value] = entry.mod_revision
    return found


def _step_of_write(call: Call, write: Write, seen: dict[tuple[str, bytes], int]) -> Step:
    is_over = call.outcome is Outcome.DONE
    becomes: int | None = None
    if write.writes and write.value is None:
        becomes = ABSENT
    elif write.writes and write.value is not None:
        becomes = call.revision if is_over else seen.get((write.key, write.value), UNSEEN)
    there = True if call.name == "delete" and is_over else None
    revision = call.revision if is_over and becomes == ABSENT and _makes_a_revision(call) else 0
    return Step(
        call.started,
        call.ended if is_over else None,
        write.expected,
        there,
        becomes,
        call,
        revision,
    )


def _step_of_observation(call: Call, observation: Observation) -> Step:
    expected = observation.revision if observation.exists and observation.revision else None
    return Step(call.started, call.ended, expected, observation.exists, None, call)


def _add_lease_ends(calls: Sequence[Call], steps: dict[str, list[Step]]) -> None:
    """Add the possible deletion of each key with a lease, from the lease's earliest end on."""
    ends = LeaseEnds(calls)
    for key, of_key in steps.items():
        written = [
            (step, write)
            for step in of_key
            if step.call
            for write in step.call.requested
            if write.key == key
        ]
        leases = {
            write.lease for _, write in written if isinstance(write.lease, int) and write.lease
        }
        if not leases:
            continue
        first = min(ends.earliest(lease) for lease in leases)
        for step, write in written:
            if (
                step.becomes
                and write.writes
                and write.lease != 0
                and write.lease is not msgspec.UNSET
            ):
                earliest = first if write.lease is None else ends.earliest(write.lease)
                of_key.append(
                    Step(max(earliest, step.started), None, step.becomes, None, ABSENT, None)
                )


def _add_what_was_not_told(
    calls: Sequence[Call], steps: dict[str, list[Step]], server_history: ServerHistory
) -> None:
    """Add the changes of calls of unknown outcome and of ended leases."""
    told = {
        (i.key, c.revision)
        for c in calls
        if c.outcome is Outcome.DONE
        for i in c.requested
        if i.writes
    }
    started = {
        (i.key, i.value): c.started
        for c in calls
        if c.outcome is Outcome.UNKNOWN
        for i in c.requested
        if i.value
    }
    for key, of_key in steps.items():
        for change in server_history.changes_after(key, 0):
            if (key, change.revision) in told:
                continue
            begun = started.get((key, change.entry.value), 0) if change.entry is not None else 0
            becomes = change.revision if change.entry is not None else ABSENT
            of_key.append(
                Step(begun, None, None, None, becomes, None, change.revision, is_applied=True)
            )


def _named(steps: Sequence[Step]) -> list[Step]:
    """Mark the steps known to be applied, and those whose expected revision nothing else tells."""
    revisions = [
        step.becomes
        for step in steps
        if step.becomes and step.becomes > 0 and step.call is not None
    ]
    told = set(revisions) | {
        step.expected for step in steps if step.call is not None and _value_of(step) is not None
    }
    return [
        step._replace(
            names=step.expected is not None and step.expected > 0 and step.expected not in told,
            is_applied=step.is_applied
            or (
                step.ended is None
                and (step.becomes or 0) > 0
                and revisions.count(step.becomes or 0) == 1
            ),
        )
        for step in steps
    ]


def _value_of(step: Step) -> bytes | None:
    """Return the value that a step observed."""
    return (
        step.call.observation.value
        if step.becomes is None and step.call and step.call.observation is not None
        else None
    )


# --- the search -----------------------------------------------------------------------------------


class _Progress(NamedTuple):
    """The state of a partial order.

    Attributes:
        placed: the steps that it contains, as bits.
        ordered: how many of those are required and have a known revision.
        state: the state of the key.
        floor: the highest revision so far.
    """

    placed: int
    ordered: int
    state: int
    floor: int


def is_linearizable(steps: Sequence[Step], *, limit: int = LIMIT) -> bool | None:
    """Return whether some order explains all steps, starting from an absent key.

    None if `limit` states do not suffice.
    """
    steps = sorted(
        (step for step in steps if step.is_needed or step.becomes is not None),
        key=lambda step: step.started,
    )
    needed = sum(1 << bit for bit, step in enumerate(steps) if step.is_needed)
    # At the end none is left, and any step may follow.
    known = [*sorted(step.known for step in steps if step.is_needed and step.known), float("inf")]
    tried: set[_Progress] = set()
    stack = [_Progress(0, 0, ABSENT, 0)]
    while stack:
        progress = stack.pop()
        if progress.placed & needed == needed:
            return True
        if progress in tried:
            continue
        if len(tried) >= limit:
            return None
        tried.add(progress)
        # Reversed, so that the earliest is tried first.
        stack += reversed(_next_steps(steps, known, progress))
    return False


def _next_steps(
    steps: Sequence[Step], known: Sequence[float], progress: _Progress
) -> list[_Progress]:
    """Return the possible next steps: they fit, and started before any remaining step ended.

    Required steps come before optional ones.
    """
    needed: list[_Progress] = []
    others: list[_Progress] = []
    alike: set[tuple[object, ...]] = set()
    first_end: float = float("inf")
    rest = ~progress.placed & ((1 << len(steps)) - 1)
    while rest:
        lowest = rest & -rest
        step = steps[lowest.bit_length() - 1]
        rest ^= lowest
        if step.started > first_end:
            break
        if step.ended is not None:
            first_end = min(first_end, step.ended)
        if not step.is_needed:
            if step[2:5] in alike:
                continue  # an equivalent step started earlier
            alike.add(step[2:5])
        if not _fits(step, progress) or step.known > known[progress.ordered]:
            continue
        after = _after(step, progress, lowest)
        if step.is_needed and (after.state, after.floor) == (progress.state, progress.floor):
            return [after]  # it changes nothing, so it cannot be placed too early
        (needed if step.is_needed else others).append(after)
    return needed + others


def _fits(step: Step, progress: _Progress) -> bool:
    if step.expected is not None and step.expected != progress.state:
        is_named = progress.state == UNSEEN and step.names and step.expected > progress.floor
        if not is_named:
            return False
    if step.there is not None and step.there != (progress.state != ABSENT):
        return False
    return not step.known or step.known > progress.floor


def _after(step: Step, progress: _Progress, bit: int) -> _Progress:
    state = progress.state if step.expected is None else step.expected
    floor = max(progress.floor, state, step.known)
    state = state if step.becomes is None else step.becomes
    return _Progress(
        progress.placed | bit, progress.ordered + bool(step.is_needed and step.known), state, floor
    )
