"""What became of a write whose answer does not tell: it was lost, or says that the store is full.

Rules:

1. A transaction that compares the mod_revision of a key with a number above 0, and writes that key,
   can be sent again as it is: only one copy can ever apply. If the second one applies, the first
   never will. If it is refused because the key has moved on, the first change of the key after that
   revision tells whether it was this write.
2. A read that shows nothing proves nothing about a write without an answer: it may still be on its
   way.
3. "Database space exceeded" is an answer. etcd gives it for a request that it has refused, and for
   one that it has applied as the quota was used up: `quotaApplierV3` in its server/etcdserver/apply
   applies first. In both cases nothing of the request is under way any more, so reading decides.
   What needs no room can be sent again then.
4. A value proves a write only if no other write has these bytes (`Operation.unique`), and if its
   mod_revision is above one that was known before the write was sent: the same bytes may have been
   there before. The lease has to fit, too.
5. History counts only if it is whole: see `kvorum.etcd.history`.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import anyio

from kvorum.deadlines import deadline_of
from kvorum.errors import KvorumError, OutcomeUnknownError, StorageFullError, UnavailableError
from kvorum.etcd.transport import Connection
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import DELETE, first_change
from kvorum.gather import gather
from kvorum.storage import KeySpace, Operation

T = TypeVar("T")

_PAUSE: Final = 0.05  # seconds before the next try: a connection may fail at once each time
_PROBES: Final = 100  # revisions at which a key is looked for that is not there now
_PROBES_AT_ONCE: Final = (
    4  # reads under way for one search; `Connection.searches` bounds the number of searches
)


class LostWrite:
    """A write whose answer does not tell what became of it.

    Args:
        connection: where it was sent.
        keys: what its keys are in etcd.
        operations: what it was to do, all of it or nothing.
        lost: the error to raise if that stays unknown. Its `since` is a revision known before the
            write was sent.
    """

    def __init__(
        self,
        connection: Connection,
        keys: KeySpace,
        operations: Sequence[Operation],
        lost: OutcomeUnknownError,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._writes = [operation for operation in operations if operation.writes]
        self._compared = [operation for operation in operations if operation.expected is not None]
        self._lost = lost
        self._deadline = deadline_of(connection.settings.timeout)

    # --- what a caller asks ---

    async def find_out(self, request: rpc.TxnRequest) -> tuple[rpc.TxnResponse, int]:
        """Return an answer to a transaction that got none, and the revision at which it was applied.

        The revision is 0 if it was refused, and never will be applied; then the answer is the
        refusal.

        Args:
            request: the very same transaction as the one that was lost.

        Raises:
            StorageFullError: it was refused, and never will be applied.
            OutcomeUnknownError: it cannot be told within another deadline, or from what is left of
                the history.
        """
        fence = self._fence()
        if fence is None:
            return rpc.TxnResponse(), await self.look()
        return await self._bounded(self._send_again(fence, request))

    async def look(self) -> int:
        """Return the revision at which a write that got no answer was applied, if one of its values is there.

        Raises:
            OutcomeUnknownError: none is there. They may have been, or may still come.
        """
        if revision := await self._bounded(self._seen()):
            return revision
        raise self._lost

    async def decide(self, full: StorageFullError) -> int:
        """Return the revision at which a write was applied that etcd had no room for.

        Raises:
            StorageFullError: it was not applied, and never will be: the error that was given.
            OutcomeUnknownError: it cannot be told within another deadline, or from what is left of
                the history.
        """
        if revision := await self._bounded(self._fate()):
            return revision
        raise full

    async def decide_or_repeat(
        self, full: StorageFullError, request: rpc.TxnRequest
    ) -> tuple[rpc.TxnResponse, int]:
        """Do the same for a transaction; one that needs no room is sent again, by itself, if it was not applied.

        It may have been refused for a put in the same batch. Since that answer has come, nothing of
        it is under way.

        Returns:
            An answer, and the revision at which it was applied: 0 if its comparisons kept it from
                that.
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
            return await self.find_out(request)
        except StorageFullError as again:  # some versions refuse deletions, too
            return rpc.TxnResponse(), await self.decide(again)
        return answer, answer.header.revision if answer.succeeded else 0

    # --- how long it may take ---

    async def _bounded(self, step: Coroutine[Any, Any, T]) -> T:
        """Wait for a step until the deadline.

        Whatever keeps it from finding out leaves the outcome unknown.
        """
        with anyio.move_on_after(self._deadline - anyio.current_time()):
            try:
                return await step
            except StorageFullError:
                raise
            except KvorumError as exc:  # even a lack of permission
                if exc is self._lost:
                    raise
                raise self._lost from exc
        raise self._lost

    async def _again(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do again what changes nothing by being done twice, while servers are away or connections break."""
        while True:
            try:
                return await step()
            except (UnavailableError, OutcomeUnknownError):
                await anyio.sleep(_PAUSE)

    # --- a transaction that is its own fence ---

    def _fence(self) -> Operation | None:
        """Return what makes it safe to send the transaction again.

        Best what tells by its value who wrote it.
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
            answer = await self._again(partial(send, request, subject, deadline=self._deadline))
        except StorageFullError as full:  # of the second copy; the first may be under way still
            if await self._mod_revision(fence.key) == fence.expected:
                raise self._lost from full
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
        """Return the revision at which a transaction was applied whose fence has moved on.

        0 if never.
        """
        if revision := await self._seen():
            return revision
        expected = fence.expected or 0
        change = await self._find(fence.key, expected, 0, lambda _: True)
        revision = change.kv.mod_revision if change is not None else 0
        if change is None or not _fits(fence, change):
            return 0
        if fence.unique:
            return revision
        for operation in self._writes:
            if operation.unique:
                kv = _first(await self._read(operation.key, revision))
                return (
                    revision
                    if kv is not None and kv.mod_revision == revision and _is_of(operation, kv)
                    else 0
                )
        raise self._lost  # another client may have done just the same

    def _never(self, found: Mapping[str, rpc.KeyValue]) -> int:
        """Make sure that what kept a transaction from being applied will keep it for ever.

        Return 0.
        """
        for operation in self._compared:
            kv, value = found[operation.key], operation.expected_value
            # A mod_revision never comes back, nor does another value to it.
            if operation.expected and (
                kv.mod_revision != operation.expected or value not in {None, kv.value}
            ):
                return 0
        raise self._lost  # a key that must not exist may be deleted before the first copy arrives

    def _found(self, refusal: rpc.TxnResponse) -> dict[str, rpc.KeyValue]:
        """Return what a refused transaction has read.

        The keys that it compares, with mod_revision 0 if not there.
        """
        return {
            operation.key: _first(response.response_range) or rpc.KeyValue()
            for operation, response in zip(self._compared, refusal.responses, strict=True)
        }

    # --- a write that was answered: the store is full ---

    async def _fate(self) -> int:
        """Return the revision at which it was applied, 0 if never; all of it was, or nothing."""
        for operation in sorted(self._writes, key=lambda operation: not operation.unique):
            revision = await self._fate_of(operation)
            if revision is not None:
                return revision
        raise self._lost

    async def _fate_of(self, operation: Operation) -> int | None:
        """Return what a key tells.

        None if nothing, the revision of the write, or 0 if it was never applied.
        """
        answer, since = await self._read(operation.key), self._since(operation)
        kv, now = _first(answer), answer.header.revision
        if not since:
            return None
        if now == self._lost.since:
            return 0  # nothing at all was written
        if (
            kv is not None
            and (kv.create_revision if operation.value is None else kv.mod_revision) <= since
        ):
            return 0  # a write, or a deletion, would have left its mark
        if operation.expected:
            return await self._first_after(operation)
        if kv is not None:
            return await self._search(operation, kv.mod_revision)
        return await self._probe(operation, now)

    async def _search(self, operation: Operation, until: int) -> int | None:
        """Look for an operation among the changes of a key, the last of which is known."""
        since = self._since(operation)
        change = await self._find(
            operation.key, since, until, lambda change: _fits(operation, change)
        )
        if change is None:
            return 0
        return change.kv.mod_revision if operation.unique else None

    async def _probe(self, operation: Operation, now: int) -> int | None:
        """Look for a value that may have been there for a while, at each revision at which it may have been."""
        key, since = operation.key, self._since(operation)
        if operation.value is None or now - since > _PROBES:
            return None
        written = set()
        async with self._connection.searches:
            answers = await gather(
                lambda revision: self._read(key, revision, keys_only=True),
                range(since + 1, now),
                at_once=_PROBES_AT_ONCE,
            )
        for answer in answers:
            if isinstance(answer, KvorumError):
                raise answer
            written |= {kv.mod_revision for kv in answer.kvs if kv.mod_revision > since}
        for revision in sorted(written):
            kv = _first(await self._read(key, revision))
            if kv is not None and _is_of(operation, kv):
                return revision if operation.unique else None
        return 0

    # --- what is there ---

    def _since(self, operation: Operation) -> int:
        """Return a revision that the write comes after; 0 if none is known."""
        return max(self._lost.since, operation.expected or 0)

    async def _seen(self) -> int:
        """Return the revision of the write if one of its values is there that no other write has.

        Else 0.
        """
        for operation in self._writes:
            since = self._since(operation)
            if operation.unique and since:
                kv = _first(await self._read(operation.key))
                if kv is not None and kv.mod_revision > since and _is_of(operation, kv):
                    return kv.mod_revision
        return 0

    async def _mod_revision(self, key: str) -> int:
        kv = _first(await self._read(key))
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

    # --- what has been there ---

    async def _find(
        self, key: str, after: int, until: int, fits: Callable[[rpc.Event], bool]
    ) -> rpc.Event | None:
        """Return the first change of a key after a revision that fits; None if there is none.

        Args:
            key: which key.
            after: the revision.
            until: the revision of a later change of the key, the last one to look at; 0: only the
                first is looked at.
            fits: tells whether it is the one.

        Raises:
            HistoryLostError: something after the revision has been compacted.
        """
        full, subject = self._keys.stored(key), self._lost.subject
        while True:
            change = await self._again(
                partial(first_change, self._connection, full, after, subject, self._deadline)
            )
            if fits(change):
                return change
            after = change.kv.mod_revision
            if after >= until:
                return None


def _first(answer: rpc.RangeResponse) -> rpc.KeyValue | None:
    return answer.kvs[0] if answer.kvs else None


def _is_of(operation: Operation, kv: rpc.KeyValue) -> bool:
    """Tell whether an operation would have left a key like that."""
    return kv.value == operation.value and operation.lease in {None, kv.lease}


def _fits(operation: Operation, change: rpc.Event) -> bool:
    """Tell whether a change looks like an operation."""
    if change.type == DELETE or operation.value is None:
        return change.type == DELETE and operation.value is None
    return _is_of(operation, change.kv)
