"""An error that was handled is freed at once, and with it all that the functions below it held.

A cycle of an error and a frame in its traceback would keep the locals of all callers until the
garbage collector runs: values of megabytes, and watches, which are cancelled when they are dropped.
"""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.kinds import Task, task
from tests.waiting import until

import kvorum
from kvorum import Client, EtcdSettings, KvorumError
from kvorum.testing import FaultProxy

Call = Callable[[Client], Awaitable[object]]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    async with kvorum.connect(EtcdSettings(endpoints=(proxy.endpoint,), timeout=1)) as client:
        yield client


class Local:
    """Something that a caller holds."""


async def fail_and_release(call: Call, client: Client, *, at_once: int) -> set[type]:
    """Make calls that fail; wait until no local of them is left; return the errors' classes."""
    held: list[weakref.ref[Local]] = []
    classes: set[type] = set()

    async def caller() -> None:
        local = Local()
        held.append(weakref.ref(local))
        await call(client)

    async def fail() -> None:
        try:
            await caller()
        except (KvorumError, ZeroDivisionError) as exc:
            classes.add(type(exc))

    await asyncio.gather(*(fail() for _ in range(at_once)))
    await until(lambda: all(each() is None for each in held))
    return classes


async def take_one(watch: kvorum.Watch[Task]) -> object:
    return await anext(watch)


def divide(_: Task) -> None:
    raise ZeroDivisionError


REFUSED: dict[str, Call] = {
    "unknown lease": lambda client: client.backend.set("a", b"1", lease=7),
    "future revision": lambda client: client.backend.get("a", revision=10**9),
    "compacted": lambda client: client.backend.list("", revision=1),
    "too large": lambda client: client.backend.set("a", bytes(2_000_000)),
    "corrupt list": lambda client: client.repository(Task).list(),
    "a mistake in a function": lambda client: client.repository(Task).mutate("t", divide),
    "admin": lambda client: client.admin.hash(10**9),
    "watch in the future": lambda client: take_one(client.repository(Task).watch(since=10**9)),
    "watch of lost history": lambda client: take_one(client.repository(Task).watch(since=1)),
    "watch of a corrupt value": lambda client: take_one(
        client.repository(Task).watch(initial=True)
    ),
}
UNAVAILABLE: dict[str, Call] = {
    "get": lambda client: client.backend.get("a"),
    "set": lambda client: client.backend.set("a", b"1"),
    "list": lambda client: client.backend.list(""),
    "watch": lambda client: take_one(client.repository(Task).watch()),
    "watch with a list": lambda client: take_one(client.repository(Task).watch(initial=True)),
    "connect": lambda client: kvorum.connect(client.settings).__aenter__(),
}


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
async def test_a_refused_call_keeps_nothing_of_its_callers(
    direct: Client, call: Call, at_once: int
) -> None:
    await direct.repository(Task).add(task("t"))
    await direct.admin.compact(await direct.backend.set("tasks/bad", b"{}"))

    classes = await fail_and_release(call, direct, at_once=at_once)

    assert len(classes) == 1


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("call", UNAVAILABLE.values(), ids=UNAVAILABLE)
async def test_a_call_that_finds_no_server_keeps_nothing_of_its_callers(
    client: Client, proxy: FaultProxy, call: Call, at_once: int
) -> None:
    await proxy.refuse()
    proxy.cut()

    classes = await fail_and_release(call, client, at_once=at_once)

    assert classes <= {kvorum.UnavailableError, kvorum.OutcomeUnknownError}


@pytest.mark.parametrize("at_once", [1, 3])
async def test_a_write_whose_outcome_is_unknown_keeps_nothing_of_its_callers(
    client: Client, proxy: FaultProxy, at_once: int
) -> None:
    proxy.mute()

    classes = await fail_and_release(
        lambda client: client.backend.compare_and_swap("a", b"1", expected=0),
        client,
        at_once=at_once,
    )

    assert classes <= {kvorum.UnavailableError, kvorum.OutcomeUnknownError}


async def test_a_watch_that_a_function_drops_when_it_fails_is_cancelled(direct: Client) -> None:
    async def work() -> None:
        watch = direct.repository(Task).watch()
        held.append(weakref.ref(watch))
        await watch.__aenter__()
        await direct.backend.get("a", revision=10**9)

    held: list[weakref.ref[Any]] = []
    with pytest.raises(kvorum.FutureRevisionError):
        await work()

    assert held[0]() is None
