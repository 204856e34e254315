"""What may be an argument: its type and its range, checked before anything is sent, by every backend alike.

A driver checks them, too, but late, in its own words, and in tasks that belong to all callers: a
number that does not fit into 64 bits would end the watches of others. So each type of argument has
one check here.

`bool` is no number here, although Python thinks so: it stands for another argument that was meant.
"""

import reprlib
from collections.abc import Iterable
from typing import Final

from kvorum.errors import ConfigurationError, InvalidResourceError

MAX_INT: Final = 2**63 - 1  # of etcd's revisions, limits and ids of leases
MAX_TTL: Final = 9_000_000_000  # of a lease, in seconds; etcd's own
MAX_SECONDS: Final = 1_000_000_000  # of a deadline: thirty years; gRPC takes more for none at all


def check_revision(subject: str, revision: object, name: str = "revision") -> None:
    """Refuse what is no revision that a store can be read at, but for None, which is now.

    Raises:
        InvalidResourceError: it is no int, below 1, or more than a store can count to.
    """
    if revision is not None and not _is_int(revision, 1):
        raise InvalidResourceError(subject, _no_int(name, "a revision: an int", 1, revision))


def check_start(subject: str, since: object) -> None:
    """Refuse what is no revision that a watch can start after, but for None, which is now.

    Raises:
        InvalidResourceError: it is no int, negative, or more than a store can count to.
    """
    if since is not None and not _is_int(since, 0):
        raise InvalidResourceError(subject, _no_int("since", "a revision: an int", 0, since))


def check_given_revision(
    subject: str, revision: object, name: str = "expected", *, least: int = 0
) -> None:
    """Refuse what is no revision, None included; 0 is that of what does not exist.

    Raises:
        InvalidResourceError: it is no int, below `least`, or more than a store can count to.
    """
    if not _is_int(revision, least):
        raise InvalidResourceError(subject, _no_int(name, "a revision: an int", least, revision))


def check_limit(subject: str, limit: object) -> None:
    """Refuse what is no limit, but for None. One of 0 leaves nothing; etcd would take it for none at all.

    Raises:
        InvalidResourceError: it is no int, below 1, or more than a store can count to.
    """
    if limit is not None and not _is_int(limit, 1):
        raise InvalidResourceError(subject, _no_int("limit", "an int", 1, limit))


def check_lease(subject: str, lease: object, *, least: int = 0) -> None:
    """Refuse what is no id of a lease (0: none).

    Raises:
        InvalidResourceError: it is no int, below `least`, or more than a store can count to.
    """
    if not _is_int(lease, least):
        raise InvalidResourceError(
            subject, _no_int("lease", "the id of a lease: an int", least, lease)
        )


def check_ttl(ttl: object) -> None:
    """Refuse a time to live that no lease can have.

    Raises:
        InvalidResourceError: it is no number, not above 0, or above `MAX_TTL`.
    """
    if problem := problem_of_seconds("ttl", ttl, most=MAX_TTL):
        raise InvalidResourceError("a lease", problem)


def check_value(subject: str, value: object) -> None:
    """Refuse what is not `bytes`. A `bytearray` could change while it is being written.

    Raises:
        InvalidResourceError: it is something else.
    """
    if type(value) is not bytes and not isinstance(value, bytes):
        raise InvalidResourceError(subject, f"a value must be bytes, not {type(value).__name__}")


def check_uid(subject: str, uid: object) -> None:
    """Refuse what is no uid, but for None, which is any.

    Raises:
        InvalidResourceError: it is no text.
    """
    if uid is not None and not isinstance(uid, str):
        raise InvalidResourceError(subject, f"uid must be text, not {shown(uid)}")


def check_function(subject: str, function: object, name: str) -> None:
    """Refuse what cannot be called.

    Raises:
        InvalidResourceError: it is no function, nor anything like one.
    """
    if not callable(function):
        raise InvalidResourceError(
            subject, f"{name} must be a function, not {type(function).__name__}"
        )


def check_items(subject: str, items: object, name: str) -> None:
    """Refuse what does not hold several things: one of them, or a text, which would be taken for its letters.

    Raises:
        InvalidResourceError: it cannot be iterated over, or it is text or bytes.
    """
    if not isinstance(items, Iterable) or isinstance(items, str | bytes | bytearray | memoryview):
        raise InvalidResourceError(
            subject, f"{name} must be several, as in a list, not one {type(items).__name__}"
        )


def check_options(problems: list[str | None]) -> None:
    """Refuse options of which one or more have a problem.

    Raises:
        ConfigurationError: with all the problems that there are.
    """
    if found := [problem for problem in problems if problem]:
        raise ConfigurationError("; ".join(found))


def problem_of_seconds(name: str, value: object, *, most: int = MAX_SECONDS) -> str | None:
    """Say what is wrong with a time, if anything is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{name} must be a number of seconds, not {shown(value)}"
    if not value > 0:  # written so that it is true of NaN
        return f"{name} must be greater than 0, not {shown(value)}"
    return f"{name} must be at most {most:,} seconds, not {shown(value)}" if value > most else None


def problem_of_count(name: str, value: object) -> str | None:
    """Say what is wrong with a size or a number of things, if anything is."""
    if type(value) is not int:
        return f"{name} must be an int, not {shown(value)}"
    if value < 1:
        return f"{name} must be greater than 0, not {shown(value)}"
    return f"{name} must be at most {MAX_INT}, not {shown(value)}" if value > MAX_INT else None


def problem_of_text(name: str, value: object) -> str | None:
    """Say that a text is none, if it is none."""
    return None if isinstance(value, str) else f"{name} must be text, not {shown(value)}"


def shown(value: object) -> str:
    """Return a value for a message: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        # Python does not even spell those of more than 4300 digits
        return f"an int of {value.bit_length():,} bits"
    return reprlib.repr(value)


def _is_int(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= MAX_INT


def _no_int(name: str, what: str, least: int, value: object) -> str:
    return f"{name} must be {what} from {least} to {MAX_INT}, not {shown(value)}"
