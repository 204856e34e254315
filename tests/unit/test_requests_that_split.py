"""No request that Kvorum builds is applied by one member of a cluster and refused by another.

Before etcd 3.7.0 only the member that serves a client looks at the ranges at the top level of a
write transaction; the others drop them unseen, together with the check of permissions and revisions
that a range brings. So a write transaction holds a range at its top level only of what it also
compares, and none at a revision.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import Operation
from kvorum.etcd.pipeline.batch import Batch, request_of_reads, request_of_writes
from kvorum.etcd.pipeline.calls import AnyCall, PutCall, ReadCall, TxnCall
from kvorum.etcd.requests import transaction_of
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import KeySpace

KEYS = ["a", "b", "c", "d"]


def broken_rules(request: Any) -> set[str]:
    """Return what of a transaction can split a cluster.

    The request is `Any`: the test reads fields that the library never reads.
    """
    branches = [*request.success, *request.failure]
    if all(step.HasField("request_range") for step in branches):
        return set()  # it writes nothing: it is not in the cluster's log
    compared = {(compare.key, compare.range_end) for compare in request.compare}
    found = set()
    for step in branches:
        if step.HasField("request_range"):
            if (step.request_range.key, step.request_range.range_end) not in compared:
                found.add("a range of what is not compared")
            if step.request_range.revision:
                found.add("a range at a revision")
        if step.HasField("request_txn") and "a range at a revision" in all_rules(step.request_txn):
            found.add("a range at a revision")
    return found


def all_rules(request: Any) -> set[str]:
    """Return what is in a nested transaction that can fail when it is applied."""
    steps = [*request.success, *request.failure]
    if any(step.HasField("request_range") and step.request_range.revision for step in steps):
        return {"a range at a revision"}
    return set().union(
        *(all_rules(step.request_txn) for step in steps if step.HasField("request_txn"))
    )


def checks_a_key_first(request: Any) -> bool:
    """Tell whether each member rejects an unauthenticated transaction before it applies any."""
    return bool(request.compare) or any(
        step.HasField("request_put") or step.HasField("request_delete_range")
        for step in request.success
    )


def operation(key: str, draw: Callable[..., Any]) -> Operation:
    value, expected = draw(st.sampled_from([None, b"", b"1"])), draw(st.sampled_from([None, 0, 7]))
    lease = draw(st.sampled_from([0, 9]))
    kinds = [Operation.delete(key, expected=expected)]
    if expected is not None:
        kinds.append(Operation.check(key, expected=expected))
    if value is not None:
        kinds += [Operation.put(key, value, lease=lease), Operation.create(key, value, lease=lease)]
        if expected is not None:
            kinds.append(
                Operation.swap(
                    key, value, expected=expected, lease=lease if expected == 0 else None
                )
            )
    chosen: Operation = draw(st.sampled_from(kinds))
    return chosen


@st.composite
def operations_of(draw: Callable[..., Any], keys: list[str]) -> list[Operation]:
    """Draw what a commit may hold: one operation for each of some keys."""
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=len(keys), unique=True))
    return [operation(key, draw) for key in chosen]


def transaction(operations: list[Operation], *, prev_kv: bool = False) -> rpc.TxnRequest:
    return transaction_of(KeySpace("lab"), operations, 1_000_000, prev_kv=prev_kv)


def call_of(key: bytes, request: rpc.PutRequest | rpc.TxnRequest | None) -> AnyCall:
    if request is None:
        return ReadCall(key, 0.0)
    if isinstance(request, rpc.PutRequest):
        return PutCall(key, 0.0, request=request)
    return TxnCall(key, 0.0, request=request)


def batch_of(requests: dict[str, rpc.PutRequest | rpc.TxnRequest | None]) -> Batch:
    return {key.encode(): [call_of(key.encode(), request)] for key, request in requests.items()}


@given(operations_of(KEYS), st.booleans())
def test_no_transaction_of_the_backend_can_split_a_cluster(
    operations: list[Operation], prev_kv: bool
) -> None:
    assert broken_rules(transaction(operations, prev_kv=prev_kv)) == set()


@given(operations_of(KEYS), st.booleans(), st.booleans())
def test_no_batch_of_writes_can_split_a_cluster(
    operations: list[Operation], plain: bool, probe: bool
) -> None:
    writes: dict[str, rpc.PutRequest | rpc.TxnRequest | None] = {
        each.key: rpc.PutRequest(key=each.key.encode())
        if plain and each.value
        else transaction([each])
        for each in operations
    }
    request = request_of_writes(batch_of(writes), probe=probe)

    assert broken_rules(request) == set()
    assert checks_a_key_first(request) or not probe


@pytest.mark.parametrize("nested", [True, False])
def test_no_batch_of_reads_can_split_a_cluster(nested: bool) -> None:
    request = request_of_reads(batch_of(dict.fromkeys(KEYS)), nested=nested)

    assert broken_rules(request) == set()
    assert checks_a_key_first(request) is nested


# --- the rule finds what breaks it ----------------------------------------------------------------


def test_a_range_of_what_is_not_compared_is_found() -> None:
    request = request_of_writes(batch_of({"a": rpc.PutRequest(key=b"a")}), probe=False)
    request.success.add().request_range.key = b"a"

    assert broken_rules(request) == {"a range of what is not compared"}


def test_a_range_at_a_revision_is_found_at_any_depth() -> None:
    inner = transaction([Operation.swap("a", b"1", expected=7)])
    inner.failure.add().request_range.CopyFrom(rpc.RangeRequest(key=b"/lab/a", revision=5))

    assert broken_rules(inner) == {"a range at a revision"}
    assert broken_rules(request_of_writes(batch_of({"a": inner}), probe=True)) == {
        "a range at a revision"
    }
