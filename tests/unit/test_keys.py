"""Keys: the key of a resource, and the range of keys that a prefix covers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.errors import InvalidResourceError
from kvorum.resources.keys import kind_prefix, prefix_end, resource_key, split_key, stray_key
from kvorum.resources.model import Kind

WORKER = Kind("LabWorker", plural="lab-workers", api_version="lab.kvorum.dev/v1")
OLD_WORKER = Kind("OldWorker", plural="lab-workers-old", api_version="lab.kvorum.dev/v1")
INSTANCE = Kind(
    "LabInstance", plural="lab-instances", api_version="lab.kvorum.dev/v1", namespaced=True
)

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,5}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join)


# --- keys of resources ----------------------------------------------------------------------------


def test_a_key_is_plural_and_name() -> None:
    assert resource_key(WORKER, "worker-001") == "lab-workers/worker-001"


def test_the_key_of_a_namespaced_kind_has_a_level_more() -> None:
    assert resource_key(INSTANCE, "lab-7", "team-a") == "lab-instances/team-a/lab-7"


@pytest.mark.parametrize(
    "name", ["", "/", ".", "..", "a/../b", "x" * 300, "Worker", "a\0b", "a\n", "a/b"]
)
def test_a_bad_name_gives_no_key(name: str) -> None:
    """Rejected before anything is sent: no such key reaches the server."""
    with pytest.raises(InvalidResourceError) as caught:
        resource_key(WORKER, name)

    assert caught.value.subject == f"lab-workers/{name}"
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("namespace", ["", "/", "..", "a/b", "a.b", "Team", "x" * 64, "a\0b"])
def test_a_bad_namespace_gives_no_key(namespace: str) -> None:
    with pytest.raises(InvalidResourceError, match="namespace"):
        resource_key(INSTANCE, "lab-7", namespace)


def test_a_namespaced_kind_needs_a_namespace() -> None:
    with pytest.raises(InvalidResourceError, match="lab-instances: a namespace is needed"):
        resource_key(INSTANCE, "lab-7")


@pytest.mark.parametrize("namespace", ["team-a", ""])
def test_a_kind_without_namespaces_takes_none(namespace: str) -> None:
    with pytest.raises(InvalidResourceError, match="LabWorker has no namespaces"):
        resource_key(WORKER, "worker-001", namespace)


@given(names)
def test_a_key_is_taken_apart_as_it_was_put_together(name: str) -> None:
    assert split_key(WORKER, resource_key(WORKER, name)) == (None, name)


@given(names, labels)
def test_a_key_with_a_namespace_is_taken_apart_as_it_was_put_together(
    name: str, namespace: str
) -> None:
    assert split_key(INSTANCE, resource_key(INSTANCE, name, namespace)) == (namespace, name)


@given(st.tuples(labels, names), st.tuples(labels, names))
def test_two_resources_never_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    keys = [resource_key(INSTANCE, name, namespace) for namespace, name in (one, other)]

    assert (keys[0] == keys[1]) == (one == other)


# --- prefixes of kinds ----------------------------------------------------------------------------


def test_a_prefix_ends_in_a_slash_so_that_no_other_kind_fits() -> None:
    assert kind_prefix(WORKER) == "lab-workers/"
    assert not resource_key(OLD_WORKER, "worker-001").startswith(kind_prefix(WORKER))


def test_a_prefix_can_be_that_of_one_namespace() -> None:
    assert kind_prefix(INSTANCE) == "lab-instances/"
    assert kind_prefix(INSTANCE, "team-a") == "lab-instances/team-a/"


@given(names, labels, labels)
def test_the_prefix_of_a_namespace_covers_its_own_resources_only(
    name: str, namespace: str, other: str
) -> None:
    is_covered = resource_key(INSTANCE, name, other).startswith(kind_prefix(INSTANCE, namespace))

    assert is_covered == (namespace == other)


@pytest.mark.parametrize("namespace", ["", "a/b", ".."])
def test_a_bad_namespace_gives_no_prefix(namespace: str) -> None:
    """An empty one must not mean "all namespaces" by accident."""
    with pytest.raises(InvalidResourceError):
        kind_prefix(INSTANCE, namespace)


def test_a_kind_without_namespaces_has_no_prefix_of_one() -> None:
    with pytest.raises(InvalidResourceError, match="LabWorker has no namespaces"):
        kind_prefix(WORKER, "team-a")


# --- ends of prefixes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"/lab/", b"/lab0"),
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"a\xfe", b"a\xff"),
        (b"\xff", b"\0"),
        (b"\xff\xff", b"\0"),
        (b"", b"\0"),
    ],
)
def test_the_end_of_a_prefix_is_what_etcds_client_says(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


few_bytes = st.lists(st.sampled_from([0x00, 0x2F, 0x61, 0xFE, 0xFF]), max_size=5).map(bytes)


@given(few_bytes, few_bytes | st.binary(max_size=5))
def test_a_range_holds_just_the_keys_that_start_with_its_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)

    assert (prefix <= key and (end == b"\0" or key < end)) == key.startswith(prefix)


@pytest.mark.parametrize(
    ("kind", "key", "namespace", "name"),
    [
        (WORKER, "lab-workers/Not A Name", None, "Not A Name"),
        (WORKER, "lab-workers/a/b", None, "a/b"),
        (INSTANCE, "lab-instances/no-namespace", None, "no-namespace"),
        (INSTANCE, "lab-instances/a/b/c", "a", "b/c"),
        (INSTANCE, "lab-instances//b", "", "b"),
    ],
)
def test_a_stray_key_is_split_into_what_makes_it_again(
    kind: Kind, key: str, namespace: str | None, name: str
) -> None:
    assert split_key(kind, key) == (namespace, name)
    assert stray_key(kind, name, namespace) == key


def test_a_stray_key_can_end_where_a_name_should_be() -> None:
    assert stray_key(WORKER, "", None) == "lab-workers/"
