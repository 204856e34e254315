"""The rules that a resource must keep when it is written, beyond its types; and how much of them an update has to keep.

Rules get stricter, and other tools write without them. What is invalid by now must still be
deleted, lose its finalizers, and get a status. So what a write leaves as it is stored is not held
against it.
"""

from typing import Final

import msgspec

from kvorum.errors import InvalidResourceError
from kvorum.resources import (
    AnyResource,
    Metadata,
    is_label_value,
    problems_of_label_value,
    problems_of_qualified_name,
)

_NOTHING: Final = Metadata(name="")  # what a new resource was before


def check_rules(
    subject: str, new: AnyResource, old: AnyResource | None, *, is_spec_changed: bool
) -> None:
    """Refuse what breaks a rule: all of a new resource; of an update, what it changes.

    A write that changes the spec is judged by all that `validate` says. One that does not may leave
    the problems that the stored resource has already.

    Args:
        subject: which resource, for the error.
        new: what is to be written.
        old: what is stored; None if nothing is.
        is_spec_changed: whether the write changes the spec.

    Raises:
        InvalidResourceError: with every problem; the cause is what `validate` raised, if that was a
            `ValueError`. Any other exception of `validate` comes out as it is: a mistake in it says
            nothing about the resource.
    """
    problems = _problems_of(new.metadata, old.metadata if old is not None else _NOTHING)
    found, cause = _validated(new)
    if found and old is not None and not is_spec_changed:
        known, _ = _validated(old)
        found = [problem for problem in found if problem not in known]
    if found and cause is not None and not isinstance(cause, ValueError):
        raise cause
    if problems or found:
        raise InvalidResourceError(subject, [*problems, *found]) from cause


def _validated(resource: AnyResource) -> tuple[list[str], Exception | None]:
    """Return what `validate` says, and what it raises."""
    try:
        return [*resource.validate()], None
    except Exception as exc:  # noqa: BLE001 - it is the type's own code; the caller decides, and raises it again
        return [reason_of(exc)], exc


def _problems_of(metadata: Metadata, old: Metadata) -> list[str]:
    """Check labels, annotations and finalizers, but for those that are stored just so."""
    problems: list[str] = []
    for name, value in metadata.labels.items():
        if old.labels.get(name) == value:
            continue
        problems += problems_of_qualified_name(name, "the label key")
        if not is_label_value(value):
            problems += problems_of_label_value(value, f"the value of label {name!r},")
    for name in metadata.annotations:
        if name not in old.annotations:
            problems += problems_of_qualified_name(name, "the annotation key")
    for name in metadata.finalizers:
        if name not in old.finalizers:
            problems += problems_of_qualified_name(name, "the finalizer")
    return problems


def reason_of(exc: Exception) -> str:
    """Say what was wrong; of an error that was not raised to be read, its name, too."""
    if isinstance(
        exc, msgspec.MsgspecError | ValueError | TypeError | OverflowError | RecursionError
    ):
        return str(exc)
    return f"{type(exc).__name__}: {exc}"
