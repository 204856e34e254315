"""How a client is opened and closed, in order and in the wrong order."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import pytest
from tests.clients import (
    DEADLINE,
    USES,
    InFlight,
    anext_of,
    connections_to,
    port_of,
    short_timeout,
)
from tests.waiting import tasks_here, until

import kvorum
from kvorum import (
    ClientClosedError,
    EmbeddedEtcd,
    KvorumError,
    OutcomeUnknownError,
    StorageBackend,
)
from kvorum.lab import LabWorker, LabWorkerRepository


@pytest.fixture
def nothing_left(kvorum_etcd: EmbeddedEtcd) -> Callable[[], Awaitable[None]]:
    """Wait until no task and no socket of a client is left."""
    port = int(kvorum_etcd.endpoints[0].rpartition(":")[2])
    gc.collect()
    before = connections_to(port)

    async def check() -> None:
        here = asyncio.current_task()

        def is_nothing_left() -> bool:
            gc.collect()  # a cancelled call refers to its connection in a cycle
            return tasks_here() <= {here} and connections_to(port) <= before

        await until(is_nothing_left)

    return check


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server that the test may pause and kill, of the same version as the session's."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


# --- the wrong order ------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_a_client_that_was_not_entered_says_how_to(
    kvorum_url: str, use: Callable[[StorageBackend], Awaitable[object]]
) -> None:
    client = kvorum.connect(kvorum_url)

    with pytest.raises(ClientClosedError, match="async with"):
        await use(client.backend)


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_a_client_that_was_left_is_closed_to_every_use(
    kvorum_url: str, use: Callable[[StorageBackend], Awaitable[object]]
) -> None:
    async with kvorum.connect(kvorum_url) as client:
        await client.backend.get("a")

    with pytest.raises(ClientClosedError, match="closed"):
        await use(client.backend)


async def test_a_repository_made_before_the_client_was_entered_works_inside(
    kvorum_url: str,
) -> None:
    client = kvorum.connect(kvorum_url)
    workers = LabWorkerRepository(client)
    watch = workers.watch()
    with pytest.raises(ClientClosedError, match="async with"):
        await workers.get("a")

    async with client, watch:
        added = await workers.add(LabWorker.new("a", lab_track="x"))
        with anyio.fail_after(DEADLINE):
            assert await anext(watch) == kvorum.Added(added)

    with pytest.raises(ClientClosedError):
        await workers.get("a")


async def test_a_client_is_entered_once(kvorum_url: str) -> None:
    client = kvorum.connect(kvorum_url)
    async with client:
        with pytest.raises(ClientClosedError, match="once"):
            await client.__aenter__()
        await client.backend.get("a")  # the first entry still holds
    with pytest.raises(ClientClosedError, match="once"):
        await client.__aenter__()


async def test_a_client_that_was_closed_before_it_was_entered_stays_closed(kvorum_url: str) -> None:
    client = kvorum.connect(kvorum_url)
    await client.aclose()
    await client.aclose()

    with pytest.raises(ClientClosedError):
        await client.__aenter__()
    with pytest.raises(ClientClosedError, match="closed"):
        await client.backend.get("a")


async def test_a_client_says_where_it_is_and_whether_it_is_open(
    kvorum_url: str, kvorum_etcd: EmbeddedEtcd
) -> None:
    client = kvorum.connect(kvorum_url)
    (endpoint,) = kvorum_etcd.endpoints
    assert repr(client) == f"<Client {endpoint} [not open]>"
    async with client:
        assert repr(client) == f"<Client {endpoint} [open]>"
        assert client.connection.version == kvorum_etcd.version
    assert repr(client) == f"<Client {endpoint} [closed]>"


async def test_clients_whose_prefixes_begin_alike_see_nothing_of_each_other(
    kvorum_url: str,
) -> None:
    async with kvorum.connect(kvorum_url) as one, kvorum.connect(f"{kvorum_url}-old") as other:
        async with one.backend.watch("") as watch:
            await other.backend.set("a", b"")
            revision = await one.backend.set("b", b"")
            with anyio.fail_after(DEADLINE):
                ((change),) = await anext(watch)

        assert (change.key, change.revision) == ("b", revision)
        assert [entry.key for entry in (await one.backend.list("")).entries] == ["b"]
        assert await other.backend.keys() == ["a"]


# --- closing --------------------------------------------------------------------------------------


async def test_a_client_that_was_left_leaves_no_task_and_no_socket(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    client = kvorum.connect(kvorum_url)
    before = connections_to(port_of(client))
    async with client:
        await client.backend.set("a", b"")
        async with client.backend.watch("") as watch:
            await client.backend.set("a", b"")
            await anext(watch)
        unread = client.backend.watch("")
        await unread.open()
        assert connections_to(port_of(client)) >= before + 2  # one for calls, one for watches

    await nothing_left()


async def test_a_client_that_was_left_by_an_error_is_closed(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    client = kvorum.connect(kvorum_url)

    with pytest.raises(ZeroDivisionError):
        async with client:
            _ = 1 / 0

    assert "[closed]" in repr(client)
    await nothing_left()


async def test_any_task_may_close_a_client_and_any_number_of_them(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    async with kvorum.connect(kvorum_url) as client, client.backend.watch("") as watch:
        waiting = asyncio.create_task(anext_of(watch))
        await asyncio.sleep(0)
        with anyio.fail_after(DEADLINE):
            await asyncio.gather(*(asyncio.create_task(client.aclose()) for _ in range(3)))
        assert isinstance(await waiting, ClientClosedError)
    del watch, waiting
    await nothing_left()


async def test_a_second_close_waits_for_the_first(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    client = await kvorum.connect(kvorum_url).__aenter__()
    await client.backend.watch("").open()
    first = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    await client.aclose()

    assert not [each for each in tasks_here() if each.get_name().startswith(("kvorum", "watch"))]
    await first
    await nothing_left()


async def test_a_watch_learns_once_that_its_client_was_closed(kvorum_url: str) -> None:
    async with kvorum.connect(kvorum_url) as client:
        watch = client.backend.watch("")
        typed = LabWorkerRepository(client).watch()
        await watch.open()
        await typed.__aenter__()
        await client.aclose()

        for each in (watch, typed):
            with pytest.raises(ClientClosedError):
                await anext(each)
            with pytest.raises(StopAsyncIteration):
                await anext(each)
            await each.aclose()


@pytest.mark.parametrize("pipeline", [True, False])
async def test_closing_a_client_ends_its_calls_with_an_error_and_not_with_a_cancellation(
    server: EmbeddedEtcd, *, pipeline: bool
) -> None:
    """A CancelledError would look as if the caller's own task had been cancelled."""
    async with short_timeout(server, timeout=60, pipeline=pipeline) as client:
        await client.backend.set("a", b"")
        watch = client.backend.watch("")
        await watch.open()
        await server.pause()
        calls: dict[str, asyncio.Task[Any]] = {
            name: asyncio.create_task(use(client.backend), name=name)  # type: ignore[arg-type]  # all are coroutines
            for name, use in USES.items()
        }
        calls["waiting"] = asyncio.create_task(anext_of(watch))
        for _ in range(20):  # let all of them send
            await asyncio.sleep(0)
        started = time.monotonic()
        await client.aclose()
        await asyncio.wait(calls.values())

        assert time.monotonic() - started < 2
        errors = {
            name: call.result()
            if name == "waiting"
            else ("cancelled" if call.cancelled() else call.exception())
            for name, call in calls.items()
        }
        # Writes of one key wait for each other in the pipeline: those not sent did nothing.
        may_wait = {"create", "swap", "delete", "commit"} if pipeline else set()
        sent = {"set", "create", "swap", "delete", "commit", "revoke"} - may_wait
        for name, error in errors.items():
            expected = OutcomeUnknownError if name in sent else ClientClosedError
            assert type(error) is expected or (
                name in may_wait and type(error) is OutcomeUnknownError
            ), name


async def test_a_client_may_be_closed_at_any_point_of_its_calls(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    async def close_after(steps: int) -> list[object]:
        async with kvorum.connect(kvorum_url) as client:
            calls: list[asyncio.Task[Any]] = [
                *(asyncio.create_task(client.backend.set(f"k{n}", b"")) for n in range(5)),
                *(asyncio.create_task(client.backend.get(f"k{n}")) for n in range(5)),
                *(asyncio.create_task(client.backend.watch("").open()) for n in range(5)),
            ]
            for _ in range(steps):
                await asyncio.sleep(0)
            await client.aclose()
            results: list[object] = await asyncio.gather(*calls, return_exceptions=True)
            return results

    for steps in range(0, 60, 3):
        for result in await close_after(steps):
            assert isinstance(result, KvorumError) or not isinstance(result, BaseException)
    await nothing_left()


async def test_a_cancellation_of_the_caller_stays_a_cancellation(server: EmbeddedEtcd) -> None:
    """Also while the client is being closed."""
    in_flight = InFlight()
    async with short_timeout(server, timeout=60, observer=in_flight) as client:
        await server.pause()
        reading = asyncio.create_task(client.backend.get("a"))
        writing = asyncio.create_task(client.backend.set("a", b""))
        await in_flight.until("read", "put")
        reading.cancel()
        writing.cancel()
        await client.aclose()
        await asyncio.wait([reading, writing])

    assert reading.cancelled()
    assert writing.cancelled()


# --- entering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_entering_may_be_cancelled_at_any_point(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]], way: str
) -> None:
    async def enter() -> None:
        async with kvorum.connect(kvorum_url):
            await anyio.sleep_forever()

    for steps in range(40):
        if way == "task":
            entering = asyncio.create_task(enter())
            for _ in range(steps):
                await asyncio.sleep(0)
            entering.cancel()
            with anyio.fail_after(DEADLINE):
                await asyncio.wait([entering])
            assert entering.cancelled()
            del entering  # its traceback refers to the client
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(enter)
                for _ in range(steps):
                    await asyncio.sleep(0)
                group.cancel_scope.cancel()
    await nothing_left()


async def test_a_client_may_be_closed_while_it_is_being_entered(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    """By another task that shuts the program down: an open client would never be closed."""
    for steps in range(25):
        client = kvorum.connect(kvorum_url)
        entering = asyncio.create_task(client.__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        with anyio.fail_after(DEADLINE):
            await client.aclose()
            await asyncio.wait([entering])

        assert not entering.cancelled(), f"after {steps} steps"
        assert entering.exception() is None or isinstance(entering.exception(), ClientClosedError)
        del entering
        with pytest.raises(ClientClosedError):
            await client.backend.get("a")
    await nothing_left()


async def test_a_client_that_was_dropped_unopened_costs_nothing(kvorum_url: str) -> None:
    for _ in range(3):
        kvorum.connect(kvorum_url)
        kvorum.connect("embedded://")
    gc.collect()

    here = asyncio.current_task()
    assert tasks_here() <= {here}
