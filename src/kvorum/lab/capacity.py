"""What a worker has to offer to labs, and how much of it they take."""

from collections.abc import Callable
from operator import add, sub

import msgspec

from kvorum import InvalidResourceError, KvorumError
from kvorum.lab.fields import Span

_UNITS = {
    "cpu_cores": "CPU cores",
    "memory_mb": "MB of memory",
    "storage_gb": "GB of storage",
    "nodes": "nodes",
}


class ResourceQuantity(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True
):
    """So much of each resource of a host. A value: it can be added up, and used as a key.

    Attributes:
        cpu_cores: virtual cores.
        memory_mb: memory in MB.
        storage_gb: disk space in GB.
        nodes: running nodes (virtual devices), as CML's licences count them.
    """

    cpu_cores: int = 0
    memory_mb: int = 0
    storage_gb: int = 0
    nodes: int = 0

    def __add__(self, other: "ResourceQuantity") -> "ResourceQuantity":
        return self._combined(add, other)

    def __sub__(self, other: "ResourceQuantity") -> "ResourceQuantity":
        if not other.fits_in(self):
            raise ValueError(f"cannot take {other} from {self}")
        return self._combined(sub, other)

    def __str__(self) -> str:
        parts = [
            f"{value} {_UNITS[name]}"
            for name, value in msgspec.structs.asdict(self).items()
            if value
        ]
        return ", ".join(parts) or "nothing"

    def fits_in(self, other: "ResourceQuantity") -> bool:
        """Return whether `other` has at least as much of everything."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return all(mine <= theirs for mine, theirs in pairs)

    def lessened_by(self, other: "ResourceQuantity") -> "ResourceQuantity":
        """Return what is left of this without `other`; nothing where `other` has more."""
        return self._combined(lambda mine, theirs: max(mine - theirs, 0), other)

    def problems(self, path: str) -> list[str]:
        """Return what is wrong with it, which is what is negative; `path` is its JSON path."""
        if min(msgspec.structs.astuple(self)) >= 0:
            return []
        return [
            problem
            for name, encoded, span in _SPANS
            for problem in span.problems_of(f"{path}.{encoded}", getattr(self, name))
        ]

    def _combined(
        self, how: Callable[[int, int], int], other: "ResourceQuantity"
    ) -> "ResourceQuantity":
        return ResourceQuantity(
            **{name: how(getattr(self, name), getattr(other, name)) for name in _UNITS}
        )


# Of each field the name, the name in the JSON, and what it may be.
_SPANS = [
    (field.name, field.encode_name, Span(0, None, _UNITS[field.name]))
    for field in msgspec.structs.fields(ResourceQuantity)
]


class InsufficientCapacityError(KvorumError):
    """There is no room for that. Nothing was allocated: ask for less, look elsewhere, or wait for a release.

    Attributes:
        subject: where it was asked for, as `lab-workers/worker-001`.
        requested: what was asked for.
        available: what is free.
    """

    def __init__(
        self, subject: str, *, requested: ResourceQuantity, available: ResourceQuantity
    ) -> None:
        self.subject = subject
        self.requested = requested
        self.available = available
        super().__init__(f"{subject} has no room for {requested}: free are {available}")


class Capacity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How much there is, and how much of it is taken. A value: to allocate is to get another one.

    Allocating and releasing never lead below zero or above the total. But a total can shrink below
    what is allocated (a smaller host, an expired licence); then nothing is available of what is
    short, and releasing goes on as ever.

    Attributes:
        total: what there is.
        allocated: what is taken.
    """

    total: ResourceQuantity = ResourceQuantity()
    allocated: ResourceQuantity = ResourceQuantity()

    @property
    def available(self) -> ResourceQuantity:
        """What is free; never negative."""
        return self.total.lessened_by(self.allocated)

    @property
    def utilization(self) -> dict[str, float]:
        """The part of each resource that is taken, from 0.0 to 1.0, by the names of `ResourceQuantity`.

        Of a resource that there is none of, all is taken if anything is, and else nothing.
        """
        return {
            name: _fraction(getattr(self.allocated, name), getattr(self.total, name))
            for name in _UNITS
        }

    def can_host(self, request: ResourceQuantity) -> bool:
        """Return whether `request` fits into what is free."""
        return request.fits_in(self.available)

    def allocate(self, request: ResourceQuantity, *, subject: str = "the capacity") -> "Capacity":
        """Return the capacity with `request` taken; `subject` is what errors call it.

        Raises:
            InsufficientCapacityError: it does not fit into what is free.
            InvalidResourceError: some of it is negative.
        """
        if problems := request.problems("request"):
            raise InvalidResourceError(subject, problems)
        if not self.can_host(request):
            raise InsufficientCapacityError(subject, requested=request, available=self.available)
        return Capacity(total=self.total, allocated=self.allocated + request)

    def release(self, request: ResourceQuantity, *, subject: str = "the capacity") -> "Capacity":
        """Return the capacity with `request` given back; `subject` is what errors call it.

        Raises:
            InvalidResourceError: it is more than is allocated, or some of it is negative.
        """
        problems = request.problems("request")
        if not request.fits_in(self.allocated):
            problems.append(f"{request} cannot be released: allocated are {self.allocated}")
        if problems:
            raise InvalidResourceError(subject, problems)
        return Capacity(total=self.total, allocated=self.allocated - request)


def _fraction(taken: int, total: int) -> float:
    if total <= 0:
        return 1.0 if taken > 0 else 0.0
    return min(taken / total, 1.0)
