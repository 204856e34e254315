"""A lab worker: how it is made, stored, checked, moved between phases, and filled with labs."""

import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvorum import Condition, InvalidResourceError
from kvorum.lab import (
    AwsEc2Config,
    CmlConfig,
    EbsVolume,
    InsufficientCapacityError,
    LabWorker,
    LabWorkerPhase,
    LabWorkerSpec,
    LabWorkerStatus,
    ResourceQuantity,
)

P = LabWorkerPhase

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
HOST = ResourceQuantity(cpu_cores=96, memory_mb=192_000, storage_gb=400, nodes=300)
SMALL = ResourceQuantity(cpu_cores=2, memory_mb=4000, storage_gb=10, nodes=3)


def worker_in(phase: LabWorkerPhase, total: ResourceQuantity = HOST) -> LabWorker:
    worker = LabWorker.new("worker-001", lab_track="comp-sci-101")
    worker.status.phase = phase
    worker.status.total_capacity = total
    return worker


def ready_condition(worker: LabWorker) -> Condition:
    (condition,) = worker.status.conditions
    return condition


def phase_and_labs(worker: LabWorker) -> tuple[LabWorkerPhase, tuple[str, ...]]:
    return worker.status.phase, worker.status.hosted_lab_ids


# --- making ---------------------------------------------------------------------------------------


def test_a_new_worker_is_pending_labelled_and_valid() -> None:
    worker = LabWorker.new("worker-001", lab_track="comp-sci-101")

    assert worker.metadata.name == "worker-001"
    assert worker.metadata.labels == {"lab-track": "comp-sci-101"}
    assert worker.metadata.resource_version == 0
    assert worker.spec == LabWorkerSpec(lab_track="comp-sci-101")
    assert worker.status == LabWorkerStatus()
    assert worker.status.phase is P.PENDING
    assert worker.validate() == []


def test_a_new_worker_takes_labels_annotations_and_configuration() -> None:
    worker = LabWorker.new(
        "worker-001",
        lab_track="comp-sci-101",
        aws=AwsEc2Config(region="eu-central-1"),
        cml=CmlConfig(max_nodes=20),
        labels={"room": "b12"},
        annotations={"note": "for the spring term"},
    )

    assert worker.metadata.labels == {"lab-track": "comp-sci-101", "room": "b12"}
    assert worker.metadata.annotations == {"note": "for the spring term"}
    assert worker.spec.aws.region == "eu-central-1"
    assert worker.spec.cml.max_nodes == 20
    assert worker.validate() == []


def test_workers_share_nothing() -> None:
    """Workers made from one configuration do not share it: a tag of one is not a tag of all."""
    aws, cml, labels = AwsEc2Config(), CmlConfig(), {"room": "b12"}
    one, other = (
        LabWorker.new(name, lab_track="x", aws=aws, cml=cml, labels=labels)
        for name in ("one", "other")
    )
    one.spec.aws.tags["name"] = "one"
    one.spec.cml.max_nodes = 1
    one.metadata.labels["room"] = "c7"
    one.status.hosted_labs["lab"] = SMALL

    assert other == LabWorker.new("other", lab_track="x", labels={"room": "b12"})
    assert (aws, cml, labels) == (AwsEc2Config(), CmlConfig(), {"room": "b12"})


def test_its_kind_says_where_it_is_kept() -> None:
    assert (LabWorker.kind.name, LabWorker.kind.plural) == ("LabWorker", "lab-workers")
    assert LabWorker.kind.api_version == "lab.kvorum.dev/v1"
    assert not LabWorker.kind.namespaced


# --- in the bytes ---------------------------------------------------------------------------------


def test_a_worker_written_by_hand_needs_a_lab_track_and_nothing_else() -> None:
    spec = msgspec.json.decode(b'{"labTrack":"x"}', type=LabWorkerSpec)
    status = msgspec.json.decode(b"{}", type=LabWorkerStatus)

    assert spec == LabWorkerSpec(lab_track="x")
    assert status.phase is P.PENDING
    worker = LabWorker.new("w", lab_track="x")
    worker.metadata.labels.clear()
    assert worker.validate() == []


def test_a_malformed_worker_can_still_be_read() -> None:
    """One bad AMI must not make a list unreadable: `validate` reports it at the next write."""
    spec = msgspec.json.decode(
        b'{"labTrack":"","aws":{"amiId":"foo","ebs":{"volumeType":"tape","sizeGb":-1}}}',
        type=LabWorkerSpec,
    )

    assert spec.aws.ami_id == "foo"


def test_the_phase_is_always_in_the_bytes() -> None:
    """Operators look for it with etcdctl, even while the worker is Pending."""
    assert msgspec.to_builtins(LabWorkerStatus())["phase"] == "Pending"


def test_spec_and_status_come_back_as_they_were() -> None:
    worker = worker_in(P.LICENSING)
    worker.spec.cml.license_token = "hush"
    worker.spec.aws.ebs = EbsVolume(size_gb=500)
    worker.move_to(P.READY, reason="Licensed", message="until spring", at=NOON)
    worker.host_lab("lab-1", SMALL)
    worker.status.last_heartbeat_time = NOON
    spec, status = msgspec.json.encode(worker.spec), msgspec.json.encode(worker.status)

    assert msgspec.json.decode(spec, type=LabWorkerSpec) == worker.spec
    assert msgspec.json.decode(status, type=LabWorkerStatus) == worker.status


def test_fields_are_called_as_in_kubernetes() -> None:
    worker = worker_in(P.READY)
    worker.host_lab("lab-1", SMALL)
    worker.status.last_heartbeat_time = NOON
    worker.status.ec2.public_ip = "192.0.2.1"
    worker.status.cml.api_url = "https://192.0.2.1/api"
    status = msgspec.to_builtins(worker.status)

    assert status["lastHeartbeatTime"] == "2026-01-31T12:00:00Z"
    assert status["hostedLabs"] == {
        "lab-1": {"cpuCores": 2, "memoryMb": 4000, "storageGb": 10, "nodes": 3}
    }
    assert status["ec2"] == {"publicIp": "192.0.2.1"}
    assert status["cml"] == {"apiUrl": "https://192.0.2.1/api"}


def test_secrets_do_not_show_in_the_repr_of_the_whole_worker() -> None:
    worker = LabWorker.new(
        "w", lab_track="x", cml=CmlConfig(license_token="hush", admin_password="hushed")
    )

    assert "hush" not in repr(worker)
    assert "license_token='***', admin_username='admin', admin_password='***'" in repr(worker)


# --- checking -------------------------------------------------------------------------------------


def test_every_problem_of_a_worker_is_told_at_once() -> None:
    worker = LabWorker.new(
        "w",
        lab_track="two words",
        aws=AwsEc2Config(ami_id="foo"),
        cml=CmlConfig(max_nodes=0),
        labels={"lab-track": "another"},
    )
    worker.status.total_capacity = ResourceQuantity(memory_mb=-1)
    worker.status.hosted_labs = {" ": SMALL, "lab-1": ResourceQuantity(nodes=-2)}
    worker.status.error_count = -3

    assert worker.validate() == [
        (
            "spec.labTrack 'two words' is not a lab track "
            "(1 to 63 letters, digits, '-', '_' and '.', "
            "starting and ending with a letter or digit)"
        ),
        "metadata.labels.lab-track 'another' is not spec.labTrack 'two words'; change both",
        "spec.aws.amiId 'foo' is not an AMI id (ami- and 8 or 17 hex digits)",
        "spec.cml.maxNodes is 0; it must be at least 1 nodes",
        "status.totalCapacity.memoryMb is -1; it must be at least 0 MB of memory",
        "status.hostedLabs has a lab without an id: ' '",
        "status.hostedLabs.lab-1.nodes is -2; it must be at least 0 nodes",
        "status.errorCount is -3; it must be at least 0 failures",
    ]


@pytest.mark.parametrize("track", ["", "-a", "a-", "a b", "a/b", "ä", "a" * 64, "a\n"])
def test_a_lab_track_must_do_as_a_label(track: str) -> None:
    (problem,) = LabWorker.new("w", lab_track=track).validate()

    assert problem.startswith(f"spec.labTrack {track!r} is not a lab track")


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", fullmatch=True))
def test_what_does_as_a_label_does_as_a_lab_track(track: str) -> None:
    assert LabWorker.new("w", lab_track=track).validate() == []


def test_labs_that_take_more_than_there_is_are_no_problem() -> None:
    """Otherwise the status of a host that shrank could not be written any more."""
    worker = worker_in(P.ACTIVE, total=ResourceQuantity())
    worker.status.hosted_labs["lab-1"] = SMALL

    assert worker.validate() == []


# --- moving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), list(itertools.product(P, repeat=2)))
def test_a_worker_moves_where_it_may_and_nowhere_else(
    old: LabWorkerPhase, new: LabWorkerPhase
) -> None:
    worker = worker_in(old)
    if old.may_become(new):
        worker.move_to(new)

        assert worker.status.phase is new
        assert ready_condition(worker).status == ("True" if new in {P.READY, P.ACTIVE} else "False")
        assert worker.validate() == []
        return

    before = msgspec.json.encode(worker.status)
    with pytest.raises(InvalidResourceError):
        worker.move_to(new)

    assert msgspec.json.encode(worker.status) == before


def test_a_refused_move_says_where_else_the_worker_may_go() -> None:
    worker = worker_in(P.PENDING)

    with pytest.raises(InvalidResourceError) as refusal:
        worker.move_to(P.READY)

    assert refusal.value.subject == "lab-workers/worker-001"
    assert refusal.value.problems == (
        "it cannot go from Pending to Ready; from Pending it may go to ProvisioningEC2, Failed",
    )


def test_a_terminated_worker_is_said_to_go_nowhere() -> None:
    with pytest.raises(InvalidResourceError, match="from Terminated it may go nowhere"):
        worker_in(P.TERMINATED).move_to(P.PENDING)


def test_a_move_tells_why_and_when() -> None:
    worker = worker_in(P.LICENSING)
    worker.metadata.generation = 7
    worker.move_to(P.READY, reason="Licensed", message="the licence is registered", at=NOON)

    assert worker.status.last_transition_time == NOON
    assert ready_condition(worker) == Condition(
        type="Ready",
        status="True",
        reason="Licensed",
        message="the licence is registered",
        last_transition_time=NOON,
        observed_generation=7,
    )


def test_a_move_without_a_reason_gives_the_phase_as_one() -> None:
    worker = worker_in(P.EC2_READY)
    worker.move_to(P.STARTING)

    assert ready_condition(worker).reason == "Starting"


def test_a_move_happens_now_unless_told_otherwise() -> None:
    worker = worker_in(P.PENDING)
    before = datetime.now(UTC)
    worker.move_to(P.PROVISIONING_EC2)

    assert worker.status.last_transition_time is not None
    assert before <= worker.status.last_transition_time <= datetime.now(UTC)


def test_readiness_has_lasted_since_it_began_not_since_the_last_lab() -> None:
    worker = worker_in(P.LICENSING)
    worker.move_to(P.READY, at=NOON)
    worker.move_to(P.ACTIVE, at=NOON + timedelta(hours=1))

    assert ready_condition(worker).last_transition_time == NOON
    assert ready_condition(worker).reason == "Active"
    assert worker.status.last_transition_time == NOON + timedelta(hours=1)


def test_staying_changes_nothing() -> None:
    """A reconciler may set the phase each time it runs, without a write each time."""
    worker = worker_in(P.STARTING)
    worker.move_to(P.FAILED, reason="NoAnswer", message="CML does not answer", at=NOON)
    before = msgspec.json.encode(worker.status)
    worker.move_to(
        P.FAILED, reason="NoAnswer", message="CML does not answer", at=NOON + timedelta(hours=1)
    )

    assert msgspec.json.encode(worker.status) == before


def test_staying_brings_the_condition_in_line_with_a_phase_that_was_assigned() -> None:
    worker = worker_in(P.LICENSING)
    worker.move_to(P.LICENSING, at=NOON)
    worker.status.phase = P.READY
    worker.move_to(P.READY, at=NOON + timedelta(hours=1))

    assert ready_condition(worker).status == "True"
    assert ready_condition(worker).last_transition_time == NOON + timedelta(hours=1)


def test_a_life_leaves_its_dates() -> None:
    worker = worker_in(P.PENDING)
    life = [
        P.PROVISIONING_EC2, P.EC2_READY, P.STARTING, P.READY_UNLICENSED, P.LICENSING, P.READY,
        P.ACTIVE, P.READY, P.DRAINING, P.UNLICENSING, P.STOPPING, P.TERMINATING_EC2, P.TERMINATED,
    ]  # fmt: skip
    for hour, phase in enumerate(life):
        worker.move_to(phase, at=NOON + timedelta(hours=hour))

    assert worker.status.provisioned_at == NOON + timedelta(hours=1)
    assert worker.status.ready_at == NOON + timedelta(hours=5)
    assert worker.status.terminated_at == NOON + timedelta(hours=12)
    assert worker.status.error_count == 0


def test_a_failure_is_counted_and_explained_until_the_worker_is_ready() -> None:
    worker = worker_in(P.STARTING)
    worker.move_to(P.FAILED, reason="NoAnswer", message="CML does not answer")
    worker.move_to(P.PENDING)

    assert (worker.status.error_count, worker.status.error_message) == (1, "CML does not answer")

    worker.status.phase = P.LICENSING
    worker.move_to(P.READY)

    assert (worker.status.error_count, worker.status.error_message) == (1, "")


def test_a_failure_without_a_message_is_explained_by_its_reason() -> None:
    worker = worker_in(P.STARTING)
    worker.move_to(P.FAILED, reason="NoAnswer")

    assert worker.status.error_message == "NoAnswer"


def test_a_new_attempt_has_no_dates_yet() -> None:
    worker = worker_in(P.PROVISIONING_EC2)
    worker.move_to(P.EC2_READY, at=NOON)
    worker.move_to(P.FAILED)
    worker.move_to(P.PENDING)

    assert worker.status.provisioned_at is None


# --- hosting --------------------------------------------------------------------------------------


def test_the_first_lab_makes_a_ready_worker_active_and_the_last_one_ready_again() -> None:
    worker = worker_in(P.READY)
    seen = [phase_and_labs(worker)]
    worker.host_lab("lab-2", SMALL)
    seen.append(phase_and_labs(worker))
    worker.host_lab("lab-1", SMALL)
    seen.append(phase_and_labs(worker))
    worker.release_lab("lab-2")
    seen.append(phase_and_labs(worker))
    worker.release_lab("lab-1")
    seen.append(phase_and_labs(worker))

    assert seen == [
        (P.READY, ()),
        (P.ACTIVE, ("lab-2",)),
        (P.ACTIVE, ("lab-1", "lab-2")),
        (P.ACTIVE, ("lab-1",)),
        (P.READY, ()),
    ]


def test_what_is_allocated_is_what_the_labs_take() -> None:
    worker = worker_in(P.READY)
    worker.host_lab("lab-1", SMALL)
    worker.host_lab("lab-2", ResourceQuantity(cpu_cores=4))

    assert worker.capacity.total == HOST
    assert worker.capacity.allocated == SMALL + ResourceQuantity(cpu_cores=4)


def test_hosting_and_releasing_twice_is_as_good_as_once() -> None:
    """`mutate` calls again after a conflict, and a redelivered message asks for the same again."""
    worker = worker_in(P.READY)
    worker.host_lab("lab-1", SMALL)
    before = msgspec.json.encode(worker.status)
    worker.host_lab("lab-1", SMALL)

    assert msgspec.json.encode(worker.status) == before

    worker.release_lab("lab-1")
    before = msgspec.json.encode(worker.status)
    worker.release_lab("lab-1")

    assert msgspec.json.encode(worker.status) == before


@pytest.mark.parametrize("phase", P)
def test_labs_come_only_where_they_may_and_leave_everywhere(phase: LabWorkerPhase) -> None:
    worker = worker_in(phase)
    worker.status.hosted_labs["lab-1"] = ResourceQuantity(cpu_cores=1, nodes=1)
    if phase in {P.READY_UNLICENSED, P.READY, P.ACTIVE}:
        worker.host_lab("lab-2", SMALL)

        assert "lab-2" in worker.status.hosted_labs
    else:
        with pytest.raises(
            InvalidResourceError,
            match=f"lab-workers/worker-001: a worker that is {phase} accepts no labs",
        ):
            worker.host_lab("lab-2", SMALL)

    worker.release_lab("lab-1")
    assert "lab-1" not in worker.status.hosted_labs


def test_a_worker_without_a_licence_hosts_small_labs_and_stays_what_it_is() -> None:
    worker = worker_in(P.READY_UNLICENSED)
    worker.host_lab("lab-1", SMALL)

    assert worker.status.phase is P.READY_UNLICENSED
    with pytest.raises(
        InsufficientCapacityError, match=r"no room for 3 nodes: free are .*, 2 nodes"
    ):
        worker.host_lab("lab-2", ResourceQuantity(nodes=3))


def test_the_licence_limits_the_nodes_of_a_large_host() -> None:
    worker = worker_in(P.READY)
    worker.spec.cml.max_nodes = 20

    assert worker.capacity.total == msgspec.structs.replace(HOST, nodes=20)


def test_a_worker_that_has_not_been_measured_hosts_nothing() -> None:
    with pytest.raises(InsufficientCapacityError, match="lab-workers/worker-001 has no room"):
        worker_in(P.READY, total=ResourceQuantity()).host_lab("lab-1", SMALL)


@pytest.mark.parametrize(
    ("lab_id", "request_", "problem"),
    [
        ("lab-1", SMALL + SMALL, "lab 'lab-1' is already hosted, with 2 CPU cores"),
        ("", SMALL, "the id of a lab cannot be ''"),
        ("lab-2", ResourceQuantity(nodes=-1), "request.nodes is -1"),
    ],
)
def test_a_refused_lab_changes_nothing(
    lab_id: str, request_: ResourceQuantity, problem: str
) -> None:
    worker = worker_in(P.READY)
    worker.host_lab("lab-1", SMALL)
    before = msgspec.json.encode(worker.status)

    with pytest.raises(InvalidResourceError, match=problem):
        worker.host_lab(lab_id, request_)

    assert msgspec.json.encode(worker.status) == before


def test_the_ids_of_labs_are_only_there_to_be_read() -> None:
    """They follow from `hosted_labs`: an id without an allocation would take nothing."""
    status = worker_in(P.READY).status

    with pytest.raises(AttributeError):
        status.hosted_lab_ids = ("lab-1",)  # type: ignore[misc] # it is what we test


class Hosting(RuleBasedStateMachine):
    """Labs are hosted and released in any order; a plain dict is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = worker_in(P.READY, total=ResourceQuantity(cpu_cores=10, nodes=10))
        self.labs: dict[str, ResourceQuantity] = {}

    @rule(
        lab_id=st.sampled_from(["a", "b", "c", "d"]),
        wanted=st.builds(ResourceQuantity, cpu_cores=st.integers(0, 6), nodes=st.integers(0, 6)),
    )
    def host(self, lab_id: str, wanted: ResourceQuantity) -> None:
        fits = wanted.fits_in(self.worker.capacity.available)
        try:
            self.worker.host_lab(lab_id, wanted)
        except InsufficientCapacityError:
            assert not fits
        except InvalidResourceError:
            assert lab_id in self.labs
        else:
            assert fits or self.labs[lab_id] == wanted
            self.labs[lab_id] = wanted

    @rule(lab_id=st.sampled_from(["a", "b", "c", "d"]))
    def release(self, lab_id: str) -> None:
        self.worker.release_lab(lab_id)
        self.labs.pop(lab_id, None)

    @precondition(lambda self: self.labs)
    @rule()
    def release_all(self) -> None:
        for lab_id in self.worker.status.hosted_lab_ids:
            self.worker.release_lab(lab_id)
        self.labs.clear()

        assert self.worker.capacity.allocated == ResourceQuantity()

    @invariant()
    def nothing_is_negative_above_the_total_or_forgotten(self) -> None:
        capacity = self.worker.capacity

        assert self.worker.status.hosted_labs == self.labs
        assert capacity.allocated.fits_in(capacity.total)
        assert capacity.available + capacity.allocated == capacity.total
        assert self.worker.validate() == []

    @invariant()
    def it_is_active_while_it_hosts_labs(self) -> None:
        assert self.worker.status.phase is (P.ACTIVE if self.labs else P.READY)


TestHosting = Hosting.TestCase
