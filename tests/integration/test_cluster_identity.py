"""A cluster is its id, not an address; an answer older than an earlier one is rejected."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from tests.backups import back_up, put_back

import kvorum
from kvorum import (
    AnotherClusterError,
    EmbeddedEtcd,
    EtcdSettings,
    OutcomeUnknownError,
    StaleReadError,
    UnavailableError,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.errors import Call
from kvorum.testing import FaultProxy

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def another(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A cluster that is not the client's."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary) as etcd:
        yield etcd


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


def lead_to(proxy: FaultProxy, etcd: EmbeddedEtcd) -> None:
    """Give the address to another server."""
    proxy.redirect(etcd.endpoints[0])
    proxy.cut()


async def keys_of(etcd: EmbeddedEtcd) -> list[str]:
    async with kvorum.connect(f"{etcd.url}/identity") as client:
        return [entry.key for entry in (await client.backend.list("")).entries]


async def test_an_address_that_was_given_to_another_cluster_is_not_used(
    proxy: FaultProxy,
    another: EmbeddedEtcd,
    kvorum_etcd: EmbeddedEtcd,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That is noticed before anything is sent: no read is "not found", no write goes there."""
    settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix="identity", timeout=2)
    async with kvorum.connect(settings) as client:
        await client.backend.set("mine", b"1")
        lead_to(proxy, another)
        with pytest.raises(AnotherClusterError) as caught:
            await client.backend.get("mine")
        for number in range(4):
            with pytest.raises(AnotherClusterError):
                await client.backend.set(f"{number}", b"1")
        assert caught.value.expected == client.connection.cluster.floor.cluster_id
        assert caught.value.found not in {0, caught.value.expected}
        assert caplog.text.count("belongs to another cluster") == 1

        lead_to(proxy, kvorum_etcd)
        assert (await settled(client)).value == b"1"
    assert await keys_of(another) == []


async def settled(client: kvorum.Client) -> kvorum.storage.Entry:
    """Read until the server at that address is the client's own again."""
    with anyio.fail_after(10):
        while True:
            try:
                entry = await client.backend.get("mine")
            except (AnotherClusterError, UnavailableError):
                await asyncio.sleep(0)
            else:
                assert entry is not None
                return entry


async def test_a_wrong_endpoint_among_right_ones_is_skipped(
    proxy: FaultProxy, another: EmbeddedEtcd
) -> None:
    """When the right one fails, the client checks the wrong one, and waits for the right one."""
    settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix="identity", timeout=2)
    async with kvorum.connect(settings) as client:
        await client.backend.set("mine", b"1")
        cluster = client.connection.cluster
        cluster.servers.append(type(cluster.current)(another.endpoints[0], None))
        await proxy.refuse()
        proxy.cut()
        with kvorum.deadline(0.5), pytest.raises(UnavailableError):
            await client.backend.get("mine")
        await proxy.heal()

        assert (await settled(client)).value == b"1"
        await client.backend.set("mine", b"2")
    assert await keys_of(another) == []


async def test_an_answer_of_another_cluster_is_never_a_success(
    kvorum_client: kvorum.Client,
) -> None:
    """A new connection may be made between the check and the call.

    The last check is the header of the answer.
    """
    cluster = kvorum_client.connection.cluster
    await kvorum_client.backend.set("a", b"1")
    right, cluster.floor.cluster_id = cluster.floor.cluster_id, 1
    put = rpc.PutRequest(key=b"/identity-put", value=b"1")
    call, deadline = Call("put", "a", writes=True), anyio.current_time() + 5

    with pytest.raises(OutcomeUnknownError, match="another cluster"):
        await cluster.call(cluster.current, lambda channel: channel.kv.Put, put, call, deadline)
    with pytest.raises(AnotherClusterError):
        await kvorum_client.backend.get("a")
    cluster.floor.cluster_id = right


# --- a restored store -----------------------------------------------------------------------------


async def test_a_read_of_a_restored_store_is_rejected(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """Alone and in batches: it would show old values, or miss what was written."""
    await back_up(etcd, tmp_path / "backup")
    async with kvorum.connect(EtcdSettings(endpoints=etcd.endpoints, timeout=1)) as client:
        last = 0
        for _ in range(5):
            last = await client.backend.set("a", b"1")
        await put_back(etcd, tmp_path / "backup")
        with anyio.fail_after(20):
            while not client.connection.cluster.current.calls.is_connected:
                with suppress(UnavailableError, StaleReadError):
                    await client.backend.get("a")
        found = await asyncio.gather(
            *(client.backend.get("a") for _ in range(8)), return_exceptions=True
        )
        assert {type(each) for each in found} == {StaleReadError}
        with pytest.raises(StaleReadError, match="restored to an older state") as caught:
            await client.backend.list("")

        assert caught.value.revision == last
        assert caught.value.current < last


async def test_a_write_to_a_restored_store_is_not_reported_as_done(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    """Its revision was another write's before."""
    await back_up(etcd, tmp_path / "backup")
    async with kvorum.connect(EtcdSettings(endpoints=etcd.endpoints, timeout=1)) as client:
        for _ in range(5):
            await client.backend.set("a", b"1")
        await put_back(etcd, tmp_path / "backup")

        with pytest.raises(OutcomeUnknownError, match="had been seen"):
            await client.backend.set("b", b"2")
        with pytest.raises(OutcomeUnknownError):
            await client.backend.create("c", b"2")


async def test_a_new_write_at_a_revision_that_was_seen_before_is_not_reported_as_done(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    """A write makes a revision of its own, which must be above all that were seen."""
    await back_up(etcd, tmp_path / "backup")
    async with kvorum.connect(EtcdSettings(endpoints=etcd.endpoints, timeout=1)) as client:
        *_, last = [await client.backend.set("a", b"1") for _ in range(3)]
        await put_back(etcd, tmp_path / "backup")
        async with kvorum.connect(etcd.url) as other:
            while await other.backend.set("b", b"2") < last - 1:
                pass

        with pytest.raises(OutcomeUnknownError, match="had been seen"):
            await client.backend.create("c", b"2")
        async with kvorum.connect(etcd.url) as other:
            entry = await other.backend.get("c")
    assert entry is not None
    assert entry.mod_revision == last


async def test_a_member_that_is_behind_is_left_for_one_that_is_not(
    kvorum_etcd: EmbeddedEtcd, proxy: FaultProxy, kvorum_url: str
) -> None:
    """A revision that one member has reported is the least that another may answer with."""
    prefix = kvorum_url.rpartition("/")[2]
    settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=5)
    async with kvorum.connect(settings) as client:
        revision = await client.backend.set("a", b"1")
        floor = client.connection.cluster.floor
        assert floor.revision == revision
        floor.revision = revision + 3  # as if another member had reported it
        reading = asyncio.create_task(client.backend.get("a"))
        async with kvorum.connect(f"{kvorum_etcd.url}/{prefix}") as other:
            for _ in range(3):
                await other.backend.set("b", b"2")

        entry = await reading
        assert entry is not None
        assert entry.mod_revision == revision


async def test_reads_and_refused_writes_at_the_present_revision_are_accepted(
    kvorum_client: kvorum.Client,
) -> None:
    """They make no revision of their own."""
    revision = await kvorum_client.backend.set("a", b"1")
    assert await kvorum_client.backend.get("a") is not None
    with pytest.raises(kvorum.AlreadyExistsError):
        await kvorum_client.backend.create("a", b"2")
    with pytest.raises(kvorum.NotFoundError):
        await kvorum_client.backend.delete("b")

    assert kvorum_client.connection.cluster.floor.revision >= revision
