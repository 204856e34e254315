"""The codec's decisions: what a write stores, and whether it stores anything.

test_codec_refusals.py is about what it rejects, test_codec_patches.py about patches,
test_stored_form.py about the bytes, test_unknown_fields.py about the fields of newer types.
"""

import copy
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from hypothesis import given
from tests.unit.switches import (
    CODEC,
    CREATED,
    DELETED,
    METADATA,
    SPEC,
    Port,
    Switch,
    SwitchSpec,
    SwitchStatus,
    document,
    new,
    specs,
    stored,
    update,
)

from kvorum.encoding.stored import Codec, codec_for
from kvorum.errors import ConfigurationError
from kvorum.resources.model import Kind, Metadata, Resource, Stored
from kvorum.storage.values import Entry

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
    """Adding a resource twice, by mistake or on purpose, adds the same state twice."""
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


def test_a_deletion_timestamp_cannot_be_removed() -> None:
    base = stored(
        METADATA.replace('"finalizers"', '"deletionTimestamp":"2026-02-03T04:05:06Z","finalizers"')
    )

    def change(switch: Switch) -> None:
        switch.metadata.deletion_timestamp = None
        switch.status.phase = "busy"

    assert update(change, base).resource.metadata.deletion_timestamp == DELETED


def test_a_deletion_marks_the_resource_once() -> None:
    """A second delete finds the timestamp of the first one, and has nothing to write."""
    first = CODEC.draft_update(CODEC.restore(stored()), stored(), deleted=DELETED)

    second = CODEC.draft_update(first.resource, first.stored, deleted=datetime.now(UTC))

    assert (first.changed, first.resource.metadata.deletion_timestamp) == (True, DELETED)
    assert (second.changed, second.resource.metadata.deletion_timestamp) == (False, DELETED)
    assert first.resource.metadata.generation == 3


def test_every_write_has_a_token_of_its_own() -> None:
    """After a lost reply, it distinguishes a client's write from one of the same content."""

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
    """1 == 1.0: `weight = 1` must not write, nor count as a new generation, each time."""

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
        (int, "not a subclass of kvorum.Resource"),
        (SwitchSpec, "not a subclass of kvorum.Resource"),
        (new(), "not a subclass of kvorum.Resource"),
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
