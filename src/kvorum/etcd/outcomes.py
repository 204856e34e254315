"""What became of a write whose answer was lost.

A compare-and-swap on a mod_revision above 0 can be sent again as it is: only one copy can ever apply. If the second one
applies, the first never will. If it is refused, the first change after the expected revision tells whose it was. A read
that shows nothing proves nothing: the first copy may still be on its way.
"""

from typing import Final

import anyio
import msgspec

from kvorum.errors import HistoryLostError, OutcomeUnknownError, UnavailableError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.connection import Connection
from kvorum.etcd.faults import Call

_DELETE: Final = 1  # mvccpb.Event.DELETE
_PAUSE: Final = 0.05  # seconds before a compare-and-swap is sent once more: a connection may fail at once each time


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


async def swap_again(
    connection: Connection, request: rpc.TxnRequest, key: bytes, value: bytes, expected: int, lost: OutcomeUnknownError
) -> tuple[rpc.TxnResponse, int]:
    """Send a compare-and-swap again, as its own fence; return the answer, and the revision at which it was applied.

    The revision is 0 if the write was refused, and never will be applied.

    Args:
        connection: where to.
        request: the very same transaction.
        key: which key it is about.
        value: what it writes.
        expected: the mod_revision that it compares with; above 0.
        lost: the error to raise if that stays unknown.

    Raises:
        OutcomeUnknownError: it cannot be told within another deadline, or from what is left of the history.
    """
    with anyio.move_on_after(connection.settings.timeout):
        while True:
            try:
                answer = await connection.txn(request, lost.subject)
            except OutcomeUnknownError:
                await anyio.sleep(_PAUSE)
                continue
            except UnavailableError:
                raise lost from None
            if answer.succeeded:
                return answer, answer.header.revision
            change = await _first_change(connection, key, expected, lost)
            is_mine = change.type != _DELETE and change.kv.value == value
            if is_mine and not is_unmistakable(value):
                raise lost  # somebody else may have written just the same
            return answer, change.kv.mod_revision if is_mine else 0
    raise lost


async def _first_change(connection: Connection, key: bytes, after: int, lost: OutcomeUnknownError) -> rpc.Event:
    """Return what was done to a key first after a revision."""
    call = connection.watch()
    try:
        async with connection.translated(Call(connection.endpoint, "watch", lost.subject)):
            create = rpc.WatchCreateRequest(key=key, range_end=b"", start_revision=after + 1, prev_kv=False)
            await call.write(rpc.WatchRequest(create_request=create))
            while True:
                response = await call.read()
                if not isinstance(response, rpc.WatchResponse) or response.canceled:
                    raise lost  # the history is compacted, or the server is away
                if response.events:
                    return response.events[0]
    except (UnavailableError, HistoryLostError):
        raise lost from None
    finally:
        call.cancel()


async def seen(connection: Connection, key: bytes, value: bytes, lost: OutcomeUnknownError) -> int:
    """Return the revision at which a key got a value that nobody else can have written.

    Raises:
        OutcomeUnknownError: it is not there. It may have been, or may still come.
    """
    if not is_unmistakable(value):
        raise lost
    try:
        answer = await connection.range(rpc.RangeRequest(key=key), lost.subject)
    except UnavailableError:
        raise lost from None
    if not answer.kvs or answer.kvs[0].value != value:
        raise lost
    return answer.kvs[0].mod_revision
