"""How operations of the storage port become requests to etcd, and refusals become errors."""

import pytest

from kvorum.errors import InternalError, ResourceTooLargeError
from kvorum.etcd.requests import first_conflict, transaction_of
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import Entry, KeySpace, Operation

KEYS = KeySpace("lab")


def put_of(operation: Operation) -> rpc.PutRequest:
    (step,) = transaction_of(KEYS, [operation], 100).success
    return step.request_put


def refusal(*revisions: int) -> rpc.TxnResponse:
    """Return what the compared keys are: at a revision each, or absent at 0."""
    found = [
        [rpc.KeyValue(key=b"/lab/k", mod_revision=revision)] if revision else []
        for revision in revisions
    ]
    steps = [rpc.ResponseOp(response_range=rpc.RangeResponse(kvs=kvs)) for kvs in found]
    return rpc.TxnResponse(succeeded=False, responses=steps)


def test_a_put_keeps_the_lease_of_its_key_only_if_it_is_not_given_one() -> None:
    keeps = put_of(Operation.swap("a", b"1", expected=5))
    moves = put_of(Operation.swap("a", b"1", expected=5, lease=7))
    detaches = put_of(Operation.put("a", b"1"))

    assert [(each.ignore_lease, each.lease) for each in (keeps, moves, detaches)] == [
        (True, 0),
        (False, 7),
        (False, 0),
    ]


def test_a_transaction_reads_what_it_compares_if_it_is_refused() -> None:
    operations = [
        Operation.put("a", b"1"),
        Operation.check("b", expected=5),
        Operation.delete("c", expected=6, expected_value=b"6"),
    ]
    transaction = transaction_of(KEYS, operations, 100)

    assert [each.request_range.key for each in transaction.failure] == [b"/lab/b", b"/lab/c"]
    assert [each.key for each in transaction.compare] == [b"/lab/b", b"/lab/c", b"/lab/c"]
    assert len([*transaction.success]) == 2


def test_a_value_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ResourceTooLargeError) as caught:
        transaction_of(KEYS, [Operation.put("a", bytes(101))], 100)

    assert (caught.value.size, caught.value.limit) == (101, 100)


def test_a_conflict_is_the_first_operation_whose_expectation_did_not_hold() -> None:
    operations = [
        Operation.put("a", b"1"),
        Operation.check("b", expected=5),
        Operation.check("c", expected=0),
        Operation.delete("d", expected=6),
    ]

    conflict = first_conflict(KEYS, operations, refusal(5, 8, 9))

    assert (conflict.subject, conflict.expected) == ("c", 0)
    assert conflict.current == Entry("k", b"", 8, 0, 0)


def test_a_value_that_differs_at_the_expected_revision_is_a_conflict() -> None:
    swap = Operation.swap("a", b"2", expected=5, expected_value=b"1")

    assert first_conflict(KEYS, [swap], refusal(5)).subject == "a"


def test_a_refusal_without_a_reason_is_an_error_of_kvorum() -> None:
    """Callers catch `KvorumError`; an assertion would escape them."""
    checks = [Operation.check("a", expected=5), Operation.check("b", expected=6)]

    with pytest.raises(InternalError, match="the commit of a ended by a bug"):
        first_conflict(KEYS, checks, refusal(5, 6))
