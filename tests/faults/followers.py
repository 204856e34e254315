"""Watches of every kind, each of which records what it was shown."""

import asyncio
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import anyio
import msgspec

import kvorum
from kvorum import HistoryLostError, Kind, Resource, UnavailableError
from kvorum.storage.port import StorageWatch
from kvorum.storage.values import Entry
from kvorum.testing import (
    FaultProxy,
    WatchedStream,
    Workload,
)


class ItemSpec(msgspec.Struct):
    owner: str = ""
    text: str = ""


class ItemStatus(msgspec.Struct):
    pass


class Item(Resource[ItemSpec, ItemStatus]):
    kind: ClassVar[Kind] = Kind("Item", plural="items", api_version="test.kvorum.dev/v1")


def value_of(key: str, unique: str) -> bytes:
    """Return the stored form of an item.

    Some items start or cease to match a selector, or replace another one of the same name.
    """
    draw = random.Random(zlib.crc32(unique.encode()))
    name = key.rpartition("/")[2]
    labels = {"on": "yes"} if draw.random() < 0.6 else {}
    metadata = {"name": name, "uid": f"{name}-{draw.randrange(2)}", "labels": labels}
    spec = {"owner": draw.choice(["ann", "bob"]), "text": unique + "x" * draw.randrange(400)}
    return msgspec.json.encode(
        {
            "apiVersion": "test.kvorum.dev/v1",
            "kind": "Item",
            "metadata": metadata,
            "spec": spec,
            "status": {},
        }
    )


END: Final = msgspec.json.encode(  # every selector matches it
    {
        "apiVersion": "test.kvorum.dev/v1",
        "kind": "Item",
        "metadata": {"name": "end", "uid": "end", "labels": {"on": "yes"}},
        "spec": {"owner": "ann"},
    }
)
WORKLOAD: Final = Workload(
    operations=0,
    clients=5,
    keys=60,
    batch=12,
    mix={"set": 25, "create": 15, "swap": 20, "delete": 15, "commit": 25},
    prefix="items/k",
    value=value_of,
)


class Follower:
    """Watches in sequence, each of which resumes where the previous one ended.

    Attributes:
        proxies: the proxies before each server, for this follower only.
        chains: what was shown; a new chain starts where history was lost, with a list.
        lost: the revisions that were reported lost.
        is_held: whether it is not reading.
        watch: the open watch.
    """

    matches: Callable[[Entry], bool] = staticmethod(lambda _: True)
    options: Mapping[str, Any] = {}

    def __init__(self, client: kvorum.Client, proxies: Sequence[FaultProxy], seed: int) -> None:
        self.proxies = proxies
        self.chains: list[list[WatchedStream]] = [[]]
        self.lost: list[int] = []
        self.is_held = False
        self.watch: kvorum.Watch[Item] | StorageWatch | None = None
        self.random = random.Random(seed)
        self._client = client
        self._repository = client.repository(Item)
        self._since: int | None = None
        self._earlier = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.watch!r}>"

    @property
    def is_initial(self) -> bool:
        return bool(self.options.get("initial"))

    @property
    def resumes(self) -> int:
        return self._earlier + (0 if self.watch is None else self.watch.statistics().resumes)

    @property
    def relists(self) -> int:
        return 0 if self.watch is None else self.watch.statistics().relists

    @property
    def position(self) -> int:
        """The revision up to which it has read."""
        return 0 if self.watch is None else self.watch.statistics().position

    @property
    def shown(self) -> int:
        """The revision up to which everything was shown."""
        if self.watch is None:
            return 0
        return (
            self.watch.checkpoint if isinstance(self.watch, kvorum.Watch) else self.watch.revision
        )

    @property
    def events(self) -> int:
        streams = [stream for chain in self.chains for stream in chain]
        return sum(
            len(each) for stream in streams for each in stream.shown if isinstance(each, tuple)
        )

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except HistoryLostError as exc:
                self.lost.append(exc.revision or 0)
                await self._list()
                self.chains.append([])
            except UnavailableError:
                await anyio.sleep(
                    0.05
                )  # raised by opening only; an open watch reconnects by itself

    async def _list(self) -> None:
        while True:
            try:
                self._since = (await self._repository.list(limit=1)).resource_version
            except UnavailableError:
                await anyio.sleep(0.05)
            else:
                return

    def open(self) -> Any:
        return self._repository.watch(since=self._since, **self.options)

    async def _follow(self) -> None:
        watch = self.open()
        try:
            async with watch:
                self.watch = watch
                stream = WatchedStream(
                    prefix="items/",
                    since=None if self.is_initial else self.shown,
                    matches=self.matches,
                    bookmarks=bool(self.options.get("bookmarks")),
                )
                self._since = stream.since
                self.chains[-1].append(stream)
                await self.consume(watch, stream)
        finally:
            self._earlier, self.watch = self.resumes, None

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        async for events in watch.revisions():
            stream.add_events(events)

    # --- faults ---

    def cut(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    async def cut_off(self) -> None:
        for proxy in self.proxies:
            await proxy.refuse()
            proxy.cut()

    async def heal(self) -> None:
        for proxy in self.proxies:
            await proxy.heal()


class ByEvent(Follower):
    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        held: list[kvorum.WatchEvent[Item]] = []
        async for event in watch:
            held.append(event)
            if watch.checkpoint == event.resource_version:
                stream.add_events(held)
                held = []


class Labelled(Follower):
    options = {"labels": "on=yes"}  # noqa: RUF012 - never changed
    matches = staticmethod(lambda entry: b'"on":"yes"' in entry.value)


class Initial(Follower):
    options = {"initial": True}  # noqa: RUF012


class InitialByField(Follower):
    options = {"initial": True, "fields": "spec.owner=ann"}  # noqa: RUF012
    matches = staticmethod(lambda entry: b'"owner":"ann"' in entry.value)


class Bookmarked(Follower):
    """With bookmarks: ten a second, from servers with that option (3.5)."""

    options = {"bookmarks": True}  # noqa: RUF012


class Impatient(Follower):
    """Cancels its waits by asyncio's timeouts."""

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        while True:
            try:
                async with asyncio.timeout(self.random.choice([0.0005, 0.005, 0.1])):
                    stream.add_events(await watch.next_revision())
            except TimeoutError:
                continue


class Restarting(Follower):
    """Leaves in the middle of a revision, and resumes from the checkpoint."""

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        held: list[kvorum.WatchEvent[Item]] = []
        left = self.random.randrange(1, 3_000)
        async for event in watch:
            held.append(event)
            if watch.checkpoint == event.resource_version:
                stream.add_events(held)
                held = []
            left -= 1
            if not left:
                break
        if watch.checkpoint > self._since_of(stream):
            stream.add_events([kvorum.Bookmark(watch.checkpoint)])  # a checkpoint says so
        self._since = watch.checkpoint

    @staticmethod
    def _since_of(stream: WatchedStream) -> int:
        last = stream.shown[-1] if stream.shown else None
        return last[0].revision if isinstance(last, tuple) else stream.since or 0


class Slow(Follower):
    """Does not read while it is held, and slowly otherwise."""

    async def consume(self, watch: kvorum.Watch[Item], stream: WatchedStream) -> None:
        while True:
            while self.is_held:  # noqa: ASYNC110 - a consumer that does not read
                await anyio.sleep(0.01)
            stream.add_events(await watch.next_revision())
            if self.random.random() < 0.02:
                await anyio.sleep(0.02)


class SlowInitial(Slow):
    options = {"initial": True}  # noqa: RUF012


class OfTheStorage(Follower):
    """A watch of the storage backend."""

    def open(self) -> StorageWatch:
        return self._client.backend.watch("items/", since=self._since)

    async def consume(self, watch: Any, stream: WatchedStream) -> None:
        async for changes in watch:
            stream.add_changes(changes)


KINDS: Final = (
    *(ByEvent, Labelled, Initial, InitialByField, Bookmarked),
    *(Impatient, Restarting, Slow, SlowInitial, OfTheStorage),
)
