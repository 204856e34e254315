"""What a write sends and leaves behind is decided from values alone."""

from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import ConflictError, InvalidResourceError, Kind, Metadata, Operation, Resource
from kvorum.encoding import codec_for
from kvorum.repository.write_plan import (
    MAX_GUARD_SIZE,
    Preconditions,
    WritePlan,
    base_in,
    plan_add,
    plan_delete,
    plan_patch,
    plan_status,
    plan_update,
)
from kvorum.resources import Stored
from kvorum.storage import Entry

NOW = datetime(2026, 1, 2, tzinfo=UTC)
REVISION = 7


class NoteSpec(msgspec.Struct, kw_only=True, omit_defaults=True):
    text: str = ""


class NoteStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    phase: str = ""


class Note(Resource[NoteSpec, NoteStatus]):
    kind: ClassVar[Kind] = Kind("Note", plural="notes", api_version="test.kvorum.dev/v1")


CODEC = codec_for(Note)


def note(name: str = "a", *, text: str = "", **metadata: Any) -> Note:
    return Note(
        metadata=Metadata(name=name, **metadata), spec=NoteSpec(text=text), status=NoteStatus()
    )


def read(value: bytes, *, at: int = REVISION) -> tuple[Note, Stored]:
    """A note as a repository has read it, and its bytes."""
    entry = Entry(key="notes/a", value=value, mod_revision=at, create_revision=1, version=1)
    resource = CODEC.decode(entry)
    assert resource.metadata.stored is not None
    return resource, resource.metadata.stored


def stored(**parts: Any) -> tuple[Note, Stored]:
    return read(plan_add(CODEC, note(**parts)).draft.stored.value)


def marked(*finalizers: str) -> tuple[Note, Stored]:
    """A note that was deleted while it had finalizers."""
    current, base = stored(finalizers=[*finalizers])
    return read(plan_delete(CODEC, current, base, now=NOW).draft.stored.value, at=REVISION + 1)


def test_an_add_creates_the_key_with_bytes_that_no_other_write_has() -> None:
    given = note(text="hello")
    plan, again = plan_add(CODEC, given), plan_add(CODEC, given)

    value = plan.draft.stored.value
    assert plan.operation == Operation.create("notes/a", value, unique=True)
    assert value != again.draft.stored.value
    assert plan.base is None
    assert (plan.result.metadata.generation, plan.result.spec.text) == (1, "hello")
    assert given == note(text="hello")


def test_what_is_stored_already_cannot_be_added() -> None:
    current, _ = stored()

    with pytest.raises(InvalidResourceError, match="stored already"):
        plan_add(CODEC, current)


def test_an_update_swaps_the_value_at_the_revision_it_was_read_at() -> None:
    current, base = stored()
    current.spec.text = "new"
    plan = plan_update(CODEC, current, base)

    value = plan.draft.stored.value
    assert plan.operation == Operation.swap("notes/a", value, expected=REVISION, unique=True)
    assert plan.operation.lease is None  # it keeps the one it has
    assert plan.result.metadata.generation == 2
    assert read(value)[0].spec.text == "new"


def test_an_update_that_changes_nothing_is_a_check_of_the_revision() -> None:
    current, base = stored(text="same")
    plan = plan_update(CODEC, current, base)

    assert plan.operation == Operation.check("notes/a", expected=REVISION)
    assert plan.result == current


def test_a_status_update_takes_nothing_else_from_the_resource() -> None:
    current, base = stored(text="old")
    current.spec.text, current.status.phase = "new", "Ready"
    plan = plan_status(CODEC, current, base)

    assert (plan.result.spec.text, plan.result.status.phase) == ("old", "Ready")
    assert plan.result.metadata.generation == 1


def test_a_patch_sets_and_removes_fields() -> None:
    _, base = stored(text="old", labels={"a": "1", "b": "2"})
    plan = plan_patch(CODEC, base, {"spec": {"text": "new"}, "metadata": {"labels": {"a": None}}})

    assert plan.result.spec.text == "new"
    assert plan.result.metadata.labels == {"b": "2"}


def test_a_deletion_removes_the_key_at_the_revision_it_was_read_at() -> None:
    current, base = stored(text="last")
    plan = plan_delete(CODEC, current, base, now=NOW)

    assert plan.operation == Operation.delete("notes/a", expected=REVISION)
    assert plan.result == current


def test_a_deletion_of_a_resource_with_finalizers_marks_it() -> None:
    current, base = stored(finalizers=["x"])
    plan = plan_delete(CODEC, current, base, now=NOW)

    assert plan.operation.value == plan.draft.stored.value
    assert plan.result.metadata.deletion_timestamp == NOW


def test_a_deletion_of_a_marked_resource_changes_nothing() -> None:
    current, base = marked("x")
    plan = plan_delete(CODEC, current, base, now=datetime(2027, 1, 1, tzinfo=UTC))

    assert not plan.operation.writes
    assert plan.result.metadata.deletion_timestamp == NOW


def test_the_update_that_removes_the_last_finalizer_becomes_the_deletion() -> None:
    current, base = marked("x")
    before, _ = marked("x")
    current.metadata.finalizers = []
    plan = plan_update(CODEC, current, base)

    assert plan.operation == Operation.delete("notes/a", expected=base.revision)
    assert plan.result.metadata.finalizers == ["x"]  # the last state that was stored
    assert plan.result.metadata.deletion_timestamp == before.metadata.deletion_timestamp


def test_a_resource_that_is_being_deleted_takes_no_new_finalizers() -> None:
    current, base = marked("x")
    current.metadata.finalizers = ["x", "y"]

    with pytest.raises(InvalidResourceError, match="no new finalizers: y"):
        plan_update(CODEC, current, base)


def test_a_resource_that_was_renamed_since_it_was_read_has_no_base() -> None:
    current, _ = stored()
    current.metadata.name = "b"

    with pytest.raises(InvalidResourceError, match="cannot be renamed"):
        base_in(CODEC, current)


def test_a_resource_that_was_never_read_has_no_base() -> None:
    with pytest.raises(InvalidResourceError, match="never read"):
        base_in(CODEC, note())


def test_a_guarded_plan_expects_the_value_that_it_was_made_from() -> None:
    current, base = stored()
    current.spec.text = "new"
    plan = plan_update(CODEC, current, base).guarded()

    assert plan.operation.expected_value == base.value
    assert plan.result.spec.text == "new"


def test_a_value_too_large_to_be_sent_twice_is_not_expected() -> None:
    current, base = stored(text="x" * MAX_GUARD_SIZE)

    assert plan_delete(CODEC, current, base, now=NOW).guarded().operation.expected_value is None


def test_a_written_plan_is_as_a_read_would_give_it() -> None:
    plan = plan_add(CODEC, note(text="hello"))
    written = plan.written(9)

    assert written == read(plan.draft.stored.value, at=9)[0]
    assert written.metadata.resource_version == 9


@given(
    text=st.sampled_from(["", "a", "b"]),
    labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from("12")),
    finalizers=st.lists(st.sampled_from(["x", "y", "z"]), unique=True),
    is_marked=st.booleans(),
)
def test_no_plan_touches_a_key_without_expecting_the_revision_it_was_made_from(
    *, text: str, labels: dict[str, str], finalizers: list[str], is_marked: bool
) -> None:
    """Whatever was changed: so a write in between always makes it fail."""
    current, base = marked("x", "y") if is_marked else stored(finalizers=["x", "y"])
    current.spec.text, current.metadata.labels = text, labels
    current.metadata.finalizers = finalizers
    try:
        plan = plan_update(CODEC, current, base)
    except InvalidResourceError:
        assert is_marked
        assert "z" in finalizers
        return

    assert (plan.operation.key, plan.operation.expected) == (base.key, base.revision)
    assert plan.base == base
    assert is_removal(plan) == (is_marked and not finalizers)
    if not is_removal(plan):
        after = plan.result
        assert (after.spec.text, after.metadata.labels) == (text, labels)
        assert after.metadata.finalizers == finalizers


def is_removal(plan: WritePlan[Note]) -> bool:
    return plan.operation.writes and plan.operation.value is None


@pytest.mark.parametrize(
    "required", [Preconditions(), Preconditions(REVISION), Preconditions(uid="u")]
)
def test_preconditions_that_hold_are_silent(required: Preconditions) -> None:
    required.check("notes/a", note(resource_version=REVISION, uid="u"))


@pytest.mark.parametrize("required", [Preconditions(REVISION + 1), Preconditions(uid="v")])
def test_a_precondition_that_does_not_hold_is_a_conflict(required: Preconditions) -> None:
    with pytest.raises(ConflictError):
        required.check("notes/a", note(resource_version=REVISION, uid="u"))


@pytest.mark.parametrize("version", ["7", 0.5, -1])
def test_a_version_that_no_resource_can_have_is_not_a_conflict(version: Any) -> None:
    with pytest.raises(InvalidResourceError):
        Preconditions(version).check_types("notes/a")
