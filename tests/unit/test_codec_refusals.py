"""The codec refuses what could not be read back, or breaks a rule."""

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from tests.unit.switches import (
    CODEC,
    INFINITY,
    NAN,
    SPEC,
    Port,
    Switch,
    SwitchSpec,
    SwitchStatus,
    new,
    stored,
    update,
)

from kvorum.encoding.stored import codec_for
from kvorum.errors import InvalidResourceError
from kvorum.resources.model import Kind, Metadata, Resource

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
    """Python allows any assignment; a reader of the store is the wrong place to find out."""
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
    """msgspec encodes NaN as null. Where null is valid, a value would be lost silently."""
    resource = new()
    change(resource)

    with pytest.raises(InvalidResourceError):
        CODEC.draft_new(resource)


@pytest.mark.parametrize("change", NOT_A_NUMBER)
def test_a_float_that_json_does_not_know_is_no_update_either(
    change: Callable[[Switch], None],
) -> None:
    """Nor is it "no change" where the stored value is null."""
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
    """Including those that `validate` finds, so that all can be fixed at once."""
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
    """An operator stored it by hand. A no-op is not a write, so nothing is checked."""
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
