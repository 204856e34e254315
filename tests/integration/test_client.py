"""How a client lives and ends.

In order, in the wrong order, on a server that is slow, silent or dead.
"""

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

import kvorum
from kvorum import (
    Client,
    ClientClosedError,
    ConfigurationError,
    EmbeddedEtcd,
    EtcdSettings,
    KvorumError,
    Operation,
    OutcomeUnknownError,
    StorageBackend,
    UnavailableError,
)
from kvorum.lab import LabWorker, LabWorkerRepository

DEADLINE = 5.0


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a state that nobody announces."""
    with anyio.fail_after(DEADLINE):
        while not holds():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.01)


def tasks_here() -> set[asyncio.Task[Any]]:
    """Return all tasks of the loop, but for those of anyio's plugin for pytest."""
    return {each for each in asyncio.all_tasks() if "TestRunner" not in repr(each.get_coro())}


def connections_to(port: int) -> int:
    """Count the sockets of this process that have to do with a port of this host."""
    ours = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(descriptor.readlink()))
    found = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            found += (
                int(fields[2].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in ours
            )
    return found


def port_of(client: Client) -> int:
    return int(client.settings.endpoints[0].rpartition(":")[2])


def port_of_listener(listener: anyio.abc.Listener[Any]) -> int:
    return int(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - that is not Django's


@pytest.fixture
def nothing_left(kvorum_etcd: EmbeddedEtcd) -> Callable[[], Awaitable[None]]:
    """Wait until no task of a client, and no more sockets to the server of the session than before, are in here."""
    port = int(kvorum_etcd.endpoints[0].rpartition(":")[2])
    gc.collect()
    before = connections_to(port)

    async def check() -> None:
        here = asyncio.current_task()

        def is_nothing_left() -> bool:
            gc.collect()  # a call that was cut off holds its connection in a cycle
            return tasks_here() <= {here} and connections_to(port) <= before

        await until(is_nothing_left)

    return check


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else gets."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server of the test's own, of the same version as the session's.

    It can be paused and killed.
    """
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


def impatient(etcd: EmbeddedEtcd, timeout: float = 0.5, *, pipeline: bool = True) -> Client:
    settings = EtcdSettings(
        endpoints=etcd.endpoints, prefix="test", timeout=timeout, pipeline=pipeline
    )
    return kvorum.connect(settings)


# --- the wrong order ------------------------------------------------------------------------------

USES: dict[str, Callable[[StorageBackend], Awaitable[object]]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: store.list(""),
    "count": lambda store: store.count(""),
    "keys": lambda store: store.keys(),
    "exists": lambda store: store.exists("a"),
    "set": lambda store: store.set("a", b""),
    "create": lambda store: store.create("a", b""),
    "swap": lambda store: store.compare_and_swap("a", b"", expected=0),
    "delete": lambda store: store.delete("a"),
    "commit": lambda store: store.commit([Operation.put("a", b"")]),
    "grant": lambda store: store.grant_lease(600),
    "revoke": lambda store: store.revoke_lease(1),
    "open": lambda store: store.watch("").open(),
    "next": lambda store: anext(store.watch("")),
}


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


async def anext_of(watch: kvorum.StorageWatch) -> object:
    try:
        return await anext(watch)
    except KvorumError as exc:
        return exc


async def test_whoever_closes_second_waits_for_the_first(
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
    """Who awaits a call was not cancelled.

    A CancelledError would look as if its own task had been.
    """
    async with impatient(server, timeout=60, pipeline=pipeline) as client:
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
        # Writes of one key follow each other in the pipeline: those that were not sent have done
        # nothing.
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
    async def close_after(patience: int) -> list[object]:
        async with kvorum.connect(kvorum_url) as client:
            calls: list[asyncio.Task[Any]] = [
                *(asyncio.create_task(client.backend.set(f"k{n}", b"")) for n in range(5)),
                *(asyncio.create_task(client.backend.get(f"k{n}")) for n in range(5)),
                *(asyncio.create_task(client.backend.watch("").open()) for n in range(5)),
            ]
            for _ in range(patience):
                await asyncio.sleep(0)
            await client.aclose()
            results: list[object] = await asyncio.gather(*calls, return_exceptions=True)
            return results

    for patience in range(0, 60, 3):
        for result in await close_after(patience):
            assert isinstance(result, KvorumError) or not isinstance(result, BaseException)
    await nothing_left()


async def test_a_cancellation_of_the_caller_stays_a_cancellation(server: EmbeddedEtcd) -> None:
    """Also while the client is being closed."""
    async with impatient(server, timeout=60) as client:
        await server.pause()
        reading = asyncio.create_task(client.backend.get("a"))
        writing = asyncio.create_task(client.backend.set("a", b""))
        await asyncio.sleep(0.01)
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

    for patience in range(40):
        if way == "task":
            entering = asyncio.create_task(enter())
            for _ in range(patience):
                await asyncio.sleep(0)
            entering.cancel()
            with anyio.fail_after(DEADLINE):
                await asyncio.wait([entering])
            assert entering.cancelled()
            del entering  # its traceback holds all that it was about
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(enter)
                for _ in range(patience):
                    await asyncio.sleep(0)
                group.cancel_scope.cancel()
    await nothing_left()


async def test_a_client_may_be_closed_while_it_is_being_entered(
    kvorum_url: str, nothing_left: Callable[[], Awaitable[None]]
) -> None:
    """By another task that shuts the program down.

    Whoever enters must not get an open client that nobody closes.
    """
    for patience in range(25):
        client = kvorum.connect(kvorum_url)
        entering = asyncio.create_task(client.__aenter__())
        for _ in range(patience):
            await asyncio.sleep(0)
        with anyio.fail_after(DEADLINE):
            await client.aclose()
            await asyncio.wait([entering])

        assert not entering.cancelled(), f"after {patience} steps"
        assert entering.exception() is None or isinstance(entering.exception(), ClientClosedError)
        del entering
        with pytest.raises(ClientClosedError):
            await client.backend.get("a")
    await nothing_left()


async def test_a_port_that_nobody_listens_on_is_an_error_within_the_timeout_that_leaves_nothing(
    free_port: int,
) -> None:
    """Not at once: the server may be about to start."""
    started = time.monotonic()
    client = kvorum.connect(kvorum.EtcdSettings(endpoints=(f"127.0.0.1:{free_port}",), timeout=1.0))
    before = tasks_here()

    with pytest.raises(UnavailableError) as caught:
        async with client:
            pytest.fail("it cannot be entered")

    assert time.monotonic() - started < 2
    assert caught.value.endpoint == f"127.0.0.1:{free_port}"
    assert f"127.0.0.1:{free_port}" in str(caught.value)
    assert "[closed]" in repr(client)
    await until(lambda: tasks_here() <= before and connections_to(free_port) == 0)
    with pytest.raises(ClientClosedError):
        await client.backend.get("a")


async def test_a_name_that_no_host_has_is_an_error_in_time() -> None:
    started = time.monotonic()

    with pytest.raises(UnavailableError):
        await kvorum.connect(
            EtcdSettings(endpoints=("no-such-host.invalid:2379",), timeout=2)
        ).__aenter__()

    assert time.monotonic() - started < 4


async def test_a_server_that_says_nothing_is_an_error_within_the_timeout() -> None:
    """It accepts the connection, as a wrong port may, or a proxy whose server is gone."""

    async def say_nothing(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    await stream.receive()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = port_of_listener(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, say_nothing)
            started = time.monotonic()
            with pytest.raises(UnavailableError):
                await kvorum.connect(
                    EtcdSettings(endpoints=(f"127.0.0.1:{port}",), timeout=0.5)
                ).__aenter__()
            elapsed = time.monotonic() - started
            group.cancel_scope.cancel()

    assert elapsed < 2


async def test_a_server_on_a_long_link_is_reached(kvorum_etcd: EmbeddedEtcd) -> None:
    """A round trip of 0.3 s is the other side of the world, not an outage, and leaves most of the timeout."""
    host, _, port = kvorum_etcd.endpoints[0].partition(":")

    async def pass_on(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream) -> None:
        with contextlib.suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
        ):
            while True:
                data = await source.receive()
                await anyio.sleep(0.15)
                await target.send(data)

    async def relay(near: anyio.abc.SocketStream) -> None:
        async with (
            near,
            await anyio.connect_tcp(host, int(port)) as far,
            anyio.create_task_group() as group,
        ):
            group.start_soon(pass_on, near, far)
            await pass_on(far, near)
            group.cancel_scope.cancel()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        slow = port_of_listener(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, relay)
            try:
                async with kvorum.connect(
                    EtcdSettings(endpoints=(f"127.0.0.1:{slow}",), prefix="test")
                ) as client:
                    await client.backend.get("a")
            finally:
                group.cancel_scope.cancel()


async def test_a_server_that_is_no_etcd_is_an_error_at_once() -> None:
    async def say_something_else(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = port_of_listener(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, say_something_else)
            started = time.monotonic()
            with pytest.raises(UnavailableError):
                await kvorum.connect(
                    EtcdSettings(endpoints=(f"127.0.0.1:{port}",), timeout=5)
                ).__aenter__()
            elapsed = time.monotonic() - started
            group.cancel_scope.cancel()

    assert elapsed < 5.5


# --- a server that stops --------------------------------------------------------------------------


async def test_a_paused_server_is_unavailable_to_reads_and_leaves_writes_unknown(
    server: EmbeddedEtcd,
) -> None:
    async with impatient(server) as client:
        store = client.backend
        await store.set("a", b"1")
        await server.pause()
        started = time.monotonic()
        outcomes = await asyncio.gather(
            *(use(store) for use in USES.values()), return_exceptions=True
        )
        elapsed = time.monotonic() - started
        await server.resume()

        # Of the writes of one key one was sent, and the others waited for it: that those did
        # nothing is known.
        sent, may_wait = {"set", "revoke"}, {"create", "swap", "delete", "commit"}
        for name, outcome in zip(USES, outcomes, strict=True):
            expected = OutcomeUnknownError if name in sent else UnavailableError
            assert type(outcome) is expected or (
                name in may_wait and type(outcome) is OutcomeUnknownError
            ), name
        assert 0.4 < elapsed < 2


async def test_a_client_goes_on_when_a_paused_server_does(server: EmbeddedEtcd) -> None:
    async with impatient(server) as client:
        store = client.backend
        watch = store.watch("")
        await watch.open()
        await server.pause()
        with pytest.raises(OutcomeUnknownError) as caught:
            await store.set("a", b"1")
        await server.resume()

        assert "/test/a" in caught.value.subject
        second = await store.set("b", b"2")  # and the first may have been applied, before or after
        with anyio.fail_after(DEADLINE):
            while (await anext(watch))[0].revision < second:
                pass
        assert await store.exists("b")


async def test_closing_a_client_waits_for_no_paused_server(server: EmbeddedEtcd) -> None:
    client = await impatient(server, timeout=60).__aenter__()
    await client.backend.watch("").open()
    await server.pause()
    opening = asyncio.create_task(anext_of(client.backend.watch("")))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    await client.aclose()

    assert time.monotonic() - started < 2
    assert isinstance(await opening, ClientClosedError)


async def test_a_watch_on_a_paused_server_can_be_closed_at_once(server: EmbeddedEtcd) -> None:
    async with impatient(server, timeout=60) as client:
        opened = client.backend.watch("")
        await opened.open()
        await server.pause()
        opening = client.backend.watch("")
        waiting = asyncio.create_task(anext_of_ended(opening))
        await asyncio.sleep(0.05)
        with anyio.fail_after(2):
            await opened.aclose()
            await opening.aclose()
            assert await waiting == "ended"


async def anext_of_ended(watch: kvorum.StorageWatch) -> str:
    try:
        await anext(watch)
    except StopAsyncIteration:
        return "ended"
    return "went on"


async def test_a_dead_server_is_unavailable_and_its_watches_wait_for_it(
    server: EmbeddedEtcd,
) -> None:
    async with impatient(server, timeout=1) as client:
        store = client.backend
        watch = store.watch("")
        await watch.open()
        await server.kill()

        with anyio.fail_after(DEADLINE):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await anext(watch)
            with pytest.raises(UnavailableError):
                await store.get("a")
            with pytest.raises(
                UnavailableError
            ):  # not unknown: there is no connection that it could be sent on
                await store.set("a", b"1")
            with pytest.raises(UnavailableError):
                await store.watch("").open()


async def test_a_client_outlives_a_restart_of_the_server(server: EmbeddedEtcd) -> None:
    async with impatient(server, timeout=5) as client:
        store = client.backend
        first = await store.set("a", b"1")
        watch = store.watch("")
        await watch.open()
        await server.kill()
        await server.restart()

        with anyio.fail_after(3):  # reconnecting is tried every second at least
            second = await store.set("a", b"2")
            async with store.watch("", since=first) as another:
                shown = [await anext(watch), await anext(another)]
        for (change,) in shown:
            assert change.revision == second
            assert change.previous is not None
            assert change.previous.value == b"1"


# --- what can be connected to ---------------------------------------------------------------------


def test_connecting_needs_neither_a_loop_nor_a_server(free_port: int) -> None:
    client = kvorum.connect(f"etcd://127.0.0.1:{free_port}/a/b")

    assert client.settings.endpoints == (f"127.0.0.1:{free_port}",)
    assert client.settings.prefix == "a/b"
    assert client.repository(LabWorker).kind.plural == "lab-workers"


@pytest.mark.parametrize(
    ("url", "endpoints", "prefix"),
    [
        ("etcd://h", ("h:2379",), "kvorum"),
        ("etcd://h/", ("h:2379",), "kvorum"),
        ("etcd://h:1/p", ("h:1",), "p"),
        ("etcd://h:1/p/", ("h:1",), "p"),
        ("etcd://h:1,i,j:3/p/q", ("h:1", "i:2379", "j:3"), "p/q"),
        ("etcd://[::1]:1/p", ("[::1]:1",), "p"),
        ("etcd://[::1]/p", ("[::1]:2379",), "p"),
        ("etcd://10.0.0.1", ("10.0.0.1:2379",), "kvorum"),
    ],
)
def test_a_url_names_endpoints_and_a_prefix(
    url: str, endpoints: tuple[str, ...], prefix: str
) -> None:
    settings = kvorum.connect(url).settings

    assert settings == EtcdSettings(endpoints=endpoints, prefix=prefix)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:2379",
        "http://localhost:2379",
        "etcd://",
        "etcd:///p",
        "etcd:/localhost",
        "etcd://h:0",
        "etcd://h:99999",
        "etcd://h:port",
        "etcd://h,",
        "etcd://,h",
        "etcd://h h",
        "etcd://user:secret@h",
        "etcd://h/p?x=y",
        "etcd://h/p#x",
        "etcd://h/a//b",
        "etcd://h/a b",
        "etcd://[::1",
        "etcd://[zz]:1",
        "etcd://::1",
        "etcd://h/" + "p" * 600,
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kvorum.connect(url)

    assert "secret" not in str(caught.value)


def test_settings_give_what_a_url_does_not_say() -> None:
    base = EtcdSettings(endpoints=("other:1",), prefix="other", timeout=1.5, page_size=7)

    assert kvorum.connect("etcd://h/p", settings=base).settings == EtcdSettings(
        endpoints=("h:2379",), prefix="p", timeout=1.5, page_size=7
    )
    assert kvorum.connect("etcd://h", settings=base).settings.prefix == "other"
    assert kvorum.connect(base).settings is base
    assert kvorum.connect(settings=base).settings is base
    with pytest.raises(ConfigurationError, match="twice"):
        kvorum.connect(base, settings=base)


async def test_without_a_target_the_environment_says_where_etcd_is(
    kvorum_etcd: EmbeddedEtcd, kvorum_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _, port = kvorum_etcd.endpoints[0].partition(":")
    prefix = kvorum_url.rpartition("/")[2]
    for name, value in {"HOST": host, "PORT": port, "PREFIX": prefix, "TIMEOUT": "2.5"}.items():
        monkeypatch.setenv(f"ETCD_{name}", value)
    async with kvorum.connect() as client:
        await client.backend.set("a", b"1")
    async with kvorum.connect(kvorum_url) as other:
        assert await other.backend.exists("a")

    assert client.settings == EtcdSettings(
        endpoints=(f"{host}:{port}",), prefix=prefix, timeout=2.5
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        ({"HOST": "h"}, {"endpoints": ("h:2379",)}),
        ({"PORT": "7"}, {"endpoints": ("localhost:7",)}),
        ({"ENDPOINTS": "a:1, b", "HOST": "h"}, {"endpoints": ("a:1", "b:2379")}),
        ({"ENDPOINTS": "http://a:1"}, {"endpoints": ("a:1",)}),
        ({"ENDPOINTS": "https://a:1"}, {"endpoints": ("a:1",), "tls": True}),
        ({"PREFIX": "/p/q/", "TIMEOUT": ""}, {"prefix": "p/q"}),
    ],
)
def test_the_environment_names_what_it_wants_to_be_different(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: dict[str, Any]
) -> None:
    for name in [name for name in os.environ if name.startswith("ETCD_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(f"ETCD_{name}", value)

    assert kvorum.connect().settings == EtcdSettings(**expected)


@pytest.mark.parametrize(
    "variables", [{"TIMEOUT": "soon"}, {"TIMEOUT": "-1"}, {"PORT": "x"}, {"PREFIX": "a b"}]
)
def test_an_environment_that_cannot_be_used_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ETCD_{name}", value)

    with pytest.raises(ConfigurationError):
        kvorum.connect()


# --- a server of the client's own -----------------------------------------------------------------


@pytest.fixture
def same_version(kvorum_etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client's own server be of the version that is tested."""
    monkeypatch.setenv("ETCD_BIN", str(kvorum_etcd.binary))


@pytest.mark.usefixtures("same_version")
async def test_an_embedded_server_without_a_folder_throws_its_data_away() -> None:
    async with kvorum.connect("embedded://") as client:
        await client.backend.set("a", b"1")
        port = port_of(client)
    async with kvorum.connect("embedded://") as client:
        assert not await client.backend.exists("a")

    with pytest.raises(OSError, match=r"."):
        await anyio.connect_tcp("127.0.0.1", port)


@pytest.mark.usefixtures("same_version")
async def test_an_embedded_server_with_a_folder_keeps_its_data_there(tmp_path: Path) -> None:
    folder = tmp_path / "etcd"
    async with kvorum.connect(f"embedded://{folder}") as client:
        revision = await client.backend.set("a", b"1")
    async with kvorum.connect(
        f"embedded://{folder}", settings=EtcdSettings(prefix="other")
    ) as other:
        assert other.settings.prefix == "other"
        assert not await other.backend.exists("a")
    async with kvorum.connect(f"embedded://{folder}") as client:
        assert await client.backend.get("a") == kvorum.Entry("a", b"1", revision, revision, 1)


@pytest.mark.usefixtures("same_version")
async def test_entering_a_client_with_a_server_of_its_own_may_be_cancelled() -> None:
    """Its process must not outlive it, whenever that happens."""

    async def enter() -> None:
        async with kvorum.connect("embedded://"):
            await anyio.sleep_forever()

    before = children()
    for seconds in (0.0, 0.02, 0.1, 0.4):
        with anyio.move_on_after(seconds):
            await enter()
        entering = asyncio.create_task(enter())
        await asyncio.wait([entering], timeout=seconds)
        entering.cancel()
        await asyncio.wait([entering])
        assert entering.cancelled()

    await until(lambda: children() <= before)


def children() -> int:
    """Count the etcd processes that this process has started and that still run."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = status.read_text().partition(") ")
            state, parent, *_ = rest.split()
            found += name.endswith("(etcd") and int(parent) == os.getpid() and state != "Z"
    return found


async def test_a_client_that_was_dropped_unopened_costs_nothing(kvorum_url: str) -> None:
    for _ in range(3):
        kvorum.connect(kvorum_url)
        kvorum.connect("embedded://")
    gc.collect()

    here = asyncio.current_task()
    assert tasks_here() <= {here}
