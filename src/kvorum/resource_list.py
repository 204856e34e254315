"""What a list returns."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from kvorum.resources import AnyResource

R = TypeVar("R", bound=AnyResource)


class ResourceList(Sequence[R], Generic[R]):
    """A sequence of resources, all of them as they were at one revision.

    Attributes:
        resource_version: that revision. A watch with `since=` this one goes on from here.
    """

    __slots__ = ("_resources", "resource_version")

    def __init__(self, resources: Iterable[R], resource_version: int) -> None:
        self._resources = tuple(resources)
        self.resource_version: int = resource_version

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[R]: ...
    def __getitem__(self, index: int | slice) -> R | Sequence[R]:
        return self._resources[index]

    def __len__(self) -> int:
        return len(self._resources)

    def __iter__(self) -> Iterator[R]:
        return iter(self._resources)

    def __repr__(self) -> str:
        return f"<ResourceList of {len(self)} at {self.resource_version}>"
