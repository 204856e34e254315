"""Operations of the storage port as requests to etcd, and a refusal as an error of the port."""

from collections.abc import Sequence
from typing import Final

from kvorum.errors import ConflictError, InternalError, ResourceTooLargeError
from kvorum.etcd.entries import entry_of
from kvorum.etcd.transport import _rpc as rpc
from kvorum.storage import KeySpace, Operation, has_expected_value

_EQUAL: Final = int(rpc.Compare.EQUAL)
_MOD: Final = int(rpc.Compare.MOD)
_VALUE: Final = int(rpc.Compare.VALUE)


def transaction_of(
    keys: KeySpace, operations: Sequence[Operation], max_value_size: int, *, prev_kv: bool = False
) -> rpc.TxnRequest:
    """Return a transaction that applies all operations, or reads the keys that it compared.

    Args:
        keys: the key space of the backend.
        operations: the operations.
        max_value_size: the largest accepted value, in bytes.
        prev_kv: whether the answer is to have the values that were deleted.

    Raises:
        ResourceTooLargeError: a value is too large.
    """
    transaction = rpc.TxnRequest()
    for operation in operations:
        key = keys.stored(operation.key, operation.expected if operation.value is None else None)
        if operation.expected is not None:
            compare = transaction.compare.add()
            compare.result, compare.target = _EQUAL, _MOD
            compare.key, compare.mod_revision = key, operation.expected
            if operation.expected_value is not None:
                compare = transaction.compare.add()
                compare.result, compare.target = _EQUAL, _VALUE
                compare.key, compare.value = key, operation.expected_value
            transaction.failure.add().request_range.key = key
        if not operation.writes:
            continue
        if operation.value is None:
            removal = transaction.success.add().request_delete_range
            removal.key, removal.prev_kv = key, prev_kv
        else:
            fill(transaction.success.add().request_put, operation, key, max_value_size)
    return transaction


def fill(put: rpc.PutRequest, operation: Operation, key: bytes, max_value_size: int) -> None:
    """Fill in a put. With `lease=None` the key keeps its lease, which a plain put detaches.

    Raises:
        ResourceTooLargeError: the value is too large.
    """
    value, lease = operation.value or b"", operation.lease
    if len(value) > max_value_size:
        raise ResourceTooLargeError(operation.key, size=len(value), limit=max_value_size)
    put.key, put.value = key, value
    if lease is None:
        put.ignore_lease = True
    elif lease:
        put.lease = lease


def first_conflict(
    keys: KeySpace, operations: Sequence[Operation], answer: rpc.TxnResponse
) -> ConflictError:
    """Return the error for the first operation whose expectation did not hold.

    Args:
        keys: the key space of the backend.
        operations: the operations.
        answer: the refusal of their transaction.

    Raises:
        InternalError: by the answer, all of them hold.
    """
    compared = [operation for operation in operations if operation.expected is not None]
    for operation, response in zip(compared, answer.responses, strict=True):
        found = response.response_range.kvs
        current = entry_of(keys, found[0]) if found else None
        revision = current.mod_revision if current else 0
        if revision != operation.expected or not has_expected_value(operation, current):
            expected = operation.expected or 0
            return ConflictError(
                operation.key, expected=expected, current=current, found=revision or ""
            )
    bug = AssertionError("etcd refused a transaction all of whose comparisons hold")
    raise InternalError(f"the commit of {operations[0].key}", bug) from bug
