"""A consumer that is restarted resumes where it stopped: nothing is left out."""

import asyncio
from functools import partial

import anyio
import pytest
from tests.watching import cancel_in

import kvorum
from kvorum import AlreadyExistsError, ConflictError, InvalidResourceError
from kvorum.lab import LabWorker, LabWorkerRepository


async def test_what_was_saved_is_there_after_a_restart(
    store_url: str, client: kvorum.Client
) -> None:
    revision = await client.backend.set("a", b"1")
    assert await client.checkpoint("billing").load() is None
    await client.checkpoint("billing").save(revision)

    assert await client.checkpoint("billing").load() == revision
    assert await client.checkpoint("other").load() is None
    if store_url != "memory://":
        async with kvorum.connect(store_url) as again:
            assert await again.checkpoint("billing").load() == revision


async def test_a_consumer_that_stops_anywhere_sees_everything_at_least_once(
    client: kvorum.Client,
) -> None:
    """It saves after each third revision, and is stopped after each fifth."""
    workers = LabWorkerRepository(client)
    await client.checkpoint("c").save((await workers.list()).resource_version)
    for number in range(20):
        await workers.add(LabWorker.new(f"w{number}", lab_track="x"))
    handled: list[str] = []
    while len(set(handled)) < 20:
        checkpoint = client.checkpoint("c")
        async with workers.watch(since=await checkpoint.load()) as watch:
            for number in range(1, 6):
                (event,) = await watch.next_revision()
                assert isinstance(event, kvorum.Added)
                handled.append(event.resource.metadata.name)
                if number % 3 == 0:
                    await checkpoint.save(watch.checkpoint)
                if handled[-1] == "w19":
                    break

    first_seen = list(dict.fromkeys(handled))
    assert first_seen == [f"w{number}" for number in range(20)]


async def test_a_checkpoint_never_goes_back(client: kvorum.Client) -> None:
    checkpoint = client.checkpoint("c")
    await checkpoint.save(7)
    before = await client.backend.set("a", b"")
    await checkpoint.save(7)
    await checkpoint.save(5)

    assert await checkpoint.load() == 7
    assert await client.backend.set("a", b"") == before + 1  # nothing was written


async def test_a_save_that_is_cancelled_is_repeated_by_the_next_one(
    client: kvorum.Client,
) -> None:
    checkpoint = client.checkpoint("c")
    await checkpoint.save(10)
    await cancel_in(client.backend, "compare_and_swap", partial(checkpoint.save, 20))
    await checkpoint.save(20)

    assert await client.checkpoint("c").load() == 20


async def test_of_two_consumers_of_one_name_the_second_to_save_gets_a_conflict(
    client: kvorum.Client,
) -> None:
    one, other = client.checkpoint("c"), client.checkpoint("c")
    await one.save(5)
    assert await other.load() == 5
    await one.save(6)

    with pytest.raises(ConflictError):
        await other.save(7)
    await other.save(8)  # it knows now, and takes over
    with pytest.raises(ConflictError):
        await one.save(9)


async def test_two_consumers_that_save_first_at_once_conflict(
    client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read that there is no checkpoint before either writes one."""
    get, readers, all_have_read = client.backend.get, 0, anyio.Event()

    async def get_together(key: str) -> kvorum.Entry | None:
        nonlocal readers
        found = await get(key)
        readers += 1
        if readers == 2:
            all_have_read.set()
        await all_have_read.wait()
        return found

    monkeypatch.setattr(client.backend, "get", get_together)
    with anyio.fail_after(10):
        results = await asyncio.gather(
            client.checkpoint("c").save(5), client.checkpoint("c").save(6), return_exceptions=True
        )

    assert [type(each) for each in results if each is not None] == [AlreadyExistsError]


async def test_a_checkpoint_that_is_forgotten_starts_over(client: kvorum.Client) -> None:
    checkpoint = client.checkpoint("c")
    await checkpoint.save(5)
    await checkpoint.forget()
    await checkpoint.forget()

    assert await checkpoint.load() is None
    await checkpoint.save(3)
    assert await checkpoint.load() == 3
    assert repr(checkpoint) == "<Checkpoint c [3]>"


@pytest.mark.parametrize("revision", [0, -1])
async def test_a_revision_that_cannot_be_is_refused(client: kvorum.Client, revision: int) -> None:
    with pytest.raises(InvalidResourceError):
        await client.checkpoint("c").save(revision)


async def test_a_name_that_cannot_be_is_refused(client: kvorum.Client) -> None:
    with pytest.raises(InvalidResourceError):
        await client.checkpoint("No Name").load()
