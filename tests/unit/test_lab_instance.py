"""A lab: its initial state, its transitions, its worker, its expiry, and what it rejects."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import Condition, InvalidResourceError
from kvorum.encoding.stored import codec_for
from kvorum.lab import (
    DEFAULT_DURATION,
    MAX_DURATION,
    LabInstance,
    LabInstancePhase,
    ResourceQuantity,
)
from kvorum.storage.values import Entry

P = LabInstancePhase
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def lab(phase: LabInstancePhase = P.PENDING, *, worker: str = "") -> LabInstance:
    made = LabInstance.new(
        "ospf", namespace="ccna", template="ospf-basics", owner="ada@example.org"
    )
    made.status.phase = phase
    made.status.worker = worker
    return made


def running(at: datetime = NOON) -> LabInstance:
    made = lab()
    made.assign("worker-001", at=at)
    made.move_to(P.STARTING, at=at)
    made.move_to(P.RUNNING, at=at)
    return made


# --- what it is -----------------------------------------------------------------------------------


def test_a_new_lab_is_pending_on_no_worker_and_valid() -> None:
    new = lab()

    assert new.validate() == []
    assert (new.status.phase, new.status.worker, new.expires_at) == (P.PENDING, "", None)
    assert new.spec.duration == DEFAULT_DURATION
    assert new.spec.resources == ResourceQuantity()
    assert new.lab_id == "ccna/ospf"


def test_labs_share_nothing_that_can_change() -> None:
    labels = {"a": "b"}
    one = LabInstance.new(
        "a", namespace="x", template="t", owner="o", labels=labels, annotations=labels
    )
    other = LabInstance.new(
        "b", namespace="x", template="t", owner="o", labels=labels, annotations=labels
    )
    one.metadata.labels["c"] = "d"
    one.metadata.annotations["c"] = "d"

    assert other.metadata.labels == other.metadata.annotations == labels == {"a": "b"}


def test_a_stored_lab_reads_like_this() -> None:
    """Bytes of released versions stay readable: these are the names and formats in them."""
    value = msgspec.json.encode(
        {
            "apiVersion": "lab.kvorum.dev/v1",
            "kind": "LabInstance",
            "metadata": {"name": "ospf", "namespace": "ccna", "uid": "u", "formVersion": 1},
            "spec": {
                "template": "ospf-basics",
                "owner": "ada@example.org",
                "duration": "PT5400S",
                "resources": {"cpuCores": 4, "nodes": 5},
            },
            "status": {
                "phase": "Running",
                "worker": "worker-001",
                "conditions": [{"type": "Ready", "status": "True"}],
                "lastTransitionTime": "2026-01-02T12:00:00Z",
                "startedAt": "2026-01-02T12:00:00Z",
                "errorCount": 1,
            },
        }
    )

    read = codec_for(LabInstance).decode(Entry("lab-instances/ccna/ospf", value, 7, 7, 1))
    assert read.spec.duration == timedelta(minutes=90)
    assert read.spec.resources == ResourceQuantity(cpu_cores=4, nodes=5)
    assert read.expires_at == NOON + timedelta(minutes=90)
    assert read.validate() == []
    written = msgspec.json.decode(codec_for(LabInstance).draft_new(read).stored.value)
    assert written["spec"] == msgspec.json.decode(value)["spec"]
    assert written["status"] == msgspec.json.decode(value)["status"]


def test_defaults_are_written_out_so_that_a_later_release_cannot_change_them() -> None:
    written = msgspec.json.decode(codec_for(LabInstance).draft_new(lab()).stored.value)

    assert written["spec"]["duration"] == "PT14400S"
    assert written["status"]["phase"] == "Pending"


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda lab: setattr(lab.spec, "template", "Not A Name"), "spec.template"),
        (lambda lab: setattr(lab.spec, "template", ""), "spec.template"),
        (lambda lab: setattr(lab.spec, "owner", ""), "spec.owner"),
        (lambda lab: setattr(lab.spec, "owner", "two\nlines"), "spec.owner"),
        (lambda lab: setattr(lab.spec, "owner", "x" * 255), "spec.owner"),
        (lambda lab: setattr(lab.spec, "duration", timedelta(0)), "spec.duration"),
        (
            lambda lab: setattr(lab.spec, "duration", MAX_DURATION + timedelta(seconds=1)),
            "spec.duration",
        ),
        (
            lambda lab: setattr(lab.spec, "resources", ResourceQuantity(nodes=-1)),
            "spec.resources.nodes",
        ),
        (lambda lab: setattr(lab.status, "worker", "Not A Name"), "status.worker"),
        (
            lambda lab: setattr(lab.status, "worker", "worker-001"),
            "a lab that is Pending is on none",
        ),
        (
            lambda lab: setattr(lab.status, "phase", P.SCHEDULED),
            "a lab that is Scheduled is on one",
        ),
        (lambda lab: setattr(lab.status, "error_count", -1), "status.errorCount"),
    ],
)
def test_a_lab_says_what_is_wrong_with_it_and_where(
    spoil: Callable[[LabInstance], None], problem: str
) -> None:
    spoilt = lab()
    spoil(spoilt)

    assert any(problem in each for each in spoilt.validate())


def test_a_lab_that_runs_has_to_say_since_when() -> None:
    spoilt = running()
    spoilt.status.started_at = None

    assert spoilt.validate() == [
        "status.startedAt is missing; a lab that is Running would never expire"
    ]


@pytest.mark.parametrize("owner", ["a", "ada@example.org", "Ada Lovelace", "x" * 254, "ÄÖ, ü = 1"])
def test_an_owner_may_be_called_anything_on_one_line(owner: str) -> None:
    assert LabInstance.new("a", namespace="x", template="t", owner=owner).validate() == []


# --- moving ---------------------------------------------------------------------------------------


def test_a_lab_goes_through_its_life() -> None:
    it = lab()
    it.assign("worker-001", at=NOON)
    assert (it.status.phase, it.status.worker, it.status.last_transition_time) == (
        P.SCHEDULED,
        "worker-001",
        NOON,
    )
    it.move_to(P.STARTING)
    it.move_to(P.RUNNING, at=NOON + timedelta(minutes=2))
    assert it.status.started_at == NOON + timedelta(minutes=2)
    assert [(each.type, each.status) for each in it.status.conditions] == [("Ready", "True")]
    it.move_to(P.STOPPING, reason="Expired", message="its time is up")
    assert it.status.conditions == [
        Condition(
            type="Ready",
            status="False",
            reason="Expired",
            message="its time is up",
            last_transition_time=it.status.last_transition_time,
        )
    ]
    assert it.status.worker == "worker-001"
    it.move_to(P.TERMINATED, at=NOON + timedelta(hours=5))

    assert it.status.worker == ""
    assert it.status.terminated_at == NOON + timedelta(hours=5)
    assert it.validate() == []


def test_an_illegal_move_is_refused_with_what_is_allowed_and_changes_nothing() -> None:
    it = running()
    before = msgspec.json.encode(it.status)

    with pytest.raises(InvalidResourceError, match="from Running it may go to Stopping, Failed"):
        it.move_to(P.PENDING)
    with pytest.raises(
        InvalidResourceError,
        match="lab-instances/ccna/ospf: it cannot go from Running to Scheduled",
    ):
        it.move_to(P.SCHEDULED)

    assert msgspec.json.encode(it.status) == before


def test_only_an_assignment_leads_to_scheduled() -> None:
    with pytest.raises(InvalidResourceError, match="it is on no worker, so it cannot be Scheduled"):
        lab().move_to(P.SCHEDULED)


def test_an_assignment_twice_is_as_good_as_once() -> None:
    it = lab()
    it.assign("worker-001", at=NOON)
    before = msgspec.json.encode(it.status)
    it.assign("worker-001")
    assert msgspec.json.encode(it.status) == before

    it.move_to(P.STARTING)
    it.assign("worker-001")
    assert it.status.phase == P.STARTING


def test_a_lab_is_on_one_worker_at_a_time() -> None:
    it = lab()
    it.assign("worker-001")

    with pytest.raises(InvalidResourceError, match="on 'worker-001' already"):
        it.assign("worker-002")

    it.move_to(P.PENDING, reason="WorkerLost")
    it.assign("worker-002")
    assert it.status.worker == "worker-002"


def test_a_lab_that_is_over_is_not_placed() -> None:
    it = lab(P.TERMINATED)

    with pytest.raises(InvalidResourceError, match="from Terminated it may go nowhere"):
        it.assign("worker-001")
    assert it.status.worker == ""


def test_a_failure_is_counted_and_keeps_the_worker_that_has_to_be_cleaned_up() -> None:
    it = running()
    it.move_to(P.FAILED, message="CML does not answer", at=NOON)
    assert (it.status.error_message, it.status.error_count, it.status.worker) == (
        "CML does not answer",
        1,
        "worker-001",
    )
    assert it.validate() == []
    it.move_to(P.PENDING)
    it.assign("worker-002")
    it.move_to(P.STARTING)
    it.move_to(P.RUNNING, at=NOON + timedelta(hours=1))

    assert (it.status.error_message, it.status.error_count) == ("", 1)
    assert it.status.started_at == NOON + timedelta(hours=1)


def test_a_failed_lab_without_a_worker_has_nothing_to_stop() -> None:
    it = lab()
    it.move_to(P.FAILED)

    with pytest.raises(InvalidResourceError, match="on no worker"):
        it.move_to(P.STOPPING)


@given(st.lists(st.sampled_from([*P, "one", "other"])))
def test_whatever_is_tried_a_lab_stays_valid(tries: list[str]) -> None:
    """Random transitions and assignments: each is applied completely, or changes nothing."""
    it = lab()
    for step in tries:
        before = msgspec.json.encode(it.status)
        try:
            it.move_to(step) if isinstance(step, P) else it.assign(step)
        except InvalidResourceError:
            assert msgspec.json.encode(it.status) == before
        assert it.validate() == []


# --- time -----------------------------------------------------------------------------------------


def test_the_time_of_a_lab_counts_from_when_it_runs() -> None:
    it = running(NOON)

    assert it.expires_at == NOON + DEFAULT_DURATION
    assert not it.is_expired(NOON + DEFAULT_DURATION - timedelta(microseconds=1))
    assert it.is_expired(NOON + DEFAULT_DURATION)
    assert it.is_expired()  # by now, whenever this runs


def test_more_time_is_given_by_a_longer_duration() -> None:
    it = running(NOON)
    it.spec.duration += timedelta(hours=1)

    assert not it.is_expired(NOON + DEFAULT_DURATION)


def test_a_lab_that_is_being_stopped_is_not_expired_again() -> None:
    it = running(NOON)
    it.move_to(P.STOPPING)

    assert not it.is_expired(NOON + timedelta(days=1))
    assert not lab().is_expired(NOON)
