"""Between a client and its server: names, proxies, pauses, and the end of a channel."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from tests.clients import InFlight, short_timeout
from tests.waiting import until

import kvorum
from kvorum import ClientClosedError, EmbeddedEtcd, EtcdSettings

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server of the test's own."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


async def child(
    code: str,
    *arguments: object,
    command: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program in another process; return its output."""

    def run() -> str:
        argv = [*command, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
            env={**os.environ, **(environment or {})},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await anyio.to_thread.run_sync(run)


# --- the environment ------------------------------------------------------------------------------

WRITES = """
    import asyncio, sys
    import kvorum

    async def main():
        async with kvorum.connect(sys.argv[1], settings=kvorum.EtcdSettings(timeout=5)) as client:
            await client.backend.set("a", b"1")
            async with client.backend.watch("") as watch:
                await client.backend.set("a", b"2")
                await anext(watch)
        print("done")

    asyncio.run(main())
"""

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("embedded", [False, True], ids=["etcd", "embedded"])
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
async def test_a_web_proxy_is_not_used_for_etcd(
    variable: str, embedded: bool, kvorum_etcd: EmbeddedEtcd, kvorum_url: str
) -> None:
    """gRPC reads the environment: behind a company's proxy no connection would be made."""
    url = "embedded://" if embedded else kvorum_url
    path = f"{kvorum_etcd.binary.parent}{os.pathsep}{os.environ['PATH']}"

    printed = await child(
        WRITES, url, environment={"PATH": path, "no_proxy": "", variable: NOWHERE}
    )

    assert printed == "done\n"


# --- names ----------------------------------------------------------------------------------------

MOVES = """
    import asyncio, subprocess, sys, tempfile, time
    from contextlib import suppress
    import kvorum

    etcd_host, etcd_port = sys.argv[1].split(":")
    hosts = tempfile.NamedTemporaryFile("w+", delete=False)

    def name_is_at(address):
        hosts.seek(0)
        hosts.truncate()
        hosts.write(f"127.0.0.1 localhost\\n{address} moves.kvorum.test\\n")
        hosts.flush()

    async def relay(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(etcd_host, int(etcd_port))
        relayed.extend([writer, far_writer])

        async def copy(source, sink):
            with suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    async def main():
        name_is_at("127.0.0.2")
        subprocess.run(["mount", "--bind", hosts.name, "/etc/hosts"], check=True)
        before = await asyncio.start_server(relay, "127.0.0.2", 0)
        port = before.sockets[0].getsockname()[1]
        after = await asyncio.start_server(relay, "127.0.0.3", port)
        settings = kvorum.EtcdSettings(endpoints=(f"moves.kvorum.test:{port}",), timeout=15)
        async with kvorum.connect(settings) as client, client.backend.watch("") as watch:
            await client.backend.set("a", b"1")
            await anext(watch)
            name_is_at("127.0.0.3")
            before.close()
            for writer in relayed:
                writer.transport.abort()
            moved = time.monotonic()
            while True:
                with suppress(kvorum.OutcomeUnknownError, kvorum.UnavailableError):
                    await client.backend.set("a", b"2")
                    break
            await anext(watch)
            print(time.monotonic() - moved)
        after.close()

    relayed = []
    asyncio.run(main())
"""


async def test_a_name_that_gets_another_address_is_resolved_again(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """As for a replaced container. By default gRPC would resolve it every 30 seconds."""
    namespace = ("unshare", "--mount")
    try:
        await anyio.run_process([*namespace, "true"])
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no mount namespace can be made here: {exc}")

    seconds = float(await child(MOVES, kvorum_etcd.endpoints[0], command=namespace))

    assert seconds < 8


# --- pauses ---------------------------------------------------------------------------------------


async def test_a_pause_of_the_server_costs_no_write_its_outcome(server: EmbeddedEtcd) -> None:
    """A virtual machine is moved, or a disk hangs. The deadline alone limits the wait."""
    settings = EtcdSettings(endpoints=server.endpoints, timeout=30, pipeline=False)
    async with kvorum.connect(settings) as client:
        await asyncio.gather(
            *(client.backend.set(f"k{number}", b"0" * 1000) for number in range(20))
        )
        os.kill(server.pid, signal.SIGSTOP)
        try:
            writes = [
                asyncio.create_task(client.backend.set(f"k{number}", b"1" * 1000))
                for number in range(20)
            ]
            await anyio.sleep(4)  # the pause
        finally:
            os.kill(server.pid, signal.SIGCONT)

        assert all(await asyncio.gather(*writes))


async def write_until_it_fails(client: kvorum.Client) -> None:
    """The signal takes a moment to arrive."""
    while True:
        await client.backend.set("a", b"1")


async def test_a_server_that_stays_stopped_is_noticed_long_before_the_deadline(
    server: EmbeddedEtcd,
) -> None:
    settings = EtcdSettings(endpoints=server.endpoints, timeout=30, pipeline=False)
    async with kvorum.connect(settings) as client:
        await client.backend.set("a", b"0")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            started = anyio.current_time()
            with pytest.raises(kvorum.OutcomeUnknownError):
                await write_until_it_fails(client)
            assert anyio.current_time() - started < 13
        finally:
            os.kill(server.pid, signal.SIGCONT)


# --- the end of a channel -------------------------------------------------------------------------


async def test_a_watch_on_a_connection_that_is_just_being_closed_raises_client_closed(
    kvorum_url: str,
) -> None:
    """The start of a call maps the driver's errors, too."""
    async with kvorum.connect(kvorum_url) as client:
        await client.backend.get("a")
        connection = client.connection
        await connection.aclose()  # as `Client.aclose` does, while something else is on its way

        with pytest.raises(ClientClosedError):
            await connection.watch_call(anyio.current_time() + 5)
        with pytest.raises(ClientClosedError):
            await client.backend.get("a")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switch Python's garbage collector off: reference cycles are then never freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def readers_of_grpc() -> list[threading.Thread]:
    """Return the threads in which grpc.aio reads: one, while there is any channel or call."""
    return [thread for thread in threading.enumerate() if "_poll_wrapper" in thread.name]


@pytest.mark.usefixtures("no_collector")
async def test_a_closed_client_leaves_nothing_of_grpc(kvorum_url: str) -> None:
    """Errors that are kept do not keep it, either. What is left would crash a later fork."""
    kept: list[object] = []
    before = len(readers_of_grpc())
    async with kvorum.connect(kvorum_url) as client:
        await asyncio.gather(*(client.backend.set(f"k{number}", b"1") for number in range(20)))
        forgotten = client.backend.watch("")
        await forgotten.open()
        with pytest.raises(kvorum.FutureRevisionError) as caught:
            await client.backend.list("", revision=10**9)
        kept.append(caught.value)
        late: list[asyncio.Task[object]] = [
            asyncio.create_task(client.backend.get("k0")) for _ in range(5)
        ]
        late.append(asyncio.create_task(anext(forgotten)))
        await asyncio.sleep(0)
        assert readers_of_grpc()
    kept.extend(await asyncio.gather(*late, return_exceptions=True))

    assert not before
    with anyio.fail_after(5):  # without the collector: reference cycles would stay
        while readers_of_grpc():  # noqa: ASYNC110 - threads have no event
            await anyio.sleep(0.01)


def sockets_to(endpoint: str) -> int:
    """Count the sockets of this process that are connected there."""
    port = int(endpoint.rpartition(":")[2])
    mine = {str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()
    ]
    return sum(
        f"socket:[{line[9]}]" in mine
        for line in lines[1:]
        if line[2].rpartition(":")[2] == format(port, "04X")
    )


@pytest.mark.parametrize(
    "pause", [0, 0.3], ids=["before their closing has begun", "while it waits"]
)
@pytest.mark.usefixtures("no_collector")
async def test_channels_that_were_replaced_leave_no_sockets(
    kvorum_etcd: EmbeddedEtcd, pause: float
) -> None:
    """Calls on them get some seconds to finish, or less if the client is closed."""
    endpoint = kvorum_etcd.endpoints[0]
    async with kvorum.connect(f"etcd://{endpoint}") as client, client.backend.watch(""):
        cluster = client.connection.cluster
        for _ in range(5):
            await client.backend.set("a", b"1")
            cluster.channels.renew(cluster.current)  # as for a silent server
            await client.backend.set("a", b"1")
        await anyio.sleep(pause)
        assert sockets_to(endpoint) > 2

    with anyio.fail_after(2):
        while sockets_to(endpoint):  # noqa: ASYNC110 - gRPC closes them in a thread of its own
            await anyio.sleep(0.01)


async def test_a_call_on_a_replaced_channel_may_take_until_its_own_deadline(
    server: EmbeddedEtcd,
) -> None:
    """The channel is closed when that call has ended, even if it takes longer than the timeout."""
    in_flight, timeout = InFlight(), 0.2
    client = short_timeout(server, timeout, pipeline=False, observer=in_flight)
    async with client:
        await client.backend.set("a", b"0")
        in_flight.clear()
        await server.pause()

        async def write() -> int:
            with kvorum.deadline(30):
                return await client.backend.set("a", b"1")

        writing = asyncio.create_task(write())
        await in_flight.until("put")
        cluster = client.connection.cluster
        cluster.channels.renew(cluster.current)  # as for a silent server
        assert not (await asyncio.wait({writing}, timeout=4 * timeout))[0]
        await server.resume()

        assert await writing
        with kvorum.deadline(5):
            await client.backend.get("a")
        await until(lambda: sockets_to(server.endpoints[0]) == 1)


# --- the end of the tasks of a client -------------------------------------------------------------


async def test_a_client_whose_tasks_have_failed_names_the_cause_in_every_error(
    kvorum_url: str,
) -> None:
    """It is a bug. Calls and watches that depend on those tasks must not wait for ever."""

    async def fail() -> None:
        raise LookupError("a mistake")

    outcomes: dict[str, BaseException] = {}

    async def use() -> None:
        async with kvorum.connect(kvorum_url) as client, client.backend.watch("") as watch:
            waiting = asyncio.create_task(anext(watch))
            await client.backend.set("z", b"0")
            await waiting
            waiting = asyncio.create_task(anext(watch))
            await asyncio.sleep(0)
            supervisor = client.connection.supervisor
            supervisor.spawn(fail, name="failing")
            calls = {
                "a watch that waits": waiting,
                "a read": asyncio.create_task(late(client)),
            }
            await asyncio.wait(calls.values())
            assert "failed" in repr(client)
            for name, call in calls.items():
                outcomes[name] = call.exception() or AssertionError("no error")
            for name in ("get", "list", "watch"):
                outcomes[name] = await error_of(client, name)

    with pytest.raises(ExceptionGroup) as caught:
        await use()

    assert caught.group_contains(LookupError)
    for name, error in outcomes.items():
        assert isinstance(error, ClientClosedError), name
        assert "LookupError: a mistake" in str(error), name
        assert isinstance(error.__cause__, LookupError), name


async def late(client: kvorum.Client) -> None:
    """Read until it fails."""
    while True:
        await client.backend.get("a")


async def error_of(client: kvorum.Client, method: str) -> BaseException:
    store = client.backend
    with pytest.raises(kvorum.KvorumError) as caught:
        await {
            "get": lambda: store.get("a"),
            "list": lambda: store.list(""),
            "watch": store.watch("").open,
        }[method]()
    return caught.value
