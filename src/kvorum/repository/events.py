"""The events of a watch: `Added`, `Modified`, `Deleted`, `Bookmark`, and optionally `Corrupt`.

::

    match event:
        case Added(resource=worker) | Modified(resource=worker): ...
        case Deleted(resource=worker): ...

All have `resource_version`, the revision that they are about. Several events share one if a
transaction made them.
"""

from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar, final

from kvorum.resources import AnyResource

R = TypeVar("R", bound=AnyResource)


class _ResourceEvent(Generic[R]):
    """What events about a resource have in common."""

    __slots__ = ("resource",)
    __match_args__: tuple[str, ...] = ("resource",)

    def __init__(self, resource: R) -> None:
        self.resource: R = resource

    @property
    def resource_version(self) -> int:
        """The revision of the write that caused this event."""
        return self.resource.metadata.resource_version

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _ResourceEvent)
            and type(self) is type(other)
            and self.resource == other.resource
        )

    def __repr__(self) -> str:
        metadata = self.resource.metadata
        name = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
        return (
            f"<{type(self).__name__} {self.resource.kind.plural}/{name} at {self.resource_version}>"
        )


@final
class Added(_ResourceEvent[R]):
    """A resource was created, or started to match.

    Attributes:
        resource: as it was written.
    """

    __slots__ = ()


@final
class Modified(_ResourceEvent[R]):
    """A resource was changed.

    Attributes:
        resource: as it was written.
    """

    __slots__ = ("_previous",)
    __match_args__: tuple[str, ...] = ("resource", "previous")

    def __init__(self, resource: R, previous: R | Callable[[], R]) -> None:
        super().__init__(resource)
        self._previous = previous

    @property
    def previous(self) -> R:
        """The resource before the change. It is decoded when it is first asked for.

        It could be read once: a resource that replaces an unreadable value is `Added`.

        Raises:
            CorruptResourceError: the type no longer accepts the stored value.
        """
        if callable(self._previous):
            self._previous = self._previous()
        return self._previous

    def __eq__(self, other: object) -> bool:
        return (
            super().__eq__(other)
            and isinstance(other, Modified)
            and self.previous == other.previous
        )


@final
class Deleted(_ResourceEvent[R]):
    """A resource was deleted, or stopped matching.

    Attributes:
        resource: its last state, at the revision of the deletion.
    """

    __slots__ = ()


@final
class Bookmark:
    """The watch has delivered everything up to a revision.

    Attributes:
        resource_version: that revision.
    """

    __slots__ = ("resource_version",)
    __match_args__: tuple[str, ...] = ("resource_version",)

    def __init__(self, resource_version: int) -> None:
        self.resource_version: int = resource_version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bookmark) and self.resource_version == other.resource_version

    def __hash__(self) -> int:
        return hash((Bookmark, self.resource_version))

    def __repr__(self) -> str:
        return f"<Bookmark at {self.resource_version}>"


@final
class Corrupt:
    """A value is not a resource of the kind. A watch with `on_corrupt="event"` delivers it.

    The resource is not gone: the key exists, but its value cannot be read. `Deleted` follows when
    the value is gone (with the last readable state), and `Added` when it can be read again.

    Attributes:
        key: the key, as etcd knows it.
        name: the name in its key. With `namespace` and `corrupt=True`, `Repository.delete` takes it
            to remove the value.
        revision: the mod_revision of the value; `resource_version` is the same.
        reason: what is wrong, with its JSON path.
        namespace: the namespace in its key; None if the kind, or the key, has none.
        is_gone: whether it replaces `Deleted`: the resource is gone, and its type no longer
            accepts the stored value. `revision` is that of the deletion.
    """

    __slots__ = ("is_gone", "key", "name", "namespace", "reason", "revision")
    __match_args__: tuple[str, ...] = ("key", "name", "revision", "reason")

    def __init__(
        self,
        key: str,
        name: str,
        revision: int,
        reason: str,
        namespace: str | None = None,
        *,
        is_gone: bool = False,
    ) -> None:
        self.key: str = key
        self.name: str = name
        self.revision: int = revision
        self.reason: str = reason
        self.namespace: str | None = namespace
        self.is_gone: bool = is_gone

    @property
    def resource_version(self) -> int:
        """The revision of the write that caused this event."""
        return self.revision

    def _facts(self) -> tuple[object, ...]:
        return (
            Corrupt,
            self.key,
            self.name,
            self.revision,
            self.reason,
            self.namespace,
            self.is_gone,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Corrupt) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())

    def __repr__(self) -> str:
        return f"<Corrupt {self.key} at {self.revision}: {self.reason}>"


WatchEvent: TypeAlias = Added[R] | Modified[R] | Deleted[R] | Bookmark
