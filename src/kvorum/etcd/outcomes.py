"""The outcome of a write whose answer was lost, or says that the store is full.

Rules:

1. A transaction that compares the mod_revision of a key with a number above 0, and writes that key,
   can be sent again as it is: at most one copy can apply. If the second one applies, the first
   never will. If it is refused because the key has changed, the first change of the key after that
   revision tells whether it was this write.
2. A read that finds nothing proves nothing about a write without an answer: the write may still
   arrive.
3. "Database space exceeded" is an answer. etcd gives it for a request that it has refused, and for
   one that it has applied as the quota was used up: `quotaApplierV3` in its server/etcdserver/apply
   applies first. In both cases the request is finished, so reading decides. A request that needs no
   space can then be sent again.
4. A value proves a write only if no other write has these bytes (`Operation.unique`), and if its
   mod_revision is above one that was known before the write was sent: the same bytes may have been
   there before. The lease has to match, too.
5. History counts only if it is whole: see `kvorum.etcd.watch.history`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

import anyio

from kvorum.deadlines import deadline_of
from kvorum.errors import KvorumError, OutcomeUnknownError, StorageFullError, UnavailableError
from kvorum.etcd.entries import DELETE, first_of
from kvorum.etcd.transport import Connection
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import first_change
from kvorum.runtime import Limits, gather
from kvorum.storage import KeySpace, Operation

T = TypeVar("T")

_PAUSE: Final = 0.05  # seconds before a retry: a connection may fail at once each time


class SearchLimits(Limits, frozen=True, kw_only=True):
    """Limits of the search for a value that was written and has been deleted since.

    Attributes:
        revisions: at how many revisions a key is read at most. If more have passed since the write
            was sent, its outcome stays unknown.
        at_once: how many reads of one search run concurrently. `Connection.searches` limits the
            number of searches.
    """

    revisions: int = 100
    at_once: int = 4


class LostWrite:
    """A write whose reply is lost or does not reveal its outcome.

    Args:
        connection: where it was sent.
        keys: the key space of the backend.
        operations: the operations, of which all or none were applied.
        lost: a copy of it is raised if the outcome stays unknown. Its `since` is a revision known
            before the write was sent.
        limits: of the search for a value that is gone.
    """

    def __init__(
        self,
        connection: Connection,
        keys: KeySpace,
        operations: Sequence[Operation],
        lost: OutcomeUnknownError,
        limits: SearchLimits | None = None,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._writes = [operation for operation in operations if operation.writes]
        self._compared = [operation for operation in operations if operation.expected is not None]
        self._lost = lost
        self._limits = SearchLimits() if limits is None else limits
        self._deadline = deadline_of(connection.settings.timeout)

    # --- questions ---

    async def resolve_by_resending(self, request: rpc.TxnRequest) -> tuple[rpc.TxnResponse, int]:
        """Return the outcome of a transaction whose answer was lost.

        Args:
            request: the same transaction as the one that was sent.

        Returns:
            An answer, and the revision at which it was applied. The revision is 0 if it was
            refused and never will be applied; then the answer is the refusal.

        Raises:
            StorageFullError: it was refused, and never will be applied.
            OutcomeUnknownError: the outcome was not found within another deadline, or the history
                that would tell is compacted.
        """
        fence = self._fence()
        if fence is None:
            return rpc.TxnResponse(), await self.find_value()
        return await self._bounded(self._send_again(fence, request))

    async def find_value(self) -> int:
        """Return the revision of a write whose answer was lost, if one of its values is there.

        Raises:
            OutcomeUnknownError: none is there. The write may have been overwritten, or may still
                arrive.
        """
        if revision := await self._bounded(self._seen()):
            return revision
        raise self._unknown()

    async def decide(self, full: StorageFullError) -> int:
        """Return the revision of a write that was answered with "database space exceeded".

        Args:
            full: the error with that answer.

        Raises:
            StorageFullError: it was not applied, and never will be.
            OutcomeUnknownError: the outcome was not found within another deadline, or the history
                that would tell is compacted.
        """
        if revision := await self._bounded(self._outcome()):
            return revision
        raise StorageFullError(full.detail) from full.__cause__

    async def decide_or_resend(
        self, full: StorageFullError, request: rpc.TxnRequest
    ) -> tuple[rpc.TxnResponse, int]:
        """Do the same for a transaction, and retry one that needs no space and was not applied.

        It may have been refused because of a put in the same batch. The retry is not batched.

        Returns:
            An answer, and the revision at which it was applied; 0 if its comparisons failed.

        Raises: like `decide`.
        """
        try:
            return rpc.TxnResponse(), await self.decide(full)
        except StorageFullError:
            if any(operation.value is not None for operation in self._writes):
                raise
        try:
            answer = await self._connection.txn(
                request, self._lost.subject, deadline=self._deadline
            )
        except OutcomeUnknownError:
            return await self.resolve_by_resending(request)
        except StorageFullError as again:  # some versions of etcd refuse deletions, too
            return rpc.TxnResponse(), await self.decide(again)
        return answer, answer.header.revision if answer.succeeded else 0

    def _unknown(self) -> OutcomeUnknownError:
        """Return a new error each time: the traceback of one that is kept would hold its keeper."""
        lost = self._lost
        return OutcomeUnknownError(lost.subject, lost.reason, lost.operations, lost.since)

    # --- deadlines and retries ---

    async def _bounded(self, step: Awaitable[T]) -> T:
        """Wait for a step until the deadline. If it fails, the outcome stays unknown."""
        with anyio.move_on_after(self._deadline - anyio.current_time()):
            try:
                return await step
            except StorageFullError:
                raise
            except KvorumError as exc:  # a missing permission, too
                if isinstance(exc, OutcomeUnknownError):
                    raise
                raise self._unknown() from exc
        raise self._unknown()

    async def _retried(self, step: Callable[[], Awaitable[T]]) -> T:
        """Retry an idempotent step while servers are away or connections break."""
        while True:
            try:
                return await step()
            except (UnavailableError, OutcomeUnknownError):
                await anyio.sleep(_PAUSE)

    # --- a transaction that is its own fence ---

    def _fence(self) -> Operation | None:
        """Return the operation that makes it safe to send the transaction again, or None.

        Preferably one with a unique value.
        """
        fences = [operation for operation in self._writes if operation.expected]
        return next(
            (operation for operation in fences if operation.unique), fences[0] if fences else None
        )

    async def _send_again(
        self, fence: Operation, request: rpc.TxnRequest
    ) -> tuple[rpc.TxnResponse, int]:
        send, subject = self._connection.txn, self._lost.subject
        try:
            answer = await self._retried(partial(send, request, subject, deadline=self._deadline))
        except StorageFullError as full:  # of the second copy; the first may still arrive
            if await self._mod_revision(fence.key) == fence.expected:
                raise self._unknown() from full
            if revision := await self._first_after(fence):
                return rpc.TxnResponse(succeeded=True), revision
            raise
        if answer.succeeded:
            return answer, answer.header.revision
        found = self._found(answer)
        if found[fence.key].mod_revision == fence.expected:
            return answer, self._never(found)
        return answer, await self._first_after(fence)

    async def _first_after(self, fence: Operation) -> int:
        """Return the revision of a transaction whose fence has changed; 0 if it was not applied."""
        if revision := await self._seen():
            return revision
        expected = fence.expected or 0
        change = await self._find(fence.key, expected, 0, lambda _: True)
        revision = change.kv.mod_revision if change is not None else 0
        if change is None or not _matches(fence, change):
            return 0
        if fence.unique:
            return revision
        for operation in self._writes:
            if operation.unique:
                kv = first_of(await self._read(operation.key, revision))
                is_ours = kv is not None and kv.mod_revision == revision and _is_of(operation, kv)
                return revision if is_ours else 0
        raise self._unknown()  # another client may have written the same

    def _never(self, found: Mapping[str, rpc.KeyValue]) -> int:
        """Return 0 if a comparison that failed can never hold again.

        Raises:
            OutcomeUnknownError: it can: a key that must not exist may be deleted before the first
                copy of the transaction arrives.
        """
        for operation in self._compared:
            kv, value = found[operation.key], operation.expected_value
            # A key never returns to a mod_revision, nor to another value at the same one.
            if operation.expected and (
                kv.mod_revision != operation.expected or value not in {None, kv.value}
            ):
                return 0
        raise self._unknown()

    def _found(self, refusal: rpc.TxnResponse) -> dict[str, rpc.KeyValue]:
        """Return the keys that a refused transaction compared; mod_revision is 0 if absent."""
        return {
            operation.key: first_of(response.response_range) or rpc.KeyValue()
            for operation, response in zip(self._compared, refusal.responses, strict=True)
        }

    # --- a write that was answered with "database space exceeded" ---

    async def _outcome(self) -> int:
        """Return the revision at which it was applied; 0 if it was not."""
        for operation in sorted(self._writes, key=lambda operation: not operation.unique):
            revision = await self._outcome_of(operation)
            if revision is not None:
                return revision
        raise self._unknown()

    async def _outcome_of(self, operation: Operation) -> int | None:
        """Return what the key of one operation tells.

        Returns:
            The revision of the write, 0 if it was not applied, or None if the key does not tell.
        """
        answer, since = await self._read(operation.key), self._since(operation)
        kv, now = first_of(answer), answer.header.revision
        if not since:
            return None
        if now == self._lost.since:
            return 0  # the store has not changed
        if kv is not None:
            last = kv.create_revision if operation.value is None else kv.mod_revision
            if last <= since:
                return 0  # the key was not deleted, or not written
        if operation.expected:
            return await self._first_after(operation)
        if kv is not None:
            return await self._search(operation, kv.mod_revision)
        return await self._probe(operation, now)

    async def _search(self, operation: Operation, until: int) -> int | None:
        """Look for an operation among the changes of a key, up to its last one."""
        since = self._since(operation)
        change = await self._find(
            operation.key, since, until, lambda change: _matches(operation, change)
        )
        if change is None:
            return 0
        return change.kv.mod_revision if operation.unique else None

    async def _probe(self, operation: Operation, now: int) -> int | None:
        """Look for a value that may have been written and deleted, at each revision since."""
        key, since = operation.key, self._since(operation)
        if operation.value is None or now - since > self._limits.revisions:
            return None
        written = set()
        async with self._connection.searches:
            answers = await gather(
                lambda revision: self._read(key, revision, keys_only=True),
                range(since + 1, now),
                at_once=self._limits.at_once,
            )
        for answer in answers:
            if isinstance(answer, KvorumError):
                try:
                    raise answer
                finally:
                    del answer, answers  # its traceback holds this frame
            written |= {kv.mod_revision for kv in answer.kvs if kv.mod_revision > since}
        for revision in sorted(written):
            kv = first_of(await self._read(key, revision))
            if kv is not None and _is_of(operation, kv):
                return revision if operation.unique else None
        return 0

    # --- reads ---

    def _since(self, operation: Operation) -> int:
        """Return a revision before that of the write; 0 if none is known."""
        return max(self._lost.since, operation.expected or 0)

    async def _seen(self) -> int:
        """Return the revision of the write if one of its unique values is there; else 0."""
        for operation in self._writes:
            since = self._since(operation)
            if operation.unique and since:
                kv = first_of(await self._read(operation.key))
                if kv is not None and kv.mod_revision > since and _is_of(operation, kv):
                    return kv.mod_revision
        return 0

    async def _mod_revision(self, key: str) -> int:
        kv = first_of(await self._read(key))
        return kv.mod_revision if kv is not None else 0

    async def _read(
        self, key: str, revision: int = 0, *, keys_only: bool = False
    ) -> rpc.RangeResponse:
        request = rpc.RangeRequest(
            key=self._keys.stored(key), revision=revision, keys_only=keys_only
        )
        return await self._connection.range(
            request, self._lost.subject, revision=revision, deadline=self._deadline
        )

    # --- history ---

    async def _find(
        self, key: str, after: int, until: int, matches: Callable[[rpc.Event], bool]
    ) -> rpc.Event | None:
        """Return the first change of a key after a revision that matches; None if there is none.

        Args:
            key: the key.
            after: the revision.
            until: the revision of the last change to examine; 0: only the first is.
            matches: tells whether a change does.

        Raises:
            HistoryLostError: something after the revision has been compacted.
        """
        full, subject = self._keys.stored(key), self._lost.subject
        while True:
            change = await self._retried(
                partial(first_change, self._connection, full, after, subject, self._deadline)
            )
            if matches(change):
                return change
            after = change.kv.mod_revision
            if after >= until:
                return None


def _is_of(operation: Operation, kv: rpc.KeyValue) -> bool:
    """Return whether an operation would have written this value and lease."""
    return kv.value == operation.value and operation.lease in {None, kv.lease}


def _matches(operation: Operation, change: rpc.Event) -> bool:
    """Return whether an operation would have made this change."""
    if change.type == DELETE or operation.value is None:
        return change.type == DELETE and operation.value is None
    return _is_of(operation, change.kv)
