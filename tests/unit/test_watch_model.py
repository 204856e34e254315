"""A watch with `initial` against a plain model, under random writes, losses and cancellations."""

import random
from typing import Any

import anyio
import pytest
from tests.faulty_store import LOST, ClientOf, FaultyStore
from tests.kinds import Box, box, box_by_hand

import kvorum
from kvorum import Added, Bookmark, Corrupt, Deleted, Modified, Operation
from kvorum.repository import Backoff, WatchPolicy


class Model:
    """What a consumer knows after the events so far. It checks each event against that."""

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.corrupt: set[str] = set()

    def handle(self, event: Any) -> None:
        if isinstance(event, Bookmark):
            return
        if isinstance(event, Corrupt):
            assert not event.is_gone
            self.corrupt.add(event.name)
            return
        name = event.resource.metadata.name
        was_corrupt = name in self.corrupt
        self.corrupt.discard(name)
        if isinstance(event, Deleted):
            assert event.resource.spec == self.boxes.pop(name).spec
            return
        if isinstance(event, Modified):
            assert not was_corrupt
            assert event.previous == self.boxes[name]
            uids = {event.previous.metadata.uid, event.resource.metadata.uid}
            assert len(uids - {""}) < 2  # a replacement is `Deleted` and `Added`
        else:
            assert isinstance(event, Added)
            assert was_corrupt or name not in self.boxes
        self.boxes[name] = event.resource

    def readable(self) -> dict[str, Box]:
        return {name: it for name, it in self.boxes.items() if name not in self.corrupt}


class Chaos:
    """Writes boxes at random: selected, not selected, corrupt, replaced, and two at once."""

    def __init__(self, store: FaultyStore, choose: random.Random) -> None:
        self._store = store
        self._boxes = kvorum.Repository(ClientOf(store), Box)
        self._choose = choose

    async def write(self) -> None:
        name = self._choose.choice("abcd")
        key = f"boxes/{name}"
        match self._choose.randrange(6):
            case 0:
                await self._store.set(key, b"?")
            case 1:
                if await self._store.exists(key):
                    await self._store.delete(key)
            case 2:
                puts = [
                    Operation.put(f"boxes/{each}", box_by_hand(each, on="yes")) for each in "ab"
                ]
                await self._store.commit(puts)
            case 3:
                await self._store.set(key, box_by_hand(name, on="no"))
            case _:
                if await self._store.exists(key):
                    await self._store.delete(key)
                await self._boxes.add(box(name, size=self._choose.randrange(3), on="yes"))


@pytest.mark.parametrize("seed", range(40))
async def test_a_consumer_of_all_events_knows_what_a_list_finds(seed: int) -> None:
    choose = random.Random(seed)
    store, model = FaultyStore(), Model()
    boxes = kvorum.Repository(
        ClientOf(store), Box, watching=WatchPolicy(backoff=Backoff(most=0), selected=2)
    )
    chaos = Chaos(store, choose)
    async with boxes.watch(labels="on=yes", initial=True, on_corrupt="event") as watch:
        for _ in range(60):
            await chaos.write()
            if choose.random() < 0.15:
                store.stream_script.append(LOST)
            while choose.random() < 0.5:
                with anyio.move_on_after(choose.choice([0, 0.001])):
                    model.handle(await anext(watch))
        await boxes.add(box("end", on="yes"))
        with anyio.fail_after(10):
            while "end" not in model.boxes:
                model.handle(await anext(watch))
            while watch.statistics().buffered:
                model.handle(await anext(watch))

        found = await boxes.list(labels="on=yes", on_corrupt="collect")
    assert model.readable() == {each.metadata.name: each for each in found}
    assert model.corrupt >= {error.name for error in found.corrupt}
    assert watch.statistics().relists > 0
    await store.aclose()
