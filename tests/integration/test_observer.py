"""What a client reports to its observer, and what an observer can do to a request."""

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import kvorum
from kvorum import EmbeddedEtcd, KvorumError, Observer, PermissionDeniedError, UnavailableError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.errors import NOT_SENT
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


# --- an observer that raises ---

HOOKS = {"before_request", "after_request", "before_watch", "after_authentication"}
REPORTS = sorted(set(vars(Observer)) - HOOKS - set(vars(object)) - {"__init_subclass__"})


class Broken(Observer):
    """Raises in one coroutine method, once it is told to."""

    def __init__(self, at: str, operation: str = "") -> None:
        self.at = at
        self.operation = operation
        self.is_on = False
        self.raised = anyio.Event()

    def _fail(self, at: str, operation: str = "") -> None:
        if self.is_on and at == self.at and operation == self.operation:
            self.raised.set()
            raise ZeroDivisionError("of the observer")

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        self._fail("before_request", call.operation)

    async def after_request(self, call: Call, _endpoint: str, _answer: object) -> None:
        self._fail("after_request", call.operation)

    async def before_watch(self, _subject: str, _endpoint: str, _since: int, _m: object) -> None:
        self._fail("before_watch")


def raising(name: str, calls: list[str]) -> Observer:
    """Return an observer whose named report raises."""

    def fail(_self: Observer, /, *_args: object) -> None:
        calls.append(name)
        raise ZeroDivisionError("of the observer")

    observer: Observer = type("Raising", (Observer,), {name: fail})()
    return observer


@pytest.mark.parametrize("name", [name for name in REPORTS if not name.startswith("_")])
async def test_a_report_that_raises_is_logged_once_and_stops_nothing(
    kvorum_etcd: EmbeddedEtcd, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        url = f"etcd://{proxy.endpoint}/obs"
        async with kvorum.connect(url, observer=raising(name, calls)) as client:
            store = client.backend
            async with store.watch("a") as watch:
                for _ in range(2):
                    await asyncio.gather(*(store.set(f"a{number}", b"") for number in range(9)))
                    await asyncio.gather(*(store.get(f"a{number}") for number in range(9)))
                    with pytest.raises(kvorum.LeaseNotFoundError):
                        await store.set("a", b"", lease=12345)
                    revision = await store.set("a", b"")
                    while (await anext(watch))[-1].revision < revision:
                        pass
                    proxy.cut()
                    await store.get("a")  # on a new connection
            assert repr(client).endswith("[open]>")

    blamed = [each for each in caplog.messages if "observer Raising" in each]
    assert blamed == [f"observer Raising.{name} raised; the client goes on and logs this once"] * (
        1 if calls else 0
    )
    assert "bug in Kvorum" not in caplog.text
    if name in {"request_failed", "server_taken", "members_read", "batch_planned", "batch_sent"}:
        assert calls
    if name in {"watch_opened", "watch_interrupted", "watch_resumed", "watch_received"}:
        assert calls


@pytest.mark.parametrize("at", ["before_request", "after_request"])
async def test_any_error_of_an_observer_is_raised_as_it_is_by_each_call(
    kvorum_url: str, at: str
) -> None:
    broken = Broken(at, "put")
    async with kvorum.connect(kvorum_url, observer=broken) as client:
        broken.is_on = True
        with pytest.raises(ZeroDivisionError) as caught:
            await client.backend.set("a", b"1")
        broken.is_on = False

        assert caught.value.__notes__ == [f"raised by the observer, in Broken.{at}"]
        assert await client.backend.exists("a") == (at == "after_request")

        broken.operation, broken.is_on = "status", True
        with pytest.raises(ZeroDivisionError):
            await client.admin.status()


async def test_what_an_observer_raises_about_a_watch_the_watch_raises(
    kvorum_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken("before_watch")
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        url = f"etcd://{proxy.endpoint}/obs"
        async with kvorum.connect(url, observer=broken) as client:
            async with client.backend.watch("a") as watch:
                broken.is_on = True
                await client.backend.set("a", b"1")
                assert (await anext(watch))[0].key == "a"
                proxy.cut()
                with pytest.raises(ZeroDivisionError):
                    await anext(watch)
            with pytest.raises(ZeroDivisionError):
                await client.backend.watch("a").open()

            broken.is_on = False
            async with client.backend.watch("a"):
                assert repr(client).endswith("[open]>")
    assert "bug in Kvorum" not in caplog.text


async def test_an_error_about_a_request_of_the_client_s_own_is_logged(
    kvorum_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken("before_request", "members")
    settings = kvorum.EtcdSettings(
        endpoints=kvorum_etcd.endpoints, prefix="obs", discover_interval=0.05
    )
    async with kvorum.connect(settings, observer=broken) as client:
        broken.is_on = True
        with anyio.fail_after(5):
            await broken.raised.wait()
        await client.backend.set("a", b"1")
        assert repr(client).endswith("[open]>")
    assert "raised by the observer, in Broken.before_request" in caplog.text


# --- what follows a request ---


class Pairs(Observer):
    """Counts how many requests are under way, by what it is told."""

    def __init__(self) -> None:
        self.under_way: dict[asyncio.Task[object] | None, Call] = {}
        self.ends: list[str] = []
        self.came = anyio.Event()

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        assert asyncio.current_task() not in self.under_way
        self.under_way[asyncio.current_task()] = call
        if call.operation == "put":
            self.came.set()

    async def after_request(self, call: Call, _endpoint: str, _answer: object) -> None:
        self._end("after", call)

    def request_failed(self, call: Call, _endpoint: str, _error: KvorumError) -> None:
        self._end("failed", call)

    def request_cancelled(self, call: Call, _endpoint: str) -> None:
        self._end("cancelled", call)

    def _end(self, how: str, call: Call) -> None:
        assert self.under_way.pop(asyncio.current_task()) == call
        self.ends.append(f"{how} {call.operation}")


async def test_each_request_ends_in_one_of_three_ways_in_its_task(
    kvorum_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = Pairs()
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        async with kvorum.connect(f"etcd://{proxy.endpoint}/obs", observer=pairs) as client:
            await client.backend.set("a", b"1")
            with pytest.raises(kvorum.FutureRevisionError):
                await client.backend.get("a", revision=10**9)
            pairs.came = anyio.Event()
            proxy.drop("replies")
            lost = asyncio.create_task(client.backend.set("a", b"2"))
            with anyio.fail_after(5):
                await pairs.came.wait()
            lost.cancel()
            await asyncio.wait([lost])

            assert {"after put", "failed read", "cancelled put"} <= {*pairs.ends}
        assert pairs.under_way == {}
    assert "observer" not in caplog.text


async def test_the_operations_are_those_that_the_observer_s_page_lists() -> None:
    """So that a metric can have a label for each."""
    made = {
        node.args[0].value
        for path in Path(kvorum.__file__).parent.joinpath("etcd").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Call"
        and isinstance(node.args[0], ast.Constant)
    }
    listed = {*re.findall(r"`(\w+)`", (Call.__doc__ or "").partition("subject:")[0])}
    assert made - {"watch"} == listed  # streams are reported apart


class Late(Observer):
    """Refuses the first put, and lets the others come too late to be sent."""

    def __init__(self) -> None:
        self.puts = 0

    async def before_request(self, call: Call, endpoint: str, _message: object) -> None:
        if call.operation == "put":
            self.puts += 1
            raise UnavailableError(endpoint, "the reason" if self.puts == 1 else NOT_SENT)


async def test_an_attempt_that_comes_too_late_does_not_hide_why_the_one_before_it_failed(
    kvorum_url: str,
) -> None:
    """Such as an expired certificate: the last attempt may begin just before the deadline."""
    late = Late()
    async with kvorum.connect(kvorum_url, observer=late) as client:
        with pytest.raises(UnavailableError, match="the reason"), kvorum.deadline(0.3):
            await client.backend.set("a", b"1")

    assert late.puts > 1
