"""The result of a list."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from kvorum.errors import CorruptResourceError
from kvorum.resources import AnyResource

R = TypeVar("R", bound=AnyResource)


class ResourceList(Sequence[R], Generic[R]):
    """A sequence of resources, all at one revision.

    Attributes:
        resource_version: that revision, the same on all pages. A watch with `since` set to it
            continues from here.
        continuation: the `continue_from` of the next page; None on the last page.
        remaining: how many resources follow; None with a selector: the total is unknown.
        corrupt: the values that could not be decoded, in the order of their keys, with
            `on_corrupt="collect"`.
    """

    __slots__ = ("_resources", "continuation", "corrupt", "remaining", "resource_version")

    def __init__(
        self,
        resources: Iterable[R],
        resource_version: int,
        *,
        continuation: str | None = None,
        remaining: int | None = 0,
        corrupt: Iterable[CorruptResourceError] = (),
    ) -> None:
        self._resources = tuple(resources)
        self.resource_version: int = resource_version
        self.continuation: str | None = continuation
        self.remaining: int | None = remaining
        self.corrupt: tuple[CorruptResourceError, ...] = tuple(corrupt)

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
        more = "" if self.continuation is None else ", more to come"
        more += f", {len(self.corrupt)} corrupt" if self.corrupt else ""
        return f"<ResourceList of {len(self)} at {self.resource_version}{more}>"
