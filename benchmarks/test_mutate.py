"""Increments of one worker by several writers, with retries after conflicts."""

from collections.abc import Callable, Mapping
from functools import partial

import pytest
from benchmarks import sample
from benchmarks.conftest import Compete
from benchmarks.contenders import NAMES, Contender
from benchmarks.race import Heat, Run, at_once, wait_for
from benchmarks.referee import Referee

pytestmark = [
    pytest.mark.parametrize("name", NAMES),
    pytest.mark.parametrize("writers", [1, 4, 16]),
]


def test_mutate(
    compete: Compete,
    contenders: dict[str, Contender],
    referee: Referee,
    run: Run,
    is_quick: bool,
    name: str,
    writers: int,
) -> None:
    calls = 112 if is_quick else 192

    def heat(contender: Contender) -> Heat:
        worker = contender.item(0)
        turn, revision = run(wait_for(contender.turn, worker)), referee.revision()
        heat = at_once([(contender.increment, worker)] * calls, writers, run)
        assert run(wait_for(contender.turn, worker)) - turn == heat.calls == calls
        assert referee.revision() - revision == calls
        return heat

    def heats() -> Mapping[str, Callable[[], Heat]]:
        for contender in contenders.values():
            referee.fill([sample.pair_of(contender.prefix, 0)])
        return {name: partial(heat, contender) for name, contender in contenders.items()}

    compete("mutate one key", f"{writers} writer{'s' if writers > 1 else ''}", name, heats)
