"""Resources as users see them: metadata, spec and status, and the declaration of their kind.

The model is Kubernetes': the *spec* is the desired state, the *status* the observed state, the
*metadata* the identity and the bookkeeping. All are mutable msgspec structs: change fields, then
pass the resource to `Repository.update`.
"""

import copy
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Literal, Self, TypeAlias, TypeVar

import msgspec

from kvorum.arguments import problem_of_text
from kvorum.errors import ConfigurationError
from kvorum.resources.names import problems_of_label, problems_of_qualified_name

SpecT = TypeVar("SpecT")
StatusT = TypeVar("StatusT")


class Kind(msgspec.Struct, frozen=True):
    """The declaration of a kind of resources, made once, in its class.

    Attributes:
        name: the `kind` in the stored JSON, such as `LabWorker`.
        plural: the kind in keys, such as `lab-workers`.
        api_version: group and version of its schema, such as `lab.kvorum.dev/v1`. Changes within
            one api_version are additive: an update by an older type keeps the fields that it does
            not know.
        namespaced: whether its keys have a namespace level, so that names are unique within a
            namespace only.

    Raises:
        ConfigurationError: `name` is not an identifier, `plural` not a DNS-1123 label, or
            `api_version` not a qualified name.
    """

    name: str
    plural: str
    api_version: str
    namespaced: bool = False

    def __post_init__(self) -> None:
        problems = problems_of_label(self.plural, "plural")
        problems += problems_of_qualified_name(self.api_version, "api_version")
        if problem := problem_of_text("name", self.name):
            problems.append(problem)
        elif not self.name.isidentifier():
            problems.append(f"name {self.name!r} is not an identifier")
        if problems:
            raise ConfigurationError(f"Kind({self.name!r}): {'; '.join(problems)}")


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The bytes that a resource was read from, kept with it so that an update needs no second read.

    Attributes:
        key: their key, relative to the backend's prefix.
        value: the bytes, including fields that this version of the type does not know.
        revision: the mod_revision of `value`.
        write_token: the token of the write that stored them; empty if they were written by hand.
    """

    key: str
    value: bytes
    revision: int
    write_token: str


class Metadata(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True, dict=True):
    """The identity of a resource, and what the store keeps about it.

    Set `name`, `namespace`, `labels`, `annotations` and `finalizers`; Kvorum sets the rest.

    Attributes:
        name: a DNS-1123 subdomain, unique in its kind (and namespace).
        namespace: a DNS-1123 label; None for kinds without namespaces.
        uid: set by `add`; distinguishes this resource from an earlier one of the same name.
        labels: what label selectors match.
        annotations: free text that selectors do not match.
        generation: 1 after `add`, incremented by each change of the spec.
        resource_version: etcd's mod_revision. Attached on read, never stored; 0 means "not stored
            yet".
        creation_timestamp: set by `add`, UTC.
        deletion_timestamp: when `delete` was called on a resource that has finalizers, UTC.
        finalizers: clean-up steps that must be done before the resource is removed.
    """

    name: str
    namespace: str | None = None
    uid: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    generation: int = 0
    resource_version: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: list[str] = msgspec.field(default_factory=list)

    @property
    def stored(self) -> Stored | None:
        """The bytes this resource was read from, if they are still those of `resource_version`."""
        stored: Stored | None = vars(self).get("_stored")
        return stored if stored is not None and stored.revision == self.resource_version else None

    @stored.setter
    def stored(self, stored: Stored) -> None:
        vars(self)["_stored"] = stored

    # msgspec copies fields only. A copy without `stored` would still be correct, but its update
    # would have to read first.

    def __copy__(self) -> Self:
        return self._copied({name: getattr(self, name) for name in self.__struct_fields__})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._copied(
            {name: copy.deepcopy(getattr(self, name), memo) for name in self.__struct_fields__}
        )

    def _copied(self, fields: dict[str, Any]) -> Self:
        copied = type(self)(**fields)
        vars(copied).update(vars(self))
        return copied


class Condition(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One observation about a resource, as Kubernetes' `metav1.Condition`.

    Attributes:
        type: what is observed, such as `Ready`; unique among the conditions of a resource.
        status: whether it is true.
        reason: why, as one CamelCase word for programs.
        message: why, for people.
        last_transition_time: when `status` last changed, UTC.
        observed_generation: the `metadata.generation` that this was observed for.
    """

    type: str
    status: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int = 0


def set_condition(conditions: list[Condition], condition: Condition) -> None:
    """Replace the condition of the same type, or append the condition.

    If the status is unchanged, `last_transition_time` is kept. Otherwise it is the new condition's,
    or now if it has none. (Kubernetes: `meta.SetStatusCondition`.)
    """
    for index, old in enumerate(conditions):
        if old.type == condition.type:
            since = (
                old.last_transition_time
                if old.status == condition.status
                else condition.last_transition_time
            )
            conditions[index] = msgspec.structs.replace(
                condition, last_transition_time=since or datetime.now(UTC)
            )
            return
    since = condition.last_transition_time or datetime.now(UTC)
    conditions.append(msgspec.structs.replace(condition, last_transition_time=since))


class Resource(msgspec.Struct, Generic[SpecT, StatusT], kw_only=True):
    """The base of all resources: derive from `Resource[Spec, Status]` and declare the kind.

    ::

        class QueueSpec(msgspec.Struct, rename="camel"):
            max_length: int

        class QueueStatus(msgspec.Struct, rename="camel"):
            length: int = 0

        class Queue(Resource[QueueSpec, QueueStatus]):
            kind: ClassVar[Kind] = Kind("Queue", plural="queues", api_version="example.org/v1")

    Spec and status are msgspec structs; `rename="camel"` gives them camelCase names in the stored
    JSON. Two resources are equal if metadata (including the resource version), spec and status are.
    """

    kind: ClassVar[Kind]

    metadata: Metadata
    spec: SpecT
    status: StatusT

    def validate(self) -> list[str]:
        """Return every problem beyond what the types check, one sentence each.

        Override it in a kind that has rules of its own. It is called before each write; the write
        fails with `InvalidResourceError` unless the list is empty. A write that does not change the
        spec may leave problems that the stored resource already has, so a resource that has become
        invalid can still be deleted, lose its finalizers, and get a status. A `ValueError` raised
        here counts as a problem; any other exception propagates unchanged.
        """
        return []


# Resource is mutable, hence invariant in spec and status: only Any fits every kind.
AnyResource: TypeAlias = Resource[Any, Any]
