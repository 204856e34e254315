"""Batches of reads whose member hangs: other members are asked, as for single reads."""

import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest
from tests.integration.pipeline.batching import (
    Requests,
    all_of,
    skip_unless_reads_are_transactions,
)

import kvorum
from kvorum import EmbeddedEtcd, Entry, EtcdSettings
from kvorum.etcd.transport.server import Server
from kvorum.etcd.transport.versions import READ_ONLY
from kvorum.observer import Call

READS: Final = 50

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def cluster(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, members=3) as etcd:
        yield etcd


@pytest.fixture
def dead_end() -> Iterator[str]:
    """An address at which nothing listens, or can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


class Asked(Requests):
    """Records also where each request went, and tells of another issue of the next server."""

    def __init__(self) -> None:
        super().__init__()
        self.by_endpoint: list[tuple[str, str]] = []
        self.client: kvorum.Client | None = None

    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        self.by_endpoint.append((call.operation, endpoint))
        await super().before_request(call, endpoint, message)

    def server_taken(self, _endpoint: str, _version: object, /) -> None:
        if self.client is not None:
            self.client.connection.cluster.hazards = frozenset({READ_ONLY})


async def read_while_the_member_in_use_hangs(
    client: kvorum.Client, cluster: EmbeddedEtcd, next_address: str | None = None
) -> list[object]:
    """Read many keys at once, and return what each read returned or raised.

    With `next_address`, that is the one that the client tries next.
    """
    store, servers = client.backend, client.connection.cluster.servers
    await all_of(*(store.set(f"k{number}", b"") for number in range(READS)))
    current = client.connection.cluster.current
    if next_address is not None:
        found: Server = next(each for each in servers if each.address == next_address)
        servers.remove(found)
        servers.insert(servers.index(current) + 1, found)
    member = cluster.endpoints.index(current.address)
    await cluster.pause(member)
    try:
        return await all_of(*(store.get(f"k{number}") for number in range(READS)))
    finally:
        await cluster.resume(member)


def are_entries(answers: list[object]) -> bool:
    return len(answers) == READS and all(isinstance(answer, Entry) for answer in answers)


async def test_batched_reads_pass_over_an_address_that_leads_nowhere(
    cluster: EmbeddedEtcd, dead_end: str
) -> None:
    requests = Asked()
    settings = EtcdSettings(endpoints=(*cluster.endpoints, dead_end), timeout=3)
    async with kvorum.connect(settings, observer=requests) as client:
        answers = await read_while_the_member_in_use_hangs(client, cluster, dead_end)

    assert are_entries(answers)
    assert any(kind == "reads" and size > 1 for kind, size in requests.answered)


async def test_batched_reads_go_to_a_member_of_another_version_that_takes_their_form(
    cluster: EmbeddedEtcd,
) -> None:
    """As while the members are upgraded one after the other."""
    requests = Asked()
    settings = EtcdSettings(endpoints=cluster.endpoints, timeout=3)
    async with kvorum.connect(settings, observer=requests) as client:
        client.connection.cluster.current.version = (3, 99, 0)  # as it was when it was asked
        answers = await read_while_the_member_in_use_hangs(client, cluster)

    assert are_entries(answers)
    assert any(kind == "reads" and size > 1 for kind, size in requests.answered)


@pytest.mark.parametrize("passes_over", [False, True], ids=["the next one", "the one after that"])
async def test_a_member_that_may_not_be_sent_a_batch_is_sent_each_of_its_reads(
    cluster: EmbeddedEtcd, dead_end: str, *, passes_over: bool
) -> None:
    """Its version is known only when it is asked, and then the batch has its form already."""
    requests = Asked()
    addresses = (*cluster.endpoints, dead_end) if passes_over else cluster.endpoints
    settings = EtcdSettings(endpoints=addresses, timeout=3)
    async with kvorum.connect(settings, observer=requests) as client:
        skip_unless_reads_are_transactions(client)
        first = client.connection.endpoint
        requests.client = client
        answers = await read_while_the_member_in_use_hangs(
            client, cluster, dead_end if passes_over else None
        )
        assert client.connection.endpoint != first

    assert are_entries(answers)
    batches = {endpoint for operation, endpoint in requests.by_endpoint if operation == "batch"}
    assert batches == {first}
