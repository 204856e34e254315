"""A cancelled call raises the cancellation of its caller: asyncio's, or that of anyio's scope."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from tests.clients import InFlight, short_timeout

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Operation, OutcomeUnknownError, StorageBackend


@pytest.fixture
async def silent(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[StorageBackend]:
    """A store whose server keeps its connections and does not answer."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedEtcd(binary=kvorum_etcd.binary))
        settings = EtcdSettings(endpoints=server.endpoints, timeout=30.0)
        client = await stack.enter_async_context(kvorum.connect(settings))
        await client.backend.set("a", b"")
        await server.pause()
        yield client.backend


CALLS: dict[str, Callable[[StorageBackend], Coroutine[Any, Any, object]]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: store.list(""),
    "set": lambda store: store.set("a", b""),
    "compare_and_swap": lambda store: store.compare_and_swap("a", b"", expected=1),
    "commit": lambda store: store.commit([Operation.put("a", b"")]),
    "grant_lease": lambda store: store.grant_lease(10),
    "watch": lambda store: store.watch("").open(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_scope_recognizes_its_own_cancellation(silent: StorageBackend, name: str) -> None:
    """grpc.aio replaces the cancellation by an error of its own, which a scope would not catch."""
    with anyio.move_on_after(0.05) as scope:
        await CALLS[name](silent)

    assert scope.cancelled_caught


@pytest.mark.parametrize("name", CALLS)
async def test_a_timeout_of_asyncio_ends_a_call(silent: StorageBackend, name: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await CALLS[name](silent)


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_may_be_cancelled_at_any_of_its_steps(
    silent: StorageBackend, name: str
) -> None:
    for steps in range(30):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(CALLS[name], silent)
                for _ in range(steps):
                    await asyncio.sleep(0)
                scope.cancel()

        assert scope.cancelled_caught


async def test_a_task_group_that_fails_cancels_its_calls(silent: StorageBackend) -> None:
    """And raises its own error, not the cancellation."""

    async def fail() -> None:
        await anyio.sleep(0.05)
        raise ZeroDivisionError

    async def get_beside_that() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(silent.get, "a")
            group.start_soon(fail)

    with pytest.raises(ExceptionGroup) as caught:
        await get_beside_that()

    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


# --- calls of a task that was cancelled before ----------------------------------------------------


async def in_finally(cleanup: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """Run it in a task that is told to stop, and return what it returned or raised."""
    outcome: list[object] = []
    started = anyio.Event()

    async def work() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            try:
                outcome.append(await cleanup())
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - whatever it is
                outcome.append(exc)

    worker = asyncio.create_task(work())
    await started.wait()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    return outcome[0]


async def in_a_shielded_scope(cleanup: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """Run it in a shielded scope within a cancelled one, and return what it returned or raised."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    outcome = await cleanup()
                except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - see above
                    outcome = exc
    return outcome


CLEANUPS = {"finally": in_finally, "a shielded scope": in_a_shielded_scope}


@pytest.mark.parametrize("pipeline", [True, False], ids=["batched", "single"])
@pytest.mark.parametrize("where", CLEANUPS)
async def test_a_cancelled_task_cleans_up_although_the_server_in_use_hangs(
    kvorum_etcd: EmbeddedEtcd, where: str, *, pipeline: bool
) -> None:
    """Its reads are answered by another server, which ends the call to the one that hangs."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as cluster:
        settings = EtcdSettings(endpoints=cluster.endpoints, pipeline=pipeline)
        async with kvorum.connect(settings) as client:
            store = client.backend
            await store.set("a", b"1")
            await store.get("a")
            await cluster.pause(cluster.endpoints.index(client.connection.endpoint))

            async def clean_up() -> object:
                count = await store.count("")
                await store.delete("a")
                return count, await store.get("a")

            assert await CLEANUPS[where](clean_up) == (1, None)


async def test_a_write_of_a_cancelled_task_that_is_cut_by_the_closing_has_an_unknown_outcome(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    in_flight = InFlight()
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as server:
        client = await short_timeout(server, timeout=30, observer=in_flight).__aenter__()
        store = client.backend
        await store.set("a", b"1")
        in_flight.clear()
        await server.pause()

        async def close() -> None:
            await in_flight.until("transaction")
            await client.aclose()

        closing = asyncio.create_task(close())
        outcome = await in_finally(
            lambda: store.commit([Operation.put("b", b""), Operation.put("c", b"")])
        )
        await closing

    assert isinstance(outcome, OutcomeUnknownError)


async def test_a_task_that_cancels_itself_just_before_a_call_is_cancelled_in_it(
    silent: StorageBackend,
) -> None:
    """asyncio delivers that cancellation at the next await, within the call."""

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await silent.count("")

    with anyio.fail_after(5):
        (outcome,) = await asyncio.gather(asyncio.create_task(work()), return_exceptions=True)

    assert isinstance(outcome, asyncio.CancelledError)


def test_calls_that_were_cut_off_leave_nothing_for_the_next_event_loop(kvorum_url: str) -> None:
    """All loops of a process share one queue of grpc.aio; leftovers would raise in another loop."""
    problems: list[object] = []

    async def cut_off(steps: int) -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: problems.append(context)
        )
        async with kvorum.connect(kvorum_url) as client:
            calls = [asyncio.ensure_future(client.backend.get("a")) for _ in range(20)]
            calls += [asyncio.ensure_future(client.backend.watch("").open()) for _ in range(10)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    for steps in range(20):
        asyncio.run(cut_off(steps))

    assert problems == []
