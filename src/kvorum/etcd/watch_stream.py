"""One watch on one server, from its creation to its end: a gRPC stream of its own."""

from typing import Self

import anyio

from kvorum.errors import AuthenticationError, HistoryLostError, KvorumError, PermissionDeniedError, UnavailableError
from kvorum.etcd import _rpc as rpc
from kvorum.etcd.connection import Connection
from kvorum.etcd.faults import Call, meaning_of_reason
from kvorum.etcd.server import Server
from kvorum.etcd.translation import Translated


class WatchStream:
    """A watch that etcd has created. Made by `open`; to be ended by `cancel`, by nothing else.

    Attributes:
        created: etcd's answer to the creation. The revision of its header is the store's.
    """

    created: rpc.WatchResponse

    def __init__(
        self,
        connection: Connection,
        server: Server,
        call: rpc.Stream[rpc.WatchRequest, rpc.WatchResponse],
        subject: str,
    ) -> None:
        self._connection = connection
        self._server = server
        self._call = call
        self._subject = Call("watch", subject)

    @classmethod
    async def open(cls, connection: Connection, create: rpc.WatchCreateRequest, subject: str, deadline: float) -> Self:
        """Create a watch.

        Raises:
            UnavailableError: the server is away, or has not answered in time. Another one is asked the next time.
            PermissionDeniedError: the user may not read that.
            HistoryLostError: the revision to start with is compacted, and etcd says so at once.
        """
        cluster = connection.cluster
        token = cluster.tokens.token
        try:
            return await cls._open(connection, create, subject, deadline)
        except (PermissionDeniedError, AuthenticationError):
            # Before 3.5.15 etcd calls it a lack of permission when it does not take the token.
            if not token:
                raise
        await cluster.renew_token(cluster.current, token, deadline)
        return await cls._open(connection, create, subject, deadline)

    @classmethod
    async def _open(cls, connection: Connection, create: rpc.WatchCreateRequest, subject: str, deadline: float) -> Self:
        server, call = await connection.watch_call(deadline)
        stream = cls(connection, server, call, subject)
        try:
            with anyio.move_on_after(connection.cluster.patience(deadline, writes=False)):
                await stream._create(create)
                return stream
            connection.cluster.leave(server)
            raise UnavailableError(server.address, f"no watch of {subject} in time")
        except BaseException:
            stream.cancel()
            raise

    async def _create(self, create: rpc.WatchCreateRequest) -> None:
        async with Translated(self._subject, self._server):
            await self._call.write(rpc.WatchRequest(create_request=create))
        self.created = await self.read()

    async def read(self) -> rpc.WatchResponse:
        """Wait for the next response. A wait that is cancelled ends the stream: that is how grpc.aio is.

        Raises:
            UnavailableError: the stream has ended.
            HistoryLostError: etcd has ended the watch, since the revision that comes next is compacted.
            KvorumError: etcd has ended the watch for another reason.
        """
        try:
            async with Translated(self._subject, self._server):
                response = await self._call.read()
            if not isinstance(response, rpc.WatchResponse):
                raise UnavailableError(self._server.address, "the server ended the stream")
            if response.canceled:
                raise self._refusal(response)
        except UnavailableError:
            self._connection.cluster.leave(self._server)
            raise
        return response

    def cancel(self) -> None:
        """End the stream, on the server, too. Idempotent; whoever reads it is cancelled."""
        self._call.cancel()

    def _refusal(self, response: rpc.WatchResponse) -> KvorumError:
        if response.compact_revision:
            return HistoryLostError(compact_revision=response.compact_revision)
        return meaning_of_reason(response.cancel_reason, self._subject, self._server.address)
