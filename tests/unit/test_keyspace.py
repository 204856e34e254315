"""Keys as etcd knows them, and as the port knows them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.errors import InvalidResourceError
from kvorum.storage.keyspace import MAX_KEY_SIZE, KeySpace

LAB = KeySpace("lab-resource-manager")

any_key = st.binary(min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("prefix", "full"),
    [
        ("lab", b"/lab/key"),
        ("/lab", b"/lab/key"),
        ("lab/", b"/lab/key"),
        ("/a/b/", b"/a/b/key"),
        ("", b"/key"),
        ("/", b"/key"),
    ],
)
def test_a_prefix_stands_between_two_slashes(prefix: str, full: bytes) -> None:
    assert KeySpace(prefix).full("key") == full


def test_a_resource_lies_where_the_design_says() -> None:
    assert LAB.full("lab-workers/worker-001") == b"/lab-resource-manager/lab-workers/worker-001"
    assert LAB.relative(b"/lab-resource-manager/lab-workers/worker-001") == "lab-workers/worker-001"


@given(any_key)
def test_keys_of_any_bytes_come_and_go(key: bytes) -> None:
    """Other programs may have put such keys there.

    They are listed, read and deleted like others.
    """
    relative = LAB.relative(b"/lab-resource-manager/" + key)

    assert LAB.full(relative) == b"/lab-resource-manager/" + key


@given(any_key, any_key)
def test_different_keys_stay_different(one: bytes, other: bytes) -> None:
    relatives = {LAB.relative(b"/lab-resource-manager/" + key) for key in (one, other)}

    assert len(relatives) == len({one, other})


@given(st.text(max_size=5), st.text(min_size=1, max_size=5))
def test_a_range_holds_the_keys_that_start_with_its_prefix(prefix: str, key: str) -> None:
    start, end = LAB.range(prefix)

    assert (start <= LAB.full(key) < end) == key.startswith(prefix)


def test_the_range_of_everything_is_no_more_than_the_key_space() -> None:
    assert LAB.range("") == (b"/lab-resource-manager/", b"/lab-resource-manager0")


def test_a_range_never_holds_keys_of_another_space() -> None:
    start, end = LAB.range("")

    assert not start <= KeySpace("lab-resource-manager-old").full("key") < end


def test_a_range_may_start_with_bytes_that_are_no_text() -> None:
    start, end = LAB.range(LAB.relative(b"/lab-resource-manager/\xff"))

    assert (start, end) == (b"/lab-resource-manager/\xff", b"/lab-resource-manager0")


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(InvalidResourceError, match="the key is empty"):
        LAB.full("")


def test_a_key_may_have_as_many_bytes_as_the_limit_says() -> None:
    room = MAX_KEY_SIZE - len("/lab-resource-manager/")

    assert len(LAB.full("x" * room)) == MAX_KEY_SIZE
    with pytest.raises(
        InvalidResourceError, match=r"the key has 1501 bytes, at most 1500 are allowed"
    ):
        LAB.full("x" * (room + 1))


def test_bytes_are_counted_and_not_letters() -> None:
    with pytest.raises(InvalidResourceError, match="the key has 2022 bytes"):
        LAB.full("é" * 1000)


def test_the_message_about_a_long_key_is_short() -> None:
    with pytest.raises(InvalidResourceError) as caught:
        LAB.full("x" * 100_000)

    assert len(str(caught.value)) < 300


@given(st.binary(max_size=20))
def test_what_is_in_the_store_can_be_named_whatever_it_is(key: bytes) -> None:
    """Others may have put keys there that are longer than ours, or the bare prefix."""
    for full in (
        b"/lab-resource-manager/" + key,
        b"/lab-resource-manager/" + key + b"x" * MAX_KEY_SIZE,
    ):
        assert LAB.stored(LAB.relative(full)) == full
