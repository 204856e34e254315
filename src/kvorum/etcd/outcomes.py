"""What became of a write whose answer was lost.

A transaction that compares the mod_revision of a key with a number above 0, and writes that key, can be sent again as
it is: only one copy can ever apply. If the second one applies, the first never will. If it is refused, the first change
of the key after that revision tells whose it was. A read that shows nothing proves nothing: the first copy may still be
on its way.
"""

from collections.abc import Sequence
from typing import Final

import anyio
import msgspec

from kvorum.deadlines import deadline_of
from kvorum.errors import KvorumError, OutcomeUnknownError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.connection import Connection
from kvorum.etcd.watch_stream import WatchStream
from kvorum.keyspace import KeySpace
from kvorum.storage import Operation

_DELETE: Final = 1  # mvccpb.Event.DELETE
_PAUSE: Final = 0.05  # seconds before a transaction is sent once more: a connection may fail at once each time


class _Metadata(msgspec.Struct, rename="camel", gc=False):
    write_token: str = ""


class _Written(msgspec.Struct, gc=False):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_decoder = msgspec.json.Decoder(_Written)


def is_unmistakable(value: bytes) -> bool:
    """Tell whether a value has a write token, so that nobody else can have written the same bytes."""
    try:
        return bool(_decoder.decode(value).metadata.write_token)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


class LostWrite:
    """A write that got no answer.

    Args:
        connection: where it was sent.
        keys: what its keys are in etcd.
        operations: what it was to do, all of it or nothing.
        lost: the error to raise if that stays unknown.
    """

    def __init__(
        self, connection: Connection, keys: KeySpace, operations: Sequence[Operation], lost: OutcomeUnknownError
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._operations = operations
        self._lost = lost

    async def find_out(self, request: rpc.TxnRequest) -> tuple[rpc.TxnResponse, int]:
        """Return an answer to the transaction, and the revision at which it was applied.

        The revision is 0 if it was refused, and never will be applied; then the answer is the refusal.

        Args:
            request: the very same transaction as the one that was lost.

        Raises:
            OutcomeUnknownError: it cannot be told within another deadline, or from what is left of the history.
        """
        fence = next((o for o in self._operations if o.writes and o.expected), None)
        if fence is None:
            return rpc.TxnResponse(), await self.look()
        with anyio.move_on_after(deadline_of(self._connection.settings.timeout) - anyio.current_time()):
            try:
                answer = await self._send_again(request)
                return answer, answer.header.revision if answer.succeeded else await self._applied_at(fence, answer)
            except KvorumError as exc:  # whatever keeps it from finding out, even a lack of permission
                raise self._lost from exc
        raise self._lost

    async def look(self) -> int:
        """Return the revision at which one of its values was written that nobody else can have.

        Raises:
            OutcomeUnknownError: none is there. They may have been, or may still come.
        """
        for operation in self._operations:
            if operation.value is not None and is_unmistakable(operation.value):
                kv = await self._read(operation.key)
                if kv is not None and kv.value == operation.value:
                    return kv.mod_revision
        raise self._lost

    async def _send_again(self, request: rpc.TxnRequest) -> rpc.TxnResponse:
        while True:
            try:
                return await self._connection.txn(request, self._lost.subject)
            except OutcomeUnknownError:
                await anyio.sleep(_PAUSE)

    async def _applied_at(self, fence: Operation, refusal: rpc.TxnResponse) -> int:
        """Return the revision at which the first copy was applied, 0 if never: the second one was refused."""
        if self._mod_revisions(refusal)[fence.key] == fence.expected:
            return self._never(refusal)
        change = await self._first_change(fence.key, fence.expected or 0)
        revision = change.kv.mod_revision
        value = None if change.type == _DELETE else change.kv.value
        for operation in self._operations:
            if operation.value is not None and is_unmistakable(operation.value):
                if operation.key != fence.key:
                    kv = await self._read(operation.key, revision)
                    value = kv.value if kv is not None and kv.mod_revision == revision else None
                return revision if value == operation.value else 0
        if value == fence.value:
            raise self._lost  # somebody else may have done just the same
        return 0

    def _never(self, refusal: rpc.TxnResponse) -> int:
        """Make sure that what another key kept from being applied will keep it for ever; return 0."""
        found = self._mod_revisions(refusal)
        if any(operation.expected and found[operation.key] != operation.expected for operation in self._operations):
            return 0  # a mod_revision never comes back
        raise self._lost  # a key that must not exist may be deleted before the first copy arrives

    def _mod_revisions(self, refusal: rpc.TxnResponse) -> dict[str, int]:
        compared = [operation.key for operation in self._operations if operation.expected is not None]
        ranges = [response.response_range.kvs for response in refusal.responses]
        return {key: kvs[0].mod_revision if kvs else 0 for key, kvs in zip(compared, ranges, strict=True)}

    async def _first_change(self, key: str, after: int) -> rpc.Event:
        """Return what was done to a key first after a revision; something was."""
        create = rpc.WatchCreateRequest(
            key=self._keys.full(key), range_end=b"", start_revision=after + 1, prev_kv=False
        )
        deadline = deadline_of(self._connection.settings.timeout)
        stream = await WatchStream.open(self._connection, create, self._lost.subject, deadline)
        try:
            while True:
                response = await stream.read()
                if response.events:
                    return response.events[0]
        finally:
            stream.cancel()

    async def _read(self, key: str, revision: int = 0) -> rpc.KeyValue | None:
        request = rpc.RangeRequest(key=self._keys.full(key), revision=revision)
        try:
            answer = await self._connection.range(request, self._lost.subject, revision=revision)
        except KvorumError as exc:
            raise self._lost from exc
        return answer.kvs[0] if answer.kvs else None
