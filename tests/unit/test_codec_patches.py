"""Patches change what they name, and nothing else."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from tests.unit.switches import (
    CODEC,
    SPEC,
    STATUS,
    Switch,
    SwitchSpec,
    SwitchStatus,
    document,
    specs,
    stored,
)

from kvorum.errors import InvalidResourceError
from kvorum.resources.model import Metadata


def test_a_patch_changes_what_it_names_and_nothing_else() -> None:
    draft = CODEC.patch(
        stored(), {"spec": {"rackName": "r2"}, "metadata": {"labels": {"new": "label"}}}
    )

    expected = json.loads(stored().value)
    expected["spec"]["rackName"] = "r2"
    expected["metadata"]["labels"]["new"] = "label"
    expected["metadata"] |= {"generation": 4, "writeToken": draft.stored.write_token}
    assert document(draft) == expected


@pytest.mark.parametrize(
    ("patch", "generation"),
    [
        ({"metadata": {"labels": {"track": "u"}}}, 3),
        ({"metadata": {"labels": {"track": None}}}, 3),
        ({"metadata": {"labels": None}}, 3),
        ({"metadata": {"annotations": {"a": "b"}}}, 3),
        ({"metadata": {"finalizers": []}}, 3),
        ({"metadata": {"finalizers": None}}, 3),
        ({"status": {"phase": "busy"}}, 3),
        ({"status": {"phase": None}}, 3),
        ({"status": None}, 3),
        ({"spec": {"units": 5}}, 4),
        ({"spec": {"units": None}}, 4),
        ({"spec": {"ports": [{"name": "p"}]}}, 4),
        ({"spec": None}, 4),
        ({"spec": {"units": 5}, "status": {"phase": "busy"}}, 4),
    ],
)
def test_a_patch_counts_generations_like_an_update(
    patch: Mapping[str, Any], generation: int
) -> None:
    draft = CODEC.patch(stored(), patch)

    assert draft.changed is True
    assert draft.resource.metadata.generation == generation


def test_null_removes() -> None:
    """A field of the type gets its default, an entry of a mapping is removed."""
    base = stored(spec=SPEC.replace('"quotas":{}', '"quotas":{"a":1.0,"b":2.0}'))

    draft = CODEC.patch(
        base, {"spec": {"units": None, "quotas": {"a": None}}, "metadata": {"labels": None}}
    )

    assert draft.resource.spec.units == 1
    assert draft.resource.spec.quotas == {"b": 2.0}
    assert draft.resource.metadata.labels == {}


def test_null_for_a_field_that_must_be_there_is_refused() -> None:
    base = stored(spec=SPEC.replace('"ports":[]', '"ports":[{"name":"p","vlanId":1}]'))

    with pytest.raises(
        InvalidResourceError, match=r"missing required field `name` - at `\$.spec.ports\[0\]`"
    ):
        CODEC.patch(base, {"spec": {"ports": [{"vlanId": 2}]}})


@pytest.mark.parametrize(
    "patch",
    [
        {},
        {"spec": {}},
        {"metadata": {}},
        {"metadata": {"labels": {}}},
        {"metadata": {"labels": {"track": "t"}}},
        {"metadata": {"labels": {"missing": None}}},
        {"spec": {"units": 2, "rackName": "r1"}},
        {"spec": {"weight": 1}},
        {"spec": {"weight": None}},
        {"spec": {"height": None}},
        {"spec": {"ports": None, "quotas": None}},
        {"spec": {"noSuchField": None}},
        {"noSuchField": None},
        {"status": {"load": None}},
    ],
)
def test_a_patch_that_leaves_the_resource_equal_writes_nothing(patch: Mapping[str, Any]) -> None:
    """Nor does it change the generation: controllers apply the same patch again and again."""
    draft = CODEC.patch(stored(), patch)

    assert draft.resource.metadata.generation == 3
    assert draft.changed is False
    assert draft.stored.value == stored().value


def test_a_patch_of_nothing_counts_no_generation_in_bytes_that_are_not_in_our_form() -> None:
    """It brings them into our form, like an update; the spec is unchanged."""
    base = stored(spec=SPEC.replace('":', '" : '))

    draft = CODEC.patch(base, {"spec": {"units": 2}})

    assert draft.changed is True
    assert draft.resource.metadata.generation == 3


@pytest.mark.parametrize(
    ("patch", "named"),
    [
        ({"apiVersion": "example.org/v2"}, ["apiVersion"]),
        ({"kind": None}, ["kind"]),
        ({"metadata": {"name": "b"}}, ["name"]),
        ({"metadata": {"namespace": "b"}}, ["namespace"]),
        ({"metadata": {"uid": "mine", "labels": {}}}, ["uid"]),
        (
            {"metadata": {"generation": 99, "creationTimestamp": None}},
            ["generation", "creationTimestamp"],
        ),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, ["deletionTimestamp"]),
        ({"metadata": {"resourceVersion": 7}}, ["resourceVersion"]),
        ({"metadata": {"formVersion": 2, "writeToken": "mine"}}, ["formVersion", "writeToken"]),
        ({"metadata": {"noSuchField": 1}}, ["noSuchField"]),
    ],
)
def test_a_patch_of_what_the_store_owns_is_refused(
    patch: Mapping[str, Any], named: list[str]
) -> None:
    """An update gets whole resources and ignores these fields; a patch names just what it wants."""
    with pytest.raises(InvalidResourceError) as caught:
        CODEC.patch(stored(), patch)

    assert caught.value.subject == "switches/a"
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize("metadata", [None, [], "x", 5, [["labels", {}]], ["a"]])
def test_metadata_as_a_whole_cannot_be_patched(metadata: object) -> None:
    with pytest.raises(InvalidResourceError):
        CODEC.patch(stored(), {"metadata": metadata})


@pytest.mark.parametrize(
    ("patch", "paths"),
    [
        ({"x": 1}, ["x"]),
        ({"spec": {"rack_name": "r2"}}, ["spec.rack_name"]),
        ({"spec": {"x": 1, "y": {"z": 1}}}, ["spec.x", "spec.y"]),
        ({"spec": {"ports": [{"name": "p"}, {"name": "q", "vlan": 1}]}}, ["spec.ports[1].vlan"]),
        ({"status": {"x": []}, "y": 1}, ["status.x", "y"]),
    ],
)
def test_a_patch_of_a_field_that_does_not_exist_is_refused_with_its_path(
    patch: Mapping[str, Any], paths: list[str]
) -> None:
    """Otherwise a typing error would be stored for ever, without any effect."""
    with pytest.raises(InvalidResourceError) as caught:
        CODEC.patch(stored(), patch)

    assert all(path in str(caught.value) for path in paths)


def test_a_patch_of_a_field_that_a_newer_writer_stored_is_fine() -> None:
    """And it changes the spec, although this version of the type does not have the field."""
    base = stored(spec=SPEC + ',"zone":{"name":"a","prio":1.10}')

    draft = CODEC.patch(base, {"spec": {"zone": {"name": "b"}}})

    assert b'"zone":{"name":"b","prio":1.10}' in draft.stored.value
    assert draft.changed is True
    assert draft.resource.metadata.generation == 4


def test_a_patch_may_remove_a_field_that_a_newer_writer_stored() -> None:
    base = stored(spec=SPEC + ',"zone":1')

    draft = CODEC.patch(base, {"spec": {"zone": None}})

    assert "zone" not in document(draft)["spec"]
    assert draft.resource.metadata.generation == 4


def test_a_patch_of_a_newer_field_with_what_it_has_writes_nothing() -> None:
    base = stored(spec=SPEC + ',"zone":1')

    draft = CODEC.patch(base, {"spec": {"zone": 1}})

    assert draft.changed is False
    assert draft.resource.metadata.generation == 3


def test_a_patch_of_a_newer_field_of_the_status_is_no_change_of_the_spec() -> None:
    base = stored(status=STATUS + ',"zone":1')

    draft = CODEC.patch(base, {"status": {"zone": 2}})

    assert document(draft)["status"]["zone"] == 2
    assert draft.resource.metadata.generation == 3


@pytest.mark.parametrize("number", ["1e400", "9" * 5000, "1.10"])
def test_a_patch_need_not_understand_what_it_leaves_alone(number: str) -> None:
    """A number that Python cannot hold, in a field of a newer type.

    An update keeps it, and so does a patch.
    """
    base = stored(spec=SPEC + f',"zone":{number}')

    draft = CODEC.patch(base, {"status": {"phase": "busy"}})

    assert f'"zone":{number}'.encode() in draft.stored.value


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ({"spec": 5}, "at `$.spec`"),
        ({"spec": {"units": "2"}}, "at `$.spec.units`"),
        ({"spec": {"ports": {"p": 1}}}, "at `$.spec.ports`"),
        ({"spec": {"anything": object()}}, "object"),
        ({"metadata": {"labels": {"a": 1}}}, "at `$.metadata.labels[...]`"),
        ({"metadata": {"finalizers": "f"}}, "at `$.metadata.finalizers`"),
        ({"spec": {"quotas": {1: 2}}}, "str keys"),
    ],
)
def test_a_patch_that_breaks_the_type_is_refused(patch: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        CODEC.patch(stored(), patch)

    assert caught.value.subject == "switches/a"
    assert reason in str(caught.value)


def test_a_patch_leaves_the_stored_bytes_alone() -> None:
    base = stored()

    CODEC.patch(base, {"spec": {"units": 5}})

    assert base == stored()


@given(specs, specs)
def test_a_patch_with_a_whole_spec_does_what_an_update_does(
    before: SwitchSpec, after: SwitchSpec
) -> None:
    base = CODEC.draft_new(
        Switch(metadata=Metadata(name="a"), spec=before, status=SwitchStatus())
    ).stored
    gone = {"quotas": {name: None for name in before.quotas if name not in after.quotas}}
    whole = msgspec.to_builtins(after)
    whole["quotas"] |= gone["quotas"]

    patched = CODEC.patch(base, {"spec": whole})

    updated = CODEC.draft_update(
        Switch(metadata=CODEC.restore(base).metadata, spec=after, status=SwitchStatus()), base
    )
    assert patched.resource == updated.resource
    assert patched.changed == updated.changed
