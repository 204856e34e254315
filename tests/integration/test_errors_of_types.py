"""Any exception that a type raises for a value means that the value is not of its kind."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import anyio
import msgspec
import pytest

import kvorum
from kvorum import CorruptResourceError, InvalidResourceError, Kind, Metadata, Repository, Resource

PRICES = {"small": 1, "large": 2}
raising: list[BaseException] = []


class MachineSpec(msgspec.Struct):
    size: str = "small"

    def __post_init__(self) -> None:
        _ = PRICES[self.size]


class MachineStatus(msgspec.Struct):
    pass


class Machine(Resource[MachineSpec, MachineStatus]):
    kind: ClassVar[Kind] = Kind("Machine", plural="machines", api_version="test.kvorum.dev/v1")

    def __post_init__(self) -> None:
        if raising and self.metadata.name == "bad":
            raise raising[0]


def machine(name: str) -> Machine:
    return Machine(metadata=Metadata(name=name), spec=MachineSpec(), status=MachineStatus())


@contextmanager
def a_type_that_raises(error: BaseException) -> Iterator[None]:
    raising.append(error)
    try:
        yield
    finally:
        raising.clear()


@pytest.fixture
def machines(client: kvorum.Client) -> Repository[Machine]:
    return client.repository(Machine)


async def store_a_bad_one(machines: Repository[Machine], client: kvorum.Client) -> int:
    """Store a value that only a newer version of the type accepts."""
    stored = (await machines.add(machine("good"))).metadata.stored
    assert stored is not None
    value = stored.value.replace(b'"good"', b'"bad"').replace(b'"small"', b'"huge"')
    assert value.count(b"huge") == 1
    return await client.backend.set("machines/bad", value)


async def test_an_error_in_a_spec_makes_the_value_corrupt_wherever_it_is_read(
    machines: Repository[Machine], client: kvorum.Client
) -> None:
    bad = await store_a_bad_one(machines, client)

    for call in (machines.get("bad"), machines.list(), machines.delete("bad")):
        with pytest.raises(CorruptResourceError, match="KeyError: 'huge'") as caught:
            await call
        assert caught.value.key == client.backend.location("machines/bad")
        assert caught.value.revision == bad
        assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), StopIteration(), TypeError("no"), OSError(5)]
)
async def test_an_error_in_a_resource_makes_the_value_corrupt(
    machines: Repository[Machine], client: kvorum.Client, error: Exception
) -> None:
    await machines.add(machine("bad"))
    await machines.add(machine("good"))

    with a_type_that_raises(error):
        found = await machines.list(on_corrupt="collect")
        assert [each.metadata.name for each in found] == ["good"]
        assert [each.__cause__ for each in found.corrupt] == [error]
        await machines.delete("bad", corrupt=True)

    assert not await client.backend.exists("machines/bad")


async def test_a_watch_ends_at_a_value_that_its_type_refuses(
    machines: Repository[Machine], client: kvorum.Client
) -> None:
    async with machines.watch() as watch:
        bad = await store_a_bad_one(machines, client)
        good = await anext(watch)
        with pytest.raises(CorruptResourceError) as caught:
            await anext(watch)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    assert caught.value.revision == bad
    assert watch.checkpoint == good.resource_version == bad - 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), MemoryError()])
async def test_an_error_that_is_not_about_the_value_is_raised_unchanged_and_loses_no_event(
    machines: Repository[Machine], error: BaseException
) -> None:
    async with machines.watch() as watch:
        bad = await machines.add(machine("bad"))
        with a_type_that_raises(error), pytest.raises(type(error)):
            await anext(watch)

        with anyio.fail_after(10):
            assert await anext(watch) == kvorum.Added(bad)


async def test_a_value_that_its_type_refuses_is_not_written(
    machines: Repository[Machine], client: kvorum.Client
) -> None:
    await machines.add(machine("a"))

    with pytest.raises(InvalidResourceError, match="KeyError") as caught:
        await machines.mutate("a", lambda it: setattr(it.spec, "size", "huge"))
    with pytest.raises(InvalidResourceError, match="KeyError"):
        await machines.patch("a", {"spec": {"size": "huge"}})
    new = machine("b")
    new.spec.size = "huge"
    with pytest.raises(InvalidResourceError, match="KeyError"):
        await machines.add(new)

    assert isinstance(caught.value.__cause__, KeyError)
    assert await client.backend.keys("machines/*") == ["machines/a"]


async def test_what_is_collected_does_not_keep_the_bytes_that_could_not_be_read(
    machines: Repository[Machine], client: kvorum.Client
) -> None:
    """The frames of a traceback would, and there can be many."""
    await store_a_bad_one(machines, client)
    scan = machines.scan(on_corrupt="collect")
    _ = [each async for each in scan]
    listed = await machines.list(on_corrupt="collect")
    (got,) = await machines.get_many(["bad"])

    for error in (*scan.corrupt, *listed.corrupt, got):
        assert isinstance(error, CorruptResourceError)
        assert isinstance(error.__cause__, KeyError)
        cause: BaseException | None = error
        while cause is not None:
            assert cause.__traceback__ is None
            cause = cause.__context__


class PositiveSpec(msgspec.Struct):
    number: int = 0

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError("number must be 1 or more")


class Positive(Resource[PositiveSpec, MachineStatus]):
    kind: ClassVar[Kind] = Kind("Positive", plural="positives", api_version="test.kvorum.dev/v1")


async def test_a_type_that_refuses_its_own_defaults_can_be_stored(client: kvorum.Client) -> None:
    """Then the bytes must contain the field."""
    positives = client.repository(Positive)
    await positives.add(
        Positive(metadata=Metadata(name="a"), spec=PositiveSpec(3), status=MachineStatus())
    )
    text = b'{"apiVersion": "test.kvorum.dev/v1", "kind": "Positive", "metadata": {"name": "b"}}'
    await client.backend.set("positives/b", text)

    assert (await positives.get("a")).spec.number == 3
    with pytest.raises(CorruptResourceError, match="spec"):
        await positives.get("b")
