"""What a client reports to its observer, and what an observer can do to a request."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

import kvorum
from kvorum import EmbeddedEtcd, KvorumError, Observer, PermissionDeniedError, UnavailableError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.observer import Call
from kvorum.testing import FaultProxy


class Recorder(Observer):
    """Keeps reports as text."""

    def __init__(self) -> None:
        self.reports: list[str] = []

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        self.reports.append(f"before {call.operation} {call.subject}")

    async def after_request(self, call: Call, _endpoint: str, _answer: object) -> None:
        self.reports.append(f"after {call.operation} {call.subject}")

    def request_failed(self, call: Call, _endpoint: str, error: KvorumError) -> None:
        self.reports.append(f"{type(error).__name__} {call.operation}")

    def server_taken(self, endpoint: str, _version: tuple[int, int, int]) -> None:
        self.reports.append(f"taken {endpoint}")

    def server_left(self, endpoint: str, successor: str) -> None:
        self.reports.append(f"left {endpoint} for {successor}")


class Gate(Observer):
    """Holds puts, or refuses them."""

    def __init__(self) -> None:
        self.came = anyio.Event()
        self.open = anyio.Event()
        self.error: KvorumError | None = None

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        if call.operation != "put":
            return
        if self.error is not None:
            raise self.error
        self.came.set()
        await self.open.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def client(kvorum_url: str, gate: Gate) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(kvorum_url, observer=gate) as client:
        yield client


async def test_a_request_is_reported_before_it_is_sent_and_after_its_answer(
    kvorum_url: str,
) -> None:
    recorder = Recorder()
    async with kvorum.connect(kvorum_url, observer=recorder) as client:
        recorder.reports.clear()
        key = client.backend.location("a")
        await client.backend.set("a", b"1")

    assert [report for report in recorder.reports if key in report] == [
        f"before put {key}",
        f"after put {key}",
    ]


async def test_a_server_is_reported_once_it_is_ready(kvorum_url: str) -> None:
    recorder = Recorder()
    async with kvorum.connect(kvorum_url, observer=recorder) as client:
        assert f"taken {client.connection.endpoint}" in recorder.reports
        assert not any(report.startswith("left") for report in recorder.reports)


async def test_a_server_that_is_away_is_reported_with_the_one_that_replaces_it(
    kvorum_etcd: EmbeddedEtcd,
) -> None:
    recorder = Recorder()
    async with FaultProxy(kvorum_etcd.endpoints[0]) as first, FaultProxy(first.endpoint) as second:
        endpoints = (first.endpoint, second.endpoint)
        settings = kvorum.EtcdSettings(endpoints=endpoints, timeout=5)
        async with kvorum.connect(settings, observer=recorder) as client:
            used = client.connection.endpoint
            (other,) = {*endpoints} - {used}
            client.connection.cluster.leave(client.connection.cluster.current)
            await client.backend.get("a")

    assert f"left {used} for {other}" in recorder.reports
    assert f"taken {other}" in recorder.reports


async def test_an_observer_holds_a_request_as_long_as_it_waits(
    client: kvorum.Client, gate: Gate
) -> None:
    write = asyncio.create_task(client.backend.set("a", b"1"))
    with anyio.fail_after(5):
        await gate.came.wait()
    assert await client.backend.get("a") is None

    gate.open.set()
    await write
    assert await client.backend.exists("a")


async def test_what_an_observer_raises_is_raised_by_the_request(
    client: kvorum.Client, gate: Gate
) -> None:
    gate.error = PermissionDeniedError("a test")
    with pytest.raises(PermissionDeniedError, match="a test"):
        await client.backend.set("a", b"1")

    assert not await client.backend.exists("a")


async def test_a_request_that_fails_is_reported_with_its_error(kvorum_url: str) -> None:
    recorder = Recorder()
    async with kvorum.connect(kvorum_url, observer=recorder) as client:
        with pytest.raises(kvorum.FutureRevisionError):
            await client.backend.get("a", revision=10**9)

    assert "FutureRevisionError read" in recorder.reports


class Raiser(Observer):
    """Raises an error when a put is answered."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.answered = 0

    async def after_request(self, call: Call, _endpoint: str, answer: object) -> None:
        if call.writes and not isinstance(answer, rpc.LeaseGrantResponse):
            self.answered += 1
            if self.answered == 1:
                raise self.error


@pytest.mark.parametrize(
    "error", [asyncio.InvalidStateError("a mistake"), ValueError("a mistake")], ids=repr
)
async def test_a_mistake_of_an_observer_is_raised_and_nothing_is_sent_again(
    kvorum_url: str, error: Exception
) -> None:
    """The driver raises some of these errors, too: there they mean that nothing was sent."""
    async with kvorum.connect(kvorum_url, observer=Raiser(error)) as client:
        with pytest.raises(type(error), match="a mistake"):
            await client.backend.set("a", b"1")

        entry = await client.backend.get("a")
        assert entry is not None
        assert entry.version == 1


async def test_an_answer_that_an_observer_loses_is_no_refusal(kvorum_url: str) -> None:
    """A write that was done is looked for, and not sent again."""
    observer = Raiser(UnavailableError("etcd", "the answer is lost"))
    async with kvorum.connect(kvorum_url, observer=observer) as client:
        revision = await client.backend.create("a", b"1", unique=True)

        entry = await client.backend.get("a")
        assert entry is not None
        assert (entry.version, entry.mod_revision) == (1, revision)


@pytest.mark.parametrize("seconds", [0.2, 0.4])
async def test_a_request_is_held_until_its_deadline_at_most(
    client: kvorum.Client, gate: Gate, seconds: float
) -> None:
    """Then it is not sent, and nothing is said about the server."""
    with pytest.raises(UnavailableError, match="an observer held"), kvorum.deadline(seconds):
        await client.backend.set("a", b"1")

    gate.open.set()
    assert await client.backend.get("a") is None


async def test_a_request_that_was_held_is_not_sent_on_another_connection(
    kvorum_etcd: EmbeddedEtcd, gate: Gate
) -> None:
    """What was decided about it may not hold there: another cluster may have the address by now."""
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        settings = kvorum.EtcdSettings(endpoints=(proxy.endpoint,), prefix="held", timeout=5.0)
        async with kvorum.connect(settings, observer=gate) as client:
            async with anyio.create_task_group() as group:

                async def put() -> None:
                    await client.backend.set("a", b"1")

                group.start_soon(put)
                await gate.came.wait()
                server = client.connection.cluster.current
                proxy.cut()
                with anyio.fail_after(10):
                    while server.refresh_ready():  # noqa: ASYNC110 - gRPC tells nobody
                        await anyio.sleep(0.01)
                gate.open.set()

            assert await client.backend.get("a") is not None  # prepared again, then sent
