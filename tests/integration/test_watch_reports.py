"""What a watch reports to the observer of its client, and what an observer can do to it."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from typing_extensions import override

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, KvorumError, Observer, UnavailableError
from kvorum.etcd.entries import change_of
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import reader
from kvorum.storage import KeySpace
from kvorum.testing import FaultProxy

DEADLINE = 20


class Recorder(Observer):
    """Keeps the reports of watches, and refuses some creations.

    Attributes:
        reports: the name of each report, with its revision or number.
        error: raised before the next creation, once.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[str, int]] = []
        self.error: KvorumError | None = None

    @override
    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        self.reports.append(("before", revision))
        error, self.error = self.error, None
        if error is not None:
            raise error

    @override
    def watch_opened(self, subject: str, endpoint: str, revision: int, /) -> None:
        self.reports.append(("opened", revision))

    @override
    def watch_resumed(self, subject: str, endpoint: str, revision: int, /) -> None:
        self.reports.append(("resumed", revision))

    @override
    def watch_interrupted(self, subject: str, endpoint: str, error: KvorumError, /) -> None:
        self.reports.append(("interrupted", 0))

    @override
    def watch_buffered(self, subject: str, changes: int, /) -> None:
        if changes:  # a response after a resume may repeat what was read before, and no more
            self.reports.append(("buffered", changes))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def proxy(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kvorum_etcd.endpoints[0]) as proxy:
        yield proxy


@pytest.fixture
async def client(
    proxy: FaultProxy, kvorum_url: str, recorder: Recorder
) -> AsyncIterator[kvorum.Client]:
    prefix = kvorum_url.rpartition("/")[2]
    settings = EtcdSettings(endpoints=(proxy.endpoint,), prefix=prefix, timeout=5)
    async with kvorum.connect(settings, observer=recorder) as client:
        yield client


async def test_a_watch_reports_when_it_opens_buffers_breaks_and_resumes(
    client: kvorum.Client, kvorum_client: kvorum.Client, proxy: FaultProxy, recorder: Recorder
) -> None:
    first = await client.backend.set("a", b"1")
    async with client.backend.watch("", since=first) as watch:
        second = await client.backend.set("a", b"2")
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        proxy.cut()
        third = await kvorum_client.backend.set("a", b"3")
        with anyio.fail_after(DEADLINE):
            (change,) = await waiting

    assert change.revision == third
    assert recorder.reports == [
        ("before", first),
        ("opened", first),
        ("buffered", 1),
        ("interrupted", 0),
        ("before", second),
        ("resumed", second),
        ("buffered", 1),
    ]


async def test_a_creation_that_an_observer_refuses_is_retried_like_one_that_a_server_refuses(
    client: kvorum.Client, recorder: Recorder
) -> None:
    revision = await client.backend.set("a", b"")
    recorder.error = UnavailableError("server", "refused by a test")
    async with client.backend.watch("", since=revision):
        pass

    assert [report for report, _ in recorder.reports] == ["before", "before", "opened"]


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_bug_ends_its_own_watch_with_its_cause(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch, *, is_open: bool
) -> None:
    """The other watches of the client, and its calls, continue."""

    def with_a_bug(keys: KeySpace, event: rpc.Event) -> kvorum.Change:
        if event.kv.key.endswith(b"bad/a"):
            raise ZeroDivisionError
        return change_of(keys, event)

    monkeypatch.setattr(reader, "change_of", with_a_bug)
    start = await client.backend.set("good/first", b"")
    watch = client.backend.watch("bad/", since=start)
    other = client.backend.watch("good/", since=start)
    await other.open()
    if is_open:
        await watch.open()
    await client.backend.set("bad/a", b"")
    with anyio.fail_after(DEADLINE):
        with pytest.raises(kvorum.InternalError) as caught:
            await anext(watch)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        revision = await client.backend.set("good/a", b"")
        assert (await anext(other))[0].revision == revision
    await other.aclose()
