"""One watch on one server, from its creation to its end: a gRPC stream of its own."""

import asyncio
import logging
from typing import Self

import anyio

from kvorum.deadlines import now
from kvorum.errors import (
    AuthenticationError,
    HistoryLostError,
    KvorumError,
    PermissionDeniedError,
    UnavailableError,
)
from kvorum.etcd.transport import (
    Call,
    Cause,
    Channel,
    Connection,
    Server,
    StreamSlot,
    cause_of,
    error_for_cancel_reason,
    fork,
    mapped_errors,
)
from kvorum.etcd.transport import _rpc as rpc

_log = logging.getLogger(__name__)


class WatchStream:
    """A watch that etcd has created. `open` makes it, and only `cancel` ends it.

    Attributes:
        created: etcd's answer to the creation. The revision of its header is the store's.
        server: the server of the watch.
    """

    created: rpc.WatchResponse
    server: Server

    def __init__(
        self,
        connection: Connection,
        server: Server,
        call: rpc.Stream[rpc.WatchRequest, rpc.WatchResponse],
        slot: StreamSlot[Channel],
        subject: str,
    ) -> None:
        self.server = server
        self._connection = connection
        self._call: rpc.Stream[rpc.WatchRequest, rpc.WatchResponse] | None = call
        self._slot = slot
        self._subject = Call("watch", subject)

    @classmethod
    async def open(
        cls, connection: Connection, create: rpc.WatchCreateRequest, subject: str, deadline: float
    ) -> Self:
        """Create a watch.

        Raises:
            UnavailableError: the server is away, has not answered in time, or accepts no token, as
                while users are being changed. The next attempt may go to another server.
            PermissionDeniedError: the user may not read these keys.
            HistoryLostError: the revision to start with is compacted, and etcd says so at once.
        """
        server = connection.cluster.current
        for attempt in range(1 + connection.policies.cluster.renewals):
            stream = await cls._start(connection, subject, deadline)
            server, token = stream.server, connection.cluster.tokens.token
            try:
                return await stream._open(create, deadline)  # noqa: SLF001 - its own class
            except (PermissionDeniedError, AuthenticationError):
                # Before 3.5.15 etcd reports a rejected token as a lack of permission.
                if not connection.cluster.tokens.has_user:
                    raise
            if attempt:
                await _check_permission(connection, create, subject, deadline)
            # At the server that rejected it: the next call may already go to another one.
            await connection.cluster.renew_token(server, token, deadline)
        raise UnavailableError(
            server.address, "it rejects each new token of the user: are users being changed?"
        )

    @classmethod
    async def _start(
        cls, connection: Connection, subject: str, deadline: float, *, alone: bool = False
    ) -> Self:
        server, call, slot = await connection.watch_call(deadline, alone=alone)
        return cls(connection, server, call, slot, subject)

    async def _open(self, create: rpc.WatchCreateRequest, deadline: float) -> Self:
        """Create it, on another connection if this one may have too many others."""
        started, others = now(), self._slot.others
        limit = self._connection.cluster.attempt_time(deadline)
        if await self._is_created(create, limit / 2 if others else limit):
            return self
        if others and now() < deadline:
            apart = await self._start(self._connection, self._subject.subject, deadline, alone=True)
            if await apart._is_created(create, self._connection.cluster.attempt_time(deadline)):  # noqa: SLF001
                apart._learn_limit(self.server, others)  # noqa: SLF001
                return apart
        error = no_watch(self.server, self._subject.subject)
        try:
            self._connection.cluster.judge(self.server, error, started=started, deadline=deadline)
            raise error
        finally:
            del error  # its traceback holds this frame

    def _learn_limit(self, server: Server, limit: int) -> None:
        """Record how many streams a server allows on a connection."""
        if self.server is server:
            _log.info(
                "etcd at %s allows %d watches on a connection: more are put on other connections",
                server.address,
                limit,
            )
            server.streams.learn_limit(limit)

    async def _is_created(self, create: rpc.WatchCreateRequest, seconds: float) -> bool:
        try:
            with anyio.move_on_after(seconds):
                await self._create(create)
                return True
        except BaseException:
            self.cancel()
            raise
        self.cancel()
        return False

    async def _create(self, create: rpc.WatchCreateRequest) -> None:
        observer, revision = self._connection.observer, create.start_revision
        await observer.before_watch(self._subject.subject, self.server.address, revision, create)
        if self._call is None:  # while the observer waited
            raise UnavailableError(self.server.address, "the stream was ended")
        async with mapped_errors(self._subject, self.server):
            await self._call.write(rpc.WatchRequest(create_request=create))
        self.created = await self.read()

    async def read(self) -> rpc.WatchResponse:
        """Wait for the next response. A cancelled wait ends the stream, as grpc.aio does it.

        Raises:
            UnavailableError: the stream has ended.
            HistoryLostError: etcd has ended the watch because the next revision is compacted.
            KvorumError: etcd has ended the watch for another reason.
        """
        if self._call is None:
            raise UnavailableError(self.server.address, "the stream was ended")
        try:
            async with mapped_errors(self._subject, self.server):
                response = await self._call.read()
            if not isinstance(response, rpc.WatchResponse):
                raise UnavailableError(self.server.address, "the server ended the stream")
            floor = self._connection.cluster.floor
            if floor.is_foreign(response.header):
                if self._call is not None:  # else it was just ended, and has left its slot
                    channels = self._connection.cluster.channels
                    channels.renew_watches(self.server, self._slot.channel)
                raise UnavailableError(
                    self.server.address,
                    floor.foreign_message(self.server.address, response.header),
                )
            if response.canceled:
                raise self._refusal(response)
        except UnavailableError as exc:
            cluster = self._connection.cluster
            if cause_of(exc) is Cause.OPEN:  # its connection was lost
                cluster.suspect(self.server)
            elif not isinstance(exc.__cause__, asyncio.CancelledError):
                cluster.leave(self.server)
            # Else we replaced its connection, which says nothing about the server.
            raise
        return response

    def cancel(self) -> None:
        """End the stream, on the server, too, and cancel a pending read. Idempotent."""
        call, self._call = self._call, None  # errors that are kept refer to this object
        if call is not None and not fork.is_inherited():  # else the parent process still uses it
            call.cancel()
        self._connection.release(self._slot)

    def _refusal(self, response: rpc.WatchResponse) -> KvorumError:
        if response.compact_revision:
            return HistoryLostError(compact_revision=response.compact_revision)
        return error_for_cancel_reason(response.cancel_reason, self._subject, self.server.address)


def no_watch(server: Server, subject: str) -> UnavailableError:
    """Return the error for a watch that was not created in time.

    It counts the others: the server may allow no more of them.
    """
    return UnavailableError(
        server.address,
        f"the watch of {subject} was not created in time;"
        f" this client has {server.streams.total} other watches there",
    )


async def _check_permission(
    connection: Connection, create: rpc.WatchCreateRequest, subject: str, deadline: float
) -> None:
    """Raise the reason why the user may not read these keys, unless it is the token.

    A refused read tells the reason; for a refused watch, old servers do not.
    """
    request = rpc.RangeRequest(key=create.key, range_end=create.range_end, limit=1, keys_only=True)
    try:
        await connection.range(request, subject, deadline=deadline)
    except PermissionDeniedError as exc:
        raise PermissionDeniedError(f"watch {subject}") from exc
