"""Is there an order of the calls on each key that explains what they were told? By search, without a truth.

Linearizability is local: a history is linearizable if it is so for each key. For each, the calls are tried in every
order that real time allows, the earliest first, and what was tried is remembered by (calls placed, state). A call whose
outcome is unknown may have happened at any time after it started, or never. Values should be unique: a write of unknown
outcome is known again by its value.

Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for linearizability" (2017).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from kvorum.testing.history import Call, History, Intent, Outcome, Sight
from kvorum.testing.violation import Rule, Violation

ABSENT = 0


class Step(NamedTuple):
    """What a call did to one key, or saw of it. States are mod_revisions; 0 is "absent".

    Attributes:
        started: the number of the call's start.
        ended: that of its end; None if it may still happen, or may never.
        expected: the state that it needs; None for any.
        there: whether it needs the key to be there (True) or absent (False); None for either.
        becomes: the state that it leaves; None for the same.
        call: which call it is a part of.
    """

    started: int
    ended: int | None
    expected: int | None
    there: bool | None
    becomes: int | None
    call: Call


def check_linearizability(history: History) -> list[Violation]:
    """Return the keys whose calls no order explains; nothing if there are none.

    It takes calls on single keys, and the parts of transactions; snapshots and reads of the past are for
    `check_revisions`. The time that it takes grows with the number of calls that overlap, not with that of all calls.
    """
    steps = steps_by_key(history.calls)
    return _wrong_values(history.calls) + [
        Violation(Rule.NOT_LINEARIZABLE, f"no order of the {len(of_key)} calls on {key!r} explains them")
        for key, of_key in sorted(steps.items())
        if not is_linearizable(of_key)
    ]


def steps_by_key(calls: Sequence[Call]) -> dict[str, list[Step]]:
    """Return what each call did to each key."""
    seen = _revisions_of_values(calls)
    steps: dict[str, list[Step]] = defaultdict(list)
    for call in calls:
        if call.outcome is not Outcome.REFUSED:
            for place, intent in enumerate(call.intents):
                steps[intent.key].append(_step_of_intent(call, intent, place, seen))
        if call.sight is not None and call.sight.at is None and call.outcome is not Outcome.UNKNOWN:
            steps[call.sight.key].append(_step_of_sight(call, call.sight))
    return steps


def _revisions_of_values(calls: Sequence[Call]) -> dict[tuple[str, bytes], int]:
    """Return the revision of each value that somebody saw; a write of unknown outcome gets its own from there."""
    found: dict[tuple[str, bytes], int] = {}
    for call in calls:
        if call.sight is not None and call.sight.value is not None:
            found[call.sight.key, call.sight.value] = call.sight.revision
        entries = call.snapshot.entries if call.snapshot is not None else ()
        previous = call.change.previous if call.change is not None else None
        for entry in (*entries, *([previous] if previous is not None else [])):
            found[entry.key, entry.value] = entry.mod_revision
    return found


def _wrong_values(calls: Sequence[Call]) -> list[Violation]:
    """Find who saw another value at a revision than was written at it."""
    done = [(call, intent) for call in calls if call.outcome is Outcome.DONE for intent in call.intents]
    written = {(intent.key, call.revision): intent.value for call, intent in done if intent.writes}
    return [
        Violation(Rule.INVENTED_READ, f"{call}: revision {call.sight.revision} wrote something else", call)
        for call in calls
        if call.sight is not None and call.sight.value is not None
        if written.get((call.sight.key, call.sight.revision), call.sight.value) != call.sight.value
    ]


def _step_of_intent(call: Call, intent: Intent, place: int, seen: dict[tuple[str, bytes], int]) -> Step:
    is_over = call.outcome is Outcome.DONE
    becomes: int | None = None
    if intent.writes and intent.value is None:
        becomes = ABSENT
    elif intent.writes and intent.value is not None:
        # A state of its own, if nobody ever saw it: negative, so it is no revision.
        becomes = call.revision if is_over else seen.get((intent.key, intent.value), -(call.started * 1000 + place))
    there = True if call.name == "delete" and is_over else None
    return Step(call.started, call.ended if is_over else None, intent.expected, there, becomes, call)


def _step_of_sight(call: Call, sight: Sight) -> Step:
    expected = sight.revision if sight.exists and sight.revision else None
    return Step(call.started, call.ended, expected, sight.exists, None, call)


def is_linearizable(steps: Sequence[Step]) -> bool:
    """Tell whether some order of the steps fits them all, from "absent" on."""
    steps = sorted(steps, key=lambda step: step.started)
    needed = sum(1 << place for place, step in enumerate(steps) if step.ended is not None)
    tried: set[tuple[int, int]] = set()
    stack = [(0, ABSENT)]
    while stack:
        placed, state = stack.pop()
        if placed & needed == needed:
            return True
        if (placed, state) in tried:
            continue
        tried.add((placed, state))
        # In reverse, so that the earliest is tried first.
        stack += reversed(list(_next_steps(steps, placed, state)))
    return False


def _next_steps(steps: Sequence[Step], placed: int, state: int) -> list[tuple[int, int]]:
    """Return what can come next: a step that fits, and that started before any other that is left had ended."""
    found: list[tuple[int, int]] = []
    first_end: float = float("inf")
    rest = ~placed & ((1 << len(steps)) - 1)
    while rest:
        lowest = rest & -rest
        step = steps[lowest.bit_length() - 1]
        if step.started > first_end:
            break
        if step.ended is not None:
            first_end = min(first_end, step.ended)
        if _fits(step, state):
            found.append((placed | lowest, state if step.becomes is None else step.becomes))
        rest ^= lowest
    return found


def _fits(step: Step, state: int) -> bool:
    if step.expected is not None and step.expected != state:
        return False
    if step.there is not None and step.there != (state != ABSENT):
        return False
    return step.becomes is None or step.becomes <= 0 or state <= 0 or step.becomes > state
