"""The storage port on etcd: each method is one request, or one operation of a request that others share.

Lists take one for each page.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from kvorum.arguments import check_lease, check_limit, check_revision, check_start, check_ttl
from kvorum.deadlines import deadline_of, now
from kvorum.errors import (
    AlreadyExistsError,
    ClientClosedError,
    ConflictError,
    KvorumError,
    LeaseNotFoundError,
    NotFoundError,
    OutcomeUnknownError,
    ResourceTooLargeError,
    ServerError,
    StorageFullError,
    UnavailableError,
)
from kvorum.etcd.entries import entry_of
from kvorum.etcd.outcomes import LostWrite
from kvorum.etcd.own_leases import begin_to_revoke, end_own_lease
from kvorum.etcd.pipeline import HasPipeline, Pipeline
from kvorum.etcd.transport import Connection, first_to_arrive
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import EtcdStorageWatch
from kvorum.settings import EtcdSettings
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
    has_expected_value,
    id_for,
    is_for,
)

_EQUAL: Final = int(rpc.Compare.EQUAL)
_MOD: Final = int(rpc.Compare.MOD)
_VALUE: Final = int(rpc.Compare.VALUE)


class EtcdStorageBackend(StorageBackend):
    """Bytes in etcd, under a prefix of their own. Cheap: it holds nothing but its two arguments.

    Calls that concern one key go through the client's pipeline, where those that are under way
    together share requests.

    Args:
        client: whose connection to use, once it is open.
        prefix: what the keys start with in etcd: key `a` of prefix `lab` is `/lab/a`.
    """

    def __init__(self, client: HasPipeline, prefix: str) -> None:
        self._client = client
        self._keys = KeySpace(prefix)

    def __repr__(self) -> str:
        return f"<EtcdStorageBackend {self._keys.prefix}>"

    @property
    def page_size(self) -> int:
        """`EtcdSettings.page_size`."""
        return self._client.connection.settings.page_size

    def location(self, key: str) -> str:
        """Return the key as `etcdctl` takes it."""
        return f"{self._keys.prefix}{key}"

    # --- read ---

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        """Read a key by one linearizable Range."""
        full = self._keys.stored(key, revision)
        if revision is None:
            kv = await self._client.pipeline.get(full)
            return entry_of(self._keys, kv, key) if kv is not None else None
        subject = self.location(key)
        check_revision(subject, revision)
        request = rpc.RangeRequest(key=full, revision=revision)
        answer = await self._client.connection.range(request, subject, revision=revision)
        return entry_of(self._keys, answer.kvs[0]) if answer.kvs else None

    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        """Send one Range for each page, all at the revision of the first: `page_size` keys, or fewer if they are large.

        On a link too slow for such a page, smaller ones are asked for: see `kvorum.etcd.pages`.
        """
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
        connection, subject = self._client.connection, self.location(prefix)
        sizes, timeout = connection.page_sizes, connection.settings.timeout
        deadline = deadline_of(timeout)
        patience = min(deadline - now(), timeout)

        def ask(size: int) -> Awaitable[rpc.RangeResponse]:
            request = rpc.RangeRequest(key=start, range_end=end, limit=size, revision=revision or 0)
            return connection.range(request, subject, revision=revision or 0, deadline=deadline)

        most = sizes.of(whole[0])
        size = most if limit is None else min(most, limit)
        try:
            found = await first_to_arrive(ask, size, patience)
        except UnavailableError:
            if deadline - now() < patience / 2:  # retries end a little before it
                sizes.learn_of_silence(whole[0], size, patience)
            raise
        answer = found.answer
        entries = [entry_of(self._keys, kv) for kv in answer.kvs]
        sizes.learn(whole[0], found, len(entries), sum(len(entry.value) for entry in entries))
        return Page(entries, revision or answer.header.revision, answer.count - len(entries))

    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        """Send one Range that counts only."""
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        request = rpc.RangeRequest(
            key=start, range_end=end, count_only=True, revision=revision or 0
        )
        answer = await self._client.connection.range(
            request, self.location(prefix), revision=revision or 0
        )
        return answer.count

    async def keys(self, pattern: str = "*") -> Sequence[str]:
        """Send one Range without values, over the keys that start like the pattern."""
        wanted = KeyPattern(pattern)
        start, end = self._keys.range(wanted.prefix)
        request = rpc.RangeRequest(key=start, range_end=end, keys_only=True)
        answer = await self._client.connection.range(request, self.location(pattern))
        return [key for kv in answer.kvs if wanted.matches(key := self._keys.relative(kv.key))]

    # --- write ---

    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Send one Put.

        If its answer is lost, look whether the value is there, if no other write has it.
        """
        operation, pipeline = (
            Operation.put(key, value, lease=lease, unique=unique),
            self._client.pipeline,
        )
        put, connection = rpc.PutRequest(), pipeline.connection
        self._fill(put, operation, self._keys.full(key), connection.settings)
        since = connection.revision
        try:
            return await pipeline.put(put)
        except OutcomeUnknownError as exc:
            return await self._lost(connection, exc, [operation], since).look()
        except StorageFullError as full:
            return await self._lost(connection, full, [operation], since).decide(full)

    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        """Send one transaction: the key must not exist, or nothing happens. A lost answer is treated as in `set`.

        It is not sent again: the first copy may have been applied, and the key deleted since.
        """
        operations = [Operation.create(key, value, lease=lease, unique=unique)]
        _, revision = await self._run(operations)
        if not revision:
            raise AlreadyExistsError(key)
        return revision

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
        """Send one transaction, which reads the key if it refuses to write it.

        If its answer is lost, it is sent again, which is safe: see `kvorum.etcd.outcomes`.
        """
        if lease is None and expected == 0:
            lease = 0  # a key that does not exist has no lease to keep
        swap = Operation.swap(
            key, value, expected=expected, lease=lease, unique=unique, expected_value=expected_value
        )
        return await self._commit([swap])

    def may_recur(self, revision: int) -> bool:
        """Tell whether it was reached before the connection of now was made.

        It may be to a store that was put back.
        """
        return self._client.connection.cluster.may_recur(revision)

    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        """Send one transaction, which returns the value that it removed.

        With `expected` it is sent again if its answer is lost; of two who delete the same revision
        nobody can tell then whose deletion it was.
        """
        operations = [Operation.delete(key, expected=expected, expected_value=expected_value)]
        answer, revision = await self._run(operations, prev_kv=True)
        if not revision:
            raise self._first_conflict(operations, answer)
        removed = answer.responses[0].response_delete_range.prev_kvs
        if not removed:
            raise NotFoundError(key)
        if removed[0].lease:
            await self._end_lease_of(removed[0])
        return Change(key, revision, None, entry_of(self._keys, removed[0]))

    async def commit(self, operations: Sequence[Operation]) -> int:
        """Send one transaction, which reads what it compared if it refuses to write. A lost answer.

        See `outcomes`.
        """
        check_operations(operations)
        return await self._commit(operations)

    async def settle(self, lost: OutcomeUnknownError) -> int:
        """Find out as the write itself did: send it again if that is safe, and look for it."""
        check_lost(lost)
        if not lost.operations:
            raise lost
        operations: Sequence[Operation] = lost.operations
        connection = self._client.connection
        # Of a commit this would need more permissions than it had.
        request = self._transaction(operations, connection.settings, prev_kv=len(operations) == 1)
        answer, revision = await self._lost(connection, lost, operations, lost.since).find_out(
            request
        )
        if not revision:
            raise self._first_conflict(operations, answer)
        for response in answer.responses:
            for removed in response.response_delete_range.prev_kvs:
                await self._end_lease_of(removed)
        return revision

    async def _commit(self, operations: Sequence[Operation]) -> int:
        answer, revision = await self._run(operations)
        if not revision:
            raise self._first_conflict(operations, answer)
        return revision

    async def _run(
        self, operations: Sequence[Operation], *, prev_kv: bool = False
    ) -> tuple[rpc.TxnResponse, int]:
        """Run a transaction.

        Return the answer, and the revision at which it was applied, 0 if it was refused.
        """
        pipeline = self._client.pipeline
        connection = pipeline.connection
        request = self._transaction(operations, connection.settings, prev_kv=prev_kv)
        since = connection.revision
        try:
            answer, revision = await self._send(pipeline, request, operations)
        except OutcomeUnknownError as exc:
            return await self._lost(connection, exc, operations, since).find_out(request)
        except StorageFullError as full:
            return await self._lost(connection, full, operations, since).decide_or_repeat(
                full, request
            )
        return answer, revision if answer.succeeded else 0

    def _send(
        self, pipeline: Pipeline, request: rpc.TxnRequest, operations: Sequence[Operation]
    ) -> Awaitable[tuple[rpc.TxnResponse, int]]:
        """Send a transaction: one about several keys by itself, since nothing it compares may change beside it.

        So is one about a key that is larger than any of ours: requests are filled by the sizes of
        values.
        """
        full = self._keys.stored(operations[0].key)
        if len(operations) > 1 or len(full) > MAX_KEY_SIZE:
            return self._send_alone(pipeline.connection, request, operations)
        (only,) = operations
        size, expected = (
            len(only.value or b"") + len(only.expected_value or b""),
            only.expected or 0,
        )
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
        return LostWrite(connection, self._keys, operations, lost)

    def _transaction(
        self, operations: Sequence[Operation], settings: EtcdSettings, *, prev_kv: bool = False
    ) -> rpc.TxnRequest:
        """Build a transaction that applies all, or reads what it has compared, so that a refusal says what there is."""
        transaction = rpc.TxnRequest()
        for operation in operations:
            key = self._keys.stored(
                operation.key, operation.expected if operation.value is None else None
            )
            if operation.expected is not None:
                compare = transaction.compare.add()
                compare.result, compare.target = _EQUAL, _MOD
                compare.key, compare.mod_revision = key, operation.expected
                if operation.expected_value is not None:
                    compare = transaction.compare.add()
                    compare.result, compare.target = _EQUAL, _VALUE
                    compare.key, compare.value = key, operation.expected_value
                transaction.failure.add().request_range.key = key
            if not operation.writes:
                continue
            if operation.value is None:
                removal = transaction.success.add().request_delete_range
                removal.key, removal.prev_kv = key, prev_kv
            else:
                self._fill(transaction.success.add().request_put, operation, key, settings)
        return transaction

    def _first_conflict(
        self, operations: Sequence[Operation], answer: rpc.TxnResponse
    ) -> ConflictError:
        compared = [operation for operation in operations if operation.expected is not None]
        for operation, response in zip(compared, answer.responses, strict=True):
            found = response.response_range.kvs
            current = entry_of(self._keys, found[0]) if found else None
            revision = current.mod_revision if current else 0
            if revision != operation.expected or not has_expected_value(operation, current):
                expected = operation.expected or 0
                return ConflictError(
                    operation.key, expected=expected, current=current, found=revision or ""
                )
        raise AssertionError("etcd refused a transaction all of whose comparisons hold")

    def _fill(
        self, put: rpc.PutRequest, operation: Operation, key: bytes, settings: EtcdSettings
    ) -> None:
        """Make a put what an operation says.

        With `lease=None` it keeps the key's, which a plain put would take off.
        """
        value, lease = operation.value or b"", operation.lease
        if len(value) > settings.max_value_size:
            raise ResourceTooLargeError(
                operation.key, size=len(value), limit=settings.max_value_size
            )
        put.key, put.value = key, value
        if lease is None:
            put.ignore_lease = True
        elif lease:
            put.lease = lease

    # --- leases ---

    async def grant_lease(self, ttl: float) -> int:
        """Send one LeaseGrant. The server's minimum is 1.5 times its election timeout, rounded up: 2 s by default.

        The id is chosen here, so that a lease can be revoked that was granted although the answer
        says that the store is full.
        """
        return await self._grant(ttl, any_id)

    async def grant_lease_for(self, key: str, ttl: float) -> int:
        """Do the same; that it is for one key alone is told by its id."""
        return await self._grant(ttl, partial(id_for, self._keys.full(key)))

    async def _grant(self, ttl: float, draw: Callable[[], int]) -> int:
        check_ttl(ttl)
        connection = self._client.connection
        while True:
            lease = draw()
            try:
                return (
                    await connection.lease_grant(
                        rpc.LeaseGrantRequest(ID=lease, TTL=math.ceil(ttl))
                    )
                ).ID
            except StorageFullError:
                with suppress(KvorumError):  # it was not granted, or ends by itself
                    await self.revoke_lease(lease)
                raise
            except ServerError as exc:
                # The first of two requests was applied, and its answer lost. It may have been some
                # time ago, so the lease may end too early; it is left to end by itself.
                if "lease already exists" not in exc.detail:
                    raise
            except asyncio.CancelledError:
                begin_to_revoke(
                    connection, lease
                )  # it may have been granted, and the caller will never know its id
                raise

    async def _end_lease_of(self, removed: rpc.KeyValue) -> None:
        """End the lease that a key was on, if it was granted for this key alone."""
        if not is_for(removed.key, removed.lease):
            return
        with suppress(ClientClosedError):  # it is being closed; the deletion is done anyhow
            await end_own_lease(self._client.connection, removed.key, removed.lease)

    async def revoke_lease(self, lease: int) -> None:
        """Send one LeaseRevoke.

        Again if its answer is lost, since a lease that is gone does not come back.
        """
        check_lease("a lease", lease, least=1)
        connection, request, subject = (
            self._client.connection,
            rpc.LeaseRevokeRequest(ID=lease),
            f"lease {lease:x}",
        )
        try:
            await connection.lease_revoke(request, subject)
        except LeaseNotFoundError as exc:
            raise LeaseNotFoundError(lease) from exc
        except OutcomeUnknownError as lost:
            try:
                await connection.lease_revoke(request, subject)
            except LeaseNotFoundError:
                return
            except KvorumError as exc:
                raise lost from exc

    # --- watch ---

    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        """Make a watch; its stream opens when it is entered.

        Etcd sends bookmarks every ten minutes, unless set to.
        """
        check_start(self.location(prefix), since)
        self._keys.range(prefix)  # checks it
        return EtcdStorageWatch(self._client, self._keys, prefix, since, bookmarks=bookmarks)
