"""What a busy pipeline returns is right, and the checkers find batching that is not."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from tests.integration.pipeline.batching import DEADLINE, all_of, warm_up

import kvorum
from kvorum import ConflictError, EmbeddedEtcd, EtcdSettings, Operation
from kvorum.etcd.backend import EtcdStorageBackend
from kvorum.etcd.pipeline.calls import AnyCall
from kvorum.etcd.pipeline.pipeline import Pipeline
from kvorum.etcd.pipeline.queue import BatchQueue
from kvorum.etcd.transport import _rpc as rpc
from kvorum.testing import (
    FaultProxy,
    History,
    RecordingBackend,
    Rule,
    Workload,
    check_revisions,
    read_server_history,
    run_trial,
)

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("pipeline", [True, False])
async def test_the_checkers_find_nothing_wrong_with_a_busy_pipeline(
    kvorum_etcd: EmbeddedEtcd, kvorum_url: str, *, pipeline: bool
) -> None:
    settings = EtcdSettings(
        endpoints=kvorum_etcd.endpoints,
        prefix=kvorum_url.rpartition("/")[2],
        timeout=DEADLINE,
        pipeline=pipeline,
    )
    async with kvorum.connect(settings) as client:
        verdict = await run_trial(
            kvorum_etcd.endpoints[0],
            [client],
            Workload(operations=5_000, clients=64, keys=20, seed=1),
        )
        now = client.pipeline.statistics()

    assert verdict.is_right, str(verdict)
    assert (now.read_requests < now.reads / 2) is pipeline


async def late_reads(
    etcd: EmbeddedEtcd, client: kvorum.Client, proxy: FaultProxy, writer: kvorum.Client
) -> set[Rule]:
    """Ask for a key while an answer about it, older than a write, is on its way.

    Return the rules that were broken.
    """
    history = History()
    start = await writer.backend.set("start", b"")
    reading = [RecordingBackend(client.backend, history, f"reader-{number}") for number in range(4)]
    writing = RecordingBackend(writer.backend, history, "writer")
    await writing.set(
        "a", b"%d" % start + bytes(10_000)
    )  # so much that its answer is known by its size
    proxy.hold("replies")
    calls = [asyncio.ensure_future(reading[0].get("b"))]
    await proxy.wait(lambda now: now.held > 0)
    held = proxy.statistics().held
    calls += [
        asyncio.ensure_future(reading[1].get("a")),
        asyncio.ensure_future(reading[2].get("c")),
    ]
    await proxy.wait(lambda now: now.held > held + 10_000)
    await writing.set("a", b"new %d" % start)
    calls.append(asyncio.ensure_future(reading[3].get("a")))
    await asyncio.sleep(0)
    await proxy.heal()
    await all_of(*calls)
    server_history = await read_server_history(
        etcd.endpoints[0], writer.settings.prefix, since=start
    )
    return {violation.rule for violation in check_revisions(history, server_history)}


async def test_the_checkers_find_a_read_that_joins_one_that_was_sent(
    kvorum_etcd: EmbeddedEtcd,
    client: kvorum.Client,
    proxy: FaultProxy,
    kvorum_client: kvorum.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer may be older than the question. A planted fault: the checkers must see it."""
    assert await late_reads(kvorum_etcd, client, proxy, kvorum_client) == set()
    join = BatchQueue.join

    async def join_what_was_sent(self: BatchQueue, call: AnyCall) -> Any:
        for batch in self._in_flight:
            for other in batch.get(call.key, ()):
                if not call.is_write and other.outcome is not None and not other.is_done:
                    return await asyncio.shield(other.outcome)
        return await join(self, call)

    monkeypatch.setattr(BatchQueue, "join", join_what_was_sent)
    assert await late_reads(kvorum_etcd, client, proxy, kvorum_client) == {Rule.STALE_READ}


async def skewed(etcd: EmbeddedEtcd, client: kvorum.Client) -> set[Rule]:
    """Let two at a time check what the other writes; return the rules that were broken."""
    history = History()
    start = await client.backend.set("start", b"")
    store = RecordingBackend(client.backend, history, "c")

    async def write(key: str, other: str, value: bytes) -> None:
        with suppress(ConflictError):
            await store.commit(
                [Operation.put(key, value), Operation.check(other, expected=at[other])]
            )

    for number in range(20):
        at = {key: await store.set(key, b"%d-%s" % (number, key.encode())) for key in "ab"}
        # The first one keeps the pipeline busy, so that the others can share a request.
        await asyncio.gather(
            store.set("c", b"%d" % number),
            write("a", "b", b"a%d" % number),
            write("b", "a", b"b%d" % number),
        )
    server_history = await read_server_history(
        etcd.endpoints[0], client.settings.prefix, since=start
    )
    return {violation.rule for violation in check_revisions(history, server_history)}


async def test_the_checkers_find_transactions_that_are_batched_with_what_they_compare(
    kvorum_etcd: EmbeddedEtcd, kvorum_client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write skew: within a batch each compares the state before it.

    The planted fault batches transactions of several keys.
    """
    await warm_up(kvorum_client)
    assert await skewed(kvorum_etcd, kvorum_client) == set()

    async def send_together(
        self: EtcdStorageBackend,
        pipeline: Pipeline,
        request: rpc.TxnRequest,
        operations: list[Operation],
    ) -> tuple[rpc.TxnResponse, int]:
        return await pipeline.txn(self._keys.full(operations[0].key), request)

    monkeypatch.setattr(EtcdStorageBackend, "_send", send_together)
    assert Rule.WRITE_SKEW in await skewed(kvorum_etcd, kvorum_client)
