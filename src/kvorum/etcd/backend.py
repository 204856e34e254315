"""The storage port on etcd.

Each method sends one request, or one operation of a batch. A list sends one request for each page.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from typing_extensions import override

from kvorum.arguments import check_lease, check_limit, check_revision, check_start, check_ttl
from kvorum.deadlines import deadline_of, now
from kvorum.errors import (
    AlreadyExistsError,
    ClientClosedError,
    KvorumError,
    LeaseNotFoundError,
    NotFoundError,
    OutcomeUnknownError,
    ServerError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.entries import entry_of, first_of
from kvorum.etcd.outcomes import LostWrite
from kvorum.etcd.own_leases import begin_to_revoke, end_own_lease
from kvorum.etcd.pipeline import Pipeline
from kvorum.etcd.requests import fill, first_conflict, transaction_of
from kvorum.etcd.session import HasSession, Session
from kvorum.etcd.transport import Connection, first_to_arrive
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import EtcdStorageWatch
from kvorum.storage import (
    MAX_KEY_SIZE,
    Change,
    Entry,
    KeyPattern,
    KeySpace,
    Operation,
    Page,
    StorageBackend,
    StorageWatch,
    any_id,
    check_lost,
    check_operations,
    id_for,
    is_for,
)


class EtcdStorageBackend(StorageBackend):
    """Bytes in etcd, under a prefix of their own. Cheap: it holds nothing but its arguments.

    Calls that concern one key go through the client's pipeline, which batches concurrent calls.

    Args:
        client: the client whose connection to use, once it is open. Or a session, which the backend
            then opens and closes.
        prefix: what the keys start with in etcd: key `a` of prefix `lab` is `/lab/a`.

    Attributes:
        session: the session that sends its requests.

    Raises:
        ConfigurationError: the client is not on etcd.
    """

    def __init__(self, client: HasSession | Session, prefix: str) -> None:
        self._is_owner = isinstance(client, Session)
        self.session: Session = client if isinstance(client, Session) else client.session
        self._keys = KeySpace(prefix)

    def __repr__(self) -> str:
        return f"<EtcdStorageBackend {self._keys.prefix}>"

    @property
    @override
    def page_size(self) -> int:
        """`EtcdSettings.page_size`."""
        return self.session.connection.settings.page_size

    @override
    def location(self, key: str) -> str:
        """Return the key as `etcdctl` takes it."""
        return f"{self._keys.prefix}{key}"

    @override
    async def open(self) -> None:
        if self._is_owner:
            await self.session.open()

    @override
    async def aclose(self) -> None:
        if self._is_owner:
            await self.session.aclose()

    # --- read ---

    @override
    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        full = self._keys.stored(key, revision)
        if revision is None:
            kv = await self.session.pipeline.get(full)
            return entry_of(self._keys, kv, key) if kv is not None else None
        subject = self.location(key)
        check_revision(subject, revision)
        request = rpc.RangeRequest(key=full, revision=revision)
        answer = await self.session.connection.range(request, subject, revision=revision)
        kv = first_of(answer)
        return entry_of(self._keys, kv) if kv is not None else None

    @override
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        # All pages are read at the revision of the first one. A page has `page_size` keys, or fewer
        # if they are large, or the link is slow: see `kvorum.etcd.transport.page_sizes`.
        check_limit(self.location(prefix), limit)
        check_revision(self.location(prefix), revision)
        entries: list[Entry] = []
        while True:
            page = await self._page(
                prefix, None if limit is None else limit - len(entries), after, revision
            )
            entries += page.entries
            if not page.remaining or (limit is not None and len(entries) >= limit):
                return Page(entries, page.revision, page.remaining)
            after, revision = entries[-1].key, page.revision

    async def _page(
        self, prefix: str, limit: int | None, after: str | None, revision: int | None
    ) -> Page:
        start, end = whole = self._keys.range(prefix)
        if after is not None:
            start = max(start, self._keys.stored(after) + b"\0")
        connection, subject = self.session.connection, self.location(prefix)
        sizes, timeout = connection.page_sizes, connection.settings.timeout
        deadline = deadline_of(timeout)
        time_left = min(deadline - now(), timeout)

        def ask(size: int) -> Awaitable[rpc.RangeResponse]:
            request = rpc.RangeRequest(key=start, range_end=end, limit=size, revision=revision or 0)
            return connection.range(request, subject, revision=revision or 0, deadline=deadline)

        most = sizes.of(whole[0])
        size = most if limit is None else min(most, limit)
        try:
            found = await first_to_arrive(ask, size, time_left)
        except UnavailableError:
            if deadline - now() < time_left / 2:  # retries end a little before the deadline
                sizes.learn_of_silence(whole[0], size, time_left)
            raise
        answer = found.answer
        entries = [entry_of(self._keys, kv) for kv in answer.kvs]
        sizes.learn(whole[0], found, len(entries), sum(len(entry.value) for entry in entries))
        return Page(entries, revision or answer.header.revision, answer.count - len(entries))

    @override
    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        request = rpc.RangeRequest(
            key=start, range_end=end, count_only=True, revision=revision or 0
        )
        answer = await self.session.connection.range(
            request, self.location(prefix), revision=revision or 0
        )
        return answer.count

    @override
    async def keys(self, pattern: str = "*") -> Sequence[str]:
        wanted = KeyPattern(pattern)
        start, end = self._keys.range(wanted.prefix)
        request = rpc.RangeRequest(key=start, range_end=end, keys_only=True)
        answer = await self.session.connection.range(request, self.location(pattern))
        return [key for kv in answer.kvs if wanted.matches(key := self._keys.relative(kv.key))]

    # --- write ---

    @override
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        # If its answer is lost, a unique value tells whether it was applied.
        operation = Operation.put(key, value, lease=lease, unique=unique)
        pipeline = self.session.pipeline
        put, connection = rpc.PutRequest(), pipeline.connection
        fill(put, operation, self._keys.full(key), connection.settings.max_value_size)
        since = connection.revision
        try:
            return await pipeline.put(put)
        except OutcomeUnknownError as exc:
            return await self._lost(connection, exc, [operation], since).find_value()
        except StorageFullError as full:
            return await self._lost(connection, full, [operation], since).decide(full)

    @override
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        # It is never sent again: the first copy may have been applied, and the key deleted since.
        operations = [Operation.create(key, value, lease=lease, unique=unique)]
        _, revision = await self._run(operations)
        if not revision:
            raise AlreadyExistsError(key)
        return revision

    @override
    async def compare_and_swap(
        self,
        key: str,
        value: bytes,
        *,
        expected: int,
        lease: int | None = None,
        unique: bool = False,
        expected_value: bytes | None = None,
    ) -> int:
        # If its answer is lost, it is sent again, which is safe: see `outcomes`.
        if lease is None and expected == 0:
            lease = 0  # a key that does not exist has no lease to keep
        swap = Operation.swap(
            key, value, expected=expected, lease=lease, unique=unique, expected_value=expected_value
        )
        return await self._commit([swap])

    @override
    def may_recur(self, revision: int) -> bool:
        """Return whether a revision was reached before the current connection was made.

        That may be to a store that was restored to an older state.
        """
        return self.session.connection.cluster.may_recur(revision)

    @override
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        # With `expected` it is sent again if its answer is lost. If the key is gone by then, two
        # clients may have deleted the same revision, and nothing tells which one did.
        operations = [Operation.delete(key, expected=expected, expected_value=expected_value)]
        answer, revision = await self._run(operations, prev_kv=True)
        if not revision:
            raise first_conflict(self._keys, operations, answer)
        removed = answer.responses[0].response_delete_range.prev_kvs
        if not removed:
            raise NotFoundError(key)
        if removed[0].lease:
            await self._end_lease_of(removed[0])
        return Change(key, revision, None, entry_of(self._keys, removed[0]))

    @override
    async def commit(self, operations: Sequence[Operation]) -> int:
        check_operations(operations)
        return await self._commit(operations)

    @override
    async def settle(self, lost: OutcomeUnknownError) -> int:
        check_lost(lost)
        if not lost.operations:
            try:
                raise lost
            finally:
                del lost  # its traceback holds this frame
        operations: Sequence[Operation] = lost.operations
        connection = self.session.connection
        # For a commit, reading the previous value would need more permissions than it had.
        size, prev_kv = connection.settings.max_value_size, len(operations) == 1
        request = transaction_of(self._keys, operations, size, prev_kv=prev_kv)
        answer, revision = await self._lost(
            connection, lost, operations, lost.since
        ).resolve_by_resending(request)
        if not revision:
            raise first_conflict(self._keys, operations, answer)
        for response in answer.responses:
            for removed in response.response_delete_range.prev_kvs:
                await self._end_lease_of(removed)
        return revision

    async def _commit(self, operations: Sequence[Operation]) -> int:
        answer, revision = await self._run(operations)
        if not revision:
            raise first_conflict(self._keys, operations, answer)
        return revision

    async def _run(
        self, operations: Sequence[Operation], *, prev_kv: bool = False
    ) -> tuple[rpc.TxnResponse, int]:
        """Run a transaction that reads what it compares if it refuses to write.

        Returns:
            The answer, and the revision at which it was applied; 0 if it was refused.
        """
        pipeline = self.session.pipeline
        connection = pipeline.connection
        size = connection.settings.max_value_size
        request = transaction_of(self._keys, operations, size, prev_kv=prev_kv)
        since = connection.revision
        try:
            answer, revision = await self._send(pipeline, request, operations)
        except OutcomeUnknownError as exc:
            return await self._lost(connection, exc, operations, since).resolve_by_resending(
                request
            )
        except StorageFullError as full:
            return await self._lost(connection, full, operations, since).decide_or_resend(
                full, request
            )
        return answer, revision if answer.succeeded else 0

    def _send(
        self, pipeline: Pipeline, request: rpc.TxnRequest, operations: Sequence[Operation]
    ) -> Awaitable[tuple[rpc.TxnResponse, int]]:
        """Send a transaction through the pipeline, if it may be batched.

        One about several keys may not: no other operation may change what it compares. One about a
        key longer than Kvorum's own may not: batches are sized by their values.
        """
        full = self._keys.stored(operations[0].key)
        if len(operations) > 1 or len(full) > MAX_KEY_SIZE:
            return self._send_alone(pipeline.connection, request, operations)
        (only,) = operations
        size = len(only.value or b"") + len(only.expected_value or b"")
        expected = only.expected or 0
        return pipeline.txn(full, request, value_size=size, expected=expected)

    async def _send_alone(
        self, connection: Connection, request: rpc.TxnRequest, operations: Sequence[Operation]
    ) -> tuple[rpc.TxnResponse, int]:
        subject = ", ".join(self.location(operation.key) for operation in operations)
        answer = await connection.txn(request, subject)
        return answer, answer.header.revision

    def _lost(
        self,
        connection: Connection,
        exc: OutcomeUnknownError | StorageFullError,
        operations: Sequence[Operation],
        since: int,
    ) -> LostWrite:
        subject = ", ".join(self.location(operation.key) for operation in operations)
        if isinstance(exc, OutcomeUnknownError):
            lost = OutcomeUnknownError(exc.subject, exc.reason, tuple(operations), since)
        else:
            lost = OutcomeUnknownError(subject, str(exc), tuple(operations), since)
        return LostWrite(connection, self._keys, operations, lost, self.session.policies.searches)

    # --- leases ---

    @override
    async def grant_lease(self, ttl: float) -> int:
        """Grant a lease that lasts `ttl` seconds at least.

        The server's minimum is 1.5 times its election timeout, rounded up: 2 seconds by default.

        Raises:
            InvalidResourceError: `ttl` is not a number, not above 0, or more than etcd allows.
        """
        return await self._grant(ttl, any_id)

    @override
    async def grant_lease_for(self, key: str, ttl: float) -> int:
        # The id tells that it is for this key alone.
        return await self._grant(ttl, partial(id_for, self._keys.full(key)))

    async def _grant(self, ttl: float, draw: Callable[[], int]) -> int:
        """Grant a lease under an id that is chosen here.

        So it can be revoked if it was granted although the answer says that the store is full.
        """
        check_ttl(ttl)
        connection = self.session.connection
        while True:
            lease = draw()
            request = rpc.LeaseGrantRequest(ID=lease, TTL=math.ceil(ttl))
            try:
                return (await connection.lease_grant(request)).ID
            except StorageFullError:
                with suppress(KvorumError):  # it was not granted, or expires
                    await self.revoke_lease(lease)
                raise
            except ServerError as exc:
                # The first of two requests was applied, and its answer lost. That may be some time
                # ago, so the lease would end too early. It is left to expire.
                if "lease already exists" not in exc.detail:
                    raise
            except asyncio.CancelledError:
                # It may have been granted, and the caller will never know its id.
                begin_to_revoke(connection, lease)
                raise

    async def _end_lease_of(self, removed: rpc.KeyValue) -> None:
        """End the lease of a removed key, if it was granted for this key alone."""
        if not is_for(removed.key, removed.lease):
            return
        with suppress(ClientClosedError):  # it is being closed; the deletion is done in any case
            await end_own_lease(self.session.connection, removed.key, removed.lease)

    @override
    async def revoke_lease(self, lease: int) -> None:
        check_lease("a lease", lease, least=1)
        connection = self.session.connection
        request, subject = rpc.LeaseRevokeRequest(ID=lease), f"lease {lease:x}"
        try:
            await connection.lease_revoke(request, subject)
        except LeaseNotFoundError as exc:
            raise LeaseNotFoundError(lease) from exc
        except OutcomeUnknownError as lost:
            try:  # again, which is safe: a revoked lease does not come back
                await connection.lease_revoke(request, subject)
            except LeaseNotFoundError:
                return
            except KvorumError as exc:
                raise lost from exc

    # --- watch ---

    @override
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        # etcd sends progress notifications, and so bookmarks, every ten minutes by default.
        check_start(self.location(prefix), since)
        self._keys.range(prefix)  # raises if the prefix is invalid
        session = self.session
        return EtcdStorageWatch(
            lambda: session.connection,
            self._keys,
            prefix,
            since,
            bookmarks=bookmarks,
            timing=self.session.policies.watches,
        )
