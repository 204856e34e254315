"""Checks of operations before they are sent, and of entries by filters."""

from collections.abc import Collection, Sequence

from kvorum.arguments import short_repr
from kvorum.errors import InvalidResourceError, OutcomeUnknownError
from kvorum.selectors import LabelSelector
from kvorum.storage.stored_labels import labels_of
from kvorum.storage.values import MAX_OPERATIONS, Entry, Operation


def has_expected_value(operation: Operation, current: Entry | None) -> bool:
    """Return whether a key has the value that an operation expects, if any."""
    return operation.expected_value is None or (
        current is not None and current.value == operation.expected_value
    )


def may_match(selector: LabelSelector, entry: Entry) -> bool:
    """Return whether a value's labels match, or cannot be read. Decodes nothing but the labels."""
    labels = labels_of(entry.value)
    return labels is None or selector.matches(labels)


def check_operations(operations: Sequence[Operation]) -> None:
    """Reject a commit that no backend could apply.

    Raises:
        InvalidResourceError: it writes nothing, is too long, has a key twice, or keeps the lease of
            a key that may not exist.
    """
    if not isinstance(operations, Collection):
        raise InvalidResourceError(
            "the transaction", f"it must be a list of Operations, not {type(operations).__name__}"
        )
    for operation in operations:
        if not isinstance(operation, Operation):
            raise InvalidResourceError(
                "the transaction",
                f"it must be a list of Operations, not of {short_repr(operation)}",
            )
    keys = [operation.key for operation in operations]
    problems = []
    if not any(operation.writes for operation in operations):
        problems.append("it writes nothing")
    if len(keys) > MAX_OPERATIONS:
        problems.append(f"it has {len(keys)} operations, at most {MAX_OPERATIONS} are allowed")
    problems += [
        f"{key} is in two operations"
        for key in sorted({key for key in keys if keys.count(key) > 1})
    ]
    problems += [
        f"{o.key} keeps a lease, but may not exist"
        for o in operations
        if o.lease is None and not o.expected
    ]
    if problems:
        raise InvalidResourceError("the transaction", problems)


def check_lost(lost: OutcomeUnknownError) -> None:
    """Reject a value that is not an `OutcomeUnknownError`.

    Raises:
        InvalidResourceError: it is of another type.
    """
    if not isinstance(lost, OutcomeUnknownError):
        raise InvalidResourceError(
            "a write", f"only an OutcomeUnknownError can be settled, not {type(lost).__name__}"
        )
