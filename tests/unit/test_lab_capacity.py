"""Capacity arithmetic: never below zero, never above the total, never released twice."""

import pickle
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import InvalidResourceError
from kvorum.lab import Capacity, InsufficientCapacityError, ResourceQuantity

NOTHING = ResourceQuantity()

amounts = st.integers(0, 1000)
quantities = st.builds(
    ResourceQuantity, cpu_cores=amounts, memory_mb=amounts, storage_gb=amounts, nodes=amounts
)
requests = st.lists(quantities, max_size=10)


# --- quantities -----------------------------------------------------------------------------------


def test_quantities_add_up_resource_by_resource() -> None:
    left = ResourceQuantity(cpu_cores=1, memory_mb=20, storage_gb=300, nodes=4000)
    right = ResourceQuantity(cpu_cores=5, memory_mb=60, storage_gb=700, nodes=8000)

    assert left + right == ResourceQuantity(cpu_cores=6, memory_mb=80, storage_gb=1000, nodes=12000)


@given(quantities, quantities)
def test_what_was_added_can_be_taken_away(one: ResourceQuantity, other: ResourceQuantity) -> None:
    assert one + other - other == one


def test_more_than_there_is_cannot_be_taken() -> None:
    """Also if it is too much of one resource only.

    A negative amount would make room that does not exist.
    """
    with pytest.raises(ValueError, match="cannot take 1 CPU cores from 4 nodes"):
        ResourceQuantity(nodes=4) - ResourceQuantity(cpu_cores=1)


@given(quantities, quantities)
def test_what_fits_can_be_taken_and_nothing_else(
    one: ResourceQuantity, other: ResourceQuantity
) -> None:
    if other.fits_in(one):
        assert one - other == one.lessened_by(other)
    else:
        with pytest.raises(ValueError, match="cannot take"):
            one - other


@given(quantities, quantities)
def test_lessening_never_goes_below_zero(one: ResourceQuantity, other: ResourceQuantity) -> None:
    left = one.lessened_by(other)

    assert not left.problems("left")
    assert left.fits_in(one)


def test_a_quantity_says_what_it_is() -> None:
    assert str(ResourceQuantity(cpu_cores=2, memory_mb=512)) == "2 CPU cores, 512 MB of memory"
    assert str(NOTHING) == "nothing"


def test_everything_negative_is_named() -> None:
    quantity = ResourceQuantity(cpu_cores=-1, memory_mb=0, storage_gb=-2, nodes=1)

    assert quantity.problems("status.totalCapacity") == [
        "status.totalCapacity.cpuCores is -1; it must be at least 0 CPU cores",
        "status.totalCapacity.storageGb is -2; it must be at least 0 GB of storage",
    ]


def test_a_quantity_is_stored_in_camel_case_without_what_it_has_none_of() -> None:
    assert (
        msgspec.json.encode(ResourceQuantity(cpu_cores=2, memory_mb=3))
        == b'{"cpuCores":2,"memoryMb":3}'
    )


# --- capacity -------------------------------------------------------------------------------------


@given(quantities, requests)
def test_allocating_stays_within_the_total(
    total: ResourceQuantity, wanted: list[ResourceQuantity]
) -> None:
    capacity = Capacity(total=total)
    for request in wanted:
        if capacity.can_host(request):
            capacity = capacity.allocate(request)

        assert capacity.allocated.fits_in(total)
        assert capacity.available + capacity.allocated == total


@given(requests, st.randoms())
def test_what_was_allocated_can_be_released_in_any_order(
    wanted: list[ResourceQuantity], random: Random
) -> None:
    capacity = Capacity(total=sum(wanted, NOTHING))
    for request in wanted:
        capacity = capacity.allocate(request)
    for request in sorted(wanted, key=lambda _: random.random()):
        capacity = capacity.release(request)

    assert capacity == Capacity(total=sum(wanted, NOTHING))


@given(quantities, quantities)
def test_what_does_not_fit_is_refused(total: ResourceQuantity, request_: ResourceQuantity) -> None:
    capacity = Capacity(total=total)
    if capacity.can_host(request_):
        assert capacity.allocate(request_).allocated == request_
        return

    with pytest.raises(InsufficientCapacityError) as refusal:
        capacity.allocate(request_)

    assert refusal.value.requested == request_
    assert refusal.value.available == total


def test_a_refusal_says_what_was_asked_for_and_what_is_free() -> None:
    capacity = Capacity(
        total=ResourceQuantity(cpu_cores=4), allocated=ResourceQuantity(cpu_cores=3)
    )

    with pytest.raises(InsufficientCapacityError) as refusal:
        capacity.allocate(ResourceQuantity(cpu_cores=2), subject="lab-workers/w")

    assert str(refusal.value) == "lab-workers/w has no room for 2 CPU cores: free are 1 CPU cores"
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)  # noqa: S301 - our own bytes


def test_no_more_can_be_released_than_is_allocated() -> None:
    """A release that is counted twice would let labs share what only one can have."""
    capacity = Capacity(total=ResourceQuantity(nodes=9), allocated=ResourceQuantity(nodes=2))

    with pytest.raises(
        InvalidResourceError, match="3 nodes cannot be released: allocated are 2 nodes"
    ):
        capacity.release(ResourceQuantity(nodes=3))


@pytest.mark.parametrize("verb", ["allocate", "release"])
def test_a_negative_request_is_refused(verb: str) -> None:
    """A negative allocation would release what belongs to other labs."""
    capacity = Capacity(total=ResourceQuantity(nodes=9), allocated=ResourceQuantity(nodes=2))

    with pytest.raises(
        InvalidResourceError, match=r"request\.nodes is -1; it must be at least 0 nodes"
    ):
        getattr(capacity, verb)(ResourceQuantity(nodes=-1))


def test_a_host_that_shrank_has_nothing_left_and_can_still_release() -> None:
    """A status reports what was observed; the arithmetic must not fail on it."""
    capacity = Capacity(
        total=ResourceQuantity(cpu_cores=2, nodes=9),
        allocated=ResourceQuantity(cpu_cores=4, nodes=1),
    )

    assert capacity.available == ResourceQuantity(nodes=8)
    assert capacity.utilization["cpu_cores"] == 1.0
    assert capacity.release(ResourceQuantity(cpu_cores=3)).available == ResourceQuantity(
        cpu_cores=1, nodes=8
    )


def test_utilization_is_told_for_each_resource() -> None:
    capacity = Capacity(
        total=ResourceQuantity(cpu_cores=8, memory_mb=1000, nodes=0),
        allocated=ResourceQuantity(cpu_cores=2, memory_mb=1000, nodes=1),
    )

    assert capacity.utilization == {
        "cpu_cores": 0.25,
        "memory_mb": 1.0,
        "storage_gb": 0.0,
        "nodes": 1.0,
    }


@given(quantities, quantities)
def test_utilization_is_a_fraction(total: ResourceQuantity, allocated: ResourceQuantity) -> None:
    """Of zero capacity, too: a worker that has not been measured must not break a dashboard."""
    fractions = Capacity(total=total, allocated=allocated).utilization.values()

    assert all(0.0 <= fraction <= 1.0 for fraction in fractions)
