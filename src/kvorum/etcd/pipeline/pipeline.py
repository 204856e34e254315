"""Many concurrent calls in few requests.

A call costs Python about 0.1 ms, whatever it carries, but etcd takes a hundred reads, or a hundred
compare-and-swaps on distinct keys, in one request, one entry of its log and one fsync. So calls
that are under way together ride together:

1. While nothing else is under way, a call is sent at once, as it is. Else it waits for others to go
   with: see `lane`.
2. Reads and writes have a lane each. What may go together is decided by `plan_batch`, in which form
   by `forms`: just before it is sent, to a server that is known by then. If there is none, the
   callers look for one, each by itself.
3. Each caller gets an answer of its own, as if it had sent its call by itself; its deadline is its
   own; and one that is cancelled before its call was sent takes it back.
4. A batch that was refused for one of its operations has done nothing. It is halved until that one
   is alone, and goes by itself for some seconds; if there are several, or if the server was away,
   all calls are left to their callers, each by itself. So nobody's mistake is another's.
5. If the outcome of a batch is not known, each of its writes is unknown by itself, and `outcomes`
   finds out. So is each of a batch for which there was no room: etcd may have applied it, and says
   so all the same. For some seconds after that, what needs no room is not sent with what does.
6. A compare-and-swap that still waits when its key is known to be past the revision that it expects
   is not sent: it can never apply. It becomes a read of what there is, which those of others join.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from kvorum.deadlines import deadline_of
from kvorum.errors import (
    ClientClosedError,
    InvalidResourceError,
    KvorumError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.pipeline.batch import (
    MAX_OPERATIONS,
    Batch,
    Pending,
    Unanswered,
    answer_to,
    answers_to_reads,
    answers_to_writes,
    by_need_of_room,
    calls_of,
    halves_of,
    plan_batch,
    refusal,
    request_of_reads,
    request_of_writes,
)
from kvorum.etcd.pipeline.capabilities import Capabilities, capabilities_of
from kvorum.etcd.pipeline.queue import BatchQueue
from kvorum.etcd.pipeline.quota import Quota
from kvorum.etcd.transport import (
    Call,
    Channel,
    Connection,
    HasConnection,
    Members,
    Method,
    no_answer,
)
from kvorum.etcd.transport import _rpc as rpc

__all__ = ["HasPipeline", "Pipeline", "PipelineStatistics", "plan_batch"]

_log = logging.getLogger(__name__)

_SUSPICION: Final = (
    5.0  # seconds for which calls about a key go by themselves, after one was refused
)
_MAX_SUSPECTS: Final = 1_000  # keys; of more the oldest is forgotten
_OF_ONE_CALL: Final = (
    InvalidResourceError,
    LeaseNotFoundError,
    PermissionDeniedError,
    ResourceTooLargeError,
)

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
    """The calls of a client that concern one key each, for any number of tasks of the event loop that it is made on.

    Attributes:
        connection: what it sends them by.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection = connection
        self._loop = asyncio.get_running_loop()
        self._timeout = connection.settings.timeout
        self._is_on = connection.settings.pipeline
        # Who shows a certificate may be a user by it.
        self._has_identity = (
            connection.cluster.tokens.has_user or connection.settings.cert is not None
        )
        self._reads = BatchQueue(self._loop, self._send, self._spawn)
        self._writes = BatchQueue(self._loop, self._send, self._spawn, self._room)
        self._suspects: dict[
            bytes, float
        ] = {}  # keys of calls that were refused, and until when that counts
        self._members = Members(connection, self._reform)
        self._forms: Capabilities
        self._reform()
        if self._is_on:
            self._members.start()
        self._quota = Quota(
            connection.alarms, connection.supervisor, self._loop, self._writes.gather
        )

    def __repr__(self) -> str:
        return f"<Pipeline [{'on' if self._is_on else 'off'}, reads {self._reads!r}, writes {self._writes!r}]>"

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
        """Wait, for a moment at the most, until it is known what the members of the cluster take."""
        if self._is_on:
            await self._members.first()

    def close(self) -> None:
        """End the calls that were not sent. Idempotent."""
        self._reads.close()
        self._writes.close()

    # --- calls: plain functions that return coroutines, since each frame more is paid for with each call

    def get(self, key: bytes) -> Coroutine[Any, Any, rpc.KeyValue | None]:
        """Read a key, linearizably: the request is sent after this was called."""
        return self._call(self._reads, Pending(key, self._deadline()))

    def put(self, request: rpc.PutRequest) -> Coroutine[Any, Any, int]:
        """Write a key, whatever it was; return the revision."""
        return self._call(
            self._writes, Pending(request.key, self._deadline(), request, len(request.value))
        )

    def txn(
        self, key: bytes, request: rpc.TxnRequest, *, value_size: int = 0, expected: int = 0
    ) -> Coroutine[Any, Any, tuple[rpc.TxnResponse, int]]:
        """Run a transaction about one key; return the answer, and the revision at which it is true if it succeeded.

        Args:
            key: all that it compares, writes or reads.
            request: at its top level nothing else than that.
            value_size: bytes of the value that it writes.
            expected: the mod_revision above 0 that it compares the key with, and nothing else; it
                reads the key if it is refused. 0 if it is not like that.
        """
        return self._call(
            self._writes, Pending(key, self._deadline(), request, value_size, expected)
        )

    def _deadline(self) -> float:
        return deadline_of(self._timeout, self._loop.time())

    # --- one call ---

    async def _call(self, lane: BatchQueue, call: Pending[A]) -> A:
        if lane.is_idle:
            return await self._enter(lane, call)
        if not self._rides(call):
            return await self._alone(lane, call)
        if self._suspects:
            call.goes_alone = self._is_suspect(call)
        outcome = await lane.join(call)
        if isinstance(outcome, KvorumError):
            raise outcome
        if isinstance(outcome, Unanswered):
            return await self._fall_back(lane, call, outcome)
        return outcome

    async def _enter(self, lane: BatchQueue, call: Pending[A]) -> A:
        lane.enter(call)
        try:
            answer = await self._alone(lane, call)
        except BaseException:
            lane.leave(call, None)
            raise
        lane.leave(call, answer)
        return answer

    async def _alone(self, lane: BatchQueue, call: Pending[A]) -> A:
        """Send a call by itself, with all that a connection does for one."""
        write, connection, subject = call.write, self.connection, call.subject
        lane.count(1)
        try:
            if write is None:
                answer: A = answer_to(
                    await connection.range(_read(call), subject, deadline=call.deadline)
                )
            elif isinstance(write, rpc.PutRequest):
                answer = answer_to(await connection.put(write, subject, deadline=call.deadline))
            else:
                answer = answer_to(await connection.txn(write, subject, deadline=call.deadline))
        except StorageFullError:
            self._quota.close()
            raise
        except _OF_ONE_CALL:
            self._suspect(call)
            raise
        return answer

    async def _fall_back(self, lane: BatchQueue, call: Pending[A], why: Unanswered) -> A:
        """Do for a call what is left to do if its batch brought no answer."""
        endpoint = self.connection.endpoint
        match why:
            case Unanswered.SEND_ALONE:
                return await self._alone(lane, call)
            case Unanswered.SUPERSEDED:
                found: rpc.KeyValue | None = await self._call(
                    self._reads, Pending(call.key, call.deadline)
                )
                answer: Any = refusal(found), 0
                return answer  # type: ignore[no-any-return]  # only transactions have a revision that can pass
            case Unanswered.EXPIRED if call.is_sent:
                raise no_answer(_named(call), endpoint, "no answer before the deadline")
            case Unanswered.EXPIRED:
                raise UnavailableError(endpoint, "the deadline has passed before it could be sent")
            case Unanswered.CLOSED:
                raise self.connection.supervisor.closed()

    # --- together, or not ---

    def _lane_of(self, call: Pending[Any]) -> BatchQueue:
        return self._writes if call.is_write else self._reads

    def _reform(self) -> None:
        """Choose the forms of batches anew, since what they follow from has changed."""
        cluster, known = self.connection.cluster, self._members.known
        self._forms = capabilities_of(cluster.hazards, known, has_identity=self._has_identity)

    def _rides(self, call: Pending[Any]) -> bool:
        """Tell whether a call may wait for others to go with."""
        # A first look, for each call; the connection and the token are looked at just before a
        # batch is sent.
        if not self._is_on or not self.connection.cluster.current.is_ready:
            return False
        if self._is_trusted(call):
            return True
        # Where room is not known, those that come together wait until it is: see `_room`.
        return (
            call.is_write and self._forms.writes and (self._quota.is_awaited or self._quota.is_due)
        )

    @property
    def _is_prepared(self) -> bool:
        cluster = self.connection.cluster
        return cluster.is_prepared(cluster.current)

    def _is_trusted(self, call: Pending[Any]) -> bool:
        """Tell whether the servers can be trusted with batches of such calls."""
        forms = self._forms
        if call.write is None:
            return forms.reads != "single"
        return forms.writes and (self._quota.has_room or not forms.guard_quota)

    def _room(self) -> int:
        """Return how many writes the next request may hold: none for as long as it is asked whether any may.

        It may be what asks. Then it is one write, which is counted against the quota. (If even that
        cannot be sent, as its key is busy, the one that keeps it busy was counted.)
        """
        if self._quota.is_awaited:
            return 0
        forms = self._forms
        if forms.writes and forms.guard_quota and self._quota.is_due:
            self._quota.look()
            return 1
        return MAX_OPERATIONS

    # --- batches ---

    def _spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.connection.supervisor.spawn(run, name="a sender")

    async def _send(self, batch: Batch) -> Mapping[bytes, object]:
        """Send a batch and settle all its calls; return what writes got, by their keys."""
        try:
            try:
                if self._quota.is_full and len(batch) > 1 and next(calls_of(batch)).is_write:
                    return await self._settle_apart(batch)
                return await self._settle(batch)
            except _OF_ONE_CALL as exc:
                return await self._halve(batch, exc)
        except KvorumError as exc:
            self._settle_failed(batch, exc)
        except Exception as exc:  # noqa: BLE001 - a mistake of ours comes out of these calls, and ends no others
            _log.exception("a batch of %d operations failed", len(batch))
            for each in calls_of(batch):
                each.settle(_told(self._open_end(each, f"{type(exc).__name__}: {exc}"), exc))
        except BaseException:  # it was cancelled, since the client is being closed
            for each in calls_of(batch):
                is_open = each.is_write and each.is_sent
                each.settle(
                    self._open_end(each, "the client was closed") if is_open else Unanswered.CLOSED
                )
            raise
        return {}

    async def _settle_apart(self, batch: Batch) -> Mapping[bytes, object]:
        """Send first what a full store does.

        With the rest it would be refused, and then nothing ever makes room.
        """
        answers: dict[bytes, object] = {}
        for part in by_need_of_room(batch):
            if part and (problem := await self._part(part, answers)) is not None:
                answers.update(await self._halve(part, problem))
        return answers

    async def _halve(self, refused: Batch, error: KvorumError) -> Mapping[bytes, object]:
        """Send a refused batch in halves, and the refused half again, until the call is alone that it was refused for.

        That takes two requests for each time that it is halved, at the most. If both halves are
        refused there are several such calls: to look for each would take more requests than to
        leave all to their callers.
        """
        answers: dict[bytes, object] = {}
        while True:
            for each in calls_of(refused):
                each.is_sent = False  # nothing was done
            if len(refused) == 1:
                self._settle_failed(refused, error)
                return answers
            first, second = halves_of(refused)
            problem = await self._part(first, answers)
            if problem is None and len(second) > 1:  # it is in the other half
                refused = second
                continue
            other = await self._part(second, answers)
            if other is None and problem is not None:
                refused, error = first, problem
                continue
            for part, found in ((first, problem), (second, other)):
                if found is not None:
                    self._settle_failed(part, found)
            return answers

    async def _part(self, part: Batch, answers: dict[bytes, object]) -> KvorumError | None:
        """Send a part of a refused batch.

        Return the error if it is refused for one of its calls, too.
        """
        try:
            answers.update(await self._settle(part))
        except _OF_ONE_CALL as exc:
            return exc
        except KvorumError as exc:
            self._settle_failed(part, exc)
        return None

    async def _settle(self, batch: Batch) -> Mapping[bytes, object]:
        # Whatever was so when they began to wait: from here to the sending nothing else runs.
        self._members.check()
        first = next(calls_of(batch))
        if not self._is_prepared or (len(batch) > 1 and not self._is_trusted(first)):
            for each in calls_of(batch):
                each.settle(Unanswered.SEND_ALONE)
            return {}
        live, deadline = self._depart(batch)
        if not live:
            return {}
        try:
            answers = await self._once(live, deadline)
        except (InvalidResourceError, ResourceTooLargeError) as exc:
            self._learn_from(exc, live)
            raise
        for group, answer in zip(live.values(), answers, strict=True):
            for each in group:
                each.settle(answer)
        is_write = first.is_write
        if (
            len(live) > 1
        ):  # what is read together is often written together next, and the other way round
            (self._reads if is_write else self._writes).gather()
        return dict(zip(live, answers, strict=True)) if is_write else {}

    def _depart(self, batch: Batch) -> tuple[Batch, float]:
        """Take leave of a batch, without the calls that nobody waits for any more, or may not.

        Returns:
            What is to be sent, and until when anybody waits for it.
        """
        now, latest, is_whole = self._loop.time(), 0.0, True
        for each in calls_of(batch):
            if each.deadline <= now:
                each.settle(Unanswered.EXPIRED)
            if each.is_over:
                is_whole = False
            else:
                each.is_sent = True
                latest = max(latest, each.deadline)
        if is_whole:  # as mostly
            return batch, latest
        wanted = {key: [each for each in group if not each.is_over] for key, group in batch.items()}
        return {key: group for key, group in wanted.items() if group}, latest

    async def _once(self, batch: Batch, deadline: float) -> Sequence[Any]:
        """Send a batch; return the answer for each key."""
        if deadline <= self._loop.time() + self._timeout:
            return await self._request(batch, deadline)
        return await self._patiently(batch, deadline)

    async def _patiently(self, batch: Batch, deadline: float) -> Sequence[Any]:
        """Send what somebody waits for longer than is usual. The patience of one is not to keep others waiting.

        So from the usual time on it takes no place from others, which are sent to another server,
        if there is one.
        """
        lane, cluster = self._lane_of(next(calls_of(batch))), self.connection.cluster
        server, has_given_way = cluster.current, False

        def give_way() -> None:
            nonlocal has_given_way
            if len(cluster.servers) > 1:
                cluster.leave(server)
            has_given_way = lane.give_way()

        timer = self._loop.call_later(self._timeout, give_way)
        try:
            return await self._request(batch, deadline)
        finally:
            timer.cancel()
            if has_given_way:
                lane.make_up()

    async def _request(self, batch: Batch, deadline: float) -> Sequence[Any]:
        first = next(calls_of(batch))
        self._lane_of(first).count(len(batch))
        once, forms = self.connection.once, self._forms
        if len(batch) == 1:
            request = first.write if first.write is not None else _read(first)
            return [answer_to(await once(_stub_of(first), request, _named(first), deadline))]
        call = Call("batch of", f"{len(batch)} keys", writes=first.is_write)
        if first.is_write:
            writes = request_of_writes(batch, probe=forms.probe)
            return answers_to_writes(batch, await once(_transactions, writes, call, deadline))
        nested = forms.reads == "nested"
        reads = request_of_reads(batch, nested=nested)
        return answers_to_reads(
            batch, await once(_transactions, reads, call, deadline), nested=nested
        )

    def _learn_from(
        self, error: InvalidResourceError | ResourceTooLargeError, batch: Batch
    ) -> None:
        """Lower the limit of a server that did not take a batch of so much."""
        if len(batch) == 1:
            return
        lane = self._lane_of(next(calls_of(batch)))
        if isinstance(error, ResourceTooLargeError):  # --max-request-bytes
            lane.limit = lane.limit.for_less(batch)
        elif "too many operations" in str(error):  # --max-txn-ops
            lane.limit = lane.limit.for_fewer(batch)

    def _settle_failed(self, batch: Batch, error: KvorumError) -> None:
        """Tell the callers of a failed batch.

        What was refused, or not done, each of them can try by itself.
        """
        _log.debug("a batch of %d operations failed: %s", len(batch), error)
        calls = list(calls_of(batch))
        if isinstance(error, StorageFullError):
            self._quota.close()
        for each in calls:
            if isinstance(error, OutcomeUnknownError):
                each.settle(_told(self._open_end(each, error.reason), error))
            elif isinstance(error, ClientClosedError):
                each.settle(Unanswered.CLOSED)
            elif isinstance(error, StorageFullError) and each.is_write:
                # It may have been applied all the same, so it is not sent again; whether it was a
                # read can tell.
                each.settle(_told(StorageFullError(error.detail), error))
            elif isinstance(error, _OF_ONE_CALL) and len(calls) == 1:
                self._suspect(each)
                each.settle(error)
            else:
                each.settle(Unanswered.SEND_ALONE)

    # --- calls that were refused ---

    def _suspect(self, call: Pending[Any]) -> None:
        """Let calls about a key go by themselves for a while.

        Who repeats what is refused undoes nobody's batch.
        """
        suspects = self._suspects
        suspects.pop(call.key, None)
        if len(suspects) >= _MAX_SUSPECTS:
            del suspects[next(iter(suspects))]
        suspects[call.key] = self._loop.time() + _SUSPICION

    def _is_suspect(self, call: Pending[Any]) -> bool:
        until = self._suspects.get(call.key)
        if until is None:
            return False
        if until > self._loop.time():
            return True
        del self._suspects[call.key]
        return False

    def _open_end(self, call: Pending[Any], reason: str) -> KvorumError:
        return no_answer(_named(call), self.connection.endpoint, reason)


def _named(call: Pending[Any]) -> Call:
    """Return a call in the words of a message."""
    if call.write is None:
        return Call("read", call.subject)
    return Call(
        "put" if isinstance(call.write, rpc.PutRequest) else "transaction on",
        call.subject,
        writes=True,
    )


def _read(call: Pending[Any]) -> rpc.RangeRequest:
    return rpc.RangeRequest(key=call.key)


def _stub_of(call: Pending[Any]) -> Method[Any, Any]:
    if call.write is None:
        return lambda channel: channel.kv.Range
    if isinstance(call.write, rpc.PutRequest):
        return lambda channel: channel.kv.Put
    return _transactions


def _transactions(channel: Channel) -> rpc.Unary[rpc.TxnRequest, rpc.TxnResponse]:
    return channel.kv.Txn


def _told(error: KvorumError, cause: Exception) -> KvorumError:
    """Return an error that says what it comes from, for a caller to raise."""
    error.__cause__ = cause
    return error
