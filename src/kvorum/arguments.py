"""Checks of arguments, by type and range. Every backend runs them before it sends anything.

The driver checks them as well, but late, in its own words, and in tasks that all callers share: a
number that does not fit into 64 bits would end other callers' watches. So each type of argument has
one check here.

`bool` is not accepted as a number, although it is an `int` in Python: where a number is expected,
`True` is a misplaced argument.
"""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Final

from kvorum.errors import ConfigurationError, InvalidResourceError

MAX_INT: Final = 2**63 - 1  # of etcd's revisions, limits and lease ids
MAX_TTL: Final = 9_000_000_000  # of a lease, in seconds; etcd's own
MAX_SECONDS: Final = 1_000_000_000  # of a deadline: thirty years; gRPC ignores longer ones


def check_revision(subject: str, revision: object, name: str = "revision") -> None:
    """Reject a value that is neither a revision to read at nor None (now).

    Raises:
        InvalidResourceError: it is not an int from 1 to `MAX_INT`.
    """
    if revision is not None:
        _check_revision(subject, name, 1, revision)


def check_start(subject: str, since: object) -> None:
    """Reject a value that is neither a revision to watch from nor None (now).

    Raises:
        InvalidResourceError: it is not an int from 0 to `MAX_INT`.
    """
    if since is not None:
        _check_revision(subject, "since", 0, since)


def check_given_revision(
    subject: str, revision: object, name: str = "expected", *, least: int = 0
) -> None:
    """Reject a value that is not a revision, None included; 0 means that a key does not exist.

    Raises:
        InvalidResourceError: it is not an int from `least` to `MAX_INT`.
    """
    _check_revision(subject, name, least, revision)


def check_limit(subject: str, limit: object) -> None:
    """Reject a value that is neither a limit nor None; 0 too, which etcd takes for "no limit".

    Raises:
        InvalidResourceError: it is not an int from 1 to `MAX_INT`.
    """
    if limit is not None:
        _check_int(subject, "limit", "an int", 1, limit)


def check_lease(subject: str, lease: object, *, least: int = 0) -> None:
    """Reject a value that is not a lease id (0: none).

    Raises:
        InvalidResourceError: it is not an int from `least` to `MAX_INT`.
    """
    _check_int(subject, "lease", "the id of a lease: an int", least, lease)


def check_ttl(ttl: object) -> None:
    """Reject a time to live that no lease can have.

    Raises:
        InvalidResourceError: it is not a number above 0 and up to `MAX_TTL`.
    """
    if problem := problem_of_seconds("ttl", ttl, most=MAX_TTL):
        raise InvalidResourceError("a lease", problem)


def check_value(subject: str, value: object) -> None:
    """Reject a value that is not `bytes`. A `bytearray` could change while it is being written.

    Raises:
        InvalidResourceError: it is of another type.
    """
    if type(value) is not bytes and not isinstance(value, bytes):
        raise InvalidResourceError(subject, f"a value must be bytes, not {type(value).__name__}")


def check_uid(subject: str, uid: object) -> None:
    """Reject a value that is neither a uid nor None (any).

    Raises:
        InvalidResourceError: it is not text.
    """
    if uid is not None and (problem := problem_of_text("uid", uid)):
        raise InvalidResourceError(subject, problem)


def check_function(subject: str, function: object, name: str) -> None:
    """Reject a value that is not callable.

    Raises:
        InvalidResourceError: it is not.
    """
    if not callable(function):
        raise InvalidResourceError(
            subject, f"{name} must be a function, not {type(function).__name__}"
        )


def check_mapping(subject: str, mapping: object, name: str) -> None:
    """Reject a value that is not a mapping.

    Raises:
        InvalidResourceError: it is not.
    """
    if not isinstance(mapping, Mapping):
        raise InvalidResourceError(
            subject, f"{name} must be a mapping, such as a dict, not {type(mapping).__name__}"
        )


def check_items(subject: str, items: object, name: str) -> None:
    """Reject a single value where several are expected; a text, too, or its letters would be taken.

    Raises:
        InvalidResourceError: it is not iterable, or it is text or bytes.
    """
    if not isinstance(items, Iterable) or isinstance(items, str | bytes | bytearray | memoryview):
        raise InvalidResourceError(
            subject, f"{name} must be several, as in a list, not one {type(items).__name__}"
        )


def check_options(problems: list[str | None]) -> None:
    """Reject options if any of them has a problem.

    Raises:
        ConfigurationError: with all the problems.
    """
    if found := [problem for problem in problems if problem]:
        raise ConfigurationError("; ".join(found))


def check_type(name: str, value: object, type_: type) -> None:
    """Reject an option that is not an instance of a class.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, type_):
        raise ConfigurationError(
            f"{name} must be of type {type_.__name__}, not {short_repr(value)}"
        )


def problem_of_seconds(name: str, value: object, *, most: int = MAX_SECONDS) -> str | None:
    """Return what is wrong with a number of seconds, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{name} must be a number of seconds, not {short_repr(value)}"
    if not value > 0:  # not `value <= 0`: NaN is to be refused, too
        return f"{name} must be greater than 0, not {short_repr(value)}"
    return (
        f"{name} must be at most {most:,} seconds, not {short_repr(value)}"
        if value > most
        else None
    )


def problem_of_count(name: str, value: object) -> str | None:
    """Return what is wrong with a size or a count, or None."""
    if type(value) is not int:
        return f"{name} must be an int, not {short_repr(value)}"
    if value < 1:
        return f"{name} must be greater than 0, not {short_repr(value)}"
    return f"{name} must be at most {MAX_INT}, not {short_repr(value)}" if value > MAX_INT else None


def problem_of_text(name: str, value: object) -> str | None:
    """Return that a value is not text, or None if it is."""
    return None if isinstance(value, str) else f"{name} must be text, not {short_repr(value)}"


def short_repr(value: object) -> str:
    """Return any value for a message, cut short."""
    if isinstance(value, int) and value.bit_length() > 128:
        # Python refuses to convert ints of more than 4300 digits to text.
        return f"an int of {value.bit_length():,} bits"
    return reprlib.repr(value)


def _check_revision(subject: str, name: str, least: int, value: object) -> None:
    what = "an int" if name == "revision" else "a revision: an int"
    _check_int(subject, name, what, least, value)


def _check_int(subject: str, name: str, what: str, least: int, value: object) -> None:
    if not (type(value) is int and least <= value <= MAX_INT):
        problem = f"{name} must be {what} from {least} to {MAX_INT}, not {short_repr(value)}"
        raise InvalidResourceError(subject, problem)
