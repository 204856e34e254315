"""The end of a lease that was granted for one key, once that key is deleted.

Rules:

1. Its id tells that it is one: see `kvorum.lease_ids`. Which lease a key was on is told by the
   deletion itself.
2. It is revoked only while no key is on it: the key may have been added again, or others put on it
   by hand. etcd cannot do both in one step: what is put on it between the question and the
   revocation goes with it, as with its TTL.
3. It is done for its own sake. If it fails, the lease ends with its TTL. The deletion is done, and
   does not fail; it waits for this no longer than its deadline and than `_PATIENCE`.
4. It is done in a task of its own: a caller that is cancelled now would leave the lease behind.
"""

import logging
from contextlib import suppress
from typing import Final

import anyio

from kvorum.deadlines import deadline_of, now
from kvorum.errors import ClientClosedError, KvorumError, LeaseNotFoundError, OutcomeUnknownError
from kvorum.etcd.transport import Connection
from kvorum.etcd.transport import _rpc as rpc

_PATIENCE: Final = 1.0  # seconds
# Before each try. The leader answers, and before etcd 3.4.20 and 3.5.3 it may not have applied a
# deletion yet that another member has.
_PAUSES: Final = (0.0, 0.05, 0.2)

_log = logging.getLogger(__name__)


async def end_own_lease(connection: Connection, key: bytes, lease: int) -> None:
    """End the lease of a key that was deleted, unless a key is on it. What keeps it from that is passed over.

    Raises:
        ClientClosedError: the client is closed.
    """
    done = anyio.Event()
    connection.supervisor.spawn_aside(_end, connection, key, lease, done, name="end a lease")
    with anyio.move_on_after(min(_PATIENCE, deadline_of(_PATIENCE) - now())):
        await done.wait()


def begin_to_revoke(connection: Connection, lease: int) -> None:
    """Revoke a lease that nobody else can know of, without waiting for it.

    The caller is being cancelled.
    """

    async def revoke() -> None:
        request, subject, deadline = (
            rpc.LeaseRevokeRequest(ID=lease),
            f"lease {lease:x}",
            now() + _PATIENCE,
        )
        with suppress(KvorumError):
            await connection.lease_revoke(request, subject, deadline=deadline)

    with suppress(ClientClosedError):
        connection.supervisor.spawn_aside(revoke, name="revoke a lease")


async def _end(connection: Connection, key: bytes, lease: int, done: anyio.Event) -> None:
    deadline = now() + _PATIENCE
    try:
        with anyio.move_on_after(_PATIENCE):
            for pause in _PAUSES:
                await anyio.sleep(pause)
                if await _is_over(connection, key, lease, deadline):
                    return
    except KvorumError as exc:
        _log.debug("lease %x of a key that was deleted is left to end by itself: %s", lease, exc)
    finally:
        done.set()


async def _is_over(connection: Connection, key: bytes, lease: int, deadline: float) -> bool:
    """Revoke the lease if no key is on it; tell whether nothing is left to be done."""
    request = rpc.LeaseTimeToLiveRequest(ID=lease, keys=True)
    answer = await connection.lease_time_to_live(request, f"lease {lease:x}", deadline=deadline)
    if answer.TTL < 0:  # it has ended
        return True
    if answer.keys:
        return list(answer.keys) != [key]
    with suppress(LeaseNotFoundError):
        try:
            await connection.lease_revoke(
                rpc.LeaseRevokeRequest(ID=lease), f"lease {lease:x}", deadline=deadline
            )
        except OutcomeUnknownError:
            # look again: sent again blindly, it could take what was put on the lease meanwhile
            return False
    return True
