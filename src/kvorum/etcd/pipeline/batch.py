"""Which calls share a request, how that request looks, and what its answer means to each of them.

Plain functions: values in, values out.

Rules of a batch:

1. No operation reads, compares or writes a key that another one of it writes. The comparisons of
   nested transactions see the state before the whole batch, so two that each check what the other
   writes would both succeed.
2. Nor does it touch a key with a write in flight: writes of one key are applied in the order in
   which they were asked for, and later calls for the key do not overtake. (`KeyOrder` keeps those
   back that have to wait.)
3. Reads of one key that wait together are one operation. A read never joins one that was sent.
4. A call goes in no batch if a similar one was refused recently. It waits elsewhere: see
   `Refusals` and `Unbatched`.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from kvorum.etcd.pipeline.calls import AnyCall, Result
from kvorum.etcd.transport import _rpc as rpc

# etcd takes 128 operations in a request (--max-txn-ops), and 1.5 MiB (--max-request-bytes).
MAX_OPERATIONS: Final = 100
MAX_BYTES: Final = 1_000_000
MIN_BYTES: Final = 65_536  # no limit gets below this, whatever a server refuses

_GREATER: Final = int(rpc.Compare.GREATER)
_VERSION: Final = int(rpc.Compare.VERSION)

# Keys, and the calls that the operation on each is for: one, or several that read the same.
Batch: TypeAlias = dict[bytes, list[AnyCall]]


class Limit(NamedTuple):
    """How much a batch may hold.

    Attributes:
        operations: how many operations.
        size: how many bytes.
    """

    operations: int = MAX_OPERATIONS
    size: int = MAX_BYTES

    def halve_operations(self, refused: Batch) -> "Limit":
        """Return half of a batch that had too many operations for the server."""
        return self._replace(operations=min(self.operations, max(len(refused) // 2, 1)))

    def halve_bytes(self, refused: Batch) -> "Limit":
        """Return half of a batch that had too many bytes for the server."""
        sizes = [group[0].size for group in refused.values()]
        if 2 * max(sizes) > sum(sizes):  # it may have been refused for this one alone
            return self
        return self._replace(size=min(self.size, max(sum(sizes) // 2, MIN_BYTES)))


def plan_batch(waiting: Sequence[AnyCall], limit: Limit) -> tuple[Batch, list[AnyCall]]:
    """Choose what is sent now and what keeps waiting, by the rules above.

    Args:
        waiting: the calls, the oldest first. Those that are over are dropped.
        limit: how much may be sent. A single operation is sent however large it is.

    Returns:
        What is sent, and what waits, the oldest first.
    """
    now: Batch = {}
    later: list[AnyCall] = []
    passed: set[bytes] = set()  # keys of calls that have to wait
    size = 0
    for index, each in enumerate(waiting):
        if each.is_done:
            continue
        key = each.key
        others = now.get(key)
        if key in passed or (others is not None and (each.is_write or others[0].is_write)):
            passed.add(key)
            later.append(each)
        elif others is not None:
            others.append(each)
        else:
            size += each.size
            if len(now) >= limit.operations or (now and size > limit.size):
                later += waiting[index:]
                break
            now[key] = [each]
    return now, later


def halves_of(batch: Batch) -> tuple[Batch, Batch]:
    """Split a batch of several operations in two, in order."""
    operations = list(batch.items())
    middle = len(operations) // 2
    return dict(operations[:middle]), dict(operations[middle:])


def split_by_space(batch: Batch) -> tuple[Batch, Batch]:
    """Split a batch of writes into those that a full store takes (deletions) and the others."""
    needs_no_space: Batch = {}
    others: Batch = {}
    for key, calls in batch.items():
        (others if calls[0].needs_space else needs_no_space)[key] = calls
    return needs_no_space, others


def without_finished(batch: Batch) -> Batch:
    """Return a batch without the calls that are over."""
    live = {key: [each for each in group if not each.is_done] for key, group in batch.items()}
    return {key: group for key, group in live.items() if group}


def first_of_batch(batch: Batch) -> AnyCall:
    """Return the first call of a batch. All of them read, or all of them write."""
    return next(iter(batch.values()))[0]


def calls_of(batch: Batch) -> Iterator[AnyCall]:
    """Return all calls of a batch."""
    return chain.from_iterable(batch.values())


# --- requests -------------------------------------------------------------------------------------


def request_of_reads(batch: Batch, *, nested: bool) -> rpc.TxnRequest:
    """Return one transaction that reads all keys.

    Args:
        batch: the reads.
        nested: whether the server needs it within another transaction, which has a probe.
    """
    request = rpc.TxnRequest()
    inner = request.success.add().request_txn if nested else request
    for key in batch:
        inner.success.add().request_range.key = key
    if nested:
        _add_permission_probe(request, batch)
    return request


def request_of_writes(batch: Batch, *, probe: bool) -> rpc.TxnRequest:
    """Return one transaction that holds all writes, each with its own comparison and its own else.

    Args:
        batch: the writes.
        probe: whether the client is unauthenticated, so that every member has to reject the batch
            when auth is enabled.
    """
    request = rpc.TxnRequest()
    steps = request.success
    for (call,) in batch.values():
        call.add_to(steps)
    if probe:
        _add_permission_probe(request, batch)
    return request


def _add_permission_probe(request: rpc.TxnRequest, batch: Batch) -> None:
    """Compare one key at the top level of a batch, with what holds for every key.

    Old servers check no permissions within nested transactions. When auth is enabled and this
    client is unauthenticated, each member rejects the batch because of this comparison: it needs
    permission to read, and all members check it before they apply anything (`checkTxnAuth` in
    etcd's apply_auth.go, 3.4 to 3.7). A range at the top level would not do: before 3.7.0 all
    members but the one that serves the client drop those before they check permissions
    (`removeNeedlessRangeReqs`). That one would refuse what the others apply, and they would differ
    permanently.
    """
    probe = request.compare.add()
    probe.key, probe.target, probe.result, probe.version = next(iter(batch)), _VERSION, _GREATER, -1


# --- answers --------------------------------------------------------------------------------------


def answers_to_reads(batch: Batch, answer: rpc.TxnResponse, *, nested: bool) -> list[Result]:
    """Return the result of each read of a batch."""
    responses = answer.responses[0].response_txn.responses if nested else answer.responses
    return [
        calls[0].answer_in_batch(response, 0)
        for calls, response in zip(batch.values(), responses, strict=True)
    ]


def answers_to_writes(batch: Batch, answer: rpc.TxnResponse) -> list[Result]:
    """Return the result of each write of a batch. All of them share one revision."""
    revision = answer.header.revision
    return [
        calls[0].answer_in_batch(response, revision)
        for calls, response in zip(batch.values(), answer.responses, strict=True)
    ]
