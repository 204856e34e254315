"""The values that cross the storage port: entries, pages, changes and operations."""

from typing import Final, Generic, Self, TypeVar

import msgspec

from kvorum.arguments import MAX_INT, check_given_revision, check_lease, check_value
from kvorum.errors import InvalidResourceError

T = TypeVar("T")

MAX_OPERATIONS: Final = 128  # of a commit; etcd's own default, --max-txn-ops
MAX_REQUEST_SIZE: Final = 1_572_864  # bytes of a request; etcd's default, --max-request-bytes


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A key with its value, at some revision.

    Attributes:
        key: relative to the backend's prefix.
        value: the bytes.
        mod_revision: the revision of the write that stored this value.
        create_revision: the revision of the write that created the key.
        version: the number of writes since then; 1 after the first.
        lease: id of the lease that the key is attached to; 0 if none.
    """

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    version: int
    lease: int = 0


class Page(msgspec.Struct, frozen=True):
    """Part of a range of keys, in the order of the keys' bytes.

    Attributes:
        entries: the keys and values.
        revision: the revision that all of them were read at.
        remaining: how many keys of the range come after these.
    """

    entries: list[Entry]
    revision: int
    remaining: int


class Selection(msgspec.Struct, Generic[T], frozen=True):
    """The result of `StorageBackend.select`.

    Attributes:
        items: what was kept.
        revision: the revision that all entries were read at.
        remaining: how many keys of the range were not examined: those after `last`.
        last: the last key that was examined; None if there was none.
    """

    items: list[T]
    revision: int
    remaining: int
    last: str | None


class Change(msgspec.Struct, frozen=True, gc=False):
    """What one write did to one key.

    Attributes:
        key: relative to the backend's prefix.
        revision: the revision of the write.
        entry: the key after the write; None if it was removed.
        previous: the key before the write; None if it did not exist.
    """

    key: str
    revision: int
    entry: Entry | None
    previous: Entry | None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of `StorageBackend.commit`; see `create`, `put`, `swap`, `delete` and `check`.

    Attributes:
        key: which key; a commit may have one operation for each key.
        value: what to write; None to remove the key, or only to check it.
        expected: the mod_revision that the key must be at (0: it must not exist); None: any.
        expected_value: the value that the key must have as well, if `expected` is above 0: the
            one that was read at that revision. A store that was restored to an older state reaches
            the same revisions a second time, with other values. None: any.
        lease: the lease to attach the key to (0: none); None keeps the current one.
        writes: False for a mere check.
        unique: whether no other write, of any client, has these bytes, because they contain an id
            made for this write. If the answer is lost, such a value shows whether this write was
            applied.

    Raises:
        InvalidResourceError: an argument has the wrong type or range. Checked here, since all
            writes pass here.
    """

    key: str
    value: bytes | None = None
    expected: int | None = None
    lease: int | None = 0
    writes: bool = True
    unique: bool = False
    expected_value: bytes | None = None

    def __post_init__(self) -> None:
        # The common cases are tested inline, since each write makes an Operation; the checks
        # themselves build the messages.
        if type(self.value) is not bytes and self.value is not None:
            check_value(self.key, self.value)
        expected = self.expected
        if expected is not None and not (type(expected) is int and 0 <= expected <= MAX_INT):
            check_given_revision(self.key, expected)
        if self.expected_value is not None:
            check_value(self.key, self.expected_value)
            if not expected:
                raise InvalidResourceError(
                    self.key, "a value can be expected only with the revision that has it"
                )
        if self.lease is not None and (self.lease or type(self.lease) is not int):
            check_lease(self.key, self.lease)

    @classmethod
    def create(cls, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> Self:
        """Write a key that must not exist."""
        if None in (value, lease):
            _refuse_none(key, value, lease)
        return cls(key=key, value=value, expected=0, lease=lease, unique=unique)

    @classmethod
    def put(cls, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> Self:
        """Write a key unconditionally."""
        if None in (value, lease):
            _refuse_none(key, value, lease)
        return cls(key=key, value=value, lease=lease, unique=unique)

    @classmethod
    def swap(
        cls,
        key: str,
        value: bytes,
        *,
        expected: int,
        lease: int | None = None,
        unique: bool = False,
        expected_value: bytes | None = None,
    ) -> Self:
        """Write a key that must be at `expected`; it keeps its lease unless one is given."""
        if None in (value, expected):
            _refuse_none(key, value, expected=expected)
        return cls(
            key=key,
            value=value,
            expected=expected,
            lease=lease,
            unique=unique,
            expected_value=expected_value,
        )

    @classmethod
    def delete(
        cls, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Self:
        """Remove a key, unconditionally or if it is at `expected`."""
        return cls(key=key, expected=expected, expected_value=expected_value)

    @classmethod
    def check(cls, key: str, *, expected: int) -> Self:
        """Write nothing; fail the commit unless the key is at `expected` (0: must not exist)."""
        check_given_revision(key, expected)
        return cls(key=key, expected=expected, writes=False)


def _refuse_none(key: str, value: object, lease: object = 0, expected: object = 0) -> None:
    """Reject None, which would mean another operation. `Operation` itself checks the rest."""
    check_value(key, value)
    check_lease(key, lease)
    check_given_revision(key, expected)
