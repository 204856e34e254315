"""A client belongs to the process and the event loop that it was opened in, and says so elsewhere."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import pytest

import kvorum
from kvorum import ClientClosedError


def elsewhere(call: Any) -> None:
    """Run a call on an event loop of its own, in this thread."""

    async def run() -> None:
        await call()

    asyncio.run(run())


async def test_another_event_loop_is_told_that_the_client_is_not_its_own(client: kvorum.Client) -> None:
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
        del calls["kept"]  # it has no connection, and whoever keeps it has kept it on purpose
    else:
        calls |= {"watch": lambda: anext(watch), "watch.aclose": watch.aclose}
    for call in calls.values():
        with pytest.raises(ClientClosedError, match="another event loop"):
            await anyio.to_thread.run_sync(elsewhere, call)

    await client.backend.set("a", b"1")  # and it is none the worse for it
    (change,) = await anext(watch)
    assert change.key == "a"


FORKED = """
    import asyncio, os, sys
    import kvorum

    async def main():
        async with kvorum.connect(sys.argv[1]) as client:
            await client.backend.set("a", b"1")
            child = os.fork()
            if child == 0:
                try:
                    await client.backend.get("a")
                except kvorum.ClientClosedError as exc:
                    os.write(1, f"child: {exc}\\n".encode())
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            await client.backend.get("a")
            os.write(1, b"parent: fine\\n")

    asyncio.run(main())
"""


async def test_a_process_that_was_forked_off_is_told_to_connect_itself(kvorum_url: str) -> None:
    """gRPC's threads are not there; the call would never end."""
    code = textwrap.dedent(FORKED)
    environment = os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"}

    def run() -> str:
        command = [sys.executable, "-W", "ignore", "-c", code, kvorum_url]
        done = subprocess.run(command, capture_output=True, timeout=30, check=True, env=environment)
        return done.stdout.decode()

    printed = await anyio.to_thread.run_sync(run)
    assert "child: the client was opened before this process was forked off" in printed
    assert "parent: fine" in printed
