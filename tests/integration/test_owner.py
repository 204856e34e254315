"""A client belongs to the process and the event loop that opened it, and says so elsewhere."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import pytest

import kvorum
from kvorum import ClientClosedError
from kvorum.etcd.transport import fork


def elsewhere(call: Any) -> None:
    """Run a call on an event loop of its own, in this thread."""

    async def run() -> None:
        await call()

    asyncio.run(run())


async def test_another_event_loop_is_told_that_the_client_is_not_its_own(
    client: kvorum.Client,
) -> None:
    """As in a thread that runs a loop of its own; the call would never end there."""
    store = client.backend
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: client.backend.get("a"),
        "kept": lambda: store.get("a"),
        "ping": client.ping,
        "aclose": client.aclose,
    }
    watch = store.watch("")
    await watch.open()
    if isinstance(store, kvorum.MemoryStorageBackend):
        del calls["kept"]  # it has no connection, so it works on any loop
    else:
        calls |= {"watch": lambda: anext(watch), "watch.aclose": watch.aclose}
    for call in calls.values():
        with pytest.raises(ClientClosedError, match="another event loop"):
            await anyio.to_thread.run_sync(elsewhere, call)

    await client.backend.set("a", b"1")  # and the client still works
    (change,) = await anext(watch)
    assert change.key == "a"


# A parent that has a client open, and a child that uses it, in each of the ways in which it gets
# there.
FORKED = """
    import asyncio, os, sys
    import kvorum

    async def refused(call):
        try:
            await call()
        except kvorum.ClientClosedError as exc:
            assert "fork before connecting, or spawn" in str(exc), exc
        else:
            raise AssertionError("nothing was raised")

    async def connect_again():
        async with kvorum.connect(url):
            pass

    async def use_in_child():
        kept = store
        for call in (
            lambda: client.backend.get("a"), lambda: kept.set("a", b"2"), lambda: kept.list(""),
            client.ping, client.health, lambda: kept.watch("").open(), lambda: anext(watch),
            watch.aclose, client.aclose, connect_again,
        ):
            await refused(call)
        async with kvorum.connect("memory://") as other:
            await other.backend.set("a", b"1")

    async def open_client():
        client = await kvorum.connect(url).__aenter__()
        await client.backend.set("a", b"1")
        watch = client.backend.watch("")
        await watch.open()
        return client, client.backend, watch

    async def drop_watch():
        global watch
        watch = None
        await asyncio.sleep(0.2)  # time in which the dropped watch would be cancelled on the server

    async def close_client():
        await client.backend.set("a", b"3")
        (change,) = await anext(watch)
        assert change.entry.value == b"3" and not watch.statistics().resumes
        await client.aclose()

    def fork():
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            print("child:", os.waitstatus_to_exitcode(status))
        return child == 0

    _, url, way, ending = sys.argv
    loop = asyncio.new_event_loop()
    client, store, watch = loop.run_until_complete(open_client())
    if fork():
        if way == "on the parent's loop, which drops a watch":
            loop.run_until_complete(drop_watch())
        elif way == "on the parent's loop":
            loop.run_until_complete(use_in_child())
        else:
            asyncio.run(use_in_child())
        if ending == "at once":
            os._exit(0)
        sys.exit()
    loop.run_until_complete(close_client())
    loop.close()
    print("parent: fine")
"""


async def run_python(code: str, *arguments: str) -> str:
    """Run a program in a process of its own; return what it prints."""

    def run() -> str:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await anyio.to_thread.run_sync(run)


@pytest.mark.parametrize("ending", ["at once", "as a program does"])
@pytest.mark.parametrize(
    "way",
    ["on the parent's loop", "on the parent's loop, which drops a watch", "on a loop of its own"],
)
async def test_a_process_that_was_forked_off_is_told_what_to_do_instead(
    kvorum_url: str, way: str, ending: str
) -> None:
    """gRPC's threads are missing there: a call would hang or crash. The parent still works."""
    printed = await run_python(FORKED, kvorum_url, way, ending)

    assert printed == "child: 0\nparent: fine\n"


FORKED_INSIDE = """
    import asyncio, os, sys
    import kvorum

    async def main():
        async with kvorum.connect(sys.argv[1]) as client:
            await client.backend.set("a", b"1")
            child = os.fork()
            if child == 0:
                another = kvorum.connect(sys.argv[1])
                get = lambda: client.backend.get("a")
                for call in (get, client.ping, client.aclose, another.__aenter__):
                    try:
                        await call()
                    except kvorum.ClientClosedError as exc:
                        os.write(1, f"child: {exc}\\n".encode())
                os._exit(0)
            os.waitpid(child, 0)
            await client.backend.get("a")
            os.write(1, b"parent: fine\\n")

    asyncio.run(main())
"""


async def test_a_process_that_was_forked_off_in_the_middle_of_a_coroutine_is_told_so(
    kvorum_url: str,
) -> None:
    *told, parent = (await run_python(FORKED_INSIDE, kvorum_url)).splitlines()

    assert len(told) == 4
    assert all(
        line.startswith("child:") and "fork before connecting, or spawn" in line for line in told
    )
    assert parent == "parent: fine"


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell the names of threads"
)
async def test_threads_of_grpc_are_known_by_their_names(kvorum_client: kvorum.Client) -> None:
    """If another version of gRPC names them differently, a fork would not notice them."""
    await kvorum_client.backend.get("a")

    assert await anyio.to_thread.run_sync(fork._has_threads)


CLOSED_BEFORE = """
    import asyncio, gc, multiprocessing, sys
    import kvorum

    gc.disable()  # as if it were never its turn

    async def use(url):
        async with kvorum.connect(url, settings=kvorum.EtcdSettings(timeout=5)) as client:
            await asyncio.gather(*(client.backend.set(f"k{number}", b"1") for number in range(10)))
            async with client.backend.watch("") as watch:
                await client.backend.set("a", b"1")
                await anext(watch)

    def child(url):
        asyncio.run(use(url))

    fork = multiprocessing.get_context("fork")
    for _ in range(8):
        asyncio.run(use(sys.argv[1]))
        process = fork.Process(target=child, args=(sys.argv[1],))
        process.start()
        process.join(10)
        print(process.exitcode)
        process.kill()
"""


async def test_after_its_clients_are_closed_a_process_may_fork_and_its_children_connect(
    kvorum_url: str,
) -> None:
    """As web servers do that load the application, and then fork their workers."""
    printed = await run_python(CLOSED_BEFORE, kvorum_url)

    assert printed.split() == ["0"] * 8
