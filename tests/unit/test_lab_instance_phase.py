"""The phases of a lab, against a second table written by hand."""

import itertools

import pytest

from kvorum.lab import LEGAL_INSTANCE_MOVES, PLACED_PHASES, LabInstancePhase

MOVES = """
    Pending    -> Scheduled Terminated Failed
    Scheduled  -> Starting Pending Terminated Failed
    Starting   -> Running Stopping Failed
    Running    -> Stopping Failed
    Stopping   -> Terminated Failed
    Terminated ->
    Failed     -> Stopping Pending
"""
EXPECTED = {
    old.strip(): set(new.split())
    for old, new in (line.split("->") for line in MOVES.strip().splitlines())
}

PAIRS = list(itertools.product(LabInstancePhase, repeat=2))


def test_phases_are_called_in_the_bytes_what_they_always_were() -> None:
    """Stored labs have these words; after a rename they could not be read any more."""
    assert {phase.name: phase.value for phase in LabInstancePhase} == {
        "PENDING": "Pending",
        "SCHEDULED": "Scheduled",
        "STARTING": "Starting",
        "RUNNING": "Running",
        "STOPPING": "Stopping",
        "TERMINATED": "Terminated",
        "FAILED": "Failed",
    }


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_move_is_legal_just_if_it_was_written_down(
    old: LabInstancePhase, new: LabInstancePhase
) -> None:
    assert old.may_become(new) == (old is new or new.value in EXPECTED[old.value])


def test_every_phase_has_its_place_in_the_table() -> None:
    assert set(LEGAL_INSTANCE_MOVES) == set(LabInstancePhase)


def test_nothing_comes_after_the_end_and_only_after_the_end() -> None:
    assert [phase for phase in LabInstancePhase if phase.is_terminal] == [
        LabInstancePhase.TERMINATED
    ]


def test_every_phase_can_be_reached_and_left_for_the_end() -> None:
    def reached(start: LabInstancePhase) -> set[LabInstancePhase]:
        found = {start}
        while more := {new for old in found for new in LEGAL_INSTANCE_MOVES[old]} - found:
            found |= more
        return found

    assert reached(LabInstancePhase.PENDING) == set(LabInstancePhase)
    assert all(LabInstancePhase.TERMINATED in reached(phase) for phase in LabInstancePhase)


def test_a_lab_that_may_have_something_on_a_worker_is_placed() -> None:
    assert {phase for phase in LabInstancePhase if phase.has_owner} == PLACED_PHASES
    assert [phase for phase in LabInstancePhase if phase.has_owner] == [
        "Scheduled",
        "Starting",
        "Running",
        "Stopping",
    ]
