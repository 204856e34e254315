"""Resources as users handle them: declared, compared, copied, pickled."""

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.errors import ConfigurationError
from kvorum.resources.model import Condition, Kind, Metadata, Resource, Stored, set_condition


class BoxSpec(msgspec.Struct, rename="camel"):
    size: int = 0
    items: list[str] = []


class BoxStatus(msgspec.Struct, rename="camel"):
    conditions: list[Condition] = []


class Box(Resource[BoxSpec, BoxStatus]):
    kind: ClassVar[Kind] = Kind("Box", plural="boxes", api_version="example.org/v1")


STORED = Stored("things/a", b"{}", revision=7, write_token="t")
EARLIER = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)


def box(name: str = "a") -> Box:
    """A box as a read gives it."""
    metadata = Metadata(
        name=name,
        resource_version=7,
        labels={"a": "b"},
        finalizers=["f"],
        creation_timestamp=EARLIER,
    )
    metadata.stored = STORED
    return Box(metadata=metadata, spec=BoxSpec(size=1, items=["x"]), status=BoxStatus())


# --- kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("api_version", ["v1", "example.org/v1", "lab.kvorum.dev/v1beta1"])
def test_a_kind_has_a_name_a_plural_and_a_version(api_version: str) -> None:
    kind = Kind("Box", plural="boxes", api_version=api_version)

    assert (kind.name, kind.plural, kind.api_version, kind.namespaced) == (
        "Box",
        "boxes",
        api_version,
        False,
    )


@pytest.mark.parametrize(
    ("name", "plural", "api_version", "complaint"),
    [
        ("", "boxes", "v1", "name ''"),
        ("Lab Worker", "boxes", "v1", "name 'Lab Worker'"),
        ("Box", "", "v1", "plural ''"),
        ("Box", "Boxes", "v1", "plural 'Boxes'"),
        ("Box", "a/b", "v1", "plural 'a/b'"),
        ("Box", "a.b", "v1", "plural 'a.b'"),
        ("Box", "boxes", "", "api_version ''"),
        ("Box", "boxes", "a/b/c", "api_version"),
    ],
)
def test_a_kind_that_breaks_the_rules_cannot_be_declared(
    name: str, plural: str, api_version: str, complaint: str
) -> None:
    """The error is raised when the module is imported, not by the first write."""
    with pytest.raises(ConfigurationError, match=complaint):
        Kind(name, plural=plural, api_version=api_version)


def test_all_mistakes_in_a_kind_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Kind("no name", plural="No Plural", api_version="/")

    assert all(part in str(caught.value) for part in ("name 'no name'", "plural", "api_version"))


def test_a_kind_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Box.kind.plural = "other"  # type: ignore[misc]  # that is what is refused


# --- equality -------------------------------------------------------------------------------------


def test_resources_are_equal_if_metadata_spec_and_status_are() -> None:
    assert box() == box()


@pytest.mark.parametrize("change", ["name", "version", "spec", "status"])
def test_resources_that_differ_anywhere_are_not_equal(change: str) -> None:
    other = box()
    match change:
        case "name":
            other.metadata.name = "b"
        case "version":
            other.metadata.resource_version = 8
        case "spec":
            other.spec.size = 2
        case _:
            other.status.conditions.append(Condition(type="Ready"))

    assert box() != other


def test_the_bytes_that_a_resource_was_read_from_do_not_count() -> None:
    """What `add` returned equals what `get` returns, whatever bytes each was read from."""
    other = box()
    other.metadata.stored = Stored("things/a", b"{ }", revision=7, write_token="other")

    assert box() == other


def test_the_bytes_do_not_show_in_a_repr() -> None:
    assert "write_token" not in repr(box())


# --- the bytes behind a resource ------------------------------------------------------------------


def test_a_resource_made_by_hand_has_no_bytes_behind_it() -> None:
    assert Metadata(name="a").stored is None


def test_another_resource_version_disowns_the_bytes() -> None:
    """A version that was set by hand is the precondition, not the version of the bytes."""
    resource = box()

    resource.metadata.resource_version = 8

    assert resource.metadata.stored is None


def test_the_version_put_back_owns_the_bytes_again() -> None:
    resource = box()

    resource.metadata.resource_version = 8
    resource.metadata.resource_version = 7

    assert resource.metadata.stored == STORED


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_a_resource_keep_the_bytes(copied: Callable[[Box], Box]) -> None:
    """So an update of a copy needs no second read."""
    again = copied(box())

    assert again == box()
    assert again.metadata.stored == STORED


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_metadata_keep_the_bytes(copied: Callable[[Metadata], Metadata]) -> None:
    metadata = box().metadata

    again = copied(metadata)

    assert again is not metadata
    assert again == metadata
    assert again.stored == STORED


def test_a_deep_copy_shares_nothing_that_changes() -> None:
    resource = box()

    again = copy.deepcopy(resource)
    again.metadata.labels["c"] = "d"
    again.metadata.finalizers.clear()
    again.metadata.resource_version = 8
    again.spec.items.append("y")

    assert resource == box()
    assert resource.metadata.stored == STORED


def test_a_deep_copy_keeps_what_is_shared_shared() -> None:
    metadata = box().metadata

    one, other = copy.deepcopy([metadata, metadata])

    assert one is other


def test_a_pickled_resource_keeps_its_fields() -> None:
    """Not the bytes: an update of an unpickled resource reads first."""
    again = pickle.loads(pickle.dumps(box()))  # noqa: S301 - our own bytes

    assert again == box()
    assert again.metadata.stored is None


def test_metadata_with_a_replaced_field_is_still_right() -> None:
    replaced = msgspec.structs.replace(box().metadata, name="b")

    assert replaced.name == "b"
    assert replaced.stored is None


def test_a_new_resource_shares_no_default_with_another() -> None:
    one, other = Metadata(name="a"), Metadata(name="b")

    one.labels["x"] = "y"
    one.finalizers.append("f")

    assert (other.labels, other.finalizers) == ({}, [])


def test_a_resource_without_rules_of_its_own_is_valid() -> None:
    assert box().validate() == []


# --- conditions -----------------------------------------------------------------------------------


def test_a_new_condition_goes_to_the_end() -> None:
    conditions = [Condition(type="Ready", status="True", last_transition_time=EARLIER)]

    set_condition(conditions, Condition(type="Healthy", status="True", last_transition_time=LATER))

    assert [(c.type, c.last_transition_time) for c in conditions] == [
        ("Ready", EARLIER),
        ("Healthy", LATER),
    ]


def test_a_condition_that_changes_its_status_changes_its_time() -> None:
    conditions = [Condition(type="Ready", status="True", last_transition_time=EARLIER)]

    set_condition(conditions, Condition(type="Ready", status="False", last_transition_time=LATER))

    assert conditions == [Condition(type="Ready", status="False", last_transition_time=LATER)]


def test_a_condition_that_keeps_its_status_keeps_its_time() -> None:
    """Otherwise a controller that reports each minute would spoil the time, and always write."""
    conditions = [
        Condition(type="Ready", status="True", reason="Old", last_transition_time=EARLIER)
    ]

    set_condition(
        conditions, Condition(type="Ready", status="True", reason="New", last_transition_time=LATER)
    )

    assert conditions == [
        Condition(type="Ready", status="True", reason="New", last_transition_time=EARLIER)
    ]


@pytest.mark.parametrize(
    "before", [[], [Condition(type="Ready", status="False", last_transition_time=EARLIER)]]
)
def test_a_condition_without_a_time_gets_the_present(before: list[Condition]) -> None:
    start = datetime.now(UTC)
    conditions = list(before)

    set_condition(conditions, Condition(type="Ready", status="True"))

    since = conditions[0].last_transition_time
    assert since is not None
    assert start <= since <= datetime.now(UTC)


def test_a_condition_without_a_time_that_keeps_its_status_gets_the_present() -> None:
    """Written by hand, say: it has had its status for an unknown time."""
    conditions = [Condition(type="Ready", status="True")]

    set_condition(conditions, Condition(type="Ready", status="True"))

    assert conditions[0].last_transition_time is not None


def test_setting_a_condition_leaves_the_given_one_alone() -> None:
    given_one = Condition(type="Ready", status="True")
    conditions: list[Condition] = []

    set_condition(conditions, given_one)
    conditions[0].reason = "Changed"

    assert given_one == Condition(type="Ready", status="True")


some_conditions = st.builds(
    Condition,
    type=st.sampled_from("abc"),
    status=st.sampled_from(["True", "False", "Unknown"]),
    last_transition_time=st.sampled_from([None, EARLIER, LATER]),
)


@given(st.lists(some_conditions, max_size=8))
def test_a_type_stands_once_and_in_the_place_that_it_first_had(reports: list[Condition]) -> None:
    conditions: list[Condition] = []

    for report in reports:
        set_condition(conditions, report)

    assert [c.type for c in conditions] == list(dict.fromkeys(report.type for report in reports))
    assert {c.type: c.status for c in conditions} == {
        report.type: report.status for report in reports
    }
