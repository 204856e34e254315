"""Many concurrent calls in few requests.

A call costs Python about 0.1 ms, whatever it holds, but etcd takes a hundred reads, or a hundred
compare-and-swaps on distinct keys, in one request, one entry of its log and one fsync. So
concurrent calls are batched:

1. While no other call is in flight, a call is sent at once, as it is. Otherwise it waits for others
   to share a request with: see `queue`.
2. Reads and writes have a queue each. `plan_batch` decides which calls share a request, `Admission`
   whether and in which form, and `BatchSender` sends them.
3. Each caller gets an answer of its own, as if it had sent its call alone. Its deadline is its own,
   and a call that is cancelled before it was sent is never sent.
4. A compare-and-swap that still waits when its key is known to be past the revision that it expects
   is not sent: it can never apply. It becomes a read of the key, which those of others join.
"""

import asyncio
from collections.abc import Awaitable

import msgspec

from kvorum.deadlines import deadline_of
from kvorum.errors import StorageFullError, UnavailableError
from kvorum.etcd.pipeline.admission import Admission
from kvorum.etcd.pipeline.calls import (
    A,
    PendingCall,
    PutCall,
    ReadCall,
    TxnCall,
    TxnResult,
    Unanswered,
)
from kvorum.etcd.pipeline.queue import BatchQueue
from kvorum.etcd.pipeline.queue_policy import DEFAULT_LIMITS, QueueLimits
from kvorum.etcd.pipeline.quota import DEFAULT_TIMING, Quota, QuotaTiming
from kvorum.etcd.pipeline.refusals import DEFAULT_LIMITS as DEFAULT_REFUSALS
from kvorum.etcd.pipeline.refusals import RefusalLimits, Refusals
from kvorum.etcd.pipeline.sender import OF_ONE_CALL, BatchSender
from kvorum.etcd.transport import Connection, no_answer
from kvorum.etcd.transport import _rpc as rpc


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
    """The calls of a client about one key each, for any number of tasks of one event loop.

    Args:
        connection: what it sends them by.
        queue: limits of each of its two queues.
        quota: how often the alarms are asked for.
        refusals: how long calls go alone after a similar one was refused.

    Attributes:
        connection: what it sends them by.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        queue: QueueLimits = DEFAULT_LIMITS,
        quota: QuotaTiming = DEFAULT_TIMING,
        refusals: RefusalLimits = DEFAULT_REFUSALS,
    ) -> None:
        self.connection: Connection = connection
        self._loop = asyncio.get_running_loop()
        self._timeout = connection.settings.timeout
        self._is_on = connection.settings.pipeline
        self._refusals = Refusals(self._loop.time, refusals)
        self._quota = Quota(connection.alarms, connection.supervisor, self._loop, quota)
        self._admission = Admission(connection, self._quota)
        self._members = self._admission.members
        self._sender = BatchSender(connection, self._admission, self._refusals, self._quota, queue)
        self._reads, self._writes = self._sender.reads, self._sender.writes
        self._quota.on_answer = self._writes.schedule

    def __repr__(self) -> str:
        state = "on" if self._is_on else "off"
        return f"<Pipeline [{state}, reads {self._reads!r}, writes {self._writes!r}]>"

    def statistics(self) -> PipelineStatistics:
        """Return what it has done so far."""
        reads, writes = self._reads, self._writes
        return PipelineStatistics(
            reads.operations,
            reads.requests,
            writes.operations,
            writes.requests,
            reads.waiting + writes.waiting,
        )

    async def open(self) -> None:
        """Wait, a moment at most, until it is known what the members of the cluster take."""
        if self._is_on:
            await self._members.first()

    def close(self) -> None:
        """End the calls that were not sent; it waits for nothing. Idempotent."""
        self._sender.close()

    # --- calls: plain functions that return awaitables, since each coroutine costs every call ---

    def get(self, key: bytes) -> Awaitable[rpc.KeyValue | None]:
        """Read a key, linearizably: the request is sent after this was called."""
        return self._call(self._reads, ReadCall(key, self._deadline()))

    def put(self, request: rpc.PutRequest) -> Awaitable[int]:
        """Write a key whatever its state; return the revision."""
        return self._call(
            self._writes,
            PutCall(request.key, self._deadline(), len(request.value), request=request),
        )

    def txn(
        self, key: bytes, request: rpc.TxnRequest, *, value_size: int = 0, expected: int = 0
    ) -> Awaitable[TxnResult]:
        """Run a transaction about one key.

        Args:
            key: all that it compares, writes or reads.
            request: at its top level nothing else than that.
            value_size: bytes of the value that it writes.
            expected: the mod_revision above 0 that it compares the key with; if it is refused, it
                reads the key. 0 if it compares anything else.

        Returns:
            The answer, and the revision at which it is true if it succeeded.
        """
        return self._call(
            self._writes, TxnCall(key, self._deadline(), value_size, expected, request=request)
        )

    def _deadline(self) -> float:
        return deadline_of(self._timeout, self._loop.time())

    async def _call(self, queue: BatchQueue, call: PendingCall[A]) -> A:
        if queue.is_idle:
            return await self._send_single(queue, call)
        if not self._admission.may_wait(call):
            return await self._send_alone(queue, call)
        if self._refusals.until:
            call.goes_alone = self._refusals.concern(call)
        outcome = await queue.join(call)
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome, call  # its traceback holds this frame
        if isinstance(outcome, Unanswered):
            return await self._fall_back(queue, call, outcome)
        return outcome

    async def _send_single(self, queue: BatchQueue, call: PendingCall[A]) -> A:
        """Send a call that found the queue idle."""
        queue.begin_single(call)
        try:
            answer = await self._send_alone(queue, call)
        except BaseException:
            queue.end_single(call, None)
            raise
        queue.end_single(call, answer)
        return answer

    async def _send_alone(self, queue: BatchQueue, call: PendingCall[A]) -> A:
        """Send a call in a request of its own, with all that a connection does for one."""
        queue.count(1)
        try:
            return await call.send(self.connection.send, call.deadline)
        except StorageFullError:
            self._quota.note_full()
            raise
        except OF_ONE_CALL as exc:
            self._refusals.add(call, exc)
            raise

    async def _fall_back(self, queue: BatchQueue, call: PendingCall[A], why: Unanswered) -> A:
        """Do what is left to do for a call whose batch brought no answer."""
        endpoint = self.connection.endpoint
        match why:
            case Unanswered.SEND_ALONE:
                return await self._send_alone(queue, call)
            case Unanswered.SUPERSEDED:
                read = ReadCall(call.key, call.deadline)
                return call.answer_when_superseded(await self._call(self._reads, read))
            case Unanswered.EXPIRED if call.is_sent:
                raise no_answer(call.description, endpoint, "no answer before the deadline")
            case Unanswered.EXPIRED:
                raise UnavailableError(endpoint, "the deadline has passed before it could be sent")
            case Unanswered.CLOSED:
                raise self.connection.supervisor.closed()
