"""Several servers: while one of them is unavailable, the others are used."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, UnavailableError
from kvorum.etcd.transport.addresses import addresses_of
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(120)

MEMBERS = 3


@pytest.fixture
async def cluster(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, members=MEMBERS) as etcd:
        yield etcd


@pytest.fixture
async def client(cluster: EmbeddedEtcd) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(cluster.url) as client:
        yield client


async def leader(client: kvorum.Client, cluster: EmbeddedEtcd) -> int:
    """Return which member is the leader."""
    found = [
        endpoint.endpoint for endpoint in (await client.health()).endpoints if endpoint.is_leader
    ]
    return cluster.endpoints.index(found[0])


def used(client: kvorum.Client, cluster: EmbeddedEtcd) -> int:
    """Return which member the client uses."""
    return cluster.endpoints.index(client.connection.endpoint)


async def write(store: kvorum.StorageBackend, number: int) -> None:
    """Write once, with retries; the tokens make them safe."""
    value = b'{"metadata":{"writeToken":"%d"}}' % number
    entry = await store.get("a")
    while entry is None or entry.value != value:
        try:
            expected = 0 if entry is None else entry.mod_revision
            await store.compare_and_swap("a", value, expected=expected, unique=True)
        except (UnavailableError, kvorum.ConflictError, kvorum.OutcomeUnknownError):
            await asyncio.sleep(0)
        entry = await store.get("a")


@pytest.mark.parametrize("victim", ["the one it talks to", "the leader", "another"])
async def test_calls_survive_the_death_of_any_member(
    client: kvorum.Client, cluster: EmbeddedEtcd, victim: str
) -> None:
    """While one of three is killed, calls continue. An election takes about half a second."""
    await write(client.backend, 0)
    mine, first = used(client, cluster), await leader(client, cluster)
    chosen = {"the one it talks to": mine, "the leader": first, "another": (mine + 1) % MEMBERS}[
        victim
    ]
    await cluster.kill(chosen)

    started = anyio.current_time()
    with anyio.fail_after(10):
        for number in range(1, 20):
            await write(client.backend, number)
    assert anyio.current_time() - started < 5
    assert used(client, cluster) != chosen
    entry = await client.backend.get("a")
    assert entry is not None
    assert entry.version == 20  # none was applied twice


async def test_a_client_finds_the_one_member_that_is_left_of_its_list(
    cluster: EmbeddedEtcd,
) -> None:
    """The other addresses lead nowhere, as after a move."""
    endpoints = ("127.0.0.1:1", "127.0.0.1:2", cluster.endpoints[0])
    for _ in range(5):  # it starts with any of them
        async with kvorum.connect(EtcdSettings(endpoints=endpoints, timeout=3)) as client:
            assert not await client.backend.exists("a")
            assert client.connection.endpoint == cluster.endpoints[0]


async def test_a_member_that_hangs_costs_a_part_of_the_deadline(
    client: kvorum.Client, cluster: EmbeddedEtcd
) -> None:
    """A paused process keeps its connections open and stays silent."""
    await client.backend.set("a", b"1")
    mine = used(client, cluster)
    await cluster.pause(mine)

    started = anyio.current_time()
    entry = await client.backend.get("a")
    assert entry is not None
    assert anyio.current_time() - started < client.settings.timeout
    assert used(client, cluster) != mine
    await cluster.resume(mine)


async def test_a_lost_quorum_is_unavailable_and_over_once_a_member_is_back(
    client: kvorum.Client, cluster: EmbeddedEtcd
) -> None:
    """Members are paused, not killed: on 3.5.1 a killed member can lose entries."""
    await client.backend.set("a", b"1")
    await cluster.pause(0)
    await cluster.pause(1)
    with kvorum.deadline(1), pytest.raises(UnavailableError):
        await client.backend.get("a")
    with kvorum.deadline(1), pytest.raises((UnavailableError, kvorum.OutcomeUnknownError)):
        await client.backend.set("a", b"2")
    assert not (await client.health()).is_healthy

    await cluster.resume(0)
    started = anyio.current_time()
    with anyio.fail_after(10):
        await write(client.backend, 3)
    assert anyio.current_time() - started < 5
    await cluster.resume(1)


async def test_if_no_endpoint_answers_the_error_names_them_all() -> None:
    with pytest.raises(UnavailableError) as caught:
        async with kvorum.connect("etcd://127.0.0.1:1,127.0.0.1:2"):
            pass

    assert "127.0.0.1:1" in str(caught.value)
    assert "127.0.0.1:2" in str(caught.value)


async def test_health_reports_each_member(client: kvorum.Client, cluster: EmbeddedEtcd) -> None:
    await cluster.kill((used(client, cluster) + 1) % MEMBERS)

    health = await client.health()
    assert {endpoint.endpoint for endpoint in health.endpoints} == set(cluster.endpoints)
    assert [endpoint.is_up for endpoint in health.endpoints].count(False) == 1
    assert not health.is_healthy


# --- discovery ------------------------------------------------------------------------------------


async def test_one_member_leads_to_the_others(cluster: EmbeddedEtcd) -> None:
    settings = EtcdSettings(endpoints=cluster.endpoints[:1], discover_interval=60)
    async with kvorum.connect(settings) as client:
        assert {endpoint.endpoint for endpoint in (await client.health()).endpoints} == set(
            cluster.endpoints
        )
        await cluster.kill(0)

        await write(client.backend, 1)


def test_only_advertised_addresses_that_this_client_can_use_are_taken() -> None:
    urls = [
        "http://a:1",
        "https://b:2",
        "unix://c:3",
        "http://0.0.0.0:4",
        "http://[::]:5",
        "http://[fd00::1]:6/",
    ]

    assert addresses_of(urls, tls=False) == ["a:1", "[fd00::1]:6"]
    assert addresses_of(urls, tls=True) == ["b:2"]


async def test_a_server_that_is_named_twice_is_one(cluster: EmbeddedEtcd) -> None:
    """Otherwise each of them would get less of the time."""
    async with kvorum.connect(EtcdSettings(endpoints=cluster.endpoints[:1] * 3)) as client:
        assert len((await client.health()).endpoints) == 1


async def test_members_are_not_discovered_unless_asked(cluster: EmbeddedEtcd) -> None:
    """Advertised addresses may not be reachable from here."""
    async with kvorum.connect(EtcdSettings(endpoints=cluster.endpoints[:1])) as client:
        assert len((await client.health()).endpoints) == 1


async def test_a_member_that_joins_later_is_found(
    kvorum_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    """The list is read periodically, also after a time without answers."""
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd,
        FaultProxy(etcd.endpoints[0]) as proxy,
    ):
        settings = EtcdSettings(endpoints=(proxy.endpoint,), discover_interval=0.05, timeout=0.2)
        async with kvorum.connect(settings) as client:
            client.connection.cluster.servers[1:] = []
            await proxy.refuse()
            proxy.cut()
            with anyio.fail_after(10):
                while "could not be read" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                    await anyio.sleep(0.01)
            await proxy.heal()

            with anyio.fail_after(10):
                while len(client.connection.cluster.servers) == 1:  # noqa: ASYNC110 - nor has a list
                    await anyio.sleep(0.01)
            assert client.connection.cluster.servers[1].address == etcd.endpoints[0]


# --- addresses ------------------------------------------------------------------------------------


async def test_an_address_may_be_ipv6(kvorum_etcd: EmbeddedEtcd) -> None:
    async with FaultProxy(kvorum_etcd.endpoints[0], host="::1") as proxy:
        assert proxy.endpoint.startswith("[::1]:")
        async with kvorum.connect(f"etcd://{proxy.endpoint}/v6") as client:
            await client.backend.set("a", b"1")
            async with client.backend.watch("") as watch:
                await client.backend.delete("a")
                await anext(watch)


async def test_an_address_may_be_a_name(kvorum_etcd: EmbeddedEtcd) -> None:
    port = kvorum_etcd.endpoints[0].rpartition(":")[2]
    settings = msgspec.structs.replace(
        EtcdSettings.from_url(f"etcd://localhost:{port}/name"), timeout=5
    )
    async with kvorum.connect(settings) as client:
        assert not await client.backend.exists("a")
