"""From any start, whatever happens, a watch shows every later change. Drawn by Hypothesis."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Operation
from kvorum.testing import FaultProxy

RECENT: Final = 100  # revisions
LATER: Final = 40
DEADLINE: Final = 30

pytestmark = pytest.mark.timeout(900)


class Scene:
    """A server, a client behind a proxy, a direct one, and the changes that the latter wrote."""

    def __init__(
        self, etcd: EmbeddedEtcd, proxy: FaultProxy, watching: kvorum.Client, writing: kvorum.Client
    ) -> None:
        self.etcd = etcd
        self.proxy = proxy
        self.watching = watching
        self.writing = writing
        self.written: dict[int, set[str]] = {}
        self.start = 0
        self.compacted = 0

    async def write(self) -> None:
        """Write one to three keys at one revision, or delete existing ones."""
        number = len(self.written)
        keys = [f"k{number % 7 + n}" for n in range(number % 3 + 1)]
        there = [entry.key for entry in (await self.writing.backend.list("k")).entries]
        operations = [
            Operation.delete(key) if number % 2 and key in there else Operation.put(key, bytes(200))
            for key in keys
        ]
        self.written[await self.writing.backend.commit(operations)] = set(keys)

    # --- events ---

    async def cut(self) -> None:
        self.proxy.cut()

    async def cut_in_a_reply(self, size: int = 3_000) -> None:
        self.proxy.cut_after(size, "replies")

    async def cut_in_a_request(self) -> None:
        self.proxy.cut()
        self.proxy.cut_after(100, "requests")

    async def hold(self) -> None:
        self.proxy.hold("replies")

    async def heal(self) -> None:
        await self.proxy.heal()

    async def restart(self) -> None:
        await self.etcd.restart()

    async def compact(self) -> None:
        """Compact everything before the start, and nothing after it."""
        if self.compacted < self.start:
            self.compacted = self.start
            await self.writing.admin.compact(self.start)


ACTIONS: Final[Mapping[str, Callable[[Scene], Awaitable[None]]]] = MappingProxyType(
    {
        "cut": Scene.cut,
        "cut in a reply": Scene.cut_in_a_reply,
        "cut in a request": Scene.cut_in_a_request,
        "hold": Scene.hold,
        "heal": Scene.heal,
        "restart": Scene.restart,
        "compact": Scene.compact,
    }
)


@asynccontextmanager
async def a_scene(binary: Path) -> AsyncIterator[Scene]:
    async with EmbeddedEtcd(binary=binary) as etcd, FaultProxy(etcd.endpoints[0]) as proxy:
        through = EtcdSettings(endpoints=(proxy.endpoint,), prefix="starts", timeout=2)
        directly = EtcdSettings(endpoints=etcd.endpoints, prefix="starts", timeout=5)
        async with kvorum.connect(through) as watching, kvorum.connect(directly) as writing:
            scene = Scene(etcd, proxy, watching, writing)
            for _ in range(RECENT):
                await scene.write()
            yield scene


async def follow(scene: Scene, back: int, events: Mapping[int, str]) -> list[tuple[int, set[str]]]:
    """Watch from `back` revisions ago, while more are written, with events between them."""
    while sum(revision >= scene.compacted for revision in scene.written) <= back:
        await scene.write()
    scene.start = sorted(scene.written)[-1 - back]
    shown: list[tuple[int, set[str]]] = []
    writing, end = scene.writing.backend, f"k-end-{len(scene.written)}"

    async def write() -> None:
        for number in range(LATER):
            if number in events:
                await ACTIONS[events[number]](scene)
            await scene.write()
        await scene.proxy.heal()
        scene.written[await writing.set(end, b"")] = {end}

    async with (
        scene.watching.backend.watch("k", since=scene.start) as watch,
        anyio.create_task_group() as group,
    ):
        group.start_soon(write)
        with anyio.fail_after(DEADLINE):
            while not shown or end not in shown[-1][1]:
                changes = await anext(watch)
                assert len({change.revision for change in changes}) == 1
                shown.append((changes[0].revision, {change.key for change in changes}))
    return shown


def test_from_any_start_a_watch_shows_what_came_after_it(
    kvorum_etcd: EmbeddedEtcd, *, is_long: bool
) -> None:
    """From the last hundred revisions, over cuts and restarts, while older history is compacted."""
    happenings = st.dictionaries(
        st.integers(0, LATER - 1), st.sampled_from(sorted(ACTIONS)), max_size=5
    )

    # In one task of its own thread, which enters and leaves the proxy.
    opened = a_scene(kvorum_etcd.binary)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(opened) as scene:

        @settings(
            max_examples=300 if is_long else 15,
            deadline=None,
            database=None,
            phases=[Phase.generate],
        )
        @given(st.integers(0, RECENT - 1), happenings)
        def examples(back: int, events: dict[int, str]) -> None:
            shown = portal.call(follow, scene, back, events)

            assert shown == [
                (at, keys) for at, keys in sorted(scene.written.items()) if at > scene.start
            ]

        examples()
