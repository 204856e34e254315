"""What a session owns, and which backends open and close one."""

import asyncio

import anyio
import pytest

import kvorum
from kvorum import (
    ClientClosedError,
    ConfigurationError,
    EtcdSettings,
    EtcdStorageBackend,
    UnavailableError,
)
from kvorum.etcd.pipeline import QueueLimits
from kvorum.etcd.policies import Policies
from kvorum.etcd.session import Session
from kvorum.etcd.transport import StreamLimits, TransportPolicies
from kvorum.observer import Call, Observer

DEADLINE = 5.0


@pytest.fixture
def settings(kvorum_url: str) -> EtcdSettings:
    return EtcdSettings.from_url(kvorum_url)


def session_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("kvorum")]


async def fail() -> None:
    raise ZeroDivisionError("a mistake")


# --- opening and closing --------------------------------------------------------------------------


async def test_a_session_is_usable_between_open_and_close(settings: EtcdSettings) -> None:
    session = Session(settings)
    with pytest.raises(ClientClosedError, match="async with"):
        _ = session.connection

    await session.open()
    await session.open()  # does nothing
    assert session.pipeline.connection is session.connection
    assert repr(session).endswith("[open]>")

    await session.aclose()
    await session.aclose()
    for name in ("connection", "pipeline"):
        with pytest.raises(ClientClosedError, match="closed"):
            getattr(session, name)
    with pytest.raises(ClientClosedError, match="opened once"):
        await session.open()
    assert session_tasks() == []


async def test_a_second_close_of_a_session_waits_for_the_first(settings: EtcdSettings) -> None:
    """The channels are closed after the tasks that use them, whoever closes them."""
    ended: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await go_on.wait()
            ended.append("task")

    async def close(name: str) -> None:
        await session.aclose()
        ended.append(name)

    session, go_on = Session(settings), anyio.Event()
    await session.open()
    session.connection.supervisor.spawn(work, name="kvorum-test")
    async with anyio.create_task_group() as group:
        for name in ("first", "second"):
            group.start_soon(close, name)
        await anyio.wait_all_tasks_blocked()
        assert ended == []
        go_on.set()

    assert ended == ["task", "first", "second"]
    assert session_tasks() == []


async def test_a_session_whose_opening_failed_is_released_by_closing_it() -> None:
    session = Session(EtcdSettings(endpoints=("127.0.0.1:1",), timeout=0.2))

    with pytest.raises(UnavailableError):
        await session.open()
    with pytest.raises(ClientClosedError):
        _ = session.connection

    await session.aclose()
    assert session_tasks() == []


async def test_a_session_that_is_closed_while_it_opens_does_not_open(
    settings: EtcdSettings,
) -> None:
    """It would own a connection that is closed."""

    class Closing(Observer):
        async def before_request(self, call: Call, _endpoint: str, _message: object, /) -> None:
            if call.operation == "status":
                await session.aclose()

    session = Session(settings, observer=Closing())

    with pytest.raises(ClientClosedError):
        with anyio.fail_after(DEADLINE):
            await session.open()
    assert session_tasks() == []


async def test_a_task_that_fails_ends_the_session_and_is_named_as_the_cause(
    settings: EtcdSettings,
) -> None:
    client = await kvorum.connect(settings).__aenter__()
    watch = client.backend.watch("")
    await watch.open()

    client.connection.supervisor.spawn(fail, name="failing")

    with anyio.fail_after(DEADLINE):
        with pytest.raises(ClientClosedError, match="a mistake"):
            await anext(watch)
    with pytest.raises(ClientClosedError, match="a mistake") as caught:
        await client.backend.get("a")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ClientClosedError, match="a mistake"):
        _ = client.pipeline
    assert repr(client).endswith("[failed]>")
    with pytest.raises(ExceptionGroup):
        await client.aclose()
    assert repr(client).endswith("[closed]>")
    assert session_tasks() == []


# --- who owns it ----------------------------------------------------------------------------------


async def test_a_backend_on_a_session_opens_and_closes_it(settings: EtcdSettings) -> None:
    backend = EtcdStorageBackend(Session(settings), settings.prefix)
    async with kvorum.connect(backend) as client:
        revision = await client.backend.set("a", b"")
        assert client.connection is backend.session.connection
        assert client.settings is settings

    assert revision > 0
    with pytest.raises(ClientClosedError):
        await backend.get("a")


async def test_a_backend_on_a_client_leaves_the_clients_session_open(
    kvorum_client: kvorum.Client,
) -> None:
    other = EtcdStorageBackend(kvorum_client, "other")
    async with kvorum.connect(other) as client:
        await client.backend.set("a", b"")
        assert client.session is kvorum_client.session

    assert await other.exists("a")
    await other.delete("a")
    assert await kvorum_client.backend.keys() == []


def test_a_backend_on_etcd_needs_a_client_on_etcd() -> None:
    with pytest.raises(ConfigurationError, match="no connection to etcd"):
        EtcdStorageBackend(kvorum.connect("memory://"), "lab")


async def test_a_client_closed_before_it_was_entered_leaves_its_backend_open() -> None:
    backend = kvorum.MemoryStorageBackend()
    closed = kvorum.connect(backend)
    await closed.aclose()

    with pytest.raises(ClientClosedError, match="closed"):
        _ = closed.backend
    async with kvorum.connect(backend) as client:
        await client.backend.set("a", b"1")


# --- what it hands down ---------------------------------------------------------------------------


async def test_the_observer_sees_the_requests_of_every_part(settings: EtcdSettings) -> None:
    seen: set[str] = set()

    class Listening(Observer):
        async def before_request(self, call: Call, _endpoint: str, _message: object, /) -> None:
            seen.add(call.operation)

    async with kvorum.connect(settings, observer=Listening()) as client:
        await client.backend.set("a", b"")
        await client.backend.get("a")
        await client.admin.members()

    assert {"status", "put", "read", "members"} <= seen


async def test_policies_reach_the_parts_that_they_are_for(settings: EtcdSettings) -> None:
    async def requests_for_reads(client: kvorum.Client) -> int:
        await asyncio.gather(*(client.backend.get(f"k{number}") for number in range(40)))
        return client.pipeline.statistics().read_requests

    transport = TransportPolicies(streams=StreamLimits(streams=3))
    policies = Policies(queue=QueueLimits(waiting=2), transport=transport)
    async with kvorum.connect(settings, policies=policies) as client:
        with_a_short_queue = await requests_for_reads(client)
        assert client.connection.policies is transport
    async with kvorum.connect(settings) as client:
        by_default = await requests_for_reads(client)

    assert by_default < 10 < with_a_short_queue
