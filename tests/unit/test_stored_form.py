"""The stored form. Stored bytes are permanent: later releases read what any release has written.

The files in `stored_forms/v1` are values in version 1 of the form. They never change; a newer form
gets its own folder, and both stay readable.
"""

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.encoding.stored import FORM_VERSION, Codec, codec_for
from kvorum.errors import CorruptResourceError
from kvorum.resources.model import AnyResource, Condition, Kind, Metadata, Resource, Stored
from kvorum.storage.values import Entry

FORMS = Path(__file__).parent / "stored_forms"


class Phase(StrEnum):
    PENDING = "pending"
    READY = "ready"
    DRAINING = "draining"


class Capacity(msgspec.Struct, rename="camel"):
    cpu_cores: int = 0
    memory_gib: float = 0.0


class Disk(msgspec.Struct, rename="camel"):
    name: str
    size_gib: int = 0


class WorkerSpec(msgspec.Struct, rename="camel"):
    lab_track: str = ""
    capacity: Capacity = msgspec.field(default_factory=Capacity)
    images: list[str] = []
    limits: dict[str, int] = {}
    disks: list[Disk] = []
    maintenance_window: str | None = None


class WorkerStatus(msgspec.Struct, rename="camel"):
    phase: Phase = Phase.PENDING
    usage: float = 0.0
    conditions: list[Condition] = []


class Worker(Resource[WorkerSpec, WorkerStatus]):
    kind: ClassVar[Kind] = Kind("LabWorker", plural="lab-workers", api_version="lab.kvorum.dev/v1")


class InstanceSpec(msgspec.Struct, rename="camel"):
    template: str
    worker: str | None = None


class InstanceStatus(msgspec.Struct, rename="camel"):
    phase: Phase = Phase.PENDING


class Instance(Resource[InstanceSpec, InstanceStatus]):
    kind: ClassVar[Kind] = Kind(
        "LabInstance", plural="lab-instances", api_version="lab.kvorum.dev/v1", namespaced=True
    )


class BagSpec(msgspec.Struct):
    """What has no order of its own in Python."""

    names: dict[str, int] = {}
    deep: dict[str, dict[str, int]] = {}
    numbers: set[int] = set()
    words: frozenset[str] = frozenset()


class Bag(Resource[BagSpec, InstanceStatus]):
    kind: ClassVar[Kind] = Kind("Bag", plural="bags", api_version="lab.kvorum.dev/v1")


WORKER_KEY = "lab-workers/worker-001"
INSTANCE_KEY = "lab-instances/team-a/lab-7"
UID = "8f14e45f-ceea-467f-a8f5-1d7b6f6a0c11"
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

WORKERS = codec_for(Worker)
INSTANCES = codec_for(Instance)

FULL_WORKER = Worker(
    metadata=Metadata(
        name="worker-001",
        uid=UID,
        resource_version=42,
        generation=12,
        creation_timestamp=CREATED.replace(microsecond=678901),
        labels={"lab-track": "comp-sci-101", "example.org/zone": ""},
        annotations={"owner": "", "example.org/note": 'größer als "10" GB\n\x01 / 🚀'},
        finalizers=["lab.kvorum.dev/instances", "example.org/Dns_1"],
    ),
    spec=WorkerSpec(
        lab_track="comp-sci-101",
        capacity=Capacity(cpu_cores=64, memory_gib=251.5),
        images=["iosxe-17.12", "nxos-10.4"],
        limits={"ports": -1, "licences": 3},
        disks=[Disk(name="root", size_gib=100), Disk(name="scratch", size_gib=2**63 - 1)],
    ),
    status=WorkerStatus(
        phase=Phase.READY,
        usage=0.1,
        conditions=[
            Condition(
                type="Ready",
                status="True",
                last_transition_time=datetime(2026, 1, 2, 3, 5, tzinfo=UTC),
                observed_generation=12,
            ),
            Condition(type="Reachable", status="False", reason="Timeout", message="no answer"),
        ],
    ),
)

NEW_WORKER = Worker(
    metadata=Metadata(
        name="worker-001", uid=UID, resource_version=42, generation=1, creation_timestamp=CREATED
    ),
    spec=WorkerSpec(lab_track="comp-sci-101"),
    status=WorkerStatus(),
)

DELETING_WORKER = Worker(
    metadata=Metadata(
        name="worker-001",
        uid=UID,
        resource_version=42,
        generation=2,
        creation_timestamp=CREATED,
        deletion_timestamp=datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
        finalizers=["lab.kvorum.dev/instances"],
    ),
    spec=WorkerSpec(lab_track="comp-sci-101", maintenance_window="Sun 03:00"),
    status=WorkerStatus(phase=Phase.DRAINING),
)

INSTANCE = Instance(
    metadata=Metadata(
        name="lab-7",
        namespace="team-a",
        uid="45c48cce-2e2d-4fbd-aa1a-fc51c7c6ad26",
        resource_version=42,
        generation=3,
        creation_timestamp=CREATED,
    ),
    spec=InstanceSpec(template="bgp-basics", worker="worker-001"),
    status=InstanceStatus(phase=Phase.READY),
)

# Which file holds which resource, under which key, and the token of the write that made it.
PINNED: list[tuple[str, Codec[Any], str, AnyResource, str]] = [
    ("worker_full", WORKERS, WORKER_KEY, FULL_WORKER, "0123456789abcdef"),
    ("worker_new", WORKERS, WORKER_KEY, NEW_WORKER, "0123456789abcdef"),
    ("worker_deleting", WORKERS, WORKER_KEY, DELETING_WORKER, "fedcba9876543210"),
    ("instance", INSTANCES, INSTANCE_KEY, INSTANCE, "00000000000000ff"),
    ("instance_of_a_newer_type", INSTANCES, INSTANCE_KEY, INSTANCE, "00000000000000ff"),
]

pinned = pytest.mark.parametrize(
    ("file", "codec", "key", "resource", "token"), PINNED, ids=[p[0] for p in PINNED]
)


def bytes_of(file: str) -> bytes:
    return (FORMS / "v1" / f"{file}.json").read_bytes()


def entry_of(value: bytes, key: str = WORKER_KEY) -> Entry:
    return Entry(key, value, mod_revision=42, create_revision=7, version=3)


def stored_of(value: bytes, key: str = WORKER_KEY) -> Stored:
    codec: Codec[Any] = WORKERS if key == WORKER_KEY else INSTANCES
    stored = codec.decode(entry_of(value, key)).metadata.stored
    assert isinstance(stored, Stored)
    return stored


def by_hand(metadata: str = '"name":"worker-001"', spec: str = "{}", more: str = "") -> bytes:
    """Bytes of a worker as an operator may write them with `etcdctl put`."""
    text = '{"apiVersion":"lab.kvorum.dev/v1","kind":"LabWorker","metadata":{%s},"spec":%s%s}'
    return (text % (metadata, spec, more)).encode()


def sorted_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object whose keys are not sorted, or not unique; for `json.loads`."""
    keys = [key for key, _ in pairs]
    assert keys == sorted(set(keys))
    return dict(pairs)


# --- pinned bytes ---------------------------------------------------------------------------------


@pinned
def test_pinned_bytes_decode_to_the_resource(
    file: str, codec: Codec[Any], key: str, resource: AnyResource, token: str
) -> None:
    read = codec.decode(entry_of(bytes_of(file), key))

    assert read == resource
    assert read.metadata.stored == Stored(key, bytes_of(file), 42, token)


@pinned
def test_the_resource_encodes_to_the_pinned_bytes(
    file: str, codec: Codec[Any], key: str, resource: AnyResource, token: str
) -> None:
    """Encoded from a resource made by hand, not from the one that was read, with the same token."""
    draft = codec.draft_update(resource, stored_of(bytes_of(file), key))

    assert draft.stored.value == bytes_of(file)
    assert draft.stored.write_token == token
    assert draft.changed is False


@pinned
def test_pinned_bytes_are_canonical(
    file: str, codec: Codec[Any], key: str, resource: AnyResource, token: str
) -> None:
    value = bytes_of(file)

    document = json.loads(value, object_pairs_hook=dict if "newer" in file else sorted_object)

    assert document["metadata"]["formVersion"] == FORM_VERSION
    assert document["metadata"]["writeToken"] == token
    assert (document["kind"], document["apiVersion"]) == (codec.kind.name, codec.kind.api_version)
    assert key.endswith(resource.metadata.name)
    assert b"\\u00" not in value.replace(b"\\u0001", b"")  # text is not escaped beyond need


def test_every_pinned_file_is_tested() -> None:
    files = {path.stem for path in (FORMS / "v1").iterdir()}

    assert files == {file for file, *_ in PINNED} | {"worker_by_hand"}


def test_this_version_writes_the_newest_form_that_is_pinned() -> None:
    """An increment of FORM_VERSION comes with a folder of fixtures."""
    assert max(path.name for path in FORMS.iterdir()) == f"v{FORM_VERSION}"


def test_a_new_resource_is_written_in_the_pinned_form() -> None:
    """`draft_new` and `draft_update` write the same form; only uid, time and token are new."""
    new = Worker(
        metadata=Metadata(name="worker-001"),
        spec=WorkerSpec(lab_track="comp-sci-101"),
        status=WorkerStatus(),
    )

    draft = WORKERS.draft_new(new)

    written, expected = json.loads(draft.stored.value), json.loads(bytes_of("worker_new"))
    for name in ("uid", "creationTimestamp", "writeToken"):
        assert written["metadata"].pop(name)
        assert expected["metadata"].pop(name)
    assert written == expected


# --- written by hand ------------------------------------------------------------------------------


def test_what_was_written_by_hand_is_readable() -> None:
    read = WORKERS.decode(entry_of(bytes_of("worker_by_hand")))

    assert read == Worker(
        metadata=Metadata(name="worker-001", resource_version=42),
        spec=WorkerSpec(lab_track="comp-sci-101"),
        status=WorkerStatus(),
    )
    assert read.metadata.stored == Stored(
        "lab-workers/worker-001", bytes_of("worker_by_hand"), 42, ""
    )


def test_a_namespaced_resource_written_by_hand_is_readable() -> None:
    value = (
        b'{"apiVersion":"lab.kvorum.dev/v1","kind":"LabInstance",'
        b'"metadata":{"name":"lab-7","namespace":"team-a"},"spec":{"template":"t"}}'
    )

    read = INSTANCES.decode(entry_of(value, INSTANCE_KEY))

    assert (read.metadata.namespace, read.metadata.name, read.spec.template) == (
        "team-a",
        "lab-7",
        "t",
    )


@pytest.mark.parametrize(
    "version", ["4711", '"4711"', "null", "{}", "[1]", "1.5", "123456789012345678901234567890"]
)
def test_a_resource_version_in_the_bytes_is_read_over(version: str) -> None:
    """Copied from the output of a CLI, say. etcd's revision is authoritative."""
    value = by_hand(f'"name":"worker-001","resourceVersion":{version}')

    assert WORKERS.decode(entry_of(value)).metadata.resource_version == 42


def test_a_resource_version_in_the_bytes_is_gone_after_the_next_write() -> None:
    stored = stored_of(bytes_of("worker_by_hand"))

    draft = WORKERS.draft_update(WORKERS.restore(stored), stored)

    assert draft.changed is True
    assert b"resourceVersion" in stored.value
    assert b"resourceVersion" not in draft.stored.value


@given(st.integers(0, 2**63 - 1))
def test_the_resource_version_is_never_in_the_bytes(version: int) -> None:
    resource = Worker(
        metadata=Metadata(name="worker-001"), spec=WorkerSpec(), status=WorkerStatus()
    )

    new = WORKERS.draft_new(resource).written(version)
    new.spec.lab_track = "other"
    assert new.metadata.stored is not None
    update = WORKERS.draft_update(new, new.metadata.stored)

    for value in (new.metadata.stored.value, update.stored.value):
        assert b"resource" not in value


def test_a_revision_can_be_given_that_is_not_the_entrys() -> None:
    """A deletion shows the last state at the revision of the deletion."""
    read = WORKERS.decode(entry_of(bytes_of("worker_new")), revision=50)

    assert read.metadata.resource_version == 50


def test_duplicate_fields_are_read_as_json_libraries_do() -> None:
    """The last one counts, as in `json.loads`."""
    read = WORKERS.decode(entry_of(by_hand(spec='{"labTrack":"a","labTrack":"b"}')))

    assert read.spec.lab_track == "b"


# --- one resource, one text -----------------------------------------------------------------------

names = st.text("abcé", min_size=1, max_size=3)
bags = st.builds(
    BagSpec,
    names=st.dictionaries(names, st.integers()),
    deep=st.dictionaries(names, st.dictionaries(names, st.integers())),
    numbers=st.sets(st.integers(0, 64)),
    words=st.frozensets(st.text(max_size=3)),
)


def shuffled(spec: BagSpec) -> BagSpec:
    """Return an equal spec, built in the opposite order."""
    numbers: set[int] = set()
    for number in sorted(spec.numbers, reverse=True):
        numbers.add(number)
    return BagSpec(
        names=dict(reversed(spec.names.items())),
        deep={name: dict(reversed(deep.items())) for name, deep in reversed(spec.deep.items())},
        numbers=numbers,
        words=frozenset(reversed(list(spec.words))),
    )


@given(
    bags,
    st.dictionaries(st.sampled_from(["a", "b", "c", "example.org/d"]), st.sampled_from(["", "x"])),
)
def test_the_order_in_which_a_resource_was_built_does_not_matter(
    spec: BagSpec, labels: dict[str, str]
) -> None:
    metadata = Metadata(name="a", labels=labels, annotations=labels)
    backwards = Metadata(
        name="a", labels=dict(reversed(labels.items())), annotations=dict(reversed(labels.items()))
    )
    codec = codec_for(Bag)
    first = codec.draft_new(Bag(metadata=metadata, spec=spec, status=InstanceStatus()))

    again = codec.draft_update(
        Bag(metadata=backwards, spec=shuffled(spec), status=InstanceStatus()), first.stored
    )

    assert again.stored.value == first.stored.value
    assert again.changed is False


@given(bags)
def test_keys_are_sorted_at_every_level(spec: BagSpec) -> None:
    draft = codec_for(Bag).draft_new(
        Bag(metadata=Metadata(name="a"), spec=spec, status=InstanceStatus())
    )

    json.loads(draft.stored.value, object_pairs_hook=sorted_object)


def test_sets_are_stored_sorted() -> None:
    """Python iterates these two equal sets in different orders: 0 and 8 collide."""
    bags = [
        Bag(metadata=Metadata(name="a"), spec=BagSpec(numbers=numbers), status=InstanceStatus())
        for numbers in (set([0, 8]), set([8, 0]))  # noqa: C405 - a literal might be built in another order
    ]

    first, second = (codec_for(Bag).draft_new(bag).stored.value for bag in bags)

    assert b'"numbers":[0,8]' in first
    assert b'"numbers":[0,8]' in second


@given(bags)
def test_what_was_written_is_read_again(spec: BagSpec) -> None:
    codec = codec_for(Bag)
    draft = codec.draft_new(Bag(metadata=Metadata(name="a"), spec=spec, status=InstanceStatus()))

    read = codec.decode(Entry("bags/a", draft.stored.value, 5, 5, 1))

    assert read.spec == spec
    assert read == draft.written(5)
    assert read.metadata.stored == draft.resource.metadata.stored


def test_a_time_in_another_zone_stays_that_moment() -> None:
    """A time that was written by hand with an offset is not a change."""
    value = by_hand('"name":"worker-001","creationTimestamp":"2026-01-02T05:04:05+02:00"')

    read = WORKERS.decode(entry_of(value))

    assert read.metadata.creation_timestamp == CREATED
    assert read.metadata.creation_timestamp.utcoffset() == timezone(timedelta(hours=2)).utcoffset(
        None
    )


# --- what cannot be decoded -----------------------------------------------------------------------

UNREADABLE = [
    ("empty", b"", "truncated"),
    ("blank", b"   ", "truncated"),
    ("cut_off", bytes_of("worker_full")[:-1], "truncated"),
    ("cut_in_half", bytes_of("worker_full")[:400], "truncated"),
    ("no_json", b"hello", "malformed"),
    ("yaml", b"kind: LabWorker\n", "malformed"),
    ("protobuf", b"k8s\0\n\x0f\n\x02v1", "malformed"),
    ("byte_order_mark", b"\xef\xbb\xbf" + by_hand(), "malformed"),
    ("utf_16", by_hand().decode().encode("utf-16"), "malformed"),
    ("something_behind", by_hand() + b"x", "trailing characters"),
    ("two_documents", by_hand() + b"\n" + by_hand(), "trailing characters"),
    ("not_a_number", by_hand(spec='{"x":NaN}'), "malformed"),
    ("null", b"null", "Expected `object`, got `null`"),
    ("array", b"[]", "Expected `object`, got `array`"),
    ("text", b'"LabWorker"', "Expected `object`, got `str`"),
    ("empty_object", b"{}", "missing required field `apiVersion`"),
    ("no_kind", by_hand().replace(b'"kind":"LabWorker",', b""), "missing required field `kind`"),
    (
        "wrong_kind",
        by_hand().replace(b"LabWorker", b"LabInstance"),
        "'LabInstance' of 'lab.kvorum.dev/v1'",
    ),
    (
        "wrong_version",
        by_hand().replace(b"dev/v1", b"dev/v2"),
        "'LabWorker' of 'lab.kvorum.dev/v2'",
    ),
    (
        "kind_of_wrong_type",
        by_hand().replace(b'"LabWorker"', b"1"),
        "Expected `str`, got `int` - at `$.kind`",
    ),
    (
        "no_metadata",
        by_hand().replace(b'"metadata"', b'"meta"'),
        "missing required field `metadata`",
    ),
    ("no_name", by_hand(metadata=""), "missing required field `name` - at `$.metadata`"),
    ("null_name", by_hand('"name":null'), "Expected `str`, got `null` - at `$.metadata.name`"),
    (
        "another_name",
        by_hand('"name":"worker-002"'),
        "it calls itself 'worker-002' - at `$.metadata.name`",
    ),
    (
        "longer_name",
        by_hand('"name":"worker-0011"'),
        "it calls itself 'worker-0011' - at `$.metadata.name`",
    ),
    ("empty_name", by_hand('"name":""'), "it calls itself '' - at `$.metadata.name`"),
    ("bad_label", by_hand('"name":"worker-001","labels":{"a":1}'), "at `$.metadata.labels[...]`"),
    (
        "bad_finalizers",
        by_hand('"name":"worker-001","finalizers":"a"'),
        "at `$.metadata.finalizers`",
    ),
    (
        "bad_time",
        by_hand('"name":"worker-001","creationTimestamp":"soon"'),
        "at `$.metadata.creationTimestamp`",
    ),
    ("bad_spec", by_hand(spec="[]"), "Expected `object`, got `array` - at `$.spec`"),
    (
        "bad_deep_inside",
        by_hand(spec='{"disks":[{"name":"a"},{"name":1}]}'),
        "at `$.spec.disks[1].name`",
    ),
    (
        "missing_deep_inside",
        by_hand(spec='{"disks":[{}]}'),
        "missing required field `name` - at `$.spec.disks[0]`",
    ),
    (
        "bad_enum",
        by_hand(more=',"status":{"phase":"tired"}'),
        "Invalid enum value 'tired' - at `$.status.phase`",
    ),
    (
        "newer_form",
        by_hand('"name":"worker-001","formVersion":2'),
        "this is 2 - at `$.metadata.formVersion`",
    ),
    (
        "much_newer_form",
        by_hand(f'"name":"worker-001","formVersion":{2**63}'),
        "at `$.metadata.formVersion`",
    ),
    (
        "form_of_wrong_type",
        by_hand('"name":"worker-001","formVersion":"1"'),
        "at `$.metadata.formVersion`",
    ),
    ("fraction_for_int", by_hand(spec='{"limits":{"a":1.5}}'), "at `$.spec.limits[...]`"),
    (
        "number_out_of_range",
        by_hand(spec='{"capacity":{"memoryGib":1e400}}'),
        "at `$.spec.capacity.memoryGib`",
    ),
    ("huge_int", by_hand(spec='{"limits":{"a":' + "9" * 5000 + "}}"), "at `$.spec.limits[...]`"),
    ("deep_nesting", by_hand(spec='{"x":' + "[" * 100_000 + "]" * 100_000 + "}"), "recursion"),
    ("deep_cut_off", by_hand()[:-1] + b',"x":' + b'{"x":' * 100_000, "recursion"),
    (
        "deep_in_place_of_the_version",
        by_hand('"name":"worker-001","resourceVersion":' + "[" * 100_000),
        "recursion",
    ),
    ("bad_utf_8", by_hand(spec='{"labTrack":"?"}').replace(b"?", b"\xff"), "UTF-8"),
    ("lone_surrogate", by_hand(spec='{"labTrack":"\\ud800 and more"}'), "surrogate"),
]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(value, reason) for _, value, reason in UNREADABLE],
    ids=[name for name, *_ in UNREADABLE],
)
def test_what_is_no_such_resource_is_named_with_key_revision_and_reason(
    value: bytes, reason: str
) -> None:
    with pytest.raises(CorruptResourceError) as caught:
        WORKERS.decode(entry_of(value))

    assert (caught.value.key, caught.value.revision) == (WORKER_KEY, 42)
    assert reason.lower() in caught.value.reason.lower()  # versions of msgspec differ in case
    assert len(str(caught.value)) < 500  # it goes to logs; the value may be a megabyte


def test_the_revision_of_a_corrupt_value_is_that_of_the_value() -> None:
    """Not the revision of the event: an operator looks up the value by its own revision."""
    with pytest.raises(CorruptResourceError) as caught:
        WORKERS.decode(entry_of(b""), revision=50)

    assert caught.value.revision == 42


@pytest.mark.parametrize(
    "metadata",
    [
        '"name":"lab-7"',
        '"name":"lab-7","namespace":"team-b"',
        '"name":"team-a/lab-7"',
        '"name":"lab-7","namespace":""',
    ],
)
def test_a_namespaced_resource_that_lies_elsewhere_is_corrupt(metadata: str) -> None:
    value = by_hand(metadata, spec='{"template":"t"}').replace(b"LabWorker", b"LabInstance")

    with pytest.raises(CorruptResourceError, match="it calls itself"):
        INSTANCES.decode(entry_of(value, INSTANCE_KEY))


@pytest.mark.parametrize(
    "key", ["lab-workers/worker-0011", "lab-workers-old/worker-001", "worker-001", ""]
)
def test_a_value_under_the_key_of_another_is_corrupt(key: str) -> None:
    """Copied with `etcdctl`, say. Under its own name, an update would go to the other key."""
    with pytest.raises(CorruptResourceError):
        WORKERS.decode(entry_of(bytes_of("worker_new"), key))


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_junk_is_corrupt_and_nothing_else(junk: bytes) -> None:
    with pytest.raises(CorruptResourceError):
        WORKERS.decode(entry_of(junk))


@given(st.data())
def test_damaged_bytes_are_corrupt_or_a_resource_of_that_name(data: st.DataObject) -> None:
    """One byte changed anywhere raises no other exception, and gives no other name."""
    value = bytearray(bytes_of("worker_full"))
    value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))

    try:
        read = WORKERS.decode(entry_of(bytes(value)))
    except CorruptResourceError:
        return

    assert read.metadata.name == "worker-001"
