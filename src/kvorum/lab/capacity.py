"""The capacity of a worker, and how much of it is allocated to labs."""

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
    """An amount of each resource of a host. An immutable value: it can be summed, and be a key.

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
        """Return whether `other` is at least as large in every resource."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return all(mine <= theirs for mine, theirs in pairs)

    def lessened_by(self, other: "ResourceQuantity") -> "ResourceQuantity":
        """Return this minus `other`; 0 where `other` is larger."""
        return self._combined(lambda mine, theirs: max(mine - theirs, 0), other)

    def problems(self, path: str) -> list[str]:
        """Return which amounts are negative; `path` is its JSON path."""
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


# For each field: its name, its name in JSON, and the valid range.
_SPANS = [
    (field.name, field.encode_name, Span(0, None, _UNITS[field.name]))
    for field in msgspec.structs.fields(ResourceQuantity)
]


class InsufficientCapacityError(KvorumError):
    """There is not enough room. Nothing was allocated: request less, or wait for a release.

    Attributes:
        subject: where it was requested, such as `lab-workers/worker-001`.
        requested: the requested amount.
        available: the free amount.
    """

    def __init__(
        self, subject: str, *, requested: ResourceQuantity, available: ResourceQuantity
    ) -> None:
        self.subject = subject
        self.requested = requested
        self.available = available
        super().__init__(f"{subject} has no room for {requested}: free are {available}")


class Capacity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A total amount and the allocated part of it. Immutable: `allocate` returns a new value.

    Allocating and releasing never lead below zero or above the total. But a total can shrink below
    what is allocated (a smaller host, an expired licence); then nothing is available of the
    resources that are short, and releasing still works.

    Attributes:
        total: the total amount.
        allocated: the allocated amount.
    """

    total: ResourceQuantity = ResourceQuantity()
    allocated: ResourceQuantity = ResourceQuantity()

    @property
    def available(self) -> ResourceQuantity:
        """The free amount; never negative."""
        return self.total.lessened_by(self.allocated)

    @property
    def utilization(self) -> dict[str, float]:
        """The allocated fraction of each resource, from 0.0 to 1.0, by `ResourceQuantity`'s names.

        If the total is 0, it is 1.0 if anything is allocated, otherwise 0.0.
        """
        return {
            name: _fraction(getattr(self.allocated, name), getattr(self.total, name))
            for name in _UNITS
        }

    def can_host(self, request: ResourceQuantity) -> bool:
        """Return whether `request` fits into the free amount."""
        return request.fits_in(self.available)

    def allocate(self, request: ResourceQuantity, *, subject: str = "the capacity") -> "Capacity":
        """Return the capacity with `request` allocated; `subject` is its name in errors.

        Raises:
            InsufficientCapacityError: it does not fit into the free amount.
            InvalidResourceError: part of it is negative.
        """
        if problems := request.problems("request"):
            raise InvalidResourceError(subject, problems)
        if not self.can_host(request):
            raise InsufficientCapacityError(subject, requested=request, available=self.available)
        return Capacity(total=self.total, allocated=self.allocated + request)

    def release(self, request: ResourceQuantity, *, subject: str = "the capacity") -> "Capacity":
        """Return the capacity with `request` released; `subject` is its name in errors.

        Raises:
            InvalidResourceError: it is more than is allocated, or part of it is negative.
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
