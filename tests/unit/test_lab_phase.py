"""The phases of a lab worker, against a second table written by hand."""

import itertools

import pytest

from kvorum.lab import ACTIVE_PHASES, HOSTING_PHASES, LEGAL_MOVES, READY_PHASES, LabWorkerPhase

# Every pair of phases that a worker may go through, as they are called in the bytes. Not derived
# from the table: it is what the table is checked against.
MOVES = """
    Pending          -> ProvisioningEC2 Failed
    ProvisioningEC2  -> EC2Ready TerminatingEC2 Failed
    EC2Ready         -> Starting TerminatingEC2 Failed
    Starting         -> ReadyUnlicensed Stopping Failed
    ReadyUnlicensed  -> Licensing Draining Stopping Failed
    Licensing        -> Ready ReadyUnlicensed Failed
    Ready            -> Active Draining ReadyUnlicensed Failed
    Active           -> Ready Draining ReadyUnlicensed Failed
    Draining         -> Ready Active ReadyUnlicensed Unlicensing Stopping Failed
    Unlicensing      -> Stopping Failed
    Stopping         -> TerminatingEC2 Failed
    TerminatingEC2   -> Terminated Failed
    Terminated       ->
    Failed           -> TerminatingEC2 Pending
"""
EXPECTED = {
    old: set(new.split()) for old, new in (line.split("->") for line in MOVES.strip().splitlines())
}
EXPECTED = {old.strip(): new for old, new in EXPECTED.items()}

PAIRS = list(itertools.product(LabWorkerPhase, repeat=2))


def test_phases_are_called_in_the_bytes_what_they_always_were() -> None:
    """Stored workers have these words; after a rename they could not be read any more."""
    assert {phase.name: phase.value for phase in LabWorkerPhase} == {
        "PENDING": "Pending",
        "PROVISIONING_EC2": "ProvisioningEC2",
        "EC2_READY": "EC2Ready",
        "STARTING": "Starting",
        "READY_UNLICENSED": "ReadyUnlicensed",
        "LICENSING": "Licensing",
        "READY": "Ready",
        "ACTIVE": "Active",
        "DRAINING": "Draining",
        "UNLICENSING": "Unlicensing",
        "STOPPING": "Stopping",
        "TERMINATING_EC2": "TerminatingEC2",
        "TERMINATED": "Terminated",
        "FAILED": "Failed",
    }


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_move_is_legal_just_if_it_was_written_down(
    old: LabWorkerPhase, new: LabWorkerPhase
) -> None:
    assert old.may_become(new) == (old is new or new.value in EXPECTED[old.value])


def test_every_phase_has_its_place_in_the_table() -> None:
    assert set(LEGAL_MOVES) == set(LabWorkerPhase)


def test_staying_is_not_among_the_moves() -> None:
    """So that the table has only real transitions."""
    assert not [phase for phase in LabWorkerPhase if phase in LEGAL_MOVES[phase]]


def test_only_terminated_is_final() -> None:
    assert [phase for phase in LabWorkerPhase if phase.is_terminal] == [LabWorkerPhase.TERMINATED]


def test_every_phase_can_be_reached_from_pending() -> None:
    """An unreachable phase would be an error in the table."""
    reached, found = set[LabWorkerPhase](), {LabWorkerPhase.PENDING}
    while found:
        reached |= found
        found = {new for old in found for new in LEGAL_MOVES[old]} - reached

    assert reached == set(LabWorkerPhase)


@pytest.mark.parametrize("start", LabWorkerPhase)
def test_a_worker_can_always_be_cleaned_up(start: LabWorkerPhase) -> None:
    """No phase is a dead end: an instance that cannot be terminated costs money for ever."""
    reached, found = set[LabWorkerPhase](), {start}
    while found:
        reached |= found
        found = {new for old in found for new in LEGAL_MOVES[old]} - reached

    assert LabWorkerPhase.TERMINATED in reached


def test_a_worker_with_a_licence_is_drained_before_the_licence_is_given_back() -> None:
    """Otherwise labs would be placed on a host that is about to lose its licence."""
    before = {old for old in LabWorkerPhase if LabWorkerPhase.UNLICENSING in LEGAL_MOVES[old]}

    assert before == {LabWorkerPhase.DRAINING}


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        LEGAL_MOVES[LabWorkerPhase.TERMINATED] = frozenset(LabWorkerPhase)  # type: ignore[index] # it is what we test


def test_phases_are_grouped_by_what_they_can_be_used_for() -> None:
    assert {"Ready", "Active"} == READY_PHASES
    assert {"ReadyUnlicensed", "Ready", "Active"} == HOSTING_PHASES
    assert {"Ready", "Draining"} == ACTIVE_PHASES
    assert {phase for phase in LabWorkerPhase if phase.is_ready} == READY_PHASES
    assert {phase for phase in LabWorkerPhase if phase.may_host} == HOSTING_PHASES
