"""Revoking a lease that was granted for one key, once that key is deleted.

Rules:

1. The id of the lease tells that it is for one key: see `kvorum.storage.lease_ids`. The answer to
   the deletion tells which lease the key was on.
2. The lease is revoked only if no key is on it: the key may have been added again, or another one
   attached by hand. etcd cannot check and revoke in one step: a key that is attached in between is
   removed, as it would be at the end of the TTL.
3. Revoking is best effort. If it fails, the lease expires. The deletion is done and does not fail;
   it waits for the revocation until its deadline, and no longer than `_LONGEST`.
4. Revoking runs in a task of its own: cancelling the caller must not leave the lease behind.
"""

import logging
from contextlib import suppress
from typing import Final

import anyio

from kvorum.deadlines import deadline_of, now
from kvorum.errors import ClientClosedError, KvorumError, LeaseNotFoundError, OutcomeUnknownError
from kvorum.etcd.transport import Connection
from kvorum.etcd.transport import _rpc as rpc

_LONGEST: Final = 1.0  # seconds
# Seconds before each attempt. The leader answers, and before etcd 3.4.20 and 3.5.3 it may not have
# applied a deletion yet that another member has.
_PAUSES: Final = (0.0, 0.05, 0.2)

_log = logging.getLogger(__name__)


async def end_own_lease(connection: Connection, key: bytes, lease: int) -> None:
    """End the lease of a deleted key, unless a key is on it. Other errors are only logged.

    Raises:
        ClientClosedError: the client is closed.
    """
    done = anyio.Event()
    connection.supervisor.spawn_aside(
        _end, connection, key, lease, done, name="kvorum-lease-revocation"
    )
    with anyio.move_on_after(min(_LONGEST, deadline_of(_LONGEST) - now())):
        await done.wait()


def begin_to_revoke(connection: Connection, lease: int) -> None:
    """Revoke a lease in the background: its grant is being cancelled, so its id stays unknown."""

    async def revoke() -> None:
        request, deadline = rpc.LeaseRevokeRequest(ID=lease), now() + _LONGEST
        with suppress(KvorumError):
            await connection.lease_revoke(request, f"lease {lease:x}", deadline=deadline)

    with suppress(ClientClosedError):
        connection.supervisor.spawn_aside(revoke, name="kvorum-lease-revocation")


async def _end(connection: Connection, key: bytes, lease: int, done: anyio.Event) -> None:
    deadline = now() + _LONGEST
    try:
        with anyio.move_on_after(_LONGEST):
            for pause in _PAUSES:
                await anyio.sleep(pause)
                if await _try_revoke(connection, key, lease, deadline):
                    return
    except KvorumError as exc:
        _log.debug("lease %x of a deleted key could not be revoked and expires: %s", lease, exc)
    finally:
        done.set()


async def _try_revoke(connection: Connection, key: bytes, lease: int, deadline: float) -> bool:
    """Revoke the lease if no key is on it; tell whether nothing is left to do."""
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
            # Check again first: a second revocation could remove a key attached in the meantime.
            return False
    return True
