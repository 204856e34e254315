"""The stored form of resources, as `docs/stored-form.md` specifies it and test fixtures pin it.

    {"apiVersion": …, "kind": …, "metadata": {…, "formVersion": 1, "writeToken": …}, "spec": {…},
    "status": {…}}

JSON with the keys of every object sorted, so that every program encodes the same resource as the
same bytes. The exception is `writeToken`, which is new in each write, so that a client can
recognize its own write. The resource version is not stored: it is etcd's mod_revision, attached on
read.

This module uses `Any`, because it encodes arbitrary types; its callers do not need to.
"""

import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import Raw

from kvorum.arguments import short_repr
from kvorum.encoding.json_text import encoder, objects
from kvorum.encoding.merge_patch import merge_patch
from kvorum.encoding.unknown_fields import unknown_fields_of
from kvorum.encoding.write_rules import check_rules, reason_of
from kvorum.errors import ConfigurationError, CorruptResourceError, InvalidResourceError
from kvorum.resources import (
    AnyResource,
    Kind,
    Metadata,
    Resource,
    Stored,
    is_subdomain,
    problems_of_label,
)
from kvorum.storage import Entry

R = TypeVar("R", bound=AnyResource)

FORM_VERSION = 1

_PATCHABLE_METADATA = frozenset({"labels", "annotations", "finalizers"})


class _StoredMetadata(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Metadata in the stored form: without the resource version, with form version and token."""

    name: str
    namespace: str | None = None
    uid: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: list[str] = msgspec.field(default_factory=list)
    form_version: int = 0  # 0: written by hand
    write_token: str = ""
    # Written by hand, it may be any value. It is ignored, and dropped by the next write: etcd's
    # mod_revision is authoritative.
    resource_version: Any = msgspec.UNSET


class _Envelope(msgspec.Struct, kw_only=True, rename="camel"):
    """The stored form as a struct. A codec derives its own, with the types of spec and status."""

    api_version: str
    kind: str
    metadata: _StoredMetadata
    spec: Any
    status: Any


class _Owned(msgspec.Struct, frozen=True):
    """The part of the metadata that Kvorum sets; what a resource has there is ignored."""

    uid: str
    generation: int
    creation_timestamp: datetime | None
    deletion_timestamp: datetime | None


class Draft(msgspec.Struct, Generic[R], frozen=True):
    """A resource that is ready to be written.

    Attributes:
        resource: as a read would return it after the write, except for its version.
        stored: the bytes to write, with their token; `revision` is still 0.
        changed: False if the stored resource already equals it.
    """

    resource: R
    stored: Stored
    changed: bool

    def written(self, revision: int) -> R:
        """Return the resource at the revision that wrote it."""
        metadata = self.resource.metadata
        metadata.resource_version = revision
        metadata.stored = Stored(
            self.stored.key, self.stored.value, revision, self.stored.write_token
        )
        return self.resource


class Codec(Generic[R]):
    """Encodes and decodes the resources of one class.

    Raises:
        ConfigurationError: the class is not a `Resource[Spec, Status]`, declares no kind, or
            msgspec cannot decode it.
    """

    def __init__(self, resource_type: type[R]) -> None:
        self.resource_type: type[R] = resource_type
        self.kind: Kind = _kind_of(resource_type)
        envelope = _envelope_of(resource_type)
        self._envelope = envelope
        self._decoder = msgspec.json.Decoder(envelope)
        self._plan = unknown_fields_of(envelope)

    # --- bytes to resource ---

    def decode(self, entry: Entry, *, revision: int | None = None) -> R:
        """Decode an entry; the resource version is its mod_revision, or `revision`.

        Raises:
            CorruptResourceError: the bytes are not a resource of this kind, or name another one.
                Any exception that the type's own code raises for them counts, too, and is the
                cause.
        """
        at = entry.mod_revision if revision is None else revision
        try:
            envelope = self._decoder.decode(entry.value)
            self._check(envelope, entry.key)
            return self._resource(envelope, entry.key, entry.value, at)
        except MemoryError:
            raise  # it says nothing about the value
        # The type's own code runs in there (`__post_init__`, say) and may raise anything, to reject
        # the value.
        except Exception as exc:
            raise CorruptResourceError(entry.key, entry.mod_revision, reason_of(exc)) from exc

    def restore(self, stored: Stored) -> R:
        """Decode the bytes that a resource was read from once more."""
        return self._resource(
            self._decoder.decode(stored.value), stored.key, stored.value, stored.revision
        )

    def _check(self, envelope: _Envelope, key: str) -> None:
        kind, metadata = self.kind, envelope.metadata
        if (envelope.kind, envelope.api_version) != (kind.name, kind.api_version):
            found = f"{envelope.kind!r} of {envelope.api_version!r}"
            raise ValueError(f"it is a {found}, not a {kind.name!r} of {kind.api_version!r}")
        if metadata.form_version > FORM_VERSION:
            found = f"{metadata.form_version} - at `$.metadata.formVersion`"
            raise ValueError(
                f"this version reads stored forms up to {FORM_VERSION}, and this is {found}"
            )
        named = f"{metadata.namespace}/{metadata.name}" if kind.namespaced else metadata.name
        if f"{kind.plural}/{named}" != key:
            raise ValueError(f"it calls itself {named!r} - at `$.metadata.name`")
        # Every method rejects such a name, so only `delete(…, corrupt=True)` can remove it.
        if not is_subdomain(metadata.name) or (
            kind.namespaced and problems_of_label(metadata.namespace or "")
        ):
            raise ValueError(
                "no resource can have this key: its name or namespace breaks the rules"
            )

    def _resource(self, envelope: _Envelope, key: str, value: bytes, revision: int) -> R:
        stored = envelope.metadata
        metadata = Metadata(  # field by field for speed: a list makes thousands of them
            name=stored.name,
            namespace=stored.namespace,
            uid=stored.uid,
            labels=stored.labels,
            annotations=stored.annotations,
            generation=stored.generation,
            resource_version=revision,
            creation_timestamp=stored.creation_timestamp,
            deletion_timestamp=stored.deletion_timestamp,
            finalizers=stored.finalizers,
        )
        metadata.stored = Stored(key, value, revision, stored.write_token)
        return self.resource_type(metadata=metadata, spec=envelope.spec, status=envelope.status)

    # --- resource to bytes ---

    def draft_new(self, resource: R) -> Draft[R]:
        """Prepare a resource that is not stored yet.

        It gets a uid, a creation time, generation 1 and a token.

        Raises:
            InvalidResourceError: it breaks a rule, or could not be read back.
        """
        try:
            draft = self._encoded(
                resource, _Owned(str(uuid.uuid4()), 1, datetime.now(UTC), None), over=None
            )
        except InvalidResourceError:
            raise
        except Exception as exc:  # of the type's own code: see `decode`
            raise self._unfit(resource, exc) from exc
        check_rules(draft.stored.key, draft.resource, None, is_spec_changed=True)
        return draft

    def draft_update(
        self,
        resource: R,
        stored: Stored,
        *,
        over: bytes | None = None,
        deleted: datetime | None = None,
    ) -> Draft[R]:
        """Prepare an update of `stored` that keeps the fields which this type does not know.

        What Kvorum sets (uid, timestamps, generation) is taken from `stored`; what the resource has
        there is ignored.

        Args:
            resource: the desired state.
            stored: the stored state.
            over: the bytes to take unknown fields from; `stored.value` if None.
            deleted: the deletion timestamp to set, if any.

        Raises:
            InvalidResourceError: it breaks a rule, or could not be read back.
        """
        try:
            draft, old, is_spec_changed = self._prepared(resource, stored, over, deleted)
        except InvalidResourceError:
            raise
        except Exception as exc:  # of the type's own code: see `decode`
            raise self._unfit(resource, exc) from exc
        if draft.changed:
            check_rules(draft.stored.key, draft.resource, old, is_spec_changed=is_spec_changed)
        return draft

    def _prepared(
        self, resource: R, stored: Stored, over: bytes | None, deleted: datetime | None
    ) -> tuple[Draft[R], R, bool]:
        """Return an unchecked draft of an update, the old resource, and if the spec changes."""
        envelope = self._decoder.decode(stored.value)
        old = self._resource(envelope, stored.key, stored.value, stored.revision)
        is_spec_changed = self._is_spec_changed(stored, old, resource, over)
        owned = _Owned(
            uid=old.metadata.uid or str(uuid.uuid4()),  # one written by hand may have none
            generation=max(old.metadata.generation + is_spec_changed, 1),
            creation_timestamp=old.metadata.creation_timestamp,
            deletion_timestamp=old.metadata.deletion_timestamp or deleted,
        )
        base = over
        # If it does not encode to the same bytes, it has unknown fields, or was written by hand.
        if over is None and encoder.encode(envelope) != stored.value:
            base = stored.value
        if (
            _may_be_same(resource, old)
            and self._encode(resource, owned, stored.write_token, base) == stored.value
        ):
            self._check_faithful(resource, old)
            return Draft(old, stored, changed=False), old, is_spec_changed
        return self._encoded(resource, owned, over=base), old, is_spec_changed

    def _is_spec_changed(self, stored: Stored, old: R, new: R, over: bytes | None) -> bool:
        if old.spec != new.spec:
            return True
        if over is None:
            return False
        # A patch may have changed a field of the spec that the type does not know.
        owned = _Owned("", 0, None, None)
        before, after = (
            self._encode(old, owned, "", stored.value),
            self._encode(new, owned, "", over),
        )
        return _spec_text(before) != _spec_text(after)

    def _encoded(self, resource: R, owned: _Owned, *, over: bytes | None) -> Draft[R]:
        """Encode, and decode again: so nothing is written that could not be read."""
        token = secrets.token_hex(8)
        key = self._key(resource)
        value = self._encode(resource, owned, token, over)
        read = self._resource(self._decoder.decode(value), key, value, 0)
        self._check_faithful(resource, read)
        return Draft(read, Stored(key, value, 0, token), changed=True)

    def _encode(self, resource: R, owned: _Owned, token: str, over: bytes | None) -> bytes:
        given = resource.metadata
        metadata = _StoredMetadata(  # field by field for speed: each write makes several
            name=given.name,
            namespace=given.namespace,
            uid=owned.uid,
            labels=given.labels,
            annotations=given.annotations,
            generation=owned.generation,
            creation_timestamp=owned.creation_timestamp,
            deletion_timestamp=owned.deletion_timestamp,
            finalizers=given.finalizers,
            form_version=FORM_VERSION,
            write_token=token,
        )
        envelope = self._envelope(
            api_version=self.kind.api_version,
            kind=self.kind.name,
            metadata=metadata,
            spec=resource.spec,
            status=resource.status,
        )
        try:
            value = encoder.encode(envelope)
            if over is None or self._plan is None:
                return value
            return bytes(self._plan.carry(Raw(over), Raw(value)))
        except Exception as exc:  # the type's own code runs in `carry`, too: see `decode`
            raise self._unfit(resource, exc) from exc

    def _check_faithful(self, resource: R, read: R) -> None:
        """Reject values that JSON cannot represent: it makes null of NaN, and text of bytes."""
        pairs = (
            ("spec", resource.spec, read.spec),
            ("status", resource.status, read.status),
            ("metadata.labels", resource.metadata.labels, read.metadata.labels),
            ("metadata.annotations", resource.metadata.annotations, read.metadata.annotations),
        )
        for path, given, found in pairs:
            if given != found:
                raise InvalidResourceError(self._key(resource), _difference(path, given, found))

    def _unfit(self, resource: R, exc: Exception) -> InvalidResourceError:
        return InvalidResourceError(self._key(resource), f"it cannot be stored: {reason_of(exc)}")

    def _key(self, resource: R) -> str:
        kind, metadata = self.kind, resource.metadata
        folder = f"{kind.plural}/{metadata.namespace}" if kind.namespaced else kind.plural
        return f"{folder}/{metadata.name}"

    # --- patches ---

    def patch(self, stored: Stored, patch: Mapping[str, object]) -> Draft[R]:
        """Prepare an update of `stored` by a JSON merge patch (RFC 7396) of the stored form.

        Raises:
            InvalidResourceError: the patch changes what Kvorum sets, or sets a field that neither
                the type nor the stored resource has, or the result breaks a rule.
        """
        try:
            _check_owned(patch)
            merged = merge_patch(stored.value, patch)
            resource = self._resource(self._decoder.decode(merged), stored.key, merged, 0)
            self._check_unknown(stored.value, merged)
        except Exception as exc:  # the type's own code runs in there: see `decode`
            raise InvalidResourceError(
                stored.key, f"it cannot be patched: {reason_of(exc)}"
            ) from exc
        return self.draft_update(resource, stored, over=merged)

    def _check_unknown(self, before: bytes, after: bytes) -> None:
        """Reject new unknown fields: in a patch, one is a typing error."""
        if self._plan is None:
            return
        stored = set(self._plan.unknown_paths(Raw(before), ""))
        added = [path for path in self._plan.unknown_paths(Raw(after), "") if path not in stored]
        if added:
            fields = ", ".join(added)
            raise ValueError(
                f"{self.kind.name} has no field {fields} (names are as in the stored JSON)"
            )


def codec_for(resource_type: type[R]) -> Codec[R]:
    """Return the codec for a class. It is cached, since making one is slow."""
    _check_class(resource_type)  # first, since an instance cannot be hashed
    codec: Codec[R] = _cached_codec(resource_type)
    return codec


_cached_codec = cache(Codec)

# --- what a class declares ------------------------------------------------------------------------


def _check_class(given: object) -> None:
    if not (isinstance(given, type) and issubclass(given, Resource)):
        raise ConfigurationError(f"{short_repr(given)} is not a subclass of kvorum.Resource")


def _kind_of(resource_type: type[AnyResource]) -> Kind:
    _check_class(resource_type)
    kind = getattr(resource_type, "kind", None)
    if not isinstance(kind, Kind):
        name = resource_type.__name__
        raise ConfigurationError(
            f"{name} declares no kind; add to it: kind: ClassVar[Kind] = Kind({name!r}, …)"
        )
    return kind


def _envelope_of(resource_type: type[AnyResource]) -> type[_Envelope]:
    """Make the struct that a resource of this class is stored as."""
    types = {field.name: field.type for field in msgspec.structs.fields(resource_type)}
    _check_parts(resource_type, types)
    fields = [_defaulted(name, types[name]) for name in ("spec", "status")]
    try:
        envelope = msgspec.defstruct(
            f"Stored{resource_type.__name__}", fields, bases=(_Envelope,), kw_only=True
        )
        msgspec.json.Decoder(envelope)
    except TypeError as exc:
        raise ConfigurationError(f"{resource_type.__name__} cannot be stored: {exc}") from exc
    return cast("type[_Envelope]", envelope)


def _check_parts(resource_type: type[AnyResource], types: Mapping[str, object]) -> None:
    """Reject a class with fields that are not stored: a write would lose them."""
    name, problems = resource_type.__name__, []
    if others := types.keys() - {"metadata", "spec", "status"}:
        fields = ", ".join(sorted(others))
        problems.append(
            f"it has fields besides metadata, spec and status: {fields}; "
            "put them into the spec or the status"
        )
    if types["metadata"] is not Metadata:
        own = getattr(types["metadata"], "__name__", types["metadata"])
        problems.append(
            f"its metadata is a {own}, not a Metadata; "
            "put additional fields into labels, annotations or the spec"
        )
    if problems:
        raise ConfigurationError(f"{name} cannot be stored: {'; '.join(problems)}")


def _defaulted(name: str, kind: Any) -> tuple[Any, ...]:
    """Make a part optional in the bytes if its type can be made without arguments.

    If it cannot, because a field has no default or the type's own code rejects the defaults, the
    bytes must contain it.
    """
    try:
        kind()
    except MemoryError:
        raise  # it says nothing about the type
    except Exception:  # noqa: BLE001 - the type's own code runs in there: see `Codec.decode`
        return name, kind
    return name, kind, msgspec.field(default_factory=kind)


def _may_be_same(resource: AnyResource, stored: AnyResource) -> bool:
    """Return whether the values are equal. Their bytes can still differ, as those of 1 and 1.0."""
    mine, theirs = resource.metadata, stored.metadata
    return (
        resource.status == stored.status
        and resource.spec == stored.spec
        and mine.labels == theirs.labels
        and mine.annotations == theirs.annotations
        and [*mine.finalizers] == theirs.finalizers
    )


def _spec_text(value: bytes) -> bytes:
    return bytes(objects.decode(value).get("spec", b""))


def _check_owned(patch: Mapping[str, object]) -> None:
    metadata = patch.get("metadata", {})
    if not isinstance(metadata, Mapping):
        raise ValueError("metadata can be patched only in parts")  # noqa: TRY004 - see `patch`
    if owned := (patch.keys() & {"apiVersion", "kind"}) | (metadata.keys() - _PATCHABLE_METADATA):
        raise ValueError(f"{', '.join(sorted(owned))} may not be patched")


def _difference(path: str, given: object, found: object) -> str:
    """Return where two values first differ. It shows types only: a value may be a secret."""
    if isinstance(given, msgspec.Struct) and isinstance(found, msgspec.Struct):
        for name in given.__struct_fields__:
            before, after = getattr(given, name), getattr(found, name, None)
            if before != after:
                return _difference(f"{path}.{name}", before, after)
    before, after = type(given).__name__, type(found).__name__
    return f"{path} holds a {before} that would be read back as another {after}"
