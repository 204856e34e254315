"""The final outcomes of calls that were unknown at first and were settled later."""

from collections.abc import Sequence

import msgspec

from kvorum.testing.evidence import Call, Outcome


def settled_calls(calls: Sequence[Call]) -> list[Call]:
    """Return the calls with their final outcomes; a settled call lasts until it was settled.

    The calls that settled others are not included.
    """
    answers = {
        call.settles: call
        for call in reversed(calls)
        if call.settles is not None and call.outcome is not Outcome.UNKNOWN
    }
    return [_settled(call, answers.get(call.started)) for call in calls if call.settles is None]


def _settled(call: Call, answer: Call | None) -> Call:
    if answer is None or call.outcome is not Outcome.UNKNOWN or answer.is_given_up:
        return call
    return msgspec.structs.replace(
        call,
        outcome=answer.outcome,
        ended=answer.ended,
        revision=answer.revision,
        observation=answer.observation,
    )


def contradictions(calls: Sequence[Call]) -> list[tuple[Call, Call]]:
    """Return the pairs of calls that settled the same call with different results."""
    first: dict[int, Call] = {}
    found: list[tuple[Call, Call]] = []
    for call in calls:
        if call.settles is None or call.outcome is Outcome.UNKNOWN or call.is_given_up:
            continue
        one = first.setdefault(call.settles, call)
        if (one.outcome, one.revision) != (call.outcome, call.revision):
            found.append((one, call))
    return found
