"""The codec's decisions: what a write stores, whether it stores anything, and what it refuses.

What the bytes look like is the business of test_stored_form.py, what is kept of a newer type's
fields that of test_unknown_fields.py.
"""

import copy
import json
import math
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.encoding.stored import Codec, Draft, codec_for
from kvorum.errors import ConfigurationError, InvalidResourceError
from kvorum.resources.model import Kind, Metadata, Resource, Stored
from kvorum.storage.values import Entry


class Port(msgspec.Struct, rename="camel"):
    name: str
    vlan_id: int = 1


class SwitchSpec(msgspec.Struct, rename="camel"):
    rack_name: str = ""
    units: int = 1
    weight: float = 1.0
    height: float | None = None
    ports: list[Port] = []
    quotas: dict[str, float] = {}
    anything: Any = None


class SwitchStatus(msgspec.Struct, rename="camel"):
    phase: str = "pending"
    load: float | None = None


class Switch(Resource[SwitchSpec, SwitchStatus]):
    kind: ClassVar[Kind] = Kind("Switch", plural="switches", api_version="example.org/v1")

    def validate(self) -> list[str]:
        problems = []
        if self.spec.units < 1:
            problems.append("spec.units must be 1 or more")
        if self.spec.rack_name == "on fire":
            problems.append("spec.rackName must not be on fire")
        return problems


CODEC = codec_for(Switch)
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DELETED = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
NAN = math.nan
INFINITY = math.inf

METADATA = (
    '"annotations":{"note":"n"},"creationTimestamp":"2026-01-02T03:04:05Z","finalizers":["f"],"formVersion":1,'
    '"generation":3,"labels":{"track":"t"},"name":"a","uid":"u","writeToken":"t0"'
)
SPEC = '"anything":null,"height":null,"ports":[],"quotas":{},"rackName":"r1","units":2,"weight":1.0'
STATUS = '"load":null,"phase":"ready"'


def stored(metadata: str = METADATA, spec: str = SPEC, status: str = STATUS) -> Stored:
    """What a read finds; the arguments are the insides of the three objects."""
    text = (
        '{"apiVersion":"example.org/v1","kind":"Switch","metadata":{%s},"spec":{%s},"status":{%s}}'
    )
    read = CODEC.decode(
        Entry("switches/a", (text % (metadata, spec, status)).encode(), 42, 7, 3)
    ).metadata.stored
    assert read is not None
    return read


def new(**spec: Any) -> Switch:
    """A switch that is not stored yet."""
    return Switch(metadata=Metadata(name="a"), spec=SwitchSpec(**spec), status=SwitchStatus())


def document(draft: Draft[Switch]) -> dict[str, Any]:
    """The bytes of a draft as plain data."""
    loaded: dict[str, Any] = json.loads(draft.stored.value)
    return loaded


def update(change: Callable[[Switch], object], base: Stored | None = None) -> Draft[Switch]:
    """Read, change, update."""
    base = stored() if base is None else base
    resource = CODEC.restore(base)
    change(resource)
    return CODEC.draft_update(resource, base)


# --- new resources --------------------------------------------------------------------------------


def test_a_new_resource_gets_what_the_store_owns() -> None:
    start = datetime.now(UTC)

    metadata = CODEC.draft_new(new()).resource.metadata

    assert str(uuid.UUID(metadata.uid)) == metadata.uid
    assert metadata.generation == 1
    assert metadata.creation_timestamp is not None
    assert start <= metadata.creation_timestamp <= datetime.now(UTC)
    assert metadata.resource_version == 0


def test_a_new_resource_cannot_bring_what_the_store_owns() -> None:
    resource = new()
    resource.metadata.uid = "mine"
    resource.metadata.generation = 99
    resource.metadata.creation_timestamp = resource.metadata.deletion_timestamp = CREATED
    resource.metadata.resource_version = 77

    draft = CODEC.draft_new(resource)

    assert draft.resource.metadata.uid != "mine"
    assert draft.resource.metadata.generation == 1
    assert draft.resource.metadata.creation_timestamp != CREATED
    assert draft.resource.metadata.deletion_timestamp is None
    assert "resourceVersion" not in document(draft)["metadata"]


def test_the_given_resource_is_left_as_it_is() -> None:
    """Who adds a resource twice, by mistake or on purpose, adds the same one."""
    resource = new(ports=[Port("p")])
    before = copy.deepcopy(resource)

    draft = CODEC.draft_new(resource)
    draft.resource.spec.ports.append(Port("q"))
    draft.resource.metadata.labels["x"] = "y"

    assert resource == before


def test_two_drafts_of_a_resource_differ_in_token_and_uid() -> None:
    one, other = CODEC.draft_new(new()), CODEC.draft_new(new())

    assert one.stored.write_token != other.stored.write_token
    assert one.resource.metadata.uid != other.resource.metadata.uid


def test_the_token_of_a_draft_is_in_its_bytes() -> None:
    draft = CODEC.draft_new(new())

    assert document(draft)["metadata"]["writeToken"] == draft.stored.write_token
    assert len(draft.stored.write_token) == 16


def test_a_written_draft_is_what_a_read_gives() -> None:
    draft = CODEC.draft_new(new(rack_name="r", weight=0.1))

    written = draft.written(42)

    read = CODEC.decode(Entry("switches/a", draft.stored.value, 42, 42, 1))
    assert written == read
    assert (
        written.metadata.stored
        == read.metadata.stored
        == Stored("switches/a", draft.stored.value, 42, draft.stored.write_token)
    )


# --- updates --------------------------------------------------------------------------------------


def test_an_update_stores_what_was_changed() -> None:
    def change(switch: Switch) -> None:
        switch.metadata.labels["new"] = "label"
        switch.metadata.annotations.clear()
        switch.metadata.finalizers.append("g")
        switch.spec.rack_name = "r2"
        switch.status.phase = "busy"

    draft = update(change)

    assert draft.changed is True
    assert draft.resource.metadata.labels == {"track": "t", "new": "label"}
    assert draft.resource.metadata.annotations == {}
    assert draft.resource.metadata.finalizers == ["f", "g"]
    assert (draft.resource.spec.rack_name, draft.resource.status.phase) == ("r2", "busy")


def test_an_update_cannot_change_what_the_store_owns() -> None:
    def change(switch: Switch) -> None:
        switch.metadata.uid = "mine"
        switch.metadata.generation = 99
        switch.metadata.creation_timestamp = None
        switch.metadata.deletion_timestamp = DELETED
        switch.metadata.resource_version = 77
        switch.status.phase = "busy"

    metadata = update(change).resource.metadata

    assert (metadata.uid, metadata.generation) == ("u", 3)
    assert (metadata.creation_timestamp, metadata.deletion_timestamp) == (CREATED, None)


def test_an_update_of_nothing_but_what_the_store_owns_is_none() -> None:
    def change(switch: Switch) -> None:
        switch.metadata.uid = ""
        switch.metadata.generation = 0
        switch.metadata.creation_timestamp = None

    assert update(change).changed is False


def test_a_deletion_timestamp_cannot_be_taken_back() -> None:
    base = stored(
        METADATA.replace('"finalizers"', '"deletionTimestamp":"2026-02-03T04:05:06Z","finalizers"')
    )

    def change(switch: Switch) -> None:
        switch.metadata.deletion_timestamp = None
        switch.status.phase = "busy"

    assert update(change, base).resource.metadata.deletion_timestamp == DELETED


def test_a_deletion_marks_the_resource_once() -> None:
    """A second delete finds the first one's timestamp and has nothing to write."""
    first = CODEC.draft_update(CODEC.restore(stored()), stored(), deleted=DELETED)

    second = CODEC.draft_update(first.resource, first.stored, deleted=datetime.now(UTC))

    assert (first.changed, first.resource.metadata.deletion_timestamp) == (True, DELETED)
    assert (second.changed, second.resource.metadata.deletion_timestamp) == (False, DELETED)
    assert first.resource.metadata.generation == 3


def test_every_write_has_a_token_of_its_own() -> None:
    """It tells one's own write from another's of the same content, after a reply was lost."""

    def change(switch: Switch) -> None:
        switch.status.phase = "busy"

    tokens = {update(change).stored.write_token for _ in range(3)}

    assert len(tokens) == 3
    assert "t0" not in tokens


def test_an_update_of_nothing_changes_nothing() -> None:
    draft = update(lambda _: None)

    assert draft.changed is False
    assert draft.stored.value == stored().value
    assert draft.resource == CODEC.restore(stored())


def test_an_update_that_sets_what_is_there_changes_nothing() -> None:
    def change(switch: Switch) -> None:
        switch.metadata.labels = dict(switch.metadata.labels)
        switch.spec = copy.deepcopy(switch.spec)
        switch.status.phase = "rea" + "dy"

    assert update(change).changed is False


def test_an_int_for_a_float_changes_nothing() -> None:
    """1 == 1.0.

    A caller's `weight = 1` must not write, nor count as a new generation, again and again.
    """

    def change(switch: Switch) -> None:
        switch.spec.weight = 1

    once = update(change)
    twice = update(change, once.stored)

    assert once.resource.metadata.generation == 3
    assert twice.changed is False


# --- generations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "generation"),
    [
        (lambda s: s.metadata.labels.clear(), 3),
        (lambda s: s.metadata.annotations.clear(), 3),
        (lambda s: s.metadata.finalizers.clear(), 3),
        (lambda s: setattr(s.status, "phase", "busy"), 3),
        (lambda s: setattr(s, "status", SwitchStatus()), 3),
        (lambda s: setattr(s.spec, "units", 3), 4),
        (lambda s: setattr(s, "spec", SwitchSpec()), 4),
        (lambda s: s.spec.ports.append(Port("p")), 4),
        (lambda s: s.spec.quotas.update(a=1.0), 4),
        (lambda s: setattr(s.spec, "anything", {"a": [1]}), 4),
    ],
)
def test_generation_counts_changes_of_the_spec_alone(
    change: Callable[[Switch], None], generation: int
) -> None:
    draft = update(change)

    assert draft.changed is True
    assert draft.resource.metadata.generation == generation


def test_what_was_written_by_hand_starts_with_generation_one() -> None:
    assert update(lambda _: None, stored('"name":"a"')).resource.metadata.generation == 1


# --- written by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        stored('"name":"a"'),
        stored('"name":"a"', spec="", status=""),
        stored(METADATA.replace('":', '" : ')),
        stored(spec=SPEC.replace("1.0", "1.00")),
        stored(spec=SPEC.replace('"anything":null,', "")),
        stored(spec='"units":2,"rackName":"r1"'),
        stored(METADATA + ',"resourceVersion":"4711"'),
        stored(METADATA.replace('"formVersion":1,', "")),
        stored(METADATA.replace('"uid":"u",', "")),
        stored(METADATA.replace('"uid":"u"', '"namespace":null,"uid":"u"')),
        stored(spec=SPEC + ',"rackName":"r1"'),
        stored(spec=SPEC.replace('"r1"', '"\\u0072\\u0031"')),
    ],
)
def test_bytes_that_are_not_in_our_form_are_rewritten_once_and_then_no_more(base: Stored) -> None:
    once = update(lambda _: None, base)
    twice = update(lambda _: None, once.stored)

    assert once.changed is True
    assert twice.changed is False
    assert twice.stored.value == once.stored.value


def test_rewriting_changes_nothing_that_users_see() -> None:
    base = stored(METADATA + ',"resourceVersion":"4711"', spec='"units":2,"rackName":"r1"')

    draft = update(lambda _: None, base)

    before, after = CODEC.restore(base), draft.written(42)
    assert after == before


def test_a_resource_without_a_uid_gets_one_with_the_first_write() -> None:
    uid = update(lambda _: None, stored('"name":"a"')).resource.metadata.uid

    assert str(uuid.UUID(uid)) == uid


# --- what is refused ------------------------------------------------------------------------------

UNFIT: list[tuple[str, Callable[[Switch], object], str]] = [
    ("text for int", lambda s: setattr(s.spec, "units", "2"), "$.spec.units"),
    ("float for int", lambda s: setattr(s.spec, "units", 2.5), "$.spec.units"),
    ("text for float", lambda s: setattr(s.spec, "weight", "2"), "$.spec.weight"),
    ("none for text", lambda s: setattr(s.spec, "rack_name", None), "$.spec.rackName"),
    ("int for text", lambda s: setattr(s.status, "phase", 5), "$.status.phase"),
    ("none for a list", lambda s: setattr(s.spec, "ports", None), "$.spec.ports"),
    ("text for a struct", lambda s: s.spec.ports.append("p"), "$.spec.ports[0]"),  # type: ignore[arg-type]  # so it is
    ("deep inside", lambda s: s.spec.ports.append(Port("p", "v")), "$.spec.ports[0].vlanId"),  # type: ignore[arg-type]
    ("no spec", lambda s: setattr(s, "spec", None), "$.spec"),
    ("another spec", lambda s: setattr(s, "spec", [1]), "$.spec"),
    ("no labels", lambda s: setattr(s.metadata, "labels", None), "$.metadata.labels"),
    ("int for a label", lambda s: s.metadata.labels.update(a=1), "$.metadata.labels"),  # type: ignore[call-overload]
    (
        "text for finalizers",
        lambda s: setattr(s.metadata, "finalizers", "f"),
        "$.metadata.finalizers",
    ),
    ("an object", lambda s: setattr(s.spec, "anything", object()), "object"),
    ("a function", lambda s: setattr(s.spec, "anything", len), "unsupported"),
    ("a complex number", lambda s: setattr(s.spec, "anything", [1j]), "complex"),
    ("a huge int", lambda s: setattr(s.spec, "units", 10**5000), "it cannot be stored"),
    ("a lone surrogate", lambda s: setattr(s.spec, "rack_name", "\ud800"), "surrogates"),
    ("a key that is no text", lambda s: s.spec.quotas.update({1: 1.0}), "str keys"),  # type: ignore[dict-item]
]

unfit = pytest.mark.parametrize(
    ("break_it", "reason"),
    [(break_it, reason) for _, break_it, reason in UNFIT],
    ids=[name for name, *_ in UNFIT],
)


@unfit
def test_what_could_not_be_read_back_is_never_added(
    break_it: Callable[[Switch], object], reason: str
) -> None:
    """Python lets anybody assign anything; the store is no place to find out."""
    resource = new()
    break_it(resource)

    with pytest.raises(InvalidResourceError) as caught:
        CODEC.draft_new(resource)

    assert caught.value.subject == "switches/a"
    assert reason in str(caught.value)


@unfit
def test_what_could_not_be_read_back_is_never_written_over_a_good_one(
    break_it: Callable[[Switch], object], reason: str
) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        update(break_it)

    assert caught.value.subject == "switches/a"
    assert reason in str(caught.value)


def set_weight(value: float) -> Callable[[Switch], None]:
    def change(switch: Switch) -> None:
        switch.spec.weight = value

    return change


def set_height(value: float) -> Callable[[Switch], None]:
    def change(switch: Switch) -> None:
        switch.spec.height = value

    return change


def set_load(value: float) -> Callable[[Switch], None]:
    def change(switch: Switch) -> None:
        switch.status.load = value

    return change


def set_anything(value: object) -> Callable[[Switch], None]:
    def change(switch: Switch) -> None:
        switch.spec.anything = value

    return change


NOT_A_NUMBER: list[Callable[[Switch], None]] = [
    set_weight(NAN),
    set_weight(INFINITY),
    set_height(NAN),
    set_height(INFINITY),
    set_height(-INFINITY),
    set_load(NAN),
    set_anything(NAN),
    set_anything({"a": [INFINITY]}),
]


@pytest.mark.parametrize("change", NOT_A_NUMBER)
def test_a_float_that_json_does_not_know_is_refused_and_not_stored_as_null(
    change: Callable[[Switch], None],
) -> None:
    """msgspec writes NaN as null. Where null is allowed that would lose a value without a word."""
    resource = new()
    change(resource)

    with pytest.raises(InvalidResourceError):
        CODEC.draft_new(resource)


@pytest.mark.parametrize("change", NOT_A_NUMBER)
def test_a_float_that_json_does_not_know_is_no_update_either(
    change: Callable[[Switch], None],
) -> None:
    """Nor is it "nothing changed", where null was before."""
    with pytest.raises(InvalidResourceError):
        update(change)


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"height": NAN}},
        {"spec": {"anything": {"a": [INFINITY]}}},
        {"status": {"load": -INFINITY}},
    ],
)
def test_a_float_that_json_does_not_know_is_no_patch(patch: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidResourceError):
        CODEC.patch(stored(), patch)


@pytest.mark.parametrize(
    "value", [b"bytes", bytearray(b"bytes"), datetime(2026, 1, 1, tzinfo=UTC), uuid.UUID(int=1)]
)
def test_what_json_would_make_text_of_is_no_text(value: object) -> None:
    """msgspec writes bytes as base64.

    Stored, the caller's mistake would come back as another text.
    """
    resource = new()
    resource.spec.rack_name = value  # type: ignore[assignment]  # that is the mistake

    with pytest.raises(InvalidResourceError):
        CODEC.draft_new(resource)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.labels.update({"a b": "x"}), "the label key 'a b'"),
        (lambda m: m.labels.update({"": "x"}), "the label key ''"),
        (lambda m: m.labels.update({"A/b": "x"}), "the prefix of the label key 'A'"),
        (lambda m: m.labels.update({"a": "b c"}), "the value of label 'a', 'b c'"),
        (lambda m: m.labels.update({"a": "x" * 64}), "the value of label 'a'"),
        (lambda m: m.annotations.update({"a b": "x"}), "the annotation key 'a b'"),
        (lambda m: m.finalizers.append("a b"), "the finalizer 'a b'"),
        (lambda m: m.finalizers.append(""), "the finalizer ''"),
    ],
)
def test_labels_annotations_and_finalizers_follow_the_rules(
    change: Callable[[Metadata], None], problem: str
) -> None:
    resource = new()
    change(resource.metadata)

    with pytest.raises(InvalidResourceError) as caught:
        CODEC.draft_new(resource)

    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_the_value_of_an_annotation_may_be_any_text() -> None:
    resource = new()
    resource.metadata.annotations["note"] = text = "größer als\n\0 " + "x" * 10_000

    assert CODEC.draft_new(resource).resource.metadata.annotations == {"note": text}


def break_every_rule(switch: Switch) -> None:
    switch.metadata.labels["a b"] = "c d"
    switch.metadata.annotations["e f"] = ""
    switch.metadata.finalizers.append("g h")
    switch.spec.units = 0
    switch.spec.rack_name = "on fire"


def test_all_problems_of_a_new_resource_are_reported_at_once() -> None:
    """Those that `validate` finds among them: who fixes one need not run into the next."""
    resource = new()
    break_every_rule(resource)

    with pytest.raises(InvalidResourceError) as caught:
        CODEC.draft_new(resource)

    assert len(caught.value.problems) == 6
    assert caught.value.problems[-2:] == (
        "spec.units must be 1 or more",
        "spec.rackName must not be on fire",
    )


def test_all_problems_of_an_update_are_reported_at_once() -> None:
    with pytest.raises(InvalidResourceError) as caught:
        update(break_every_rule)

    assert len(caught.value.problems) == 6


def test_all_problems_of_a_patch_are_reported_at_once() -> None:
    patch = {
        "metadata": {"labels": {"a b": "c d"}, "annotations": {"e f": ""}, "finalizers": ["g h"]},
        "spec": {"units": 0, "rackName": "on fire"},
    }

    with pytest.raises(InvalidResourceError) as caught:
        CODEC.patch(stored(), patch)

    assert len(caught.value.problems) == 6


def test_what_is_wrong_already_may_stay_until_it_is_written() -> None:
    """Somebody stored it by hand. A no-op is no write, so it is not the moment to complain."""
    base = stored(spec=SPEC.replace('"units":2', '"units":0'))

    assert update(lambda _: None, base).changed is False


def test_an_exception_in_validate_comes_out_as_it_is() -> None:
    class Picky(Resource[SwitchSpec, SwitchStatus]):
        kind: ClassVar[Kind] = Kind("Picky", plural="pickies", api_version="v1")

        def validate(self) -> list[str]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        codec_for(Picky).draft_new(
            Picky(metadata=Metadata(name="a"), spec=SwitchSpec(), status=SwitchStatus())
        )


# --- patches --------------------------------------------------------------------------------------


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
    """A field of the type goes back to its default, an entry of a mapping goes away."""
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
    """Neither does it count as a change of the spec: controllers patch the same again and again."""
    draft = CODEC.patch(stored(), patch)

    assert draft.resource.metadata.generation == 3
    assert draft.changed is False
    assert draft.stored.value == stored().value


def test_a_patch_of_nothing_counts_no_generation_in_bytes_that_are_not_in_our_form() -> None:
    """It brings them into our form, as an update would; the spec is what it was."""
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
    """Unlike an update, which gets whole resources and reads over it, a patch says that it wants just that."""
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
    """A typo would be stored for ever, and change nothing."""
    with pytest.raises(InvalidResourceError) as caught:
        CODEC.patch(stored(), patch)

    assert all(path in str(caught.value) for path in paths)


def test_a_patch_of_a_field_that_a_newer_writer_stored_is_fine() -> None:
    """And it is a change of the spec, though this version of the type does not see it."""
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


specs = st.builds(
    SwitchSpec,
    rack_name=st.text(max_size=4),
    units=st.integers(1),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    height=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ports=st.lists(st.builds(Port, name=st.text(max_size=2), vlan_id=st.integers()), max_size=3),
    quotas=st.dictionaries(
        st.text(max_size=2), st.floats(allow_nan=False, allow_infinity=False), max_size=3
    ),
)


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


@given(specs, specs)
def test_an_update_writes_just_when_something_changes(
    before: SwitchSpec, after: SwitchSpec
) -> None:
    base = CODEC.draft_new(
        Switch(metadata=Metadata(name="a"), spec=before, status=SwitchStatus())
    ).stored

    def change(switch: Switch) -> None:
        switch.spec = after

    draft = update(change, base)

    assert draft.resource.spec == after
    assert draft.resource.metadata.generation == 1 + (before != after)
    assert update(change, draft.stored).changed is False


# --- classes that have no codec -------------------------------------------------------------------


class NoKind(Resource[SwitchSpec, SwitchStatus]):
    pass


class BadKind(Resource[SwitchSpec, SwitchStatus]):
    kind: ClassVar[Kind] = "Switch"  # type: ignore[assignment]  # that is the mistake


class NotStorable(Resource[dict[str, list[complex]], type]):
    kind: ClassVar[Kind] = Kind("NotStorable", plural="not-storables", api_version="v1")


class Ambiguous(Resource[Port | SwitchSpec, SwitchStatus]):
    kind: ClassVar[Kind] = Kind("Ambiguous", plural="ambiguous", api_version="v1")


@pytest.mark.parametrize(
    ("resource_type", "complaint"),
    [
        (int, "no subclass of kvorum.Resource"),
        (SwitchSpec, "no subclass of kvorum.Resource"),
        (new(), "no subclass of kvorum.Resource"),
        (NoKind, "NoKind declares no kind"),
        (BadKind, "BadKind declares no kind"),
        (Ambiguous, "Ambiguous cannot be stored"),
    ],
)
def test_a_class_that_cannot_be_stored_is_refused_when_its_codec_is_made(
    resource_type: Any, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Codec(resource_type)


def test_a_codec_is_made_once_for_a_class() -> None:
    assert codec_for(Switch) is codec_for(Switch)


def test_spec_and_status_need_not_be_structs() -> None:
    class Loose(Resource[dict[str, int], list[str]]):
        kind: ClassVar[Kind] = Kind("Loose", plural="looses", api_version="v1")

    draft = codec_for(Loose).draft_new(
        Loose(metadata=Metadata(name="a"), spec={"b": 1}, status=["c"])
    )

    assert (draft.resource.spec, draft.resource.status) == ({"b": 1}, ["c"])
