"""What goes together into one request, how that request looks, and what its answer means to each caller.

Plain functions: values in, values out.

Rules of a batch:

1. No operation reads, compares or writes a key that another one of it writes. The comparisons of
   nested transactions see the state before the whole batch, so two that each check what the other
   writes would both succeed.
2. Nor does it touch a key with a write in flight: writes of one key follow each other as they were
   asked for, and whoever comes later with the same key does not overtake. (`KeyOrder` keeps those
   back that would have to wait.)
3. Reads of one key that wait together are one operation. A read is never joined to one that has
   been sent.
4. A call that was refused not long ago goes by itself, and waits elsewhere: see `aside`.
"""

import asyncio
from collections.abc import Sequence
from enum import Enum
from itertools import chain
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from kvorum.etcd.transport import _rpc as rpc

# etcd takes 128 operations in a request (--max-txn-ops), and 1.5 MiB (--max-request-bytes).
MAX_OPERATIONS: Final = 100
MAX_BYTES: Final = 1_000_000
MIN_BYTES: Final = 65_536  # no limit gets below this, whatever a server refuses

A = TypeVar("A")

_GREATER: Final = int(rpc.Compare.GREATER)
_VERSION: Final = int(rpc.Compare.VERSION)
_OVERHEAD: Final = 64  # bytes that an operation costs beside its keys and its value, at the most


class Pending(msgspec.Struct, Generic[A], eq=False):
    """A call that waits to be sent, or has been sent and waits for its answer.

    Attributes:
        key: what it reads, or compares and writes; nothing else.
        deadline: until when its caller waits, on the event loop's clock.
        write: the request that it is by itself; None if it reads the key.
        value_size: bytes of the value that it writes.
        expected: the mod_revision above 0 that the key has to be at; 0 if it does not depend on
            one.
        goes_alone: whether it waits `aside`, and is sent in no batch, since one like it was
            refused.
        is_sent: whether it has left. One that has may be applied, whoever has given up on it.
        outcome: what came of it. Set by whoever sends it; cancelled when its caller is.
    """

    key: bytes
    deadline: float
    write: rpc.PutRequest | rpc.TxnRequest | None = None
    value_size: int = 0
    expected: int = 0
    goes_alone: bool = False
    is_sent: bool = False
    outcome: asyncio.Future[Any] | None = None

    def __repr__(self) -> str:  # without the value
        return f"<Pending {'write' if self.is_write else 'read'} of {self.subject}>"

    @property
    def subject(self) -> str:
        """The key, for messages."""
        return self.key.decode(errors="backslashreplace")

    @property
    def size(self) -> int:
        """About how many bytes it adds to a request."""
        return 3 * len(self.key) + self.value_size + _OVERHEAD

    @property
    def is_write(self) -> bool:
        """Whether it may write the key."""
        return self.write is not None

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.outcome is not None and self.outcome.done()

    def settle(self, outcome: object) -> None:
        """Tell its caller what came of it, if it still waits."""
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(outcome)


class Unanswered(Enum):
    """What a call can find instead of an answer."""

    SEND_ALONE = "its batch has done nothing: send it by itself"
    SUPERSEDED = "its key is past the revision that it expects, so nothing is left of it but a read"
    EXPIRED = "its deadline has passed"
    CLOSED = "the client was closed before it was sent"


# Keys, and the calls that the operation on each is for: one, or several that read the same.
Batch: TypeAlias = dict[bytes, list[Pending[Any]]]


class Limit(NamedTuple):
    """How much a batch may hold."""

    operations: int = MAX_OPERATIONS
    size: int = MAX_BYTES

    def for_fewer(self, refused: Batch) -> "Limit":
        """Return a limit of half of a batch, which had too many operations for the server."""
        return self._replace(operations=min(self.operations, max(len(refused) // 2, 1)))

    def for_less(self, refused: Batch) -> "Limit":
        """Return a limit of half of a batch, which had too many bytes for the server."""
        sizes = [group[0].size for group in refused.values()]
        if 2 * max(sizes) > sum(sizes):  # it may have been refused for this one alone
            return self
        return self._replace(size=min(self.size, max(sum(sizes) // 2, MIN_BYTES)))


def plan_batch(waiting: Sequence[Pending[Any]], limit: Limit) -> tuple[Batch, list[Pending[Any]]]:
    """Choose what is sent now, and what waits on, by the rules above.

    Args:
        waiting: the calls, the oldest first. Those that nobody waits for any more are dropped.
        limit: how much may be sent. A single operation is sent however large it is.

    Returns:
        What is sent, and what waits, the oldest first.
    """
    now: Batch = {}
    later: list[Pending[Any]] = []
    passed: set[bytes] = set()  # keys of calls that have to wait
    size = 0
    for place, each in enumerate(waiting):
        if each.is_over:
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
                later += waiting[place:]
                break
            now[key] = [each]
    return now, later


def halves_of(batch: Batch) -> tuple[Batch, Batch]:
    """Return a batch of several operations in two parts, the first half of them first."""
    operations = list(batch.items())
    middle = len(operations) // 2
    return dict(operations[:middle]), dict(operations[middle:])


def by_need_of_room(batch: Batch) -> tuple[Batch, Batch]:
    """Return a batch of writes in two parts.

    Deletions, which a full store does, and what it refuses.
    """
    modest: Batch = {}
    others: Batch = {}
    for key, calls in batch.items():
        (others if _needs_room(calls[0]) else modest)[key] = calls
    return modest, others


def _needs_room(call: Pending[Any]) -> bool:
    if not isinstance(call.write, rpc.TxnRequest):
        return True
    steps = chain(call.write.success, call.write.failure)
    return any(step.HasField("request_put") or step.HasField("request_txn") for step in steps)


def calls_of(batch: Batch) -> chain[Pending[Any]]:
    """Return all calls that a batch is for."""
    return chain.from_iterable(batch.values())


# --- requests -------------------------------------------------------------------------------------


def request_of_reads(batch: Batch, *, nested: bool) -> rpc.TxnRequest:
    """Return one transaction that reads all keys.

    If the server needs that, within another one that has a probe.
    """
    request = rpc.TxnRequest()
    inner = request.success.add().request_txn if nested else request
    for key in batch:
        inner.success.add().request_range.key = key
    if nested:
        _add_probe(request, batch)
    return request


def request_of_writes(batch: Batch, *, probe: bool) -> rpc.TxnRequest:
    """Return one transaction that holds all writes, each with its own comparison and its own else.

    Args:
        batch: the writes.
        probe: whether the client is nobody, so that the batch has to be refused where users are
            checked.
    """
    request = rpc.TxnRequest()
    for (call,) in batch.values():
        step = request.success.add()
        if isinstance(
            call.write, rpc.PutRequest
        ):  # at the top level, where etcd counts it against its quota
            step.request_put.CopyFrom(call.write)
        elif isinstance(call.write, rpc.TxnRequest):
            step.request_txn.CopyFrom(call.write)
    if probe:
        _add_probe(request, batch)
    return request


def _add_probe(request: rpc.TxnRequest, batch: Batch) -> None:
    """Compare one key at the top level of a batch, with what holds whatever the key is.

    Old servers check nobody's permission within nested transactions. If users have to say who they
    are, and this client does not, each member refuses the batch because of this: a comparison needs
    permission to read, and all members check it, before they apply anything (`checkTxnAuth` in
    etcd's apply_auth.go, 3.4 to 3.7). A range at the top level must not do that job: before 3.7.0
    all members but the one that serves the client drop those before they check permissions
    (`removeNeedlessRangeReqs`), so that one would refuse what the others apply, and they differ for
    ever.
    """
    probe = request.compare.add()
    probe.key, probe.target, probe.result, probe.version = next(iter(batch)), _VERSION, _GREATER, -1


# --- answers: of a read the key, of a put its revision, of a transaction what etcd said and the revision of that


def answer_to(answer: rpc.RangeResponse | rpc.PutResponse | rpc.TxnResponse) -> Any:
    """Return what the caller of a request that was sent by itself gets."""
    if isinstance(answer, rpc.RangeResponse):
        return _first(answer)
    if isinstance(answer, rpc.PutResponse):
        return answer.header.revision
    return answer, answer.header.revision


def answers_to_reads(
    batch: Batch, answer: rpc.TxnResponse, *, nested: bool
) -> list[rpc.KeyValue | None]:
    """Return what each read of a batch gets."""
    responses = answer.responses[0].response_txn.responses if nested else answer.responses
    return [_first(response.response_range) for _, response in zip(batch, responses, strict=True)]


def answers_to_writes(batch: Batch, answer: rpc.TxnResponse) -> list[Any]:
    """Return what each write of a batch gets. All of them share one revision."""
    revision = answer.header.revision
    return [
        revision
        if isinstance(calls[0].write, rpc.PutRequest)
        else (response.response_txn, revision)
        for calls, response in zip(batch.values(), answer.responses, strict=True)
    ]


def known_revision(answer: Any) -> int:
    """Return the revision at which the key of an answered write is known to be; 0 if that was not said.

    A write that was applied is at its own. One that was refused tells what it found.
    """
    if isinstance(answer, int):
        return answer
    said, revision = answer
    if said.succeeded:
        return int(revision)
    found = _first(said.responses[0].response_range) if said.responses else None
    return found.mod_revision if found is not None else 0


def refusal(found: rpc.KeyValue | None) -> rpc.TxnResponse:
    """Return what etcd answers to a compare-and-swap that it refuses: the key as it is."""
    kvs = [] if found is None else [found]
    return rpc.TxnResponse(responses=[rpc.ResponseOp(response_range=rpc.RangeResponse(kvs=kvs))])


def _first(answer: rpc.RangeResponse) -> rpc.KeyValue | None:
    kvs = answer.kvs
    return kvs[0] if kvs else None
