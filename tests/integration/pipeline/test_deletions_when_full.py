"""Deletions while the store is full: they make room, so no put of another caller may prevent them.

Newer servers refuse a batch for one put in it. The observer here does the same, in front of a real
etcd of any version.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import kvorum
from kvorum import ConflictError, Observer, StorageFullError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.observer import Call

WRITERS = 20


def steps_of(request: rpc.TxnRequest) -> Iterator[rpc.RequestOp]:
    for step in request.success:
        if step.HasField("request_txn"):
            yield from steps_of(step.request_txn)
        else:
            yield step


class FullStore(Observer):
    """Refuses requests with a put in them, once `is_full`.

    Attributes:
        is_full: whether it refuses them.
        refused: how many it refused.
        mixed: how many of those would have deleted something, too.
    """

    def __init__(self) -> None:
        self.is_full = False
        self.refused = self.mixed = 0

    async def before_request(self, _call: Call, _endpoint: str, message: Any, /) -> None:
        steps = list(steps_of(message)) if isinstance(message, rpc.TxnRequest) else []
        has_put = isinstance(message, rpc.PutRequest) or any(
            step.HasField("request_put") for step in steps
        )
        if not self.is_full or not has_put:
            return
        self.refused += 1
        self.mixed += any(step.HasField("request_delete_range") for step in steps)
        await asyncio.sleep(0)
        raise StorageFullError("etcdserver: mvcc: database space exceeded")

    async def after_request(self, _call: Call, _endpoint: str, answer: Any, /) -> None:
        """Report a version that counts nested puts: those are batched although it is full."""
        if isinstance(answer, rpc.StatusResponse):
            answer.version = "3.7.1"


@pytest.fixture
def full() -> FullStore:
    return FullStore()


@pytest.fixture
async def client(kvorum_url: str, full: FullStore) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(kvorum_url, observer=full) as client:
        assert not full.is_full
        yield client


@pytest.fixture
async def keys(client: kvorum.Client) -> dict[str, int]:
    """Keys, and their revisions."""
    names = [f"old-{number}" for number in range(WRITERS)]
    return dict(
        zip(
            names,
            await asyncio.gather(*(client.backend.set(name, b"1") for name in names)),
            strict=True,
        )
    )


async def test_a_deletion_that_was_refused_for_a_put_in_its_batch_is_sent_alone(
    client: kvorum.Client, full: FullStore, keys: dict[str, int]
) -> None:
    store = client.backend
    full.is_full = True
    calls = [
        call
        for key, revision in keys.items()
        for call in (
            store.delete(key, expected=revision),
            store.set(f"new-{key}", b"1", unique=True),
        )
    ]
    with anyio.fail_after(10):
        answers = await asyncio.gather(*calls, return_exceptions=True)

    assert full.mixed
    assert {type(answer) for answer in answers[1::2]} == {StorageFullError}
    assert {type(answer) for answer in answers[0::2]} == {kvorum.Change}
    assert await store.count("") == 0


async def test_a_deletion_that_is_sent_again_is_refused_by_its_own_comparison(
    client: kvorum.Client, full: FullStore, keys: dict[str, int]
) -> None:
    store, revision = client.backend, keys["old-1"]
    full.is_full = True
    _, _, outdated, other = await asyncio.gather(
        store.delete("old-3"),  # is sent at once, and the others gather
        store.set("new", b"1", unique=True),
        store.delete("old-1", expected=revision - 1),
        store.delete("old-2", expected=revision - 1),
        return_exceptions=True,
    )

    assert full.mixed
    assert isinstance(outdated, ConflictError)
    assert isinstance(other, ConflictError)


async def test_while_the_store_is_known_to_be_full_no_deletion_goes_with_a_put(
    client: kvorum.Client, full: FullStore, keys: dict[str, int]
) -> None:
    store, is_over = client.backend, False

    async def write(number: int) -> None:
        while not is_over:
            with pytest.raises(StorageFullError):
                await store.set(f"new-{number}", b"1", unique=True)

    full.is_full = True
    with pytest.raises(StorageFullError):
        await store.set("new", b"1", unique=True)
    writers = [asyncio.ensure_future(write(number)) for number in range(WRITERS)]
    with anyio.fail_after(10):
        for key, revision in keys.items():
            await store.delete(key, expected=revision)
        is_over = True
        await asyncio.gather(*writers)

    assert full.mixed == 0
    assert full.refused
    statistics = client.pipeline.statistics()
    assert statistics.write_requests < statistics.writes / 2  # and yet they are batched
