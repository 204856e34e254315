"""The rules for writes, beyond types, and which of them apply to an update.

Rules get stricter, and other tools write without them. A resource that has become invalid must
still be deletable, lose its finalizers, and get a status. So an update is not rejected for what it
leaves unchanged.
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

_NOTHING: Final = Metadata(name="")  # the old metadata of a new resource


def check_rules(
    subject: str, new: AnyResource, old: AnyResource | None, *, is_spec_changed: bool
) -> None:
    """Reject a new resource that breaks a rule, or an update whose changes do.

    A write that changes the spec must not have any problem that `validate` finds. One that does not
    may leave problems that the stored resource already has.

    Args:
        subject: which resource, for the error.
        new: the resource to write.
        old: the stored resource; None if there is none.
        is_spec_changed: whether the write changes the spec.

    Raises:
        InvalidResourceError: with every problem; the cause is what `validate` raised, if that was a
            `ValueError`. Any other exception of `validate` propagates unchanged: a bug in it says
            nothing about the resource.
    """
    problems = _problems_of(new.metadata, old.metadata if old is not None else _NOTHING)
    found, cause = _validated(new)
    if found and old is not None and not is_spec_changed:
        known, _ = _validated(old)
        found = [problem for problem in found if problem not in known]
    try:
        if found and cause is not None and not isinstance(cause, ValueError):
            raise cause
        if problems or found:
            raise InvalidResourceError(subject, [*problems, *found]) from cause
    finally:
        del cause  # its traceback holds this frame


def _validated(resource: AnyResource) -> tuple[list[str], Exception | None]:
    """Return the problems that `validate` finds, and the exception that it raises."""
    try:
        return [*resource.validate()], None
    except Exception as exc:  # noqa: BLE001 - of the type's own code; the caller may raise it again
        return [reason_of(exc)], exc


def _problems_of(metadata: Metadata, old: Metadata) -> list[str]:
    """Check labels, annotations and finalizers, except those that are already stored."""
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
    """Return an exception's message; with its type, unless that type has messages for users."""
    if isinstance(
        exc, msgspec.MsgspecError | ValueError | TypeError | OverflowError | RecursionError
    ):
        return str(exc)
    return f"{type(exc).__name__}: {exc}"
