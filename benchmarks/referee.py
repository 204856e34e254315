"""A referee: fills the store before a race, and checks independently that the work was done."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import aetcd
from aetcd import rpc
from benchmarks.race import Run

from kvorum.resources.keys import prefix_end

Pair = tuple[bytes, bytes]  # key, value


class Referee:
    """A client that does not compete. All methods but `write` run while no clock runs."""

    def __init__(self, endpoint: str, run: Run) -> None:
        host, _, port = endpoint.partition(":")
        self._client: Any = aetcd.Client(
            host, int(port), options={"grpc.max_receive_message_length": -1}
        )
        self._run = run

    def __enter__(self) -> Self:
        self._run(self._client.connect())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._client.close())

    def revision(self) -> int:
        """Return the store's revision: each write, of one key or many, increases it by one."""
        answer = self._call("Range", rpc.RangeRequest(key=b"\0", count_only=True))
        return int(answer.header.revision)

    def count(self, prefix: str) -> int:
        """Return the number of keys under a prefix."""
        start = prefix.encode()
        return int(
            self._call(
                "Range", rpc.RangeRequest(key=start, range_end=prefix_end(start), count_only=True)
            ).count
        )

    def writes(self, prefix: str) -> int:
        """Return how often keys under a prefix were written. Batched writes share a revision."""
        start = prefix.encode()
        request = rpc.RangeRequest(key=start, range_end=prefix_end(start), keys_only=True)
        return sum(kv.version for kv in self._call("Range", request).kvs)

    def wipe(self, prefix: str) -> None:
        """Delete a prefix and compact all history, so that all races run in equal stores."""
        start = prefix.encode()
        answer = self._call(
            "DeleteRange", rpc.DeleteRangeRequest(key=start, range_end=prefix_end(start))
        )
        if answer.deleted:
            self._call(
                "Compact", rpc.CompactionRequest(revision=answer.header.revision, physical=True)
            )

    def fill(self, pairs: Sequence[Pair], *, together: int = 100) -> None:
        """Write them, `size` in a transaction, which is one revision."""
        parts = [pairs[start : start + together] for start in range(0, len(pairs), together)]

        async def fill(share: Sequence[Sequence[Pair]]) -> None:
            for part in share:
                await self.write(part)

        async def fill_all() -> None:
            async with asyncio.TaskGroup() as group:
                for place in range(16):
                    group.create_task(fill(parts[place::16]))

        self._run(fill_all())

    async def write(self, pairs: Sequence[Pair]) -> None:
        """Write them in one transaction."""
        puts = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value)) for key, value in pairs
        ]
        await self._client.kvstub.Txn(rpc.TxnRequest(success=puts))

    def _call(self, method: str, request: Any) -> Any:
        async def call() -> Any:  # grpc.aio needs a running loop
            return await getattr(self._client.kvstub, method)(request)

        return self._run(call())
