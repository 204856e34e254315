"""The storage port on etcd: each method is one request, but for the pages of a list."""

import math
from collections.abc import Sequence

from kvorum.errors import (
    AlreadyExistsError,
    ConflictError,
    LeaseNotFoundError,
    NotFoundError,
    OutcomeUnknownError,
    ResourceTooLargeError,
)
from kvorum.etcd import _rpc as rpc
from kvorum.etcd import outcomes
from kvorum.etcd.connection import HasConnection
from kvorum.etcd.entries import entry_of
from kvorum.etcd.watch import EtcdStorageWatch
from kvorum.keyspace import KeyPattern, KeySpace
from kvorum.storage import (
    Change,
    Entry,
    Operation,
    Page,
    StorageBackend,
    StorageWatch,
    check_limit,
    check_operations,
    check_revision,
    check_start,
    check_ttl,
)


class EtcdStorageBackend(StorageBackend):
    """Bytes in etcd, under a prefix of their own. Cheap: it holds nothing but its two arguments.

    Args:
        client: whose connection to use, once it is open.
        prefix: what the keys start with in etcd: key `a` of prefix `lab` is `/lab/a`.
    """

    def __init__(self, client: HasConnection, prefix: str) -> None:
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
        return self._keys.prefix + key

    # --- read ---

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        """Send one linearizable Range."""
        check_revision(self.location(key), revision)
        request = rpc.RangeRequest(key=self._keys.full(key), revision=revision or 0)
        answer = await self._client.connection.range(request, self.location(key), revision=revision or 0)
        return entry_of(self._keys, answer.kvs[0]) if answer.kvs else None

    async def list(
        self, prefix: str, *, limit: int | None = None, after: str | None = None, revision: int | None = None
    ) -> Page:
        """Send one Range for each `page_size` keys, all at the revision of the first."""
        check_limit(self.location(prefix), limit)
        check_revision(self.location(prefix), revision)
        entries: list[Entry] = []
        while True:
            size = self.page_size if limit is None else min(self.page_size, limit - len(entries))
            page = await self._page(prefix, size, after, revision)
            entries += page.entries
            if not page.remaining or (limit is not None and len(entries) >= limit):
                return Page(entries, page.revision, page.remaining)
            after, revision = entries[-1].key, page.revision

    async def _page(self, prefix: str, size: int, after: str | None, revision: int | None) -> Page:
        start, end = self._keys.range(prefix)
        if after is not None:
            start = max(start, self._keys.full(after) + b"\0")
        request = rpc.RangeRequest(key=start, range_end=end, limit=size, revision=revision or 0)
        answer = await self._client.connection.range(request, self.location(prefix), revision=revision or 0)
        entries = [entry_of(self._keys, kv) for kv in answer.kvs]
        return Page(entries, revision or answer.header.revision, answer.count - len(entries))

    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        """Send one Range that counts only."""
        check_revision(self.location(prefix), revision)
        start, end = self._keys.range(prefix)
        request = rpc.RangeRequest(key=start, range_end=end, count_only=True, revision=revision or 0)
        answer = await self._client.connection.range(request, self.location(prefix), revision=revision or 0)
        return answer.count

    async def keys(self, pattern: str = "*") -> Sequence[str]:
        """Send one Range without values, over the keys that start like the pattern."""
        wanted = KeyPattern(pattern)
        start, end = self._keys.range(wanted.prefix)
        request = rpc.RangeRequest(key=start, range_end=end, keys_only=True)
        answer = await self._client.connection.range(request, self.location(pattern))
        return [key for kv in answer.kvs if wanted.matches(key := self._keys.relative(kv.key))]

    # --- write ---

    async def set(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Send one Put. If its answer is lost, look whether the value is there and can be nobody else's."""
        connection, put = self._client.connection, self._put(key, value, lease)
        try:
            return (await connection.put(put, self.location(key))).header.revision
        except OutcomeUnknownError as lost:
            return await outcomes.seen(connection, put.key, value, lost)

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Send one transaction: the key must not exist, or nothing happens. A lost answer is treated as in `set`.

        It is not sent again: the first copy may have been applied, and somebody have deleted the key since.
        """
        put = self._put(key, value, lease)
        request = self._swap(key, rpc.RequestOp(request_put=put), 0)
        connection = self._client.connection
        try:
            answer = await connection.txn(request, self.location(key))
        except OutcomeUnknownError as lost:
            return await outcomes.seen(connection, put.key, value, lost)
        if not answer.succeeded:
            raise AlreadyExistsError(key)
        return answer.header.revision

    async def compare_and_swap(self, key: str, value: bytes, *, expected: int, lease: int | None = None) -> int:
        """Send one transaction, which reads the key if it refuses to write it.

        If its answer is lost, it is sent again, which is safe: see `kvorum.etcd.outcomes`.
        """
        if lease is None and expected == 0:
            lease = 0  # a key that does not exist has no lease to keep
        put = self._put(key, value, lease)
        request = self._swap(key, rpc.RequestOp(request_put=put), expected)
        connection = self._client.connection
        try:
            answer = await connection.txn(request, self.location(key))
            revision = answer.header.revision if answer.succeeded else 0
        except OutcomeUnknownError as lost:
            if not expected:
                return await outcomes.seen(connection, put.key, value, lost)
            answer, revision = await outcomes.swap_again(connection, request, put.key, value, expected, lost)
        if not revision:
            self._raise_conflict(key, expected, answer)
        return revision

    async def delete(self, key: str, *, expected: int | None = None) -> Change:
        """Send one transaction, which returns the value that it removed."""
        removal = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self._keys.full(key), prev_kv=True))
        request = self._swap(key, removal, expected)
        answer = await self._client.connection.txn(request, self.location(key))
        if expected is not None:
            self._raise_conflict(key, expected, answer)
        removed = answer.responses[0].response_delete_range.prev_kvs
        if not removed:
            raise NotFoundError(key)
        return Change(key, answer.header.revision, None, entry_of(self._keys, removed[0]))

    def _swap(self, key: str, operation: rpc.RequestOp, expected: int | None) -> rpc.TxnRequest:
        """Build one operation for a key at `expected`; else it is read, so that a refusal says what there is."""
        read = rpc.RequestOp(request_range=rpc.RangeRequest(key=self._keys.full(key)))
        compare = [] if expected is None else [self._compare(key, expected)]
        return rpc.TxnRequest(compare=compare, success=[operation], failure=[read])

    def _raise_conflict(self, key: str, expected: int, answer: rpc.TxnResponse) -> None:
        if answer.succeeded:
            return
        found = answer.responses[0].response_range.kvs
        current = entry_of(self._keys, found[0]) if found else None
        raise ConflictError(key, expected=expected, current=current, found=current.mod_revision if current else "")

    async def commit(self, operations: Sequence[Operation]) -> int:
        """Send one transaction, which reads what it compared if it refuses to write."""
        check_operations(operations)
        compared = [operation for operation in operations if operation.expected is not None]
        request = rpc.TxnRequest(
            compare=[self._compare(operation.key, operation.expected or 0) for operation in compared],
            success=[self._step(operation) for operation in operations if operation.writes],
            failure=[
                rpc.RequestOp(request_range=rpc.RangeRequest(key=self._keys.full(operation.key)))
                for operation in compared
            ],
        )
        answer = await self._client.connection.txn(request, ", ".join(self.location(o.key) for o in operations))
        if not answer.succeeded:
            raise self._first_conflict(compared, answer)
        return answer.header.revision

    def _first_conflict(self, compared: Sequence[Operation], answer: rpc.TxnResponse) -> ConflictError:
        for operation, response in zip(compared, answer.responses, strict=True):
            found = response.response_range.kvs
            current = entry_of(self._keys, found[0]) if found else None
            revision = current.mod_revision if current else 0
            if revision != operation.expected:
                expected = operation.expected or 0
                return ConflictError(operation.key, expected=expected, current=current, found=revision or "")
        raise AssertionError("etcd refused a transaction all of whose comparisons hold")

    def _step(self, operation: Operation) -> rpc.RequestOp:
        if operation.value is None:
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self._keys.full(operation.key)))
        return rpc.RequestOp(request_put=self._put(operation.key, operation.value, operation.lease))

    def _put(self, key: str, value: bytes, lease: int | None) -> rpc.PutRequest:
        """Build a put; with `lease=None` it keeps the key's lease, which a plain put would take off."""
        limit = self._client.connection.settings.max_value_size
        if len(value) > limit:
            raise ResourceTooLargeError(key, size=len(value), limit=limit)
        return rpc.PutRequest(key=self._keys.full(key), value=value, lease=lease or 0, ignore_lease=lease is None)

    def _compare(self, key: str, expected: int) -> rpc.Compare:
        full = self._keys.full(key)
        return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=full, mod_revision=expected)

    # --- leases ---

    async def grant_lease(self, ttl: float) -> int:
        """Send one LeaseGrant. The server's minimum is 1.5 times its election timeout, rounded up: 2 s by default."""
        check_ttl(ttl)
        return (await self._client.connection.lease_grant(rpc.LeaseGrantRequest(TTL=math.ceil(ttl)))).ID

    async def revoke_lease(self, lease: int) -> None:
        """Send one LeaseRevoke."""
        try:
            await self._client.connection.lease_revoke(rpc.LeaseRevokeRequest(ID=lease), f"lease {lease:x}")
        except LeaseNotFoundError as exc:
            raise LeaseNotFoundError(lease) from exc

    # --- watch ---

    def watch(self, prefix: str, *, since: int | None = None) -> StorageWatch:
        """Make a watch; its stream opens when it is entered."""
        check_start(self.location(prefix), since)
        return EtcdStorageWatch(self._client, self._keys, prefix, since)
