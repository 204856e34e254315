"""What a list returns."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from kvorum.errors import CorruptResourceError
from kvorum.resources import AnyResource

R = TypeVar("R", bound=AnyResource)


class ResourceList(Sequence[R], Generic[R]):
    """A sequence of resources, all of them as they were at one revision.

    Attributes:
        resource_version: that revision, the same on all pages. A watch with `since=` this one goes
            on from here.
        continuation: what `list` takes (`continue_from`) to return the next page; None on the last
            one.
        remaining: how many resources come after these; None if there was a selector, since nobody
            has counted.
        corrupt: what could not be decoded, in the order of the keys, if that was asked for
            (`on_corrupt="collect"`).
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
