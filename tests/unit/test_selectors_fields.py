"""Field selectors: paths that the type knows, values compared as text."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, ClassVar, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.errors import InvalidSelectorError
from kvorum.resources.model import Kind, Metadata, Resource
from kvorum.selectors.fields import FieldRequirement, FieldSelector, FieldSelectorLike


class Phase(StrEnum):
    PENDING = "Pending"
    READY = "Ready"


class Priority(IntEnum):
    LOW = 1
    HIGH = 2


class Site(msgspec.Struct):
    city: str = ""


class Network(msgspec.Struct, rename="camel"):
    host_name: str = ""
    site: Site = msgspec.field(default_factory=Site)
    parent: "Network | None" = None


class Disk(msgspec.Struct, tag=True, rename="camel"):
    size_gb: int = 0


class Share(msgspec.Struct, tag=True):
    path: str = ""
    sizeGb: int = 0  # noqa: N815 - the same name in the bytes as Disk's, another in Python


@dataclass
class Owner:
    team: str = ""


class QueueSpec(msgspec.Struct, rename="camel"):
    lab_track: str = ""
    cores: Annotated[int, msgspec.Meta(ge=0, title="cores")] = 0
    ratio: float = 0.0
    is_shared: bool = False
    priority: Priority = Priority.LOW
    price: Decimal | None = None
    network: Network | None = None
    storage: Disk | Share | None = None
    owner: Owner = msgspec.field(default_factory=Owner)
    title: str | Network = ""
    networks: dict[str, Network] = {}
    quotas: dict[str, dict[str, int]] = {}
    levels: dict[Priority, str] = {}
    settings: dict[str, Any] = {}
    tags: list[str] = []
    tag_lists: dict[str, list[str]] = {}
    note: str | msgspec.UnsetType = msgspec.UNSET


class QueueStatus(msgspec.Struct, rename="camel"):
    phase: Phase = Phase.PENDING
    started_at: datetime | None = None


class Queue(Resource[QueueSpec, QueueStatus]):
    kind: ClassVar[Kind] = Kind("Queue", plural="queues", api_version="example.org/v1")


class OtherQueue(Resource[QueueSpec, Network]):
    kind: ClassVar[Kind] = Kind("OtherQueue", plural="other-queues", api_version="example.org/v1")


EMPTY = Queue(metadata=Metadata(name="empty"), spec=QueueSpec(), status=QueueStatus())
FULL = Queue(
    metadata=Metadata(name="full", labels={"zone": "b", "example.org/rack": "r1"}, generation=3),
    spec=QueueSpec(
        lab_track="a,b=c\\d",
        cores=8,
        ratio=1.5,
        is_shared=True,
        priority=Priority.HIGH,
        price=Decimal("9.90"),
        network=Network(host_name="n1", site=Site("Bern"), parent=Network(host_name="n0")),
        storage=Share(path="/srv", sizeGb=7),
        owner=Owner(team="x"),
        title="index",
        networks={"lan": Network(host_name="n2")},
        quotas={"disk": {"a.b": 5}},
        levels={Priority.HIGH: "top"},
        settings={"a": {"b": [1, True]}, "plain": "text"},
        note=" padded ",
    ),
    status=QueueStatus(phase=Phase.READY, started_at=datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
)


# --- what each requirement selects ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "selects_full", "selects_empty"),
    [
        ("", True, True),
        ("  ", True, True),
        ("metadata.name=full", True, False),
        ("metadata.name==full", True, False),
        ("metadata.name!=full", False, True),
        ("metadata.generation=3", True, False),
        ("metadata.namespace=", True, True),
        ("metadata.namespace!=", False, False),
        ("status.phase=Ready", True, False),
        ("status.phase=ready", False, False),
        ("status.phase!=Ready", False, True),
        ("status.startedAt=2026-01-31T12:30:00Z", True, False),
        ("status.startedAt=", False, True),
        ("spec.cores=8", True, False),
        ("spec.cores=08", False, False),
        ("spec.ratio=1.5", True, False),
        ("spec.ratio=0.0", False, True),
        ("spec.isShared=true", True, False),
        ("spec.isShared=false", False, True),
        ("spec.isShared=True", False, False),
        ("spec.priority=2", True, False),
        ("spec.price=9.90", True, False),
        (r"spec.labTrack=a\,b\=c\\d", True, False),
        (r"spec.labTrack!=a\,b\=c\\d", False, True),
        (r"spec.note=\ padded\ ", True, False),
        ("spec.note= padded ", False, False),
        ("spec.note=", False, True),
        (" status.phase = Ready , spec.cores = 8 ", True, False),
        ("status.phase=Ready,spec.cores=9", False, False),
        ("status.phase!=Ready,status.phase!=Pending", False, False),
    ],
)
def test_compares_values_by_their_text(text: str, selects_full: bool, selects_empty: bool) -> None:
    selector = FieldSelector.parse(text, Queue)

    assert selector.matches(FULL) is selects_full
    assert selector.matches(EMPTY) is selects_empty


@pytest.mark.parametrize(
    "text",
    [
        "spec.labTrack!=",
        "spec.lab_track!=",
        "spec.network.hostName=n1",
        "spec.network.host_name=n1",
        "spec.network.site.city=Bern",
        "spec.network.parent.hostName=n0",
        "spec.network.parent.parent.site.city=",
        "spec.network.parent.parent.hostName=",
        "spec.storage.path=/srv",
        "spec.storage.sizeGb=7",
        "spec.storage.size_gb=7",
        "spec.owner.team=x",
        "spec.title=index",
        "spec.networks.lan.hostName=n2",
        "spec.networks.wan.hostName=",
        "spec.networks.wan.site.city=",
        "spec.quotas.disk.a.b=5",
        "spec.quotas.cpu.a.b=",
        "spec.levels.2=top",
        "spec.levels.1=",
        "spec.settings.plain=text",
        r"spec.settings.a.b=[1\,true]",
        "spec.settings.plain.b=",
        "spec.settings.x.y.z=",
        "metadata.labels.zone=b",
        "metadata.labels.example.org/rack=r1",
        "metadata.labels.missing=",
    ],
)
def test_walks_through_structs_dicts_and_optional_fields(text: str) -> None:
    assert FieldSelector.parse(text, Queue).matches(FULL)


def test_does_not_take_attributes_of_other_types_for_fields() -> None:
    """Only fields of structs count: `title` may be text here, which has methods of common names."""

    class Counted(msgspec.Struct):
        count: int = 0

    class CountedSpec(msgspec.Struct):
        value: str | Counted

    class CountedQueue(Resource[CountedSpec, QueueStatus]):
        kind: ClassVar[Kind] = Kind("CountedQueue", plural="counted", api_version="example.org/v1")

    selector = FieldSelector.parse("spec.value.count=", CountedQueue)

    assert selector.matches(
        CountedQueue(metadata=EMPTY.metadata, spec=CountedSpec("text"), status=QueueStatus())
    )
    assert not selector.matches(
        CountedQueue(metadata=EMPTY.metadata, spec=CountedSpec(Counted()), status=QueueStatus())
    )


# --- how it may be written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("spec.lab_track==x", "spec.labTrack=x"),
        (" spec.cores = 8 ,metadata.name != y ", "metadata.name!=y,spec.cores=8"),
        ("spec.cores=8,spec.cores==8", "spec.cores=8"),
        (r"spec.labTrack=\ x\,y ", r"spec.labTrack=\ x\,y"),
        (r"spec.labTrack=\ ", r"spec.labTrack=\ "),
        ("spec.labTrack=x!y", "spec.labTrack=x!y"),
        ("spec.storage.size_gb=7", "spec.storage.sizeGb=7"),
    ],
)
def test_text_has_one_canonical_form(text: str, canonical: str) -> None:
    selector = FieldSelector.parse(text, Queue)

    assert str(selector) == canonical
    assert FieldSelector.parse(canonical, Queue) == selector


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("spec.cores=8", "spec.cores=8"),
        ({}, ""),
        ({"status.phase": "Ready"}, "status.phase=Ready"),
        ({"status.phase": Phase.READY, "spec.cores": 8}, "status.phase=Ready,spec.cores=8"),
        ({"spec.is_shared": True}, "spec.isShared=true"),
        (
            {"status.startedAt": datetime(2026, 1, 31, tzinfo=UTC)},
            "status.startedAt=2026-01-31T00:00:00Z",
        ),
        ({"metadata.namespace": None}, "metadata.namespace="),
        ({"spec.lab_track": " a,b=c\\d "}, r"spec.labTrack=\ a\,b\=c\\d\ "),
        (FieldSelector.parse("spec.cores=8", Queue), "spec.cores=8"),
        (FieldSelector.parse("spec.lab_track!=a", OtherQueue), "spec.labTrack!=a"),
    ],
)
def test_text_mappings_and_objects_mean_the_same(value: FieldSelectorLike, text: str) -> None:
    assert FieldSelector.of(value, Queue) == FieldSelector.parse(text, Queue)


def test_order_and_spelling_make_no_difference_but_the_type_does() -> None:
    one, other = (
        FieldSelector.parse(text, Queue)
        for text in ("spec.lab_track==a,spec.cores!=1", "spec.cores!=1,spec.labTrack=a")
    )

    assert one == other
    assert hash(one) == hash(other)
    assert one != FieldSelector.parse(str(one), OtherQueue)
    assert one != str(one)


def test_an_empty_selector_says_that_it_selects_everything() -> None:
    assert FieldSelector.of(None, Queue).is_everything
    assert not FieldSelector.parse("metadata.name=a", Queue).is_everything


def test_requirements_can_be_read_to_answer_from_an_index() -> None:
    assert FieldSelector.parse("spec.lab_track!=a,metadata.name=b", Queue).requirements == (
        FieldRequirement("metadata.name", "b", is_equal=True),
        FieldRequirement("spec.labTrack", "a", is_equal=False),
    )


def test_shows_its_text_and_type() -> None:
    assert (
        repr(FieldSelector.parse("spec.cores=8", Queue))
        == "<FieldSelector 'spec.cores=8' of Queue>"
    )


# --- what is refused, and where -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        (",", 0, "expected the path of a field, found ','"),
        ("spec.cores=8,", 13, "expected the path of a field, found the end"),
        ("spec.cores=8, ", 14, "expected the path of a field, found the end"),
        ("spec.cores=8,,status.phase=x", 13, "expected the path of a field, found ','"),
        ("=8", 0, "expected the path of a field, found '='"),
        (" !=8", 1, "expected the path of a field, found '!'"),
        ("spec.cores", 10, "expected '=', '==' or '!=', found the end"),
        ("spec.cores,status.phase=x", 10, "expected '=', '==' or '!=', found ','"),
        ("spec.cores!8", 10, "expected '=', '==' or '!=', found '!'"),
        ("spec.cores=8=9", 12, "expected ',' or the end, found '='"),
        ("spec.cores===8", 12, "expected ',' or the end, found '='"),
        ("spec.labTrack=a\\b", 16, "expected '\\\\', ',', '=' or white space after '\\'"),
        ("spec.labTrack=a\\", 16, "expected '\\\\', ',', '=' or white space after '\\'"),
        ("kind=Queue", 0, "expected a field (metadata, spec, status), found 'kind'"),
        ("status.fase=Ready", 7, "expected a field (phase, startedAt), found 'fase'"),
        (
            "spec.cores=8, status.fase=Ready",
            21,
            "expected a field (phase, startedAt), found 'fase'",
        ),
        ("status..phase=Ready", 7, "expected a field (phase, startedAt), found ''"),
        ("status.phase.name=Ready", 13, "expected an operator instead of '.', found 'name'"),
        ("status =Ready", 6, "expected '.' and a field (phase, startedAt)"),
        ("status.=Ready", 7, "expected a field (phase, startedAt), found ''"),
        ("spec.network=x", 12, "expected '.' and a field (hostName, site, parent)"),
        ("spec.storage.size=7", 13, "expected a field (sizeGb, path), found 'size'"),
        ("spec.networks=x", 13, "expected '.' and a key"),
        ("spec.networks.lan=x", 17, "expected '.' and a field (hostName, site, parent)"),
        ("metadata.labels=x", 15, "expected '.' and a key"),
        ("metadata.labels.=x", 16, "expected a key, found ''"),
        ("spec.settings.=x", 14, "expected a key, found ''"),
        ("spec.tags=x", 5, "expected no list or the like, found 'tags'"),
        ("metadata.finalizers.0=x", 9, "expected no list or the like, found 'finalizers'"),
        ("spec.tagLists.a.0=x", 14, "expected no list or the like, found 'a.0'"),
    ],
)
def test_refuses_a_malformed_text_where_it_stops_making_sense(
    text: str, position: int, reason: str
) -> None:
    with pytest.raises(InvalidSelectorError) as refused:
        FieldSelector.parse(text, Queue)

    assert (refused.value.selector, refused.value.position) == (text, position)
    assert refused.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("value", "selector", "reason"),
    [
        ({"status.phase": ["Ready"]}, "{'status.phase': ['Ready']}", "expected one plain value"),
        ({"status.phase": {"a": "b"}}, "{'status.phase': {'a': 'b'}}", "expected one plain value"),
        ({"status.phase": 1j}, "{'status.phase': 1j}", "expected one plain value"),
        ({"status.phase!": "Ready"}, "{'status.phase!': 'Ready'}", "expected the path of a field"),
        (
            {"spec.cores=8,status.phase": "x"},
            "{'spec.cores=8,status.phase': 'x'}",
            "expected the path of a field",
        ),
        ({" ": "x"}, "{' ': 'x'}", "expected the path of a field"),
        ({5: "x"}, "{5: 'x'}", "expected the path of a field"),
        (5, "5", "expected text, a mapping or a FieldSelector"),
    ],
)
def test_refuses_a_malformed_mapping_and_shows_the_item(
    value: object, selector: str, reason: str
) -> None:
    with pytest.raises(InvalidSelectorError) as refused:
        FieldSelector.of(cast("FieldSelectorLike", value), Queue)

    assert (refused.value.selector, refused.value.position) == (selector, 0)
    assert refused.value.reason.startswith(reason)


def test_an_unknown_path_in_a_mapping_is_shown_where_it_stands_in_the_text() -> None:
    with pytest.raises(InvalidSelectorError) as refused:
        FieldSelector.of({"spec.cores": 8, "status.fase": "Ready"}, Queue)

    assert (refused.value.selector, refused.value.position) == (
        "spec.cores=8,status.fase=Ready",
        20,
    )


def test_a_selector_of_another_type_is_refused_if_its_fields_are_missing() -> None:
    with pytest.raises(InvalidSelectorError, match="found 'hostName'"):
        FieldSelector.of(FieldSelector.parse("status.host_name=x", OtherQueue), Queue)


# --- properties -----------------------------------------------------------------------------------

tracks = st.text(max_size=5) | st.text("ab\\,=! \t\r\n", max_size=8)
requirements = st.tuples(
    st.sampled_from(["spec.labTrack", "spec.lab_track", "metadata.labels.a.b"]), tracks
)


def escaped(value: str) -> str:
    """Escape all that may be escaped, needed or not."""
    return "".join(
        f"\\{character}" if character in "\\,= \t\r\n" else character for character in value
    )


@given(
    st.lists(st.tuples(requirements, st.booleans()), max_size=4),
    st.lists(tracks, min_size=2, max_size=2),
)
def test_agrees_with_a_naive_evaluation_and_round_trips(
    parts: list[tuple[tuple[str, str], bool]], held: list[str]
) -> None:
    track, label = held
    resource = Queue(
        metadata=Metadata(name="a", labels={"a.b": label}),
        spec=QueueSpec(lab_track=track),
        status=QueueStatus(),
    )
    text = ",".join(
        f"{path}{'=' if is_equal else '!='}{escaped(value)}" for (path, value), is_equal in parts
    )
    values = {"spec.labTrack": track, "spec.lab_track": track, "metadata.labels.a.b": label}

    selector = FieldSelector.parse(text, Queue)

    assert selector.matches(resource) is all(
        (values[path] == value) is is_equal for (path, value), is_equal in parts
    )
    assert FieldSelector.parse(str(selector), Queue) == selector


@given(tracks)
def test_a_mapping_takes_every_value_literally(value: str) -> None:
    resource = Queue(
        metadata=Metadata(name="a"), spec=QueueSpec(lab_track=value), status=QueueStatus()
    )

    assert FieldSelector.of({"spec.lab_track": value}, Queue).matches(resource)


PIECES = [
    "metadata.",
    "labels.",
    "spec",
    "labTrack",
    "settings",
    ".",
    ",",
    "=",
    "!=",
    "\\",
    " ",
    "x",
]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_either_read_or_refused_within_its_bounds(text: str) -> None:
    """Selectors come from the command line and from HTTP: no text may raise anything else."""
    selector, position = None, 0
    try:
        selector = FieldSelector.parse(text, Queue)
    except InvalidSelectorError as error:
        position = error.position

    assert 0 <= position <= len(text)
    assert selector is None or FieldSelector.parse(str(selector), Queue) == selector
