"""Writes as values: what a write sends and what it leaves behind, decided without I/O.

1. A plan is one operation on one key. It expects the revision that it was planned from, so a write
   by another client in between makes it fail: no update is lost.
2. A plan that changes nothing is a check: its base must still be current.
3. A resource that is being deleted takes no new finalizers. The update that removes the last one
   becomes the deletion.

A repository sends one plan at a time. Several plans with different keys fit one
`StorageBackend.commit`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from kvorum.arguments import check_given_revision, check_uid, short_repr
from kvorum.encoding import Codec, Draft
from kvorum.errors import ConflictError, InvalidResourceError
from kvorum.resources import AnyResource, Metadata, Stored, resource_key
from kvorum.storage import Operation

R = TypeVar("R", bound=AnyResource)

# Size in bytes up to which a plan expects the stored value, too: both values share one request.
MAX_GUARD_SIZE: Final = 65_536


class WritePlan(msgspec.Struct, Generic[R], frozen=True):
    """One operation on one key, and the resource after it.

    Attributes:
        operation: what to send: a create, a swap, a deletion, or a check if nothing changes.
        draft: the resource after the operation, and its bytes; for a deletion, the last state.
        base: the stored bytes that the plan was made from; None for a new resource.
    """

    operation: Operation
    draft: Draft[R]
    base: Stored | None

    @property
    def result(self) -> R:
        """The resource after the write, except for its version; for a deletion, its last state."""
        return self.draft.resource

    def guarded(self) -> Self:
        """Return a plan that expects the base's value beside its revision, if it is small enough.

        For stores that may have reached this revision twice: see `StorageBackend.may_recur`.
        """
        if self.base is None or len(self.base.value) > MAX_GUARD_SIZE:
            return self
        operation = msgspec.structs.replace(self.operation, expected_value=self.base.value)
        return msgspec.structs.replace(self, operation=operation)

    def written(self, revision: int) -> R:
        """Return the result at the revision that the write made."""
        return self.draft.written(revision)


class Preconditions(msgspec.Struct, frozen=True):
    """What a caller requires of the stored resource.

    Attributes:
        resource_version: its version; None for any.
        uid: its uid, so that it is not another resource with the same name; None for any.
    """

    resource_version: int | None = None
    uid: str | None = None

    def check_types(self, key: str) -> None:
        """Refuse values that no resource can have, which would look like a conflict.

        Raises:
            InvalidResourceError: the version is not a revision, or the uid is not text.
        """
        if self.resource_version is not None:
            check_given_revision(key, self.resource_version, "resource_version")
        check_uid(key, self.uid)

    def check(self, key: str, current: AnyResource) -> None:
        """Compare with the current state.

        Raises:
            ConflictError: a precondition does not hold.
        """
        found = current.metadata
        if self.uid is not None and found.uid != self.uid:
            raise ConflictError(key, expected=self.uid, current=current, found=found.uid)
        version = self.resource_version
        if version is not None and found.resource_version != version:
            raise ConflictError(
                key, expected=version, current=current, found=found.resource_version
            )


# --- plans ----------------------------------------------------------------------------------------


def plan_add(codec: Codec[R], resource: R) -> WritePlan[R]:
    """Plan to create a resource.

    Raises:
        InvalidResourceError: it breaks a rule, could not be read back, or carries a version.
    """
    key = key_of(codec, resource)
    if resource.metadata.resource_version:
        raise InvalidResourceError(
            key, "it carries a resource version, so it is stored already: update it"
        )
    draft = codec.draft_new(resource)
    return WritePlan(Operation.create(key, draft.stored.value, unique=True), draft, None)


def plan_update(codec: Codec[R], resource: R, base: Stored) -> WritePlan[R]:
    """Plan to replace `base` with a resource.

    Raises:
        InvalidResourceError: it breaks a rule, could not be read back, or gets a new finalizer
            while it is being deleted.
    """
    return _plan_draft(codec, base, codec.draft_update(resource, base))


def plan_change(codec: Codec[R], result: R, base: Stored) -> WritePlan[R]:
    """Plan to replace `base` with what a caller's function made of it.

    Raises:
        InvalidResourceError: like `plan_update`; or the result is of another class, or is another
            resource.
    """
    if not isinstance(result, codec.resource_type):
        expected, found = codec.resource_type.__name__, type(result).__name__
        raise InvalidResourceError(
            base.key, f"change must return a resource of class {expected}, or None, not {found}"
        )
    if (changed := key_of(codec, result)) != base.key:
        raise InvalidResourceError(
            base.key, f"the change turned it into another resource: {changed}"
        )
    return plan_update(codec, result, base)


def plan_status(codec: Codec[R], resource: R, base: Stored) -> WritePlan[R]:
    """Plan to replace the status in `base` with that of a resource. Raises like `plan_update`."""
    target = codec.restore(base)
    target.status = resource.status
    return plan_update(codec, target, base)


def plan_patch(codec: Codec[R], base: Stored, merge_patch: Mapping[str, Any]) -> WritePlan[R]:
    """Plan to apply a JSON merge patch to `base`.

    Raises:
        InvalidResourceError: like `plan_update`; or the patch sets a field that the store owns, or
            that neither the type nor `base` has.
    """
    return _plan_draft(codec, base, codec.patch(base, merge_patch))


def plan_delete(codec: Codec[R], current: R, base: Stored, *, now: datetime) -> WritePlan[R]:
    """Plan to delete a resource; while it has finalizers, only to mark it as deleted at `now`.

    Args:
        codec: the codec of its class.
        current: the resource that `base` holds.
        base: its stored bytes.
        now: the deletion timestamp, if it has none yet.
    """
    if current.metadata.finalizers:
        return _plan_draft(codec, base, codec.draft_update(current, base, deleted=now))
    return _plan_removal(current, base)


def _plan_draft(codec: Codec[R], base: Stored, draft: Draft[R]) -> WritePlan[R]:
    if not draft.changed:
        return WritePlan(Operation.check(base.key, expected=base.revision), draft, base)
    after = draft.resource.metadata
    if after.deletion_timestamp:
        last = codec.restore(base)
        if added := set(after.finalizers) - set(last.metadata.finalizers):
            raise InvalidResourceError(
                base.key, f"it is being deleted, so it takes no new finalizers: {', '.join(added)}"
            )
        if not after.finalizers:
            return _plan_removal(last, base)
    value = draft.stored.value
    swap = Operation.swap(base.key, value, expected=base.revision, unique=True)
    return WritePlan(swap, draft, base)


def _plan_removal(last: R, base: Stored) -> WritePlan[R]:
    removal = Operation.delete(base.key, expected=base.revision)
    return WritePlan(removal, Draft(last, base, changed=True), base)


# --- keys and field checks ------------------------------------------------------------------------


def key_of(codec: Codec[R], resource: R) -> str:
    """Return the key of a resource.

    Raises:
        InvalidResourceError: its name or namespace breaks a rule, or it is of another class.
    """
    # Nearly every resource is exactly of the class; only the others need the longer check.
    if type(resource) is not codec.resource_type or type(resource.metadata) is not Metadata:
        _check_fields(codec, resource)
    metadata = resource.metadata
    return resource_key(codec.kind, metadata.name, metadata.namespace)


def base_in(codec: Codec[R], resource: R) -> tuple[str, Stored | None]:
    """Return the key of a resource that is to be updated, and the stored bytes that it carries.

    Raises:
        InvalidResourceError: it was never read, or it was renamed.
    """
    key, metadata = key_of(codec, resource), resource.metadata
    if not metadata.resource_version:
        raise InvalidResourceError(
            key, "it carries no resource version, so it was never read: add it"
        )
    base = metadata.stored
    # The version cannot tell: a transaction gives several resources the same one.
    if base is not None and base.key != key:
        raise InvalidResourceError(key, f"it was read as {base.key}, and cannot be renamed")
    return key, base


def _check_fields(codec: Codec[R], resource: R) -> None:
    """Refuse another class, unless it is a subclass without fields: added ones are not stored."""
    kind = codec.kind
    if not isinstance(resource, codec.resource_type):
        expected, given_type = codec.resource_type.__name__, type(resource).__name__
        raise InvalidResourceError(
            kind.plural, f"a resource must be of class {expected}, not {given_type}"
        )
    if not isinstance(resource.metadata, Metadata):
        raise InvalidResourceError(
            kind.plural, f"metadata must be a Metadata, not {short_repr(resource.metadata)}"
        )
    parts: list[tuple[msgspec.Struct, type[msgspec.Struct]]] = [
        (resource, codec.resource_type),
        (resource.metadata, Metadata),
    ]
    for given, declared in parts:
        if added := set(given.__struct_fields__) - set(declared.__struct_fields__):
            names = ", ".join(sorted(added))
            raise InvalidResourceError(
                kind.plural, f"a {type(given).__name__} has fields that are not stored: {names}"
            )
