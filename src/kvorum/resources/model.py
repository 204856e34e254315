"""Resources as users see them: metadata, spec and status, and the declaration of their kind.

The shape is Kubernetes': the *spec* is what somebody wants, the *status* what is, the *metadata*
who and when. All of it is a mutable msgspec struct: change fields, then hand the resource to
`Repository.update`.
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
        name: what the bytes call it, as `LabWorker`.
        plural: what its keys call it, as `lab-workers`.
        api_version: group and version of its schema, as `lab.kvorum.dev/v1`. Changes under one
            api_version are additive: types that lack the newest fields keep them when they update.
        namespaced: whether its keys have a namespace level, so that a name is unique within a
            namespace only.

    Raises:
        ConfigurationError: `name` is no identifier, `plural` no DNS-1123 label, or `api_version` no
            qualified name.
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
        key: where they lie, relative to the backend's prefix.
        value: the bytes, with all the fields that this version of the type does not know.
        revision: the mod_revision of `value`.
        write_token: the token of the write that made them; empty if somebody wrote them by hand.
    """

    key: str
    value: bytes
    revision: int
    write_token: str


class Metadata(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True, dict=True):
    """Who a resource is, and what the store knows about it.

    Set `name`, `namespace`, `labels`, `annotations` and `finalizers`; the rest is the store's.

    Attributes:
        name: a DNS-1123 subdomain, unique in its kind (and namespace).
        namespace: a DNS-1123 label; None for kinds without namespaces.
        uid: set by `add`; tells this resource from an earlier one of the same name.
        labels: what selectors match.
        annotations: what they do not.
        generation: 1 after `add`, one more with each change of the spec.
        resource_version: etcd's mod_revision. Attached on read, never stored; 0 means "not stored
            yet".
        creation_timestamp: set by `add`, UTC.
        deletion_timestamp: when `delete` was called on a resource that has finalizers, UTC.
        finalizers: who must agree before the resource goes.
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
        """The bytes behind `resource_version`, if they are still those this resource was read from."""
        stored: Stored | None = vars(self).get("_stored")
        return stored if stored is not None and stored.revision == self.resource_version else None

    @stored.setter
    def stored(self, stored: Stored) -> None:
        vars(self)["_stored"] = stored

    # msgspec copies fields only. Without `stored` a copy would still be right, but its update would
    # read first.

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
        type: what is observed, as `Ready`; unique among the conditions of a resource.
        status: whether it holds.
        reason: why, as one CamelCase word for programs.
        message: why, for people.
        last_transition_time: when `status` changed last, UTC.
        observed_generation: the `metadata.generation` that this was observed for.
    """

    type: str
    status: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int = 0


def set_condition(conditions: list[Condition], condition: Condition) -> None:
    """Put `condition` in the place of the one of its type, or at the end.

    `last_transition_time` is kept from the old one as long as the status stays the same, else it is
    the new one's, or now. (Kubernetes: `meta.SetStatusCondition`.)
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
    """A resource: derive from `Resource[Spec, Status]` and declare the kind.

        class Queue(Resource[QueueSpec, QueueStatus]):
            kind: ClassVar[Kind] = Kind("Queue", plural="queues", api_version="example.org/v1")

    Spec and status are msgspec structs; give them `rename="camel"` to have camelCase in the bytes.
    Two resources are equal if metadata (with the resource version), spec and status are.
    """

    kind: ClassVar[Kind]

    metadata: Metadata
    spec: SpecT
    status: StatusT

    def validate(self) -> list[str]:
        """Say what is wrong with this resource beyond its types; every problem, a sentence each.

        Called before each write; the write is refused with `InvalidResourceError` unless the list
        is empty. A write that leaves the spec as it is may leave the problems that the stored
        resource has already: so what became invalid can still be deleted, lose its finalizers, and
        get a status. A `ValueError` that it raises is a problem, too; any other exception comes out
        as it is. Override it in a kind that has rules of its own.
        """
        return []


# Resource is mutable, so it is invariant in spec and status: no narrower bound than Any fits every
# kind.
AnyResource: TypeAlias = Resource[Any, Any]
