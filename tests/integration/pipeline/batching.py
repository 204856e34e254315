"""What the tests of the pipeline share: calls made at once, and an observer that intervenes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest

import kvorum
from kvorum import Observer
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport.versions import QUOTA, READ_ONLY, has_hazard
from kvorum.observer import Call

DEADLINE = 20

Hook: TypeAlias = Callable[[Call, Any], Coroutine[Any, Any, None]]


async def nothing(_call: Call, _message: object) -> None:
    pass


class Requests(Observer):
    """Records the requests of a client, and lets a test hold or refuse them.

    Attributes:
        sent: what was sent so far.
        before: awaited with each request before it is sent.
        after: awaited with each answer.
        planned: kind and size of each batch.
        answered: the same, of those that were answered.
        failed: the same, of those that failed, with the errors.
    """

    def __init__(self) -> None:
        self.sent: list[Call] = []
        self.before: Hook = nothing
        self.after: Hook = nothing
        self.planned: list[tuple[str, int]] = []
        self.answered: list[tuple[str, int]] = []
        self.failed: list[tuple[str, int, kvorum.KvorumError]] = []
        self._has_failed = asyncio.Event()
        self._has_planned = asyncio.Event()

    async def before_request(self, call: Call, _endpoint: str, message: object, /) -> None:
        self.sent.append(call)
        await self.before(call, message)

    async def after_request(self, call: Call, _endpoint: str, answer: object, /) -> None:
        await self.after(call, answer)

    def request_failed(self, _call: Call, _endpoint: str, _error: kvorum.KvorumError, /) -> None:
        self._has_failed.set()

    async def until_failed(self) -> None:
        """Wait until a request fails from now on."""
        self._has_failed.clear()
        with anyio.fail_after(DEADLINE):
            await self._has_failed.wait()

    def batch_planned(self, kind: str, size: int, _waiting: int, /) -> None:
        self.planned.append((kind, size))
        self._has_planned.set()

    async def until_planned(self, kind: str) -> None:
        """Wait until a batch is planned from now on."""
        number = self._number_of(kind)
        with anyio.fail_after(DEADLINE):
            while self._number_of(kind) == number:
                self._has_planned.clear()
                await self._has_planned.wait()

    def _number_of(self, kind: str) -> int:
        return sum(planned == kind for planned, _ in self.planned)

    def batch_sent(self, kind: str, size: int, /) -> None:
        self.answered.append((kind, size))

    def batch_failed(self, kind: str, size: int, error: kvorum.KvorumError, /) -> None:
        self.failed.append((kind, size, error))


def is_batch_of_writes(call: Call) -> bool:
    return call.operation == "batch" and call.writes


async def all_of(*calls: Awaitable[Any]) -> list[Any]:
    """Make calls at once; return what each returned or raised."""
    with anyio.fail_after(DEADLINE):
        return await asyncio.gather(*calls, return_exceptions=True)


async def warm_up(client: kvorum.Client) -> None:
    """Write concurrently until writes are batched: old servers are asked for their alarms first."""
    before = client.pipeline.statistics()
    with anyio.fail_after(DEADLINE), kvorum.deadline(DEADLINE):
        while True:
            await asyncio.gather(
                *(client.backend.set(f"warm-{number}", b"") for number in range(10))
            )
            now = client.pipeline.statistics()
            if now.write_requests - before.write_requests < now.writes - before.writes:
                return
            before = now


async def until_waiting(client: kvorum.Client, number: int) -> None:
    """Wait until so many calls wait to be sent."""
    with anyio.fail_after(DEADLINE):
        while client.pipeline.statistics().waiting != number:  # noqa: ASYNC110 - it is not reported
            await asyncio.sleep(0)


def guards_quota(client: kvorum.Client) -> bool:
    """Return whether the server does not count nested puts, so that it is asked for alarms."""
    return has_hazard(client.connection.version, QUOTA)


def behind(endpoint: str, prefix: str, *, timeout: float = DEADLINE) -> kvorum.EtcdSettings:
    """Return the settings of a client that connects to one server only."""
    return msgspec.structs.replace(
        kvorum.EtcdSettings(), endpoints=(endpoint,), prefix=prefix, timeout=timeout
    )


@asynccontextmanager
async def opened(settings: kvorum.EtcdSettings, policies: Policies) -> AsyncIterator[kvorum.Client]:
    """Open a client, and wait until its writes are batched."""
    async with kvorum.connect(settings, policies=policies) as client:
        await warm_up(client)
        yield client


def skip_unless_reads_are_transactions(client: kvorum.Client) -> None:
    """Skip a test on a version that read-only transactions can stop: none are sent there."""
    if has_hazard(client.connection.version, READ_ONLY):
        pytest.skip("read-only transactions can stop this version, so reads have another form")
