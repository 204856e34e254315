"""Sends batches, and settles each of their calls.

1. Whether calls may share a request is decided just before they are sent, to a server that is known
   by then. If there is none, each caller sends its own call.
2. A batch that was refused for one of its operations has had no effect. It is halved until that one
   is alone, and similar calls go alone for some seconds: see `Refusals`. If there are several, or
   if the server was away, each caller sends its own call. So one caller's error never fails
   another's call.
3. If the outcome of a batch is unknown, so is that of each of its writes, and `outcomes` finds it
   out. The same holds for a batch for which there was no room: etcd may have applied it, and says
   so all the same. For some seconds after that, what needs no room is not sent with what does.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from copy import copy
from typing import Final

from kvorum.errors import (
    ClientClosedError,
    InvalidResourceError,
    KvorumError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceTooLargeError,
    StorageFullError,
    without_frames,
)
from kvorum.etcd.pipeline.admission import Admission
from kvorum.etcd.pipeline.batch import (
    Batch,
    answers_to_reads,
    answers_to_writes,
    calls_of,
    first_of_batch,
    halves_of,
    request_of_reads,
    request_of_writes,
    split_by_space,
    without_finished,
)
from kvorum.etcd.pipeline.calls import AnyCall, Result, TxnCall, Unanswered
from kvorum.etcd.pipeline.queue import BatchQueue
from kvorum.etcd.pipeline.queue_policy import QueueLimits
from kvorum.etcd.pipeline.quota import Quota
from kvorum.etcd.pipeline.refusals import Refusals
from kvorum.etcd.transport import Call, Connection, is_of_observer, no_answer

_log = logging.getLogger(__name__)

# Errors of one call: of a batch, one of its calls is to blame, and none was applied.
OF_ONE_CALL: Final = (
    InvalidResourceError,
    LeaseNotFoundError,
    PermissionDeniedError,
    ResourceTooLargeError,
)


class BatchSender:
    """The two queues of a pipeline, and the batches that leave them.

    Args:
        connection: what they are sent by.
        admission: decides which calls may share a request.
        refusals: what calls were refused for.
        quota: what is known about the store's room.
        limits: those of each queue.

    Attributes:
        reads: the queue of reads.
        writes: the queue of writes.
    """

    def __init__(
        self,
        connection: Connection,
        admission: Admission,
        refusals: Refusals,
        quota: Quota,
        limits: QueueLimits,
    ) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._timeout = connection.settings.timeout
        self._admission = admission
        self._refusals = refusals
        self._quota = quota
        self.reads: BatchQueue = BatchQueue(
            "reads", self._loop, self._send, self._spawn, limits=limits
        )
        self.writes: BatchQueue = BatchQueue(
            "writes",
            self._loop,
            self._send,
            self._spawn,
            room=lambda: admission.room,
            ask_for_room=quota.look,
            limits=limits,
        )

    def queue_of(self, call: AnyCall) -> BatchQueue:
        """Return the queue that such calls wait in."""
        return self.writes if call.is_write else self.reads

    def close(self) -> None:
        """End the calls that were not sent. Idempotent."""
        self.reads.close()
        self.writes.close()

    def _spawn(self, run: Callable[[], Coroutine[object, None, None]]) -> None:
        self._connection.supervisor.spawn(run, name="kvorum-pipeline-sender")

    async def _send(self, batch: Batch) -> Mapping[bytes, Result]:
        """Send a batch and settle all its calls; return the results of writes, by their keys."""
        try:
            try:
                if self._quota.is_full and len(batch) > 1 and first_of_batch(batch).is_write:
                    return await self._send_split_by_space(batch)
                return await self._send_and_settle(batch)
            except OF_ONE_CALL as exc:
                return await self._halve(batch, exc)
        except KvorumError as exc:
            self._settle_failed(batch, exc)
        except Exception as exc:  # noqa: BLE001 - it fails the calls of this batch, and no others
            if is_of_observer(exc):
                for each in calls_of(batch):
                    each.settle(exc)
                return {}
            # A bug.
            _log.exception("a batch of %d operations failed", len(batch))
            for each in calls_of(batch):
                each.settle(_caused(self._no_answer(each, f"{type(exc).__name__}: {exc}"), exc))
        except BaseException:  # it was cancelled, since the client is being closed
            for each in calls_of(batch):
                is_open = each.is_write and each.is_sent
                each.settle(
                    self._no_answer(each, "the client was closed") if is_open else Unanswered.CLOSED
                )
            raise
        return {}

    # --- refused batches ---

    async def _send_split_by_space(self, batch: Batch) -> Mapping[bytes, Result]:
        """Send first what a full store takes.

        With the rest it would be refused, and then nothing would ever make room.
        """
        results: dict[bytes, Result] = {}
        for part in split_by_space(batch):
            if part and (problem := await self._send_part(part, results)) is not None:
                results.update(await self._halve(part, problem))
        return results

    async def _halve(self, refused: Batch, error: KvorumError) -> Mapping[bytes, Result]:
        """Send a refused batch in halves, and the refused half again, until one call is left.

        That takes two requests for each halving, at most. If both halves are refused there are
        several such calls: to look for each would take more requests than to leave all to their
        callers.
        """
        results: dict[bytes, Result] = {}
        while True:
            for each in calls_of(refused):
                each.is_sent = False  # nothing was done
            if len(refused) == 1:
                self._settle_failed(refused, error)
                return results
            first, second = halves_of(refused)
            problem = await self._send_part(first, results)
            if problem is None and len(second) > 1:  # it is in the other half
                refused = second
                continue
            other = await self._send_part(second, results)
            if other is None and problem is not None:
                refused, error = first, problem
                continue
            for part, found in ((first, problem), (second, other)):
                if found is not None:
                    self._settle_failed(part, found)
            return results

    async def _send_part(self, part: Batch, results: dict[bytes, Result]) -> KvorumError | None:
        """Send a part of a refused batch, and add its results.

        Return the error if it is refused for one of its calls, too.
        """
        try:
            results.update(await self._send_and_settle(part))
        except OF_ONE_CALL as exc:
            return exc
        except KvorumError as exc:
            self._settle_failed(part, exc)
        return None

    # --- one request ---

    async def _send_and_settle(self, batch: Batch) -> Mapping[bytes, Result]:
        """Send a batch once, and settle its calls unless it fails."""
        # What held when they began to wait may not hold now. Nothing else runs from here to the
        # sending.
        self._admission.members.check()
        first = first_of_batch(batch)
        if not self._admission.is_prepared or (
            len(batch) > 1 and not self._admission.may_batch(first)
        ):
            for each in calls_of(batch):
                each.settle(Unanswered.SEND_ALONE)
            return {}
        live, deadline = self._depart(batch)
        if not live:
            return {}
        try:
            answers = await self._send_until(live, deadline)
        except (InvalidResourceError, ResourceTooLargeError) as exc:
            self._lower_limit(exc, live)
            raise
        for group, answer in zip(live.values(), answers, strict=True):
            for each in group:
                each.settle(answer)
        is_write = first.is_write
        if len(live) > 1:
            # What was read together is often written together next, and the other way round.
            (self.reads if is_write else self.writes).schedule()
        return dict(zip(live, answers, strict=True)) if is_write else {}

    def _depart(self, batch: Batch) -> tuple[Batch, float]:
        """Mark the calls of a batch as sent, without those that are over or past their deadline.

        Returns:
            What is to be sent, and the latest deadline of its callers.
        """
        now, latest, is_whole = self._loop.time(), 0.0, True
        for each in calls_of(batch):
            if each.deadline <= now:
                each.settle(Unanswered.EXPIRED)
            if each.is_done:
                is_whole = False
            else:
                each.is_sent = True
                latest = max(latest, each.deadline)
        return (batch if is_whole else without_finished(batch)), latest

    async def _send_until(self, batch: Batch, deadline: float) -> Sequence[Result]:
        """Send a batch; return the result for each key.

        One long deadline must not block the slot. A request that takes longer than `timeout` takes
        no slot from others, which are sent to another server if there is one.
        """
        if deadline <= self._loop.time() + self._timeout:
            return await self._send_once(batch, deadline)
        queue, cluster = self.queue_of(first_of_batch(batch)), self._connection.cluster
        server, has_slot = cluster.current, False

        def make_way() -> None:
            nonlocal has_slot
            if len(cluster.servers) > 1:
                cluster.leave(server)
            has_slot = queue.add_slot()

        timer = self._loop.call_later(self._timeout, make_way)
        try:
            return await self._send_once(batch, deadline)
        finally:
            timer.cancel()
            if has_slot:
                queue.remove_slot()

    async def _send_once(self, batch: Batch, deadline: float) -> Sequence[Result]:
        """Send a batch, and report it."""
        queue, observer = self.queue_of(first_of_batch(batch)), self._connection.observer
        queue.count(len(batch))
        size = sum(map(len, batch.values()))
        observer.batch_planned(queue.kind, size, queue.waiting)
        try:
            answers = await self._request(batch, deadline)
        except KvorumError as exc:
            observer.batch_failed(queue.kind, size, exc)
            raise
        observer.batch_sent(queue.kind, size)
        return answers

    async def _request(self, batch: Batch, deadline: float) -> Sequence[Result]:
        first = first_of_batch(batch)
        once, admission = self._connection.once, self._admission
        capabilities = admission.capabilities
        if len(batch) == 1:
            return [await first.send(once, deadline)]
        call = Call("batch", f"{len(batch)} keys", writes=first.is_write)
        if first.is_write:
            writes = request_of_writes(batch, probe=capabilities.probe)
            return answers_to_writes(batch, await once(TxnCall.stub, writes, call, deadline))
        form = capabilities.reads
        nested = form == "nested"

        def fits() -> bool:  # another server may be of another version
            return admission.capabilities.reads == form

        reads = request_of_reads(batch, nested=nested)
        return answers_to_reads(
            batch, await once(TxnCall.stub, reads, call, deadline, fits), nested=nested
        )

    def _lower_limit(
        self, error: InvalidResourceError | ResourceTooLargeError, batch: Batch
    ) -> None:
        """Lower the limit of a server that did not take a batch of so much."""
        if len(batch) == 1:
            return
        queue = self.queue_of(first_of_batch(batch))
        if isinstance(error, ResourceTooLargeError):  # --max-request-bytes
            queue.limit = queue.limit.halve_bytes(batch)
        elif "too many operations" in str(error):  # --max-txn-ops
            queue.limit = queue.limit.halve_operations(batch)

    def _settle_failed(self, batch: Batch, error: KvorumError) -> None:
        """Tell the callers of a failed batch. Each sends what had no effect by itself."""
        _log.debug("a batch of %d operations failed: %s", len(batch), error)
        without_frames(error)  # they hold the calls, and the calls this error
        calls = list(calls_of(batch))
        if isinstance(error, StorageFullError):
            self._quota.note_full()
        for each in calls:
            if isinstance(error, OutcomeUnknownError):
                each.settle(_caused(self._no_answer(each, error.reason), error))
            elif isinstance(error, ClientClosedError):
                each.settle(Unanswered.CLOSED)
            elif isinstance(error, StorageFullError) and each.is_write:
                # It may have been applied all the same, so it is not sent again. A read can tell
                # whether it was.
                each.settle(_caused(StorageFullError(error.detail), error))
            elif isinstance(error, OF_ONE_CALL) and len(batch) == 1:
                self._refusals.add(each, error)
                each.settle(error if len(calls) == 1 else _caused(copy(error), error))
            else:
                each.settle(Unanswered.SEND_ALONE)

    def _no_answer(self, call: AnyCall, reason: str) -> KvorumError:
        return no_answer(call.description, self._connection.endpoint, reason)


def _caused(error: KvorumError, cause: Exception) -> KvorumError:
    """Return an error with its cause, for a caller to raise."""
    error.__cause__ = cause
    return error
