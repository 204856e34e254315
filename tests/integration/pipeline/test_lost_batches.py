"""Batches that got no answer, or found no server."""

import asyncio

import anyio
import pytest
from tests.integration.pipeline.batching import DEADLINE, Requests, all_of

import kvorum
from kvorum import Operation, OutcomeUnknownError
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)


async def test_of_a_batch_whose_answer_is_lost_the_outcome_of_each_write_is_found_out(
    client: kvorum.Client, proxy: FaultProxy, store: kvorum.StorageBackend
) -> None:
    """All were applied. The swaps are sent again as their own fences.

    Others are known by their tokens, or unknown.
    """
    there = await store.commit([Operation.put(f"k{number}", b"old") for number in range(40)])
    token = b'{"metadata":{"writeToken":"%d"}}'
    proxy.drop("replies")
    calls = [
        *(
            client.backend.compare_and_swap(f"k{n}", token % n, expected=there, unique=True)
            for n in range(20)
        ),
        *(client.backend.create(f"n{n}", token % n, unique=True) for n in range(10)),
        *(client.backend.set(f"plain-{n}", b"not unique") for n in range(10)),
    ]
    pending = asyncio.gather(*calls, return_exceptions=True)
    await proxy.wait(lambda now: now.dropped > 0)
    with anyio.fail_after(DEADLINE):
        while await store.count("plain-") < 1:  # noqa: ASYNC110 - another client's write
            await anyio.sleep(0.01)
    await proxy.heal()
    with anyio.fail_after(DEADLINE):
        answers = await pending

    now = {entry.key: entry for entry in (await store.list("")).entries}
    assert [now[f"k{n}"].mod_revision for n in range(20)] == answers[:20]
    assert [now[f"n{n}"].mod_revision for n in range(10)] == answers[20:30]
    assert {type(answer) for answer in answers[30:]} <= {OutcomeUnknownError, int}
    assert any(isinstance(answer, OutcomeUnknownError) for answer in answers[30:])
    assert {now[f"k{n}"].version for n in range(20)} == {2}


async def test_each_caller_of_a_batch_that_found_no_server_retries_its_own_call(
    client: kvorum.Client, proxy: FaultProxy, requests: Requests
) -> None:
    """Each retries until its deadline."""
    store = client.backend
    await proxy.refuse()
    proxy.cut()
    calls = [asyncio.ensure_future(store.get(f"k{number}")) for number in range(50)]
    await requests.until_failed()
    await proxy.heal()

    assert await all_of(*calls) == [None] * 50
