"""A reflector: lists, watches, and recovers, without knowing what the bytes mean."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
import anyio.lowlevel
import pytest
from tests.faulty_store import LOST, ClientOf, FaultyStore
from typing_extensions import override

from kvorum import HistoryLostError, InvalidResourceError, UnavailableError
from kvorum.repository.reflector import Backoff, Item, Reflector
from kvorum.storage import Change, Entry, HasBackend

AWAY = UnavailableError("e:1", "away")


class Copies:
    """A store of the values, as a cache is one. It counts what the reflector calls."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.revision = 0
        self.calls: list[str] = []
        self.before_apply: Callable[[], None] = lambda: None

    def select(self, entry: Entry) -> Item[None] | None:
        return Item(entry, None) if entry.value != b"hidden" else None

    def start(self, revision: int) -> None:
        self.calls.append("start")
        self.revision = revision

    def replace(self, items: Sequence[Item[None]], revision: int) -> None:
        self.calls.append("replace")
        self.values = {item.entry.key: item.entry.value for item in items}
        self.revision = revision

    async def apply(self, changes: tuple[Change, ...]) -> None:
        self.before_apply()
        await anyio.lowlevel.checkpoint()
        self.calls.append("apply")
        for change in changes:
            self.values.pop(change.key, None)
            if change.entry is not None:
                self.values[change.key] = change.entry.value
        self.revision = changes[-1].revision

    def advance(self, revision: int) -> None:
        self.calls.append("advance")
        self.revision = revision

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
async def store() -> AsyncIterator[FaultyStore]:
    store = FaultyStore()
    yield store
    await store.aclose()


@pytest.fixture
def client(store: FaultyStore) -> HasBackend:
    return ClientOf(store)


async def until(reflector: Reflector[None], copies: Copies, revision: int) -> None:
    with anyio.fail_after(10):
        while copies.revision < revision:
            await reflector.step()


async def test_a_reflector_lists_then_follows(client: HasBackend) -> None:
    await client.backend.set("pods/a", b"1")
    await client.backend.set("pods/b", b"hidden")
    copies = Copies()
    reflector = Reflector(client, "pods/", copies, lists=True)
    await reflector.open()
    await client.backend.set("pods/c", b"2")
    await until(reflector, copies, (await client.backend.delete("pods/a")).revision)

    assert copies.values == {"pods/c": b"2"}
    assert copies.calls == ["replace", "apply", "apply"]


async def test_without_a_list_it_starts_now_or_after_a_revision(client: HasBackend) -> None:
    first = await client.backend.set("pods/a", b"1")
    second = await client.backend.set("pods/b", b"1")
    now, since = Copies(), Copies()
    following = Reflector(client, "pods/", now), Reflector(client, "pods/", since, since=first)
    for reflector in following:
        await reflector.open()
    await until(following[1], since, second)

    assert (now.revision, now.calls) == (second, ["start"])
    assert since.values == {"pods/b": b"1"}


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_lost_history_is_listed_again(
    client: HasBackend, store: FaultyStore, losses: int
) -> None:
    copies = Copies()
    reflector = Reflector(client, "pods/", copies, lists=True, backoff=Backoff(most=0))
    await reflector.open()
    store.stream_script.extend([LOST] * losses)
    while store.stream_script:
        await reflector.step()
    await until(reflector, copies, await store.set("pods/a", b"1"))

    assert copies.values == {"pods/a": b"1"}
    assert reflector.statistics().relists == losses
    assert copies.calls.count("replace") == 1 + losses


async def test_a_store_that_is_away_after_a_relist_is_waited_for(
    client: HasBackend, store: FaultyStore
) -> None:
    copies = Copies()
    reflector = Reflector(client, "pods/", copies, lists=True, backoff=Backoff(most=0.001))
    await reflector.open()
    store.stream_script.append(LOST)
    store.list_errors.extend([AWAY] * 20)
    await until(reflector, copies, await store.set("pods/a", b"1"))

    assert copies.values == {"pods/a": b"1"}


async def test_a_store_that_is_away_after_its_first_list_was_overtaken_is_waited_for_by_steps_only(
    client: HasBackend, store: FaultyStore
) -> None:
    copies = Copies()
    stepped = Reflector(client, "pods/", copies, lists=True, backoff=Backoff(most=0.001))
    store.list_errors.extend([LOST] * 3 + [AWAY] * 5)
    await until(stepped, copies, await store.set("pods/a", b"1"))
    assert copies.values == {"pods/a": b"1"}

    opened = Reflector(client, "pods/", Copies(), lists=True, backoff=Backoff(most=0.001))
    store.list_errors.extend([LOST] * 3 + [AWAY])
    with pytest.raises(UnavailableError):
        await opened.open()
    assert opened.is_closed


@pytest.mark.parametrize("lists", [True, False])
async def test_a_store_that_is_away_fails_it_else(
    client: HasBackend, store: FaultyStore, lists: bool
) -> None:
    copies = Copies()
    reflector = Reflector(client, "pods/", copies, lists=lists)
    await reflector.open()
    store.stream_script.append(AWAY)

    with pytest.raises(UnavailableError):
        await reflector.step()
    with pytest.raises(StopAsyncIteration):
        await reflector.step()
    assert copies.calls[-1] == "close"


async def test_a_list_that_a_compaction_overtakes_is_read_again_without_a_relist(
    client: HasBackend, store: FaultyStore
) -> None:
    reflector = Reflector(client, "pods/", Copies(), lists=True)
    store.list_errors.extend([LOST, LOST])
    await reflector.open()

    assert (store.lists, reflector.statistics().relists) == (3, 0)


async def test_a_revision_whose_application_is_cancelled_is_applied_by_the_next_step(
    client: HasBackend,
) -> None:
    copies = Copies()
    reflector = Reflector(client, "pods/", copies)
    await reflector.open()
    revision = await client.backend.set("pods/a", b"1")
    with anyio.CancelScope() as scope:
        copies.before_apply = scope.cancel
        await reflector.step()
    assert copies.values == {}

    await until(reflector, copies, revision)
    assert copies.values == {"pods/a": b"1"}


async def test_an_error_of_its_store_fails_it_also_if_it_is_lost_history(
    client: HasBackend,
) -> None:
    """The store has lost history there, not the stream: to list again would repeat it."""
    copies = Copies()
    reflector = Reflector(client, "pods/", copies, lists=True)
    await reflector.open()
    await client.backend.set("pods/a", b"1")

    def fail() -> None:
        raise LOST

    copies.before_apply = fail
    with pytest.raises(HistoryLostError):
        await reflector.step()
    assert reflector.is_closed


async def test_closing_it_in_an_application_drops_the_revision(client: HasBackend) -> None:
    copies = Copies()
    reflector = Reflector(client, "pods/", copies)
    await reflector.open()
    await client.backend.set("pods/a", b"1")
    async with anyio.create_task_group() as group:

        def close() -> None:
            group.start_soon(reflector.aclose)

        copies.before_apply = close
        await reflector.step()

    with pytest.raises(StopAsyncIteration):
        await reflector.step()


async def test_an_entry_that_the_store_refuses_fails_it(client: HasBackend) -> None:
    class Strict(Copies):
        @override
        def select(self, entry: Entry) -> Item[None] | None:
            raise InvalidResourceError(entry.key, "no")

    await client.backend.set("pods/a", b"1")
    copies = Strict()
    with pytest.raises(InvalidResourceError):
        await Reflector(client, "pods/", copies, lists=True).open()
    assert copies.calls == ["close"]


async def test_it_shows_its_state(client: HasBackend, store: FaultyStore) -> None:
    reflector = Reflector(client, "pods/", Copies(), lists=True)
    shown = [repr(reflector)]
    await reflector.step()
    shown.append(repr(reflector))
    await reflector.step()
    shown.append(repr(reflector))
    store.stream_script.append(LOST)
    await reflector.step()
    shown.append(repr(reflector))
    await reflector.aclose()
    shown.append(repr(reflector))

    states = ["empty", "listed", "watching", "empty", "closed"]
    assert [text.split("[")[1].split(",")[0] for text in shown] == states


async def test_dropping_it_frees_it_at_once(client: HasBackend) -> None:
    """A cycle would keep the stream on the server until the garbage collector runs."""
    gc.disable()
    try:
        reflector = Reflector(client, "pods/", Copies(), lists=True)
        await reflector.open()
        reference = weakref.ref(reflector)
        del reflector

        assert reference() is None
    finally:
        gc.enable()


def test_waits_between_attempts_double_and_are_bounded() -> None:
    backoff = Backoff(base=0.05, most=1.0)

    bounds = [backoff.bound(failures) for failures in range(7)]
    assert bounds == [0, 0, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.bound(1_000_000) == 1.0  # doubling without an end would overflow
