"""A server that owes an answer is watched over.

If it is silent, another one is asked, and the first answer counts.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, cast

import anyio
import pytest
from tests.waiting import until

from kvorum.errors import (
    ClientClosedError,
    KvorumError,
    PermissionDeniedError,
    UnavailableError,
)
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.pulse import HedgedRead, Life, Pulse

PAUSE = 0.01


class Silent:
    """A server that never answers, and another one that does.

    Attributes:
        calls: those under way here.
        questions: how often it was asked whether it is alive.
        elsewhere: how often the other one was asked.
    """

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[str]] = []
        self.questions = 0
        self.elsewhere = 0
        self.life = Life.DEAD
        self.dead = anyio.Event()
        self.may_answer = anyio.Event()
        self.refusal: KvorumError | None = None

    def stub(self, _request: object, **_: object) -> Awaitable[str]:
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]

    async def is_it_alive(self) -> Life:
        self.questions += 1
        return self.life

    async def ask_another(self) -> str:
        self.elsewhere += 1
        await self.may_answer.wait()
        if self.refusal is not None:
            raise self.refusal
        return "from another server"

    def read(self) -> HedgedRead[str]:
        return HedgedRead(
            "first:1",
            cast("Callable[[Any], rpc.Unary[Any, str]]", lambda _: self.stub),
            self.ask_another,
        )


@pytest.fixture
def server() -> Silent:
    return Silent()


@pytest.fixture
async def pulse(server: Silent) -> AsyncIterator[Pulse]:
    async with anyio.create_task_group() as group:

        def spawn(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
            group.start_soon(run)

        pulse = Pulse(server.is_it_alive, spawn, server.dead.set, PAUSE)
        yield pulse
        pulse.close()
        group.cancel_scope.cancel()


async def test_the_answer_of_another_server_ends_the_call_to_a_silent_one(
    server: Silent, pulse: Pulse
) -> None:
    read = server.read()
    pulse.enter(read)
    call = read.bind(None)(b"", timeout=1)
    server.may_answer.set()

    with pytest.raises(asyncio.CancelledError), anyio.fail_after(2):
        await call
    assert read.answer == "from another server"
    assert server.dead.is_set()


async def test_an_answer_of_another_server_is_not_waited_for_again(
    server: Silent, pulse: Pulse
) -> None:
    """It came while the call had ended, and a token was fetched for the next one.

    That one would never end.
    """
    read = server.read()
    pulse.enter(read)
    read.bind(None)(b"", timeout=1).cancel()
    server.may_answer.set()
    await until(lambda: read.answer is not None)

    with pytest.raises(UnavailableError, match="another server has answered") as caught:
        read.bind(None)(b"", timeout=1)
    assert caught.value.endpoint == "first:1"  # an observer is told of it
    assert len(server.calls) == 1


async def test_a_server_that_is_slow_and_alive_is_asked_alone(server: Silent, pulse: Pulse) -> None:
    server.life = Life.ALIVE
    read = server.read()
    pulse.enter(read)
    call = read.bind(None)(b"", timeout=1)
    await until(lambda: server.questions >= 2)

    assert not call.done()
    assert (server.elsewhere, server.dead.is_set()) == (0, False)


async def test_only_small_reads_are_asked_for_again_if_the_connection_of_the_calls_is_silent(
    server: Silent, pulse: Pulse
) -> None:
    """A large page may keep the others waiting; it is not sent twice."""
    server.life = Life.CALLS_SILENT
    server.may_answer.set()
    small, large = server.read(), server.read()
    large.is_large = True
    for read in (large, small):
        pulse.enter(read)
        read.bind(None)(b"", timeout=1)
    await until(lambda: small.answer is not None)
    await until(lambda: server.questions >= 3)

    assert large.answer is None
    assert not server.dead.is_set()


async def test_an_answer_in_time_causes_no_question(server: Silent, pulse: Pulse) -> None:
    read = server.read()
    pulse.enter(read)
    pulse.leave(read)
    await anyio.sleep(3 * PAUSE)

    assert server.questions == 0


async def test_a_call_that_is_done_cancels_the_request_to_another_server(
    server: Silent, pulse: Pulse
) -> None:
    read = server.read()
    pulse.enter(read)
    read.bind(None)(b"", timeout=1)
    await until(lambda: server.elsewhere == 1)
    pulse.leave(read)

    assert read.scope is not None
    assert read.scope.cancel_called
    assert (read.call, read.stub) == (None, None)


async def test_a_refusal_elsewhere_leaves_the_call_to_the_first_server(
    server: Silent, pulse: Pulse
) -> None:
    server.refusal = UnavailableError("another", "away")
    server.may_answer.set()
    read = server.read()
    pulse.enter(read)
    call = read.bind(None)(b"", timeout=1)
    await until(lambda: server.questions >= 2)

    assert server.elsewhere == 1
    assert not call.done()
    assert read.answer is None


async def test_a_refusal_of_the_request_elsewhere_ends_the_call_to_a_silent_server(
    server: Silent, pulse: Pulse
) -> None:
    """Otherwise one forbidden read would keep the others of its batch waiting."""
    server.refusal = PermissionDeniedError("read a")
    server.may_answer.set()
    read = server.read()
    pulse.enter(read)
    call = read.bind(None)(b"", timeout=1)

    with pytest.raises(asyncio.CancelledError), anyio.fail_after(2):
        await call
    assert read.refusal is server.refusal
    pulse.leave(read)
    assert read.refusal is None


async def test_a_server_is_asked_once_at_a_time(server: Silent, pulse: Pulse) -> None:
    pulse.ask()
    pulse.ask()
    await until(server.dead.is_set)

    assert server.questions == 1


async def test_nothing_is_asked_as_the_client_is_closed(server: Silent) -> None:
    def spawn(_: object) -> None:
        raise ClientClosedError

    Pulse(server.is_it_alive, spawn, server.dead.set, PAUSE).ask()

    assert not server.dead.is_set()
