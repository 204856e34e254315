"""A watch whose consumer gives up waiting again and again, or closes it while it lists."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.kinds import Task, task, task_by_hand
from tests.watching import DEADLINE, assert_ended
from typing_extensions import override

import kvorum
from kvorum import Added, Bookmark, ClientClosedError, Modified, Observer, Operation, Watch
from kvorum.observer import Call
from kvorum.testing import FaultProxy

NUMBER = 400
PATIENCE = 0.3  # a fifth of what the list takes


@pytest.fixture
async def slow(direct: kvorum.Client, proxy: FaultProxy) -> AsyncIterator[kvorum.Client]:
    """A client over a slow link to 800 kB of tasks."""
    for start in range(0, NUMBER, 100):
        await direct.backend.commit(
            [
                Operation.put(f"tasks/{name}", task_by_hand(name, spec={"owner": "o" * 2000}))
                for name in (f"t{number:03}" for number in range(start, start + 100))
            ]
        )
    async with kvorum.connect(f"etcd://{proxy.endpoint}/lab") as client:
        yield client


async def poll(watch: Watch[Task], seconds: float = PATIENCE) -> Any:
    """Wait for the next event, a little at a time."""
    with anyio.fail_after(4 * DEADLINE):
        while True:
            try:
                async with asyncio.timeout(seconds):
                    return await anext(watch)
            except TimeoutError:
                pass


async def poll_until_bookmark(watch: Watch[Task]) -> list[Any]:
    events: list[Any] = []
    while not events or not isinstance(events[-1], Bookmark):
        events.append(await poll(watch))
    return events


async def lose_history(proxy: FaultProxy, direct: kvorum.Client) -> None:
    """Change five tasks, and compact that, while the link is cut."""
    proxy.cut()
    await proxy.refuse()
    for number in range(5):
        await direct.backend.set(f"tasks/t{number:03}", task_by_hand(f"t{number:03}"))
    await direct.admin.compact(await direct.backend.set("elsewhere", b""))
    await proxy.heal()


async def test_a_list_ends_although_its_consumer_never_waits_for_all_of_it(
    slow: kvorum.Client, proxy: FaultProxy
) -> None:
    proxy.throttle(600_000, "replies")
    watch = slow.repository(Task).watch(initial=True)

    events = await poll_until_bookmark(watch)
    await watch.aclose()

    names = [event.resource.metadata.name for event in events[:-1]]
    assert {type(event) for event in events[:-1]} == {Added}
    assert names == [f"t{number:03}" for number in range(NUMBER)]


async def test_a_relist_ends_although_its_consumer_never_waits_for_all_of_it(
    slow: kvorum.Client, proxy: FaultProxy, direct: kvorum.Client
) -> None:
    async with slow.repository(Task).watch(initial=True) as watch:
        await poll_until_bookmark(watch)
        await lose_history(proxy, direct)
        proxy.throttle(600_000, "replies")

        events = await poll_until_bookmark(watch)

    assert [type(event) for event in events] == [Modified] * 5 + [Bookmark]
    assert watch.statistics().relists == 1


class Gate(Observer):
    """Holds lists for ever while it is shut."""

    def __init__(self) -> None:
        self.is_shut = True
        self.reached = anyio.Event()

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        if self.is_shut and getattr(message, "limit", 0) > 1:  # a list
            self.reached.set()
            await anyio.sleep_forever()


@pytest.mark.parametrize("where", ["first list", "entering", "relist"])
async def test_closing_a_watch_ends_its_list_at_once(
    direct: kvorum.Client, proxy: FaultProxy, where: str
) -> None:
    for number in range(5):
        await direct.backend.set(f"tasks/t{number:03}", task_by_hand(f"t{number:03}"))
    gate = Gate()
    async with kvorum.connect(f"etcd://{proxy.endpoint}/lab", observer=gate) as client:
        watch = client.repository(Task).watch(initial=True)
        if where == "relist":
            gate.is_shut = False
            await poll_until_bookmark(watch)
            gate.is_shut = True
            await lose_history(proxy, direct)

        async def consume() -> list[Any]:
            if where == "entering":
                await watch.__aenter__()
            return [event async for event in watch]

        consuming = asyncio.create_task(consume())
        with anyio.fail_after(DEADLINE):
            await gate.reached.wait()
        with anyio.fail_after(1):
            await watch.aclose()
            if where == "entering":
                with pytest.raises(ClientClosedError, match="closed"):
                    await consuming
            else:
                assert await consuming == []
        await assert_ended(watch)


async def test_closing_a_watch_ends_its_look_into_history_at_once(
    direct: kvorum.Client, proxy: FaultProxy
) -> None:
    await direct.repository(Task).add(task())
    await direct.backend.set("tasks/a", b"?")
    since = await direct.backend.set("elsewhere", b"")
    async with kvorum.connect(f"etcd://{proxy.endpoint}/lab") as client:
        watch = client.repository(Task).watch(since=since, on_corrupt="event")
        async with watch:
            proxy.drop("requests")  # the change comes, and the question about its past is lost
            await direct.backend.delete("tasks/a")
            seen = proxy.statistics().dropped
            consuming = asyncio.create_task(anext(watch))
            with anyio.fail_after(DEADLINE):
                await proxy.wait(lambda now: now.dropped > seen)
            with anyio.fail_after(1):
                await watch.aclose()
                with pytest.raises(StopAsyncIteration):
                    await consuming
