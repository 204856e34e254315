"""What a client reports about its store."""

import logging
from collections.abc import AsyncIterator

import anyio
import pytest

import kvorum
from kvorum import ClientClosedError, EmbeddedEtcd, UnavailableError
from kvorum.etcd.transport.versions import hazards_of
from kvorum.testing import FaultProxy


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


async def test_a_server_that_is_well_is_healthy(kvorum_client: kvorum.Client) -> None:
    await kvorum_client.backend.set("a", b"")

    health = await kvorum_client.health()
    (endpoint,) = health.endpoints
    assert health.is_healthy
    assert health.alarms == ()
    assert endpoint.is_up
    assert endpoint.is_leader
    assert endpoint.endpoint == kvorum_client.connection.endpoint
    assert endpoint.version == ".".join(map(str, kvorum_client.connection.version))
    assert endpoint.db_size > 0
    assert endpoint.latency is not None
    assert 0 < endpoint.latency < 5
    assert endpoint.hazards == tuple(
        hazard.name for hazard in hazards_of(kvorum_client.connection.version)
    )
    assert 0 < await kvorum_client.ping() < 5


async def test_a_server_that_is_away_is_a_finding_and_no_error(server: EmbeddedEtcd) -> None:
    async with kvorum.connect(server.url, settings=kvorum.EtcdSettings(timeout=0.5)) as client:
        await server.kill()

        health = await client.health()
        (endpoint,) = health.endpoints
        assert not health.is_healthy
        assert not endpoint.is_up
        assert "unavailable" in endpoint.error
        with pytest.raises(UnavailableError):
            await client.ping()


async def test_a_server_that_says_nothing_is_found_within_the_deadline(
    server: EmbeddedEtcd,
) -> None:
    async with kvorum.connect(server.url, settings=kvorum.EtcdSettings(timeout=0.5)) as client:
        await server.pause()

        with anyio.fail_after(3):
            assert not (await client.health()).is_healthy
        await server.resume()


async def test_a_quota_that_is_used_up_is_an_alarm_and_writes_say_so_at_once(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    """There is no retry: only an operator can help. Reads still work."""
    async with (
        EmbeddedEtcd(
            binary=kvorum_etcd.binary, arguments=["--quota-backend-bytes", str(4 << 20)]
        ) as server,
        kvorum.connect(server.url, settings=kvorum.EtcdSettings(timeout=10)) as client,
    ):

        async def fill() -> None:
            for number in range(100):
                value = b"%d" % number + bytes(900_000)
                # etcd may apply the write that crosses the quota: its bytes tell whose it was.
                await client.backend.set(f"k{number}", value, unique=True)

        started = anyio.current_time()
        with pytest.raises(kvorum.StorageFullError):
            await fill()
        with pytest.raises(kvorum.StorageFullError):
            await client.backend.set("one", b"more")
        assert anyio.current_time() - started < 10

        health = await client.health()
        assert health.alarms == ("NOSPACE",)
        assert not health.is_healthy
        assert await client.backend.exists("k0")


async def test_a_store_in_memory_is_always_healthy() -> None:
    async with kvorum.connect("memory://") as client:
        assert await client.health() == kvorum.Health()
        assert (await client.health()).is_healthy
        assert 0 <= await client.ping() < 1


async def test_a_client_that_is_not_open_has_no_health(kvorum_url: str) -> None:
    client = kvorum.connect(kvorum_url)

    for ask in (client.health, client.ping):
        with pytest.raises(ClientClosedError):
            await ask()


def test_an_alarm_is_no_health() -> None:
    endpoint = kvorum.EndpointHealth("a:1", 0.1, "3.5.1", has_leader=True)

    assert kvorum.Health((endpoint,)).is_healthy
    assert not kvorum.Health((endpoint,), ("NOSPACE",)).is_healthy
    assert not kvorum.Health(
        (kvorum.EndpointHealth("a:1", 0.1, "3.5.1"),)
    ).is_healthy  # there is no leader


async def test_what_a_version_cannot_be_trusted_with_is_logged_once_for_each_server(
    kvorum_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that connects for each of its jobs would fill its log with that."""
    with caplog.at_level(logging.WARNING, logger="kvorum"):
        for _ in range(2):  # addresses that no client of this process has connected to
            async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
                caplog.clear()
                versions = set()
                for _ in range(3):
                    async with kvorum.connect(f"etcd://{proxy.endpoint}") as client:
                        versions.add(client.connection.version)

                logged = [message.partition(": ")[2] for message in caplog.messages]
                (version,) = versions
                assert logged == [hazard.consequence for hazard in hazards_of(version)]
                assert logged
