"""How many keys a page of a list asks for.

What is learned from those that arrived, late or not at all.
"""

from collections.abc import Callable

import anyio
import pytest

from kvorum import UnavailableError
from kvorum.etcd.transport.page_sizes import Arrival, PageSizes, first_to_arrive

PREFIX = b"/many/"
TIMEOUT = 5.0


def arrival(asked: int, seconds: float, *, is_fallback: bool = False) -> Arrival[object]:
    return Arrival(None, asked, seconds, is_fallback)


def pages_on(
    link: Callable[[int], float], sizes: PageSizes, number: int, value: int = 1000
) -> list[int]:
    """Take so many full pages over a link that takes so many seconds for so many keys.

    Return how many each asked.
    """
    asked = []
    for _ in range(number):
        size = sizes.of(PREFIX)
        asked.append(size)
        sizes.learn(PREFIX, arrival(size, link(size)), size, size * value)
    return asked


def test_latency_does_not_make_pages_smaller() -> None:
    """It is the same for one key, so smaller pages would only take longer."""
    sizes = PageSizes(1000, TIMEOUT)

    assert pages_on(lambda _: 2.0, sizes, 5) == [1000] * 5


def test_after_an_outage_pages_grow_again_also_over_a_link_of_high_latency() -> None:
    sizes = PageSizes(1000, TIMEOUT)
    for _ in range(3):
        sizes.learn_of_silence(PREFIX, sizes.of(PREFIX), TIMEOUT)
    assert sizes.of(PREFIX) == 1

    assert pages_on(lambda _: 0.2, sizes, 6) == [1, 4, 16, 64, 256, 1000]


def test_pages_grow_to_what_arrives_before_a_page_counts_as_slow() -> None:
    sizes = PageSizes(1000, TIMEOUT)
    sizes.learn(PREFIX, arrival(50, 0.25, is_fallback=True), 50, 50_000)

    asked = pages_on(lambda keys: keys / 200, sizes, 8)

    assert asked[0] == 100
    assert asked[-1] == 200


def test_a_short_deadline_is_no_evidence_for_other_callers() -> None:
    sizes = PageSizes(1000, TIMEOUT)

    sizes.learn_of_silence(PREFIX, 1000, 0.05)

    assert sizes.of(PREFIX) == 1000


@pytest.mark.anyio
async def test_a_smaller_page_that_fails_does_not_end_the_larger_one_that_is_under_way() -> None:
    async def ask(size: int) -> int:
        if size < 100:
            raise UnavailableError("here", "a connection was dropped")
        await anyio.sleep(0.3)
        return size

    found = await first_to_arrive(ask, 100, 0.5)

    assert found.answer == 100
    assert not found.is_fallback


@pytest.mark.anyio
async def test_if_no_page_arrives_the_last_failure_is_raised() -> None:
    async def ask(size: int) -> int:
        await anyio.sleep(0.05)
        raise UnavailableError("here", f"{size} keys")

    with pytest.raises(UnavailableError, match="1 keys"):
        await first_to_arrive(ask, 100, 0.1)


def test_what_was_learned_longest_ago_is_forgotten() -> None:
    """Sizes are kept for 256 prefixes."""
    sizes = PageSizes(most=1000, timeout=5)
    prefixes = [f"/{number}/".encode() for number in range(257)]
    for prefix in prefixes:
        sizes.learn(prefix, arrival(1000, 0.1), 1000, 100 * 1024 * 1024)

    assert sizes.of(prefixes[0]) == 1000
    assert all(sizes.of(prefix) < 1000 for prefix in prefixes[1:])
