"""What operators ask of a cluster through a client."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.clients import DEADLINE

import kvorum
from kvorum import (
    Alarm,
    ConfigurationError,
    EmbeddedEtcd,
    FutureRevisionError,
    HistoryLostError,
    InvalidResourceError,
    StorageFullError,
    UnavailableError,
)
from kvorum.observer import Call
from kvorum.testing import FaultProxy


@pytest.fixture
async def server(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server of the test's own: compaction and defragmentation concern all keys."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


async def test_status_tells_what_each_server_says_of_itself(kvorum_client: kvorum.Client) -> None:
    revision = await kvorum_client.backend.set("a", b"")

    (status,) = await kvorum_client.admin.status()

    assert status.endpoint == kvorum_client.connection.endpoint
    assert status.version == ".".join(map(str, kvorum_client.connection.version))
    assert status.is_leader
    assert status.revision >= revision
    assert 0 < status.db_size_in_use <= status.db_size
    assert 0 < status.raft_applied_index <= status.raft_index
    assert status.raft_term > 0
    assert (status.error, status.problems, status.is_learner) == ("", (), False)


async def test_a_server_that_is_down_has_an_error_in_the_status(server: EmbeddedEtcd) -> None:
    async with kvorum.connect(server.url, settings=kvorum.EtcdSettings(timeout=0.5)) as client:
        await server.kill()

        (status,) = await client.admin.status()

        assert status.endpoint == server.endpoints[0]
        assert "unavailable" in status.error
        assert not status.is_leader


async def test_members_are_listed_with_their_addresses(kvorum_etcd: EmbeddedEtcd) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as cluster,
        kvorum.connect(cluster.url) as client,
    ):
        members = await client.admin.members()
        statuses = await client.admin.status()

    assert sorted(member.name for member in members) == ["etcd-0", "etcd-1", "etcd-2"]
    assert {url for member in members for url in member.client_urls} == {
        f"http://{endpoint}" for endpoint in cluster.endpoints
    }
    assert {url for member in members for url in member.peer_urls} == {
        f"http://{endpoint}" for endpoint in cluster.peer_endpoints
    }
    assert {member.id for member in members} == {status.member_id for status in statuses}
    assert sum(status.is_leader for status in statuses) == 1
    assert not any(member.is_learner for member in members)


async def test_compaction_discards_what_is_before_the_revision(server: EmbeddedEtcd) -> None:
    async with kvorum.connect(server.url) as client:
        first = await client.backend.set("a", b"1")
        second = await client.backend.set("a", b"2")

        await client.admin.compact(second)

        assert (await client.backend.get("a", revision=second)) is not None
        with pytest.raises(HistoryLostError):
            await client.backend.get("a", revision=first)
        with pytest.raises(HistoryLostError):
            await client.admin.compact(first)
        with pytest.raises(FutureRevisionError):
            await client.admin.compact(second + 1000)
        with pytest.raises(InvalidResourceError):
            await client.admin.compact(0)


class Compactions(kvorum.Observer):
    """Loses the reply to the first compaction, if it is told to."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.loses = False
        self.sent: list[int] = []

    async def before_request(self, call: Call, _endpoint: str, _message: object, /) -> None:
        if call.operation == "compact":
            self.sent.append(call.revision)
            if self.loses:
                self.loses = False
                self.proxy.drop("replies")


async def test_a_compaction_whose_reply_was_lost_is_done(server: EmbeddedEtcd) -> None:
    async with (
        FaultProxy(server.endpoints[0]) as proxy,
        kvorum.connect(server.url) as direct,
        kvorum.connect(f"etcd://{proxy.endpoint}", observer=(seen := Compactions(proxy))) as client,
    ):
        first = await client.backend.set("a", b"1")
        second = await client.backend.set("a", b"2")

        async def is_compacted() -> bool:
            try:
                await direct.backend.get("a", revision=first)
            except HistoryLostError:
                return True
            return False

        async with anyio.create_task_group() as group:
            seen.loses = True
            group.start_soon(client.admin.compact, second)
            with anyio.fail_after(DEADLINE):
                while not await is_compacted():
                    pass
            proxy.cut()
            await proxy.heal()

        assert len(seen.sent) > 1
        seen.sent.clear()
        with pytest.raises(HistoryLostError, match=f"at revision {second} is already compacted"):
            await client.admin.compact(second)
        assert seen.sent == [second]


async def test_what_is_too_early_or_too_late_is_named_with_its_revision(
    server: EmbeddedEtcd,
) -> None:
    async with kvorum.connect(server.url) as client:
        first = await client.backend.set("a", b"1")
        second = await client.backend.set("a", b"2")
        await client.admin.compact(second)

        with pytest.raises(FutureRevisionError, match="revision 1000000000 has not been reached"):
            await client.admin.compact(10**9)
        with pytest.raises(HistoryLostError, match="ask for a revision above the last compaction"):
            await client.admin.hash(first)
        with pytest.raises(FutureRevisionError, match=f"etcd at {server.endpoints[0]} is behind"):
            await client.admin.hash(10**9)


async def test_defragmenting_returns_the_space_of_what_was_compacted(
    server: EmbeddedEtcd,
) -> None:
    async with kvorum.connect(server.url) as client:
        for _ in range(20):
            await client.backend.set("a", bytes(500_000))
        last = await client.backend.set("a", b"small")
        await client.admin.compact(last)
        (before,) = await client.admin.status()

        await client.admin.defragment(before.endpoint)

        (after,) = await client.admin.status()
        assert after.db_size < before.db_size
        entry = await client.backend.get("a")
        assert entry is not None
        assert entry.mod_revision == last


async def test_only_a_known_server_can_be_defragmented(kvorum_client: kvorum.Client) -> None:
    with pytest.raises(ConfigurationError, match="no server 'elsewhere:1'"):
        await kvorum_client.admin.defragment("elsewhere:1")


@pytest.mark.parametrize("given", ["5", None, True, -1, 0, float("nan"), float("inf"), 1e10])
async def test_the_timeout_of_a_defragmentation_is_a_number_of_seconds(
    kvorum_client: kvorum.Client, kvorum_etcd: EmbeddedEtcd, given: Any
) -> None:
    with pytest.raises(ConfigurationError, match="timeout must be"):
        await kvorum_client.admin.defragment(kvorum_etcd.endpoints[0], timeout=given)


async def test_members_with_the_same_data_have_the_same_hash(kvorum_etcd: EmbeddedEtcd) -> None:
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as cluster,
        kvorum.connect(cluster.url) as client,
    ):
        first = await client.backend.set("a", b"1")
        second = await client.backend.set("b", b"2")
        for endpoint in cluster.endpoints:  # a member that lags has not reached the revision
            async with kvorum.connect(f"etcd://{endpoint}") as member:
                await member.backend.get("a")
        before, after = await client.admin.hash(first), await client.admin.hash(second)

        assert {each.endpoint for each in after} == set(cluster.endpoints)
        assert len({(each.hash, each.compact_revision) for each in before}) == 1
        assert len({(each.hash, each.compact_revision) for each in after}) == 1
        assert before[0].hash != after[0].hash
        with pytest.raises(FutureRevisionError):
            await client.admin.hash(second + 1000)
        with pytest.raises(InvalidResourceError):
            await client.admin.hash(0)

        await cluster.kill(1)
        with pytest.raises(UnavailableError):
            await client.admin.hash(second)


async def test_an_alarm_names_the_member_that_raised_it(kvorum_etcd: EmbeddedEtcd) -> None:
    arguments = ["--quota-backend-bytes", str(4 << 20)]
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments) as server,
        kvorum.connect(server.url) as client,
    ):

        async def fill() -> None:
            for number in range(100):
                await client.backend.set(f"k{number}", bytes(900_000))

        assert await client.admin.alarms() == ()
        with pytest.raises(StorageFullError):
            await fill()

        (member,) = await client.admin.members()
        assert await client.admin.alarms() == (Alarm("NOSPACE", member.id),)


async def test_a_store_in_memory_has_no_operations_on_a_cluster() -> None:
    async with kvorum.connect("memory://") as client:
        with pytest.raises(ConfigurationError, match="no connection to etcd"):
            _ = client.admin
