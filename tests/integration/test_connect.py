"""What a client can be connected to, and how that is said."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from tests.clients import (
    port_of,
)
from tests.waiting import until

import kvorum
from kvorum import (
    ConfigurationError,
    EmbeddedEtcd,
    EtcdSettings,
)
from kvorum.lab import LabWorker


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that no process listens on, or can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


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
