"""Many concurrent calls in few requests.

A call costs Python about 0.1 ms, whatever it carries, but etcd takes a hundred reads, or a hundred compare-and-swaps on
distinct keys, in one request, one entry of its log and one fsync. So calls that are under way together ride together:

1. While nothing else is under way, a call is sent at once, as it is. Else it waits for others to go with: see `lane`.
2. Reads and writes have a lane each. What may go together is decided by `plan_batch`, in which form by `forms`: just
   before it is sent, to a server that is known by then. If there is none, the callers look for one, each by itself.
3. Each caller gets an answer of its own, as if it had sent its call by itself; its deadline is its own; and one that is
   cancelled before its call was sent takes it back.
4. A batch is sent once. If it has done nothing, since the server was away or refused it for one of its operations, it
   is left to its callers, each by itself. So nobody's mistake is another's.
5. If the outcome of a batch is not known, each of its writes is unknown by itself, and `outcomes` finds out.
6. A compare-and-swap that still waits when its key is known to be past the revision that it expects is not sent: it can
   never apply. It becomes a read of what there is, which those of others join.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from kvorum.deadlines import deadline_of
from kvorum.errors import (
    ClientClosedError,
    InvalidResourceError,
    KvorumError,
    OutcomeUnknownError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.batch import (
    Batch,
    Pending,
    answer_to,
    answers_to_reads,
    answers_to_writes,
    calls_of,
    known_revision,
    plan_batch,
    refusal,
    request_of_reads,
    request_of_writes,
)
from kvorum.etcd.connection import Connection, HasConnection
from kvorum.etcd.faults import Call, open_end
from kvorum.etcd.forms import Forms, forms_of
from kvorum.etcd.lane import Lane, Unanswered
from kvorum.etcd.quota import Quota
from kvorum.etcd.server import Channel, Method

__all__ = ["HasPipeline", "Pipeline", "PipelineStatistics", "plan_batch"]

_log = logging.getLogger(__name__)

A = TypeVar("A")


class HasPipeline(HasConnection, Protocol):
    """What a backend is made on: a client, whose pipeline is there once it was entered."""

    @property
    def pipeline(self) -> "Pipeline":
        """The pipeline of the open connection.

        Raises:
            ClientClosedError: the client is not open.
        """
        ...


class PipelineStatistics(msgspec.Struct, frozen=True):
    """What a pipeline has done so far.

    Attributes:
        reads: operations that read.
        read_requests: the requests in which they were sent.
        writes: operations that may write.
        write_requests: the requests in which they were sent.
        waiting: calls that wait to be sent.
    """

    reads: int
    read_requests: int
    writes: int
    write_requests: int
    waiting: int


class Pipeline:
    """The calls of a client that concern one key each, for any number of tasks of the event loop that it is made on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._is_on = connection.settings.pipeline
        # Who shows a certificate may be a user by it.
        self._has_identity = connection.cluster.tokens.has_user or connection.settings.cert is not None
        self._quota = Quota(connection.alarms, connection.supervisor, self._loop)
        self._reads = Lane(self._loop, self._send, self._spawn, lambda: False)
        self._writes = Lane(self._loop, self._send, self._spawn, self._is_counted)

    def __repr__(self) -> str:
        return f"<Pipeline [{'on' if self._is_on else 'off'}, reads {self._reads!r}, writes {self._writes!r}]>"

    def statistics(self) -> PipelineStatistics:
        """Return what it has done so far."""
        reads, writes = self._reads, self._writes
        return PipelineStatistics(
            reads.operations, reads.requests, writes.operations, writes.requests, reads.waiting + writes.waiting
        )

    def close(self) -> None:
        """End the calls that were not sent. Idempotent."""
        self._reads.close()
        self._writes.close()

    # --- calls ---

    async def get(self, key: bytes, subject: str) -> rpc.KeyValue | None:
        """Read a key, linearizably: the request is sent after this was called."""
        return await self._get(key, subject, self._deadline())

    async def put(self, request: rpc.PutRequest, subject: str) -> int:
        """Write a key, whatever it was; return the revision."""
        size = len(request.value)
        return await self._call(Pending(request.key, request, subject, self._deadline(), value_size=size))

    async def txn(
        self, key: bytes, request: rpc.TxnRequest, subject: str, *, value_size: int = 0, expected: int = 0
    ) -> tuple[rpc.TxnResponse, int]:
        """Run a transaction about one key; return the answer, and the revision at which it is true if it succeeded.

        Args:
            key: all that it compares, writes or reads.
            request: at its top level nothing else than that.
            subject: the key, for messages.
            value_size: bytes of the value that it writes.
            expected: the mod_revision above 0 that it compares the key with, and nothing else; it reads the key if it
                is refused. 0 if it is not like that.
        """
        call: Pending[tuple[rpc.TxnResponse, int]] = Pending(
            key, request, subject, self._deadline(), value_size=value_size, expected=expected
        )
        return await self._call(call)

    # --- one call ---

    def _deadline(self) -> float:
        return deadline_of(self._connection.settings.timeout, self._loop.time())

    async def _get(self, key: bytes, subject: str, deadline: float) -> rpc.KeyValue | None:
        call: Pending[rpc.KeyValue | None] = Pending(key, rpc.RangeRequest(key=key), subject, deadline)
        return await self._call(call)

    async def _call(self, call: Pending[A]) -> A:
        lane = self._lane_of(call)
        if lane.is_idle:
            return await self._enter(lane, call)
        if not self._rides(call):
            return await self._alone(call)
        outcome = await lane.join(call)
        if isinstance(outcome, KvorumError):
            raise outcome
        if isinstance(outcome, Unanswered):
            return await self._otherwise(call, outcome)
        return outcome

    async def _enter(self, lane: Lane, call: Pending[A]) -> A:
        known = 0
        lane.enter(call)
        try:
            answer = await self._alone(call)
            known = known_revision(answer) if call.is_write else 0
        finally:
            lane.leave(call, known)
        return answer

    async def _alone(self, call: Pending[A]) -> A:
        """Send a call by itself, with all that a connection does for one."""
        request, connection = call.request, self._connection
        self._lane_of(call).count(1)
        try:
            if isinstance(request, rpc.RangeRequest):
                answer: A = answer_to(await connection.range(request, call.subject, deadline=call.deadline))
            elif isinstance(request, rpc.PutRequest):
                answer = answer_to(await connection.put(request, call.subject, deadline=call.deadline))
            else:
                answer = answer_to(await connection.txn(request, call.subject, deadline=call.deadline))
        except StorageFullError:
            self._quota.close()
            raise
        return answer

    async def _otherwise(self, call: Pending[A], why: Unanswered) -> A:
        """Do for a call what is left to do if its batch brought no answer."""
        endpoint = self._connection.endpoint
        match why:
            case Unanswered.ALONE:
                return await self._alone(call)
            case Unanswered.SUPERSEDED:
                answer: Any = refusal(await self._get(call.key, call.subject, call.deadline)), 0
                return answer  # type: ignore[no-any-return]  # only transactions have a revision that can pass
            case Unanswered.EXPIRED if call.is_sent:
                raise open_end(_named(call), endpoint, "no answer before the deadline")
            case Unanswered.EXPIRED:
                raise UnavailableError(endpoint, "the deadline has passed before it could be sent")
            case Unanswered.CLOSED:
                raise ClientClosedError.closed()

    # --- together, or not ---

    def _lane_of(self, call: Pending[Any]) -> Lane:
        return self._writes if call.is_write else self._reads

    @property
    def _forms(self) -> Forms:
        return forms_of(self._connection.cluster.hazards, has_identity=self._has_identity)

    def _rides(self, call: Pending[Any]) -> bool:
        """Tell whether a call may wait for others to go with."""
        if not self._is_on or not self._is_prepared:
            return False
        if self._is_trusted(call):
            return True
        self._is_counted()  # it goes by itself anyway
        return False

    @property
    def _is_prepared(self) -> bool:
        cluster = self._connection.cluster
        return cluster.is_prepared(cluster.current)

    def _is_trusted(self, call: Pending[Any]) -> bool:
        """Tell whether the servers can be trusted with batches of such calls."""
        forms = self._forms
        if not call.is_write:
            return forms.reads != "single"
        return forms.writes and (self._quota.has_room or not forms.guard_quota)

    def _is_counted(self) -> bool:
        """Tell whether the next write has to go by itself, so that it is counted against the quota."""
        return self._forms.writes and self._forms.guard_quota and self._quota.is_due()

    # --- batches ---

    def _spawn(self, run: Callable[[Batch], Coroutine[Any, Any, None]], batch: Batch) -> None:
        self._connection.supervisor.spawn(run, batch, name="a batch")

    async def _send(self, batch: Batch) -> dict[bytes, int]:
        """Send a batch and settle all its calls; return the revisions at which its keys are known to be."""
        calls = list(calls_of(batch))
        try:
            return await self._settle(batch, calls)
        except KvorumError as exc:
            self._settle_failed(calls, exc)
        except Exception as exc:  # noqa: BLE001 - a mistake of ours comes out of these calls, and ends no others
            _log.exception("a batch of %d calls failed", len(calls))
            for each in calls:
                each.settle(_told(self._open_end(each, f"{type(exc).__name__}: {exc}"), exc))
        finally:
            for each in calls:  # it was cancelled, since the client is being closed
                is_open = each.is_write and each.is_sent
                each.settle(self._open_end(each, "the client was closed") if is_open else Unanswered.CLOSED)
        return {}

    async def _settle(self, batch: Batch, calls: Sequence[Pending[Any]]) -> dict[bytes, int]:
        # Whatever was so when they began to wait: from here to the sending nothing else runs.
        if not self._is_prepared or (len(batch) > 1 and not self._is_trusted(calls[0])):
            for each in calls:
                each.settle(Unanswered.ALONE)
            return {}
        live = self._without_overdue(batch)
        if not live:
            return {}
        answers = await self._once(live)
        for group, answer in zip(live.values(), answers, strict=True):
            for each in group:
                each.settle(answer)
        return dict(zip(live, map(known_revision, answers), strict=True)) if calls[0].is_write else {}

    def _without_overdue(self, batch: Batch) -> Batch:
        """Leave out the calls that nobody waits for any more, or may not."""
        now = self._loop.time()
        for each in calls_of(batch):
            if each.deadline <= now:
                each.settle(Unanswered.EXPIRED)
        live = {key: [each for each in group if not each.is_over] for key, group in batch.items()}
        return {key: group for key, group in live.items() if group}

    async def _once(self, batch: Batch) -> Sequence[Any]:
        """Send what is still wanted; return the answer for each key."""
        first = next(calls_of(batch))
        latest = max(each.deadline for each in calls_of(batch))
        # The patience of one is not to keep the others, and a request, waiting.
        deadline = min(latest, self._loop.time() + self._connection.settings.timeout)
        for each in calls_of(batch):
            each.is_sent = True
        self._lane_of(first).count(len(batch))
        once, forms = self._connection.once, self._forms
        if len(batch) == 1:
            return [answer_to(await once(_stub_of(first), first.request, _named(first), deadline))]
        call = Call("batch of", f"{len(batch)} keys", writes=first.is_write)
        if first.is_write:
            writes = request_of_writes(batch, witness=forms.witness)
            return answers_to_writes(batch, await once(_transactions, writes, call, deadline))
        nested = forms.reads == "nested"
        reads = request_of_reads(batch, nested=nested)
        return answers_to_reads(batch, await once(_transactions, reads, call, deadline), nested=nested)

    def _settle_failed(self, calls: Sequence[Pending[Any]], error: KvorumError) -> None:
        """Tell callers of a failed batch: what was refused, or not done, each of them can try by itself."""
        if isinstance(error, InvalidResourceError) and "too many operations" in str(error):  # --max-txn-ops
            lane = self._lane_of(calls[0])
            lane.largest = max(min(lane.largest, len({each.key for each in calls})) // 2, 1)
        _log.debug("a batch of %d calls failed, and is left to its callers: %s", len(calls), error)
        for each in calls:
            if isinstance(error, OutcomeUnknownError):
                each.settle(_told(self._open_end(each, error.reason), error))
            elif isinstance(error, ClientClosedError):
                each.settle(Unanswered.CLOSED)
            else:
                each.settle(Unanswered.ALONE)

    def _open_end(self, call: Pending[Any], reason: str) -> KvorumError:
        return open_end(_named(call), self._connection.endpoint, reason)


def _named(call: Pending[Any]) -> Call:
    """Return a call in the words of a message."""
    if not call.is_write:
        return Call("read", call.subject)
    return Call("put" if isinstance(call.request, rpc.PutRequest) else "transaction on", call.subject, writes=True)


def _stub_of(call: Pending[Any]) -> Method[Any, Any]:
    if isinstance(call.request, rpc.RangeRequest):
        return lambda channel: channel.kv.Range
    if isinstance(call.request, rpc.PutRequest):
        return lambda channel: channel.kv.Put
    return _transactions


def _transactions(channel: Channel) -> rpc.Unary[rpc.TxnRequest, rpc.TxnResponse]:
    return channel.kv.Txn


def _told(error: KvorumError, cause: Exception) -> KvorumError:
    """Return an error that says what it comes from, for a caller to raise."""
    error.__cause__ = cause
    return error
