"""The buffer between the reader of a watch and its consumer."""

import asyncio

import anyio
import pytest

from kvorum.errors import UnavailableError
from kvorum.etcd.watch.buffer import READ_AHEAD, WatchBuffer
from kvorum.storage import Change, Entry


def change(revision: int) -> Change:
    return Change("a", revision, Entry("a", b"", revision, 1, revision), None)


async def test_a_cancelled_wait_takes_nothing() -> None:
    buffer = WatchBuffer()
    waiting = asyncio.create_task(buffer.wait())
    await asyncio.sleep(0)
    buffer.put(5, (change(5),))
    buffer.notify()
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert buffer.take() == (5, (change(5),))


async def test_nothing_is_wanted_before_the_first_wait() -> None:
    buffer = WatchBuffer()
    before, changed = buffer.is_wanted, buffer.changed
    with anyio.move_on_after(0):
        await buffer.wait()

    assert (before, buffer.is_wanted, changed.is_set()) == (False, True, True)


def test_a_full_buffer_has_room_again_when_half_of_it_is_taken() -> None:
    """And the reader is woken once, not for each change."""
    buffer = WatchBuffer()
    for revision in range(READ_AHEAD):
        buffer.put(revision, (change(revision),))
    assert buffer.is_full
    changed, woken = buffer.changed, []
    while buffer.take() is not None:
        woken.append(buffer.changed is not changed)
        changed = buffer.changed

    assert woken.index(True) == READ_AHEAD // 2 - 1
    assert woken.count(True) == 1
    assert (buffer.size, buffer.events) == (0, READ_AHEAD)


def test_of_several_bookmarks_in_a_row_only_the_last_one_is_kept() -> None:
    buffer = WatchBuffer()
    for revision in (3, 4):
        buffer.put_bookmark(revision)
    buffer.put(5, (change(5),))
    buffer.put_bookmark(6)

    assert [buffer.take() for _ in range(4)] == [(4, ()), (5, (change(5),)), (6, ()), None]


def test_an_error_is_raised_once_and_leaves_what_was_put_before() -> None:
    buffer, lost = WatchBuffer(), UnavailableError("server", "away")
    buffer.put(5, (change(5),))
    buffer.fail(lost)

    assert buffer.take() == (5, (change(5),))
    with pytest.raises(UnavailableError) as caught:
        buffer.raise_error()
    assert caught.value is lost
    buffer.raise_error()


def test_a_closed_buffer_is_empty_and_has_no_error() -> None:
    buffer = WatchBuffer()
    buffer.put(5, (change(5),))
    buffer.fail(UnavailableError("server", "away"))
    buffer.close()

    assert buffer.take() is None
    assert buffer.size == 0
    buffer.raise_error()
