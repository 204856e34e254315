"""What `kvorum.storage` promises, line by line. Every backend passes this suite, so a test knows the port alone."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import count, pairwise

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvorum
from kvorum import (
    AlreadyExistsError,
    Change,
    ConflictError,
    Entry,
    FutureRevisionError,
    HistoryLostError,
    InvalidResourceError,
    LeaseNotFoundError,
    NotFoundError,
    Operation,
    Page,
    ResourceTooLargeError,
    StorageBackend,
    StorageWatch,
)

Compact = Callable[[int], Awaitable[None]]
Watchers = Callable[[], Awaitable[int]]

DEADLINE = 10.0
NO_SUCH_LEASE = 0x7E57


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a state that nobody announces."""
    with anyio.fail_after(DEADLINE):
        while not await holds():  # noqa: ASYNC110 - a metric of the server has no event
            await anyio.sleep(0.01)


async def take(watch: StorageWatch, number: int) -> list[tuple[Change, ...]]:
    with anyio.fail_after(DEADLINE):
        return [await anext(watch) for _ in range(number)]


async def take_until(watch: StorageWatch, key: str) -> list[Change]:
    """Take all changes before the one of `key`: what a watch has not shown by then it never will."""
    taken: list[Change] = []
    with anyio.fail_after(DEADLINE):
        while True:
            changes = await anext(watch)
            if changes[0].key == key:
                return taken
            taken += changes


def keys_of(page: Page) -> list[str]:
    return [entry.key for entry in page.entries]


async def revision_of(backend: StorageBackend) -> int:
    return (await backend.list("", limit=1)).revision


async def fill(backend: StorageBackend, *keys: str) -> int:
    """Put keys, each with its own name as the value; return the last revision."""
    revision = 0
    for key in keys:
        revision = await backend.set(key, key.encode(errors="surrogateescape"))
    return revision


# --- get -------------------------------------------------------------------------------------------------------------


async def test_a_key_that_was_never_written_is_none(backend: StorageBackend) -> None:
    assert await backend.get("a") is None


async def test_what_was_written_is_read_with_all_that_the_store_knows_about_it(backend: StorageBackend) -> None:
    created = await backend.set("a", b"1")
    changed = await backend.set("a", b"2")

    assert await backend.get("a") == Entry("a", b"2", mod_revision=changed, create_revision=created, version=2)


async def test_a_value_may_be_empty_and_still_be_one(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"")

    assert await backend.get("a") == Entry("a", b"", revision, revision, 1)
    assert await backend.exists("a")


async def test_a_value_is_bytes_of_any_kind(backend: StorageBackend) -> None:
    value = bytes(range(256))
    await backend.set("a", value)

    entry = await backend.get("a")
    assert entry is not None
    assert entry.value == value


async def test_a_key_is_read_as_it_was_at_a_revision(backend: StorageBackend) -> None:
    before = await backend.set("other", b"")
    first = await backend.set("a", b"1")
    await backend.set("a", b"2")
    gone = (await backend.delete("a")).revision
    again = await backend.set("a", b"3")

    assert await backend.get("a", revision=before) is None
    assert await backend.get("a", revision=first) == Entry("a", b"1", first, first, 1)
    assert await backend.get("a", revision=gone - 1) == Entry("a", b"2", gone - 1, first, 2)
    assert await backend.get("a", revision=gone) is None
    assert await backend.get("a", revision=again) == Entry("a", b"3", again, again, 1)


@pytest.mark.parametrize("read", ["get", "list", "count"])
async def test_a_revision_that_was_not_reached_is_refused_and_named(backend: StorageBackend, read: str) -> None:
    future = await backend.set("a", b"") + 1_000_000

    with pytest.raises(FutureRevisionError) as caught:
        await getattr(backend, read)("a", revision=future)

    assert caught.value.revision == future


@pytest.mark.parametrize("read", ["get", "list", "count"])
async def test_a_revision_that_was_compacted_is_lost_history(
    backend: StorageBackend, compact: Compact, read: str
) -> None:
    old = await backend.set("a", b"1")
    await compact(await backend.set("a", b"2"))

    with pytest.raises(HistoryLostError) as caught:
        await getattr(backend, read)("a", revision=old)

    assert caught.value.revision == old


async def test_the_revision_of_the_compaction_itself_can_still_be_read(
    backend: StorageBackend, compact: Compact
) -> None:
    revision = await backend.set("a", b"1")
    await backend.set("a", b"2")
    await compact(revision)

    assert await backend.get("a", revision=revision) == Entry("a", b"1", revision, revision, 1)


async def test_a_key_exists_from_its_first_write_to_its_deletion(backend: StorageBackend) -> None:
    assert not await backend.exists("a")
    await backend.set("a", b"")
    assert await backend.exists("a")
    await backend.delete("a")
    assert not await backend.exists("a")


# --- list and count --------------------------------------------------------------------------------------------------

UNUSUAL = ["A", "a", "a\0", "a/b", "a b", "aé", "é", "z\uffff", "\U0001f600", "a\udcff", "a\udcff\udcff", "\udcff"]


async def test_nothing_is_listed_as_an_empty_page_that_has_its_revision(backend: StorageBackend) -> None:
    revision = await backend.set("b", b"")

    page = await backend.list("a")
    assert page.entries == []
    assert page.remaining == 0
    assert page.revision >= revision


async def test_a_list_is_in_the_order_of_the_bytes_of_the_keys(backend: StorageBackend) -> None:
    """Keys of other programs need not be UTF-8: they come as text with surrogates, and are found by it."""
    await fill(backend, *UNUSUAL)

    page = await backend.list("")
    assert keys_of(page) == sorted(UNUSUAL, key=lambda key: key.encode(errors="surrogateescape"))
    assert [entry.value for entry in page.entries] == [e.key.encode(errors="surrogateescape") for e in page.entries]


@pytest.mark.parametrize("key", UNUSUAL)
async def test_a_key_of_any_characters_is_a_key_like_others(backend: StorageBackend, key: str) -> None:
    revision = await backend.create(key, b"1")
    async with backend.watch(key, since=revision) as watch:
        swapped = await backend.compare_and_swap(key, b"2", expected=revision)
        change = await backend.delete(key, expected=swapped)

        assert change == Change(key, change.revision, None, Entry(key, b"2", swapped, revision, 2))
        assert (await take(watch, 2))[1] == (change,)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("workers/", ["workers/", "workers/a", "workers/é"]),
        ("workers", ["workers", "workers-old/a", "workers/", "workers/a", "workers/é", "workers0"]),
        ("workers-old/", ["workers-old/a"]),
        ("w\udcff", ["w\udcff", "w\udcff\udcff"]),
        ("w\udcff\udcff", ["w\udcff\udcff"]),
        ("\udcff", ["\udcff", "\udcffw"]),
        ("worker/", []),
        ("é", ["é", "éa"]),
        ("x", ["x"]),
        ("xa", []),
    ],
)
async def test_a_prefix_finds_the_keys_that_start_with_it_and_no_others(
    backend: StorageBackend, prefix: str, expected: list[str]
) -> None:
    """The end of a range is where clients go wrong: prefixes that end in 0xff have deleted unrelated keys."""
    await fill(backend, "workers", "workers/", "workers/a", "workers/é", "workers-old/a", "workers0", "worker", "x")
    await fill(backend, "w\udcff", "w\udcff\udcff", "\udcff", "\udcffw", "é", "éa", "ê", "w\udcfe")

    page = await backend.list(prefix)
    assert keys_of(page) == expected
    assert page.remaining == 0
    assert await backend.count(prefix) == len(expected)
    assert list(await backend.keys(prefix + "*")) == expected


async def test_the_empty_prefix_lists_everything(backend: StorageBackend) -> None:
    await fill(backend, "a", "b/c", "\udcff")

    assert keys_of(await backend.list("")) == ["a", "b/c", "\udcff"]
    assert await backend.count("") == 3


async def test_pages_of_a_limit_make_up_the_whole_and_say_what_remains(backend: StorageBackend) -> None:
    await fill(backend, *"abcdefg")

    first = await backend.list("", limit=3)
    second = await backend.list("", limit=3, after="c", revision=first.revision)
    third = await backend.list("", limit=3, after="f", revision=first.revision)
    assert [keys_of(page) for page in (first, second, third)] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert [page.remaining for page in (first, second, third)] == [4, 1, 0]
    assert {page.revision for page in (first, second, third)} == {first.revision}


@pytest.mark.parametrize("limit", [7, 8, 10_000])
async def test_a_limit_that_is_not_reached_leaves_nothing_out(backend: StorageBackend, limit: int) -> None:
    await fill(backend, *"abcdefg")

    page = await backend.list("", limit=limit)
    assert keys_of(page) == list("abcdefg")
    assert page.remaining == 0


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_never_means_no_limit(backend: StorageBackend, limit: int) -> None:
    """etcd takes it for "no limit", and a caller who has room for none more gets everything."""
    await fill(backend, *"abc")

    try:
        page = await backend.list("", limit=limit)
    except InvalidResourceError:
        return
    assert page.entries == []


async def test_a_page_is_what_was_there_at_its_revision_whatever_came_since(backend: StorageBackend) -> None:
    await fill(backend, *"abcd")
    first = await backend.list("", limit=2)
    await backend.set("bb", b"")
    await backend.set("c", b"new")
    await backend.delete("d")

    second = await backend.list("", limit=2, after="b", revision=first.revision)
    assert [(entry.key, entry.value) for entry in second.entries] == [("c", b"c"), ("d", b"d")]
    assert second.revision == first.revision


async def test_a_list_at_a_revision_is_the_state_at_it(backend: StorageBackend) -> None:
    revision = await fill(backend, *"abc")
    await backend.delete("a")
    await backend.set("b", b"new")

    page = await backend.list("", revision=revision)
    assert [(entry.key, entry.value) for entry in page.entries] == [("a", b"a"), ("b", b"b"), ("c", b"c")]
    assert page.revision == revision
    assert await backend.count("", revision=revision) == 3
    assert await backend.count("") == 2


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("w/b", ["w/c"]),
        ("w/bb", ["w/c"]),  # no such key
        ("w/c", []),
        ("v", ["w/a", "w/b", "w/c"]),  # before the prefix
        ("x", []),  # behind it
        ("w/a\0", ["w/b", "w/c"]),
    ],
)
async def test_after_leaves_out_a_key_and_all_before_it(
    backend: StorageBackend, after: str, expected: list[str]
) -> None:
    await fill(backend, "v", "w/a", "w/b", "w/c", "x", "y")

    page = await backend.list("w/", after=after)
    assert keys_of(page) == expected
    assert page.remaining == 0


async def test_a_key_that_continues_the_last_one_is_on_the_next_page(backend: StorageBackend) -> None:
    await fill(backend, "a", "a\0", "a\0\0", "aa")

    assert keys_of(await backend.list("a", after="a")) == ["a\0", "a\0\0", "aa"]


async def test_a_list_without_a_limit_brings_all_keys_however_many(backend: StorageBackend) -> None:
    keys = [f"k{number:04}" for number in range(2_100)]
    for start in range(0, len(keys), 100):
        await backend.commit([Operation.create(key, b"") for key in keys[start : start + 100]])

    page = await backend.list("k")
    assert keys_of(page) == keys
    assert page.remaining == 0
    assert await backend.count("k") == 2_100
    some = await backend.list("k", limit=1_500)
    assert keys_of(some) == keys[:1_500]
    assert some.remaining == 600


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["b", "w+a", "w.a", "w/a", "w/a1", "w/b/c", "wa\nb", "w[1]"]),
        ("w/*", ["w/a", "w/a1", "w/b/c"]),
        ("w/?", ["w/a"]),
        ("w?a", ["w+a", "w.a", "w/a"]),
        ("*/c", ["w/b/c"]),
        ("w/[ab]*", ["w/a", "w/a1", "w/b/c"]),
        ("w/[!b]*", ["w/a", "w/a1"]),
        ("w/[0-9]", []),
        ("w/a", ["w/a"]),
        ("w[[]1]", ["w[1]"]),
        ("wa*b", ["wa\nb"]),
        ("W/*", []),
        ("w", []),
        ("", []),
    ],
)
async def test_keys_are_found_by_patterns_of_the_shell(
    backend: StorageBackend, pattern: str, expected: list[str]
) -> None:
    """Every other character stands for itself, whatever it means to regular expressions."""
    await fill(backend, "b", "w/a", "w/a1", "w/b/c", "w.a", "w+a", "w[1]", "wa\nb")

    assert sorted(await backend.keys(pattern)) == sorted(expected)


async def test_keys_are_sorted(backend: StorageBackend) -> None:
    await fill(backend, "c", "a", "b", "B")

    assert list(await backend.keys()) == ["B", "a", "b", "c"]


# --- set and create --------------------------------------------------------------------------------------------------


async def test_each_write_makes_a_revision_of_its_own_and_returns_it(backend: StorageBackend) -> None:
    revisions = [
        await backend.set("a", b"1"),
        await backend.set("a", b"1"),  # the same value is a write all the same
        await backend.create("b", b"1"),
        await backend.compare_and_swap("c", b"1", expected=0),
        (await backend.delete("a")).revision,
        await backend.commit([Operation.put("a", b"2"), Operation.put("d", b"2")]),
    ]

    assert all(later > earlier for earlier, later in pairwise(revisions))
    assert await revision_of(backend) >= revisions[-1]


async def test_a_key_that_comes_again_starts_anew(backend: StorageBackend) -> None:
    await backend.set("a", b"1")
    await backend.set("a", b"2")
    await backend.delete("a")
    revision = await backend.set("a", b"3")

    assert await backend.get("a") == Entry("a", b"3", revision, revision, 1)


async def test_create_leaves_what_exists_as_it_is(backend: StorageBackend) -> None:
    revision = await backend.create("a", b"1")

    with pytest.raises(AlreadyExistsError) as caught:
        await backend.create("a", b"2")

    assert caught.value.subject == "a"
    assert await backend.get("a") == Entry("a", b"1", revision, revision, 1)


async def test_of_many_who_create_one_key_one_succeeds(backend: StorageBackend) -> None:
    async def create(number: int) -> int | AlreadyExistsError:
        try:
            return await backend.create("a", str(number).encode())
        except AlreadyExistsError as exc:
            return exc

    results = await asyncio.gather(*(create(number) for number in range(20)))

    entry = await backend.get("a")
    assert entry is not None
    (winner,) = [number for number, result in enumerate(results) if isinstance(result, int)]
    assert entry.value == str(winner).encode()
    assert entry.mod_revision == results[winner]


@pytest.mark.parametrize("key", ["", "a" * 2_000])
async def test_a_key_that_is_empty_or_too_long_is_refused_by_every_verb(backend: StorageBackend, key: str) -> None:
    with pytest.raises(InvalidResourceError):
        await backend.get(key)
    with pytest.raises(InvalidResourceError):
        await backend.exists(key)
    with pytest.raises(InvalidResourceError):
        await backend.set(key, b"")
    with pytest.raises(InvalidResourceError):
        await backend.create(key, b"")
    with pytest.raises(InvalidResourceError):
        await backend.compare_and_swap(key, b"", expected=0)
    with pytest.raises(InvalidResourceError):
        await backend.delete(key)
    with pytest.raises(InvalidResourceError):
        await backend.commit([Operation.put(key, b"")])


async def test_a_key_that_is_no_text_at_all_is_refused(backend: StorageBackend) -> None:
    """A lone surrogate that stands for no byte: one kind of error for all keys that cannot be."""
    with pytest.raises(InvalidResourceError):
        await backend.set("a\ud800", b"")


async def test_a_value_that_is_too_large_is_refused_with_its_size(backend: StorageBackend) -> None:
    value = bytes(1_000_001)
    revision = await backend.set("a", b"1")

    for write in (
        backend.set("a", value),
        backend.create("b", value),
        backend.compare_and_swap("a", value, expected=revision),
        backend.commit([Operation.put("c", b""), Operation.put("b", value)]),
    ):
        with pytest.raises(ResourceTooLargeError) as caught:
            await write
        assert caught.value.size == len(value)
        assert caught.value.limit == 1_000_000

    assert [(entry.key, entry.value) for entry in (await backend.list("")).entries] == [("a", b"1")]


async def test_the_largest_value_is_stored(backend: StorageBackend) -> None:
    await backend.set("a", bytes(1_000_000))

    entry = await backend.get("a")
    assert entry is not None
    assert len(entry.value) == 1_000_000


async def test_a_commit_too_large_for_the_store_is_refused_as_such(backend: StorageBackend) -> None:
    """Each of its values is small enough, the request is not."""
    for number in (2, 3):  # above 1.5 MiB it is etcd that refuses, above 2 MiB gRPC
        with pytest.raises(ResourceTooLargeError):
            await backend.commit([Operation.put(f"a{i}", bytes(900_000)) for i in range(number)])

    assert await backend.count("") == 0


# --- compare and swap ------------------------------------------------------------------------------------------------


async def test_a_swap_at_the_expected_revision_writes(backend: StorageBackend) -> None:
    first = await backend.set("a", b"1")
    second = await backend.compare_and_swap("a", b"2", expected=first)

    assert await backend.get("a") == Entry("a", b"2", second, first, 2)


async def test_a_stale_swap_is_a_conflict_that_carries_what_is_there(backend: StorageBackend) -> None:
    first = await backend.set("a", b"1")
    second = await backend.set("a", b"2")

    with pytest.raises(ConflictError) as caught:
        await backend.compare_and_swap("a", b"3", expected=first)

    assert caught.value.subject == "a"
    assert caught.value.expected == first
    assert caught.value.current == Entry("a", b"2", second, first, 2)
    assert await backend.get("a") == caught.value.current


async def test_a_swap_that_expects_none_creates(backend: StorageBackend) -> None:
    revision = await backend.compare_and_swap("a", b"1", expected=0)

    assert await backend.get("a") == Entry("a", b"1", revision, revision, 1)


async def test_a_swap_that_expects_none_and_finds_one_is_a_conflict(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")

    with pytest.raises(ConflictError) as caught:
        await backend.compare_and_swap("a", b"2", expected=0)

    assert caught.value.current == Entry("a", b"1", revision, revision, 1)


async def test_a_swap_of_a_key_that_is_gone_is_a_conflict_without_a_current_entry(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")
    await backend.delete("a")

    with pytest.raises(ConflictError) as caught:
        await backend.compare_and_swap("a", b"2", expected=revision)

    assert caught.value.current is None
    assert not await backend.exists("a")


async def test_a_key_that_came_again_is_another_one_to_a_swap(backend: StorageBackend) -> None:
    """The revision tells them apart, where version 1 and an equal value would not."""
    first = await backend.set("a", b"1")
    await backend.delete("a")
    await backend.set("a", b"1")

    with pytest.raises(ConflictError):
        await backend.compare_and_swap("a", b"2", expected=first)


async def test_a_counter_that_many_swap_loses_no_increment(backend: StorageBackend) -> None:
    await backend.set("counter", b"0")

    async def increment() -> int:
        successes = 0
        for _ in range(10):
            entry = await backend.get("counter")
            assert entry is not None
            try:
                await backend.compare_and_swap("counter", b"%d" % (int(entry.value) + 1), expected=entry.mod_revision)
            except ConflictError:
                continue
            successes += 1
        return successes

    successes = sum(await asyncio.gather(*(increment() for _ in range(20))))

    final = await backend.get("counter")
    assert final is not None
    assert int(final.value) == successes
    assert final.version == successes + 1
    assert successes >= 10  # somebody wins each round


# --- delete ----------------------------------------------------------------------------------------------------------


async def test_delete_returns_what_was_removed_and_when(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")
    change = await backend.delete("a")

    assert change == Change("a", change.revision, None, Entry("a", b"1", revision, revision, 1))
    assert change.revision > revision
    assert await backend.get("a") is None


async def test_delete_removes_one_key_only(backend: StorageBackend) -> None:
    await fill(backend, "a", "a\0", "a/b", "aa", "b")
    await backend.delete("a")

    assert keys_of(await backend.list("")) == ["a\0", "a/b", "aa", "b"]


async def test_a_missing_key_cannot_be_deleted(backend: StorageBackend) -> None:
    with pytest.raises(NotFoundError) as caught:
        await backend.delete("a")

    assert caught.value.subject == "a"


async def test_delete_at_the_expected_revision_removes(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")
    await backend.delete("a", expected=revision)

    assert not await backend.exists("a")


async def test_a_stale_delete_is_a_conflict_and_the_key_stays(backend: StorageBackend) -> None:
    first = await backend.set("a", b"1")
    second = await backend.set("a", b"2")

    with pytest.raises(ConflictError) as caught:
        await backend.delete("a", expected=first)

    assert caught.value.expected == first
    assert caught.value.current == await backend.get("a") == Entry("a", b"2", second, first, 2)


async def test_a_delete_of_a_key_that_is_gone_but_was_expected_is_a_conflict(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")
    await backend.delete("a")

    with pytest.raises(ConflictError) as caught:
        await backend.delete("a", expected=revision)

    assert caught.value.current is None


# --- commit ----------------------------------------------------------------------------------------------------------


async def test_a_commit_applies_all_its_operations_at_one_revision(backend: StorageBackend) -> None:
    a = await backend.set("a", b"1")
    b = await backend.set("b", b"1")
    c = await backend.set("c", b"1")
    revision = await backend.commit(
        [
            Operation.swap("a", b"2", expected=a),
            Operation.delete("b", expected=b),
            Operation.check("c", expected=c),
            Operation.check("nowhere", expected=0),
            Operation.create("d", b"2"),
            Operation.put("e", b"2"),
        ]
    )

    assert (await backend.list("")).entries == [
        Entry("a", b"2", revision, a, 2),
        Entry("c", b"1", c, c, 1),
        Entry("d", b"2", revision, revision, 1),
        Entry("e", b"2", revision, revision, 1),
    ]


@pytest.mark.parametrize(
    "failing",
    [
        Operation.create("c", b"2"),
        Operation.swap("c", b"2", expected=1),
        Operation.delete("c", expected=1),
        Operation.check("c", expected=1),
        Operation.check("c", expected=0),
    ],
    ids=["create", "swap", "delete", "check", "check-none"],
)
async def test_one_expectation_that_does_not_hold_refuses_the_whole_commit(
    backend: StorageBackend, failing: Operation
) -> None:
    a = await backend.set("a", b"1")
    b = await backend.set("b", b"1")
    c = await backend.set("c", b"1")
    held = [Operation.swap("a", b"2", expected=a), Operation.delete("b", expected=b), Operation.put("d", b"2")]

    with pytest.raises(ConflictError) as caught:
        await backend.commit([*held, failing])

    assert caught.value.subject == "c"
    assert caught.value.expected == failing.expected
    assert caught.value.current == Entry("c", b"1", c, c, 1)
    assert keys_of(await backend.list("")) == ["a", "b", "c"]
    assert [entry.value for entry in (await backend.list("")).entries] == [b"1", b"1", b"1"]


async def test_a_refused_commit_names_the_first_key_that_is_not_as_expected(backend: StorageBackend) -> None:
    b = await backend.set("b", b"1")
    operations = [
        Operation.put("z", b""),
        Operation.swap("b", b"2", expected=b),
        Operation.check("gone", expected=b),
        Operation.create("b2", b"2"),
        Operation.delete("gone2", expected=b),
    ]

    with pytest.raises(ConflictError) as caught:
        await backend.commit(operations)

    assert caught.value.subject == "gone"
    assert caught.value.current is None


async def test_a_key_may_stand_in_one_operation_of_a_commit_only(backend: StorageBackend) -> None:
    with pytest.raises(InvalidResourceError, match="a stands in two"):
        await backend.commit([Operation.put("a", b"1"), Operation.check("a", expected=0), Operation.put("b", b"")])

    assert await backend.count("") == 0


@pytest.mark.parametrize("operations", [[], [Operation.check("a", expected=0)]], ids=["none", "checks only"])
async def test_a_commit_that_writes_nothing_is_refused(backend: StorageBackend, operations: list[Operation]) -> None:
    """It has no revision that it could return."""
    with pytest.raises(InvalidResourceError):
        await backend.commit(operations)


async def test_a_commit_takes_128_operations_and_no_more(backend: StorageBackend) -> None:
    operations = [Operation.create(f"k{number:03}", b"") for number in range(129)]

    with pytest.raises(InvalidResourceError, match="129"):
        await backend.commit(operations)
    assert await backend.count("") == 0

    revision = await backend.commit(operations[:128])
    entries = (await backend.list("")).entries
    assert len(entries) == 128
    assert {entry.mod_revision for entry in entries} == {revision}


async def test_a_commit_may_check_127_keys_for_one_that_it_writes(backend: StorageBackend) -> None:
    checks = [Operation.check(f"k{number:03}", expected=0) for number in range(127)]
    await backend.commit([*checks, Operation.put("a", b"")])

    assert await backend.exists("a")


async def test_a_commit_that_deletes_a_missing_key_does_the_rest(backend: StorageBackend) -> None:
    await backend.commit([Operation.delete("missing"), Operation.put("a", b"1")])

    assert keys_of(await backend.list("")) == ["a"]


async def test_two_commits_that_check_what_the_other_writes_cannot_both_succeed(backend: StorageBackend) -> None:
    """Write skew: each is right about what it saw, and both together are not."""
    await backend.commit([Operation.create("a", b"on call"), Operation.create("b", b"on call")])

    async def leave(mine: str, other: str) -> bool:
        first, second = await backend.get(mine), await backend.get(other)
        assert first is not None
        assert second is not None
        if second.value != b"on call":
            return False
        steps = [
            Operation.swap(mine, b"off", expected=first.mod_revision),
            Operation.check(other, expected=second.mod_revision),
        ]
        try:
            await backend.commit(steps)
        except ConflictError:
            return False
        return True

    assert sum(await asyncio.gather(leave("a", "b"), leave("b", "a"))) == 1


# --- leases ----------------------------------------------------------------------------------------------------------


async def lease_of(backend: StorageBackend, key: str) -> int:
    entry = await backend.get(key)
    assert entry is not None
    return entry.lease


async def test_a_key_says_which_lease_it_lives_on(backend: StorageBackend) -> None:
    lease = await backend.grant_lease(600)
    await backend.set("a", b"", lease=lease)
    await backend.create("b", b"", lease=lease)
    await backend.compare_and_swap("c", b"", expected=0, lease=lease)
    await backend.commit([Operation.put("d", b"", lease=lease), Operation.create("e", b"", lease=lease)])

    assert {entry.lease for entry in (await backend.list("")).entries} == {lease}
    assert await backend.count("") == 5


async def test_leases_are_different_ones(backend: StorageBackend) -> None:
    assert len({await backend.grant_lease(600) for _ in range(3)}) == 3


async def test_a_revoked_lease_takes_its_keys_with_it_and_no_others(backend: StorageBackend) -> None:
    lease, other = await backend.grant_lease(600), await backend.grant_lease(600)
    revision = await backend.set("a", b"1", lease=lease)
    await backend.set("b", b"", lease=other)
    await backend.set("c", b"")
    async with backend.watch("") as watch:
        await backend.revoke_lease(lease)

        ((change,),) = await take(watch, 1)
        assert change == Change("a", change.revision, None, Entry("a", b"1", revision, revision, 1, lease))
    assert keys_of(await backend.list("")) == ["b", "c"]


async def test_an_expired_lease_takes_its_keys_with_it_and_not_too_early(backend: StorageBackend) -> None:
    async with backend.watch("") as watch:
        started = anyio.current_time()
        await backend.set("a", b"1", lease=await backend.grant_lease(1))
        (_, (change,)) = await take(watch, 2)

    assert change.entry is None
    assert change.key == "a"
    assert anyio.current_time() - started >= 1


async def test_a_lease_can_be_revoked_once(backend: StorageBackend) -> None:
    lease = await backend.grant_lease(600)
    await backend.revoke_lease(lease)

    with pytest.raises(LeaseNotFoundError) as caught:
        await backend.revoke_lease(lease)

    assert caught.value.lease == lease


async def test_a_plain_write_takes_a_key_off_its_lease(backend: StorageBackend) -> None:
    lease = await backend.grant_lease(600)
    for key in "ab":
        await backend.set(key, b"1", lease=lease)
    await backend.set("a", b"2")
    await backend.commit([Operation.put("b", b"2")])
    await backend.revoke_lease(lease)

    assert [(entry.value, entry.lease) for entry in (await backend.list("")).entries] == [(b"2", 0), (b"2", 0)]


async def test_a_swap_keeps_a_key_on_its_lease(backend: StorageBackend) -> None:
    """Else an update would make a resource immortal that was to end with its owner."""
    lease = await backend.grant_lease(600)
    for key in "ab":
        await backend.set(key, b"1", lease=lease)
    for key in "a":
        entry = await backend.get(key)
        assert entry is not None
        await backend.compare_and_swap(key, b"2", expected=entry.mod_revision)
    entry = await backend.get("b")
    assert entry is not None
    await backend.commit([Operation.swap("b", b"2", expected=entry.mod_revision)])

    assert await lease_of(backend, "a") == lease
    assert await lease_of(backend, "b") == lease
    await backend.revoke_lease(lease)
    assert await backend.count("") == 0


async def test_a_swap_of_a_key_without_a_lease_gives_it_none(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")
    await backend.compare_and_swap("a", b"2", expected=revision)

    assert await lease_of(backend, "a") == 0


async def test_a_swap_may_move_a_key_to_another_lease_or_to_none(backend: StorageBackend) -> None:
    first, second = await backend.grant_lease(600), await backend.grant_lease(600)
    revision = await backend.set("a", b"1", lease=first)

    revision = await backend.compare_and_swap("a", b"2", expected=revision, lease=second)
    assert await lease_of(backend, "a") == second
    revision = await backend.compare_and_swap("a", b"3", expected=revision, lease=0)
    assert await lease_of(backend, "a") == 0
    revision = await backend.commit([Operation.swap("a", b"4", expected=revision, lease=first)])
    assert await lease_of(backend, "a") == first
    await backend.commit([Operation.swap("a", b"5", expected=revision, lease=0)])
    assert await lease_of(backend, "a") == 0


async def test_a_lease_that_does_not_exist_refuses_every_write(backend: StorageBackend) -> None:
    revision = await backend.set("a", b"1")

    with pytest.raises(LeaseNotFoundError):
        await backend.set("a", b"2", lease=NO_SUCH_LEASE)
    with pytest.raises(LeaseNotFoundError):
        await backend.create("b", b"2", lease=NO_SUCH_LEASE)
    with pytest.raises(LeaseNotFoundError):
        await backend.compare_and_swap("a", b"2", expected=revision, lease=NO_SUCH_LEASE)
    with pytest.raises(LeaseNotFoundError):
        await backend.commit([Operation.put("c", b"2"), Operation.put("b", b"2", lease=NO_SUCH_LEASE)])
    with pytest.raises(LeaseNotFoundError):
        await backend.revoke_lease(NO_SUCH_LEASE)

    assert (await backend.list("")).entries == [Entry("a", b"1", revision, revision, 1)]


@pytest.mark.parametrize("expected", ["stale", "gone"])
async def test_a_swap_that_conflicts_says_so_even_if_the_lease_is_gone_too(
    backend: StorageBackend, expected: str
) -> None:
    """What is not applied needs no lease: the caller has to read again first."""
    revision = await backend.set("a", b"1")
    if expected == "gone":
        await backend.delete("a")
    else:
        await backend.set("a", b"2")

    with pytest.raises(ConflictError):
        await backend.compare_and_swap("a", b"3", expected=revision, lease=NO_SUCH_LEASE)
    with pytest.raises(ConflictError):
        await backend.commit([Operation.swap("a", b"3", expected=revision)])


async def test_a_commit_that_must_keep_a_lease_needs_a_key_that_has_one(backend: StorageBackend) -> None:
    with pytest.raises(InvalidResourceError):
        await backend.commit([Operation.swap("a", b"1", expected=0)])


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12, 1e300])
async def test_a_ttl_that_no_store_can_keep_is_refused_as_the_callers_mistake(
    backend: StorageBackend, ttl: float
) -> None:
    """Not as an outage: who retries such a request retries for ever."""
    with pytest.raises(InvalidResourceError):
        await backend.grant_lease(ttl)


# --- watch: what it shows --------------------------------------------------------------------------------------------


async def test_a_watch_shows_each_change_with_what_was_before(backend: StorageBackend) -> None:
    async with backend.watch("") as watch:
        first = await backend.set("a", b"1")
        second = await backend.set("a", b"2")
        third = (await backend.delete("a")).revision
        fourth = await backend.set("a", b"3")
        changes = await take(watch, 4)

    one, two = Entry("a", b"1", first, first, 1), Entry("a", b"2", second, first, 2)
    assert changes == [
        (Change("a", first, one, None),),
        (Change("a", second, two, one),),
        (Change("a", third, None, two),),
        (Change("a", fourth, Entry("a", b"3", fourth, fourth, 1), None),),
    ]


async def test_a_watch_from_now_shows_nothing_from_before_it_was_opened(backend: StorageBackend) -> None:
    await backend.set("a", b"1")
    watch = backend.watch("")
    before = await backend.set("a", b"2")  # made, but not opened: now is not yet
    async with watch:
        assert watch.revision >= before
        revision = await backend.set("a", b"3")

        ((change,),) = await take(watch, 1)
        assert change.revision == revision


async def test_now_is_when_a_watch_is_first_iterated_if_nobody_enters_it(backend: StorageBackend) -> None:
    watch = backend.watch("")
    await backend.set("a", b"1")
    waiting = asyncio.create_task(take(watch, 1))

    async def is_open() -> bool:
        return watch.revision > 0

    await until(is_open)
    revision = await backend.set("a", b"2")

    (((change,),),) = (await waiting,)
    assert change.revision == revision
    await watch.aclose()


async def test_a_watch_since_a_revision_shows_everything_after_it_and_not_itself(backend: StorageBackend) -> None:
    revisions = [await backend.set("a", b"%d" % number) for number in range(20)]

    for start in range(19):
        async with backend.watch("", since=revisions[start]) as watch:
            assert watch.revision == revisions[start]
            shown = [change.revision for (change,) in await take(watch, 19 - start)]
            assert shown == revisions[start + 1 :]
            assert watch.revision == revisions[-1]


async def test_a_watch_since_the_current_revision_is_a_watch_from_now(backend: StorageBackend) -> None:
    current = await backend.set("a", b"1")
    async with backend.watch("", since=await revision_of(backend)) as watch:
        assert watch.revision >= current
        revision = await backend.set("a", b"2")

        assert (await take(watch, 1))[0][0].revision == revision


async def test_a_commit_is_shown_whole(backend: StorageBackend) -> None:
    a = await backend.set("a", b"1")
    b = await backend.set("b", b"1")
    async with backend.watch("") as live:
        revision = await backend.commit(
            [
                Operation.put("c", b"2"),
                Operation.delete("b"),
                Operation.swap("a", b"2", expected=a),
                Operation.check("nowhere", expected=0),
                Operation.delete("missing"),
            ]
        )
        await backend.set("end", b"")
        async with backend.watch("", since=b) as late:
            for watch in (live, late):
                (changes, _) = await take(watch, 2)
                assert {change.revision for change in changes} == {revision}
                assert sorted(changes, key=lambda change: change.key) == [
                    Change("a", revision, Entry("a", b"2", revision, a, 2), Entry("a", b"1", a, a, 1)),
                    Change("b", revision, None, Entry("b", b"1", b, b, 1)),
                    Change("c", revision, Entry("c", b"2", revision, revision, 1), None),
                ]


async def test_a_commit_of_128_changes_is_one_tuple(backend: StorageBackend) -> None:
    async with backend.watch("") as watch:
        await backend.commit([Operation.create(f"k{number}", b"") for number in range(128)])

        (changes,) = await take(watch, 1)
        assert len(changes) == 128


async def test_a_watch_shows_the_keys_of_its_prefix_only(backend: StorageBackend) -> None:
    async with (
        backend.watch("workers/") as workers,
        backend.watch("w\udcff") as last,
        backend.watch("") as everything,
    ):
        await fill(backend, "workers", "workers/a", "workers-old/a", "workers0", "w\udcff", "x", "a")
        await backend.commit([Operation.put("workers/b", b""), Operation.put("workers-old/b", b"")])
        await fill(backend, "workers/end", "w\udcff/end", "end")

        assert [change.key for change in await take_until(workers, "workers/end")] == ["workers/a", "workers/b"]
        assert [change.key for change in await take_until(last, "w\udcff/end")] == ["w\udcff"]
        assert len(await take_until(everything, "end")) == 11


async def test_concurrent_writes_are_shown_in_order_and_without_duplicates(backend: StorageBackend) -> None:
    async with backend.watch("") as watch:
        revisions = await asyncio.gather(*(backend.set(f"k{number % 7}", b"") for number in range(200)))
        shown = [changes[0].revision for changes in await take(watch, 200)]

    assert shown == sorted(revisions)


async def test_any_number_of_watches_shows_the_same(backend: StorageBackend) -> None:
    start = await backend.set("a", b"")
    watches = [backend.watch("", since=start) for _ in range(20)]
    revisions = [await backend.set("a", b"") for _ in range(20)]

    for watch in watches:
        assert [changes[0].revision for changes in await take(watch, 20)] == revisions
        await watch.aclose()


async def test_the_revision_of_a_watch_is_what_it_delivered_last(backend: StorageBackend) -> None:
    watch = backend.watch("")
    assert watch.revision == 0
    async with watch:
        start = watch.revision
        revisions = [await backend.set("a", b"") for _ in range(3)]
        assert watch.revision == start
        for revision in revisions:
            await take(watch, 1)
            assert watch.revision == revision
    assert watch.revision == revisions[-1]


async def test_a_compaction_of_what_was_shown_does_not_disturb_a_watch(
    backend: StorageBackend, compact: Compact
) -> None:
    async with backend.watch("") as watch:
        for number in range(50):
            revision = await backend.set("a", b"%d" % number)
            assert (await take(watch, 1))[0][0].revision == revision
            if number % 10 == 9:
                await compact(revision)


# --- watch: what it cannot show --------------------------------------------------------------------------------------


async def test_a_watch_since_the_future_is_refused(backend: StorageBackend) -> None:
    """etcd would keep silent until that revision is reached: after a restored backup, for weeks."""
    current = await backend.set("a", b"")
    watch = backend.watch("", since=current + 1_000_000)

    with pytest.raises(FutureRevisionError) as caught, anyio.fail_after(DEADLINE):
        await watch.open()

    assert caught.value.revision == current + 1_000_000
    assert caught.value.current >= current
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_a_watch_since_lost_history_is_refused_when_it_is_opened(
    backend: StorageBackend, compact: Compact
) -> None:
    old = await backend.set("a", b"1")
    await backend.set("a", b"2")
    await compact(await backend.set("a", b"3"))
    watch = backend.watch("", since=old)

    with pytest.raises(HistoryLostError) as caught, anyio.fail_after(DEADLINE):
        await watch.open()

    assert caught.value.revision == old + 1
    await watch.aclose()


async def test_a_watch_since_lost_history_raises_once_and_ends(backend: StorageBackend, compact: Compact) -> None:
    old = await backend.set("a", b"1")
    await backend.set("a", b"2")
    current = await backend.set("a", b"3")
    await compact(current)
    watch = backend.watch("", since=old)

    with pytest.raises(HistoryLostError) as caught:
        await take(watch, 1)
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    assert caught.value.compact_revision in {0, current}
    await watch.aclose()


async def test_an_error_of_opening_leaves_a_watch_that_can_be_closed(
    backend: StorageBackend, watchers: Watchers
) -> None:
    current = await backend.set("a", b"")
    watch = backend.watch("", since=current + 1_000_000)
    with pytest.raises(FutureRevisionError):
        await watch.open()

    await watch.aclose()

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


# --- watch: how it ends ----------------------------------------------------------------------------------------------


async def test_a_watch_that_is_left_is_gone_from_the_store(backend: StorageBackend, watchers: Watchers) -> None:
    async with backend.watch("") as watch:
        assert await watchers() == 1
        await backend.set("a", b"")
        await take(watch, 1)

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


async def test_a_watch_that_is_merely_dropped_is_gone_from_the_store(
    backend: StorageBackend, watchers: Watchers
) -> None:
    watch = backend.watch("")
    await watch.open()
    await backend.set("a", b"")
    await take(watch, 1)
    assert await watchers() == 1

    del watch

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


async def test_a_watch_with_an_unread_backlog_that_is_dropped_is_gone_from_the_store(
    backend: StorageBackend, watchers: Watchers
) -> None:
    """Its reader waits for room in the buffer, not for the store: that, too, must end."""
    start = await backend.set("a", b"")
    for _ in range(30):
        await backend.commit([Operation.put(f"k{number}", b"") for number in range(100)])
    watch = backend.watch("", since=start)
    await take(watch, 1)
    assert await watchers() == 1

    del watch

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


async def test_a_watch_may_be_closed_any_number_of_times_and_at_any_stage(backend: StorageBackend) -> None:
    unopened = backend.watch("")
    await unopened.aclose()
    await unopened.aclose()
    opened = backend.watch("")
    await opened.open()
    await opened.open()
    await asyncio.gather(opened.aclose(), opened.aclose())
    await opened.aclose()

    for watch in (unopened, opened):
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_a_closed_watch_shows_nothing_that_it_had_read_ahead(backend: StorageBackend) -> None:
    """Nor what arrives while it is being closed: so it is tried at several points of the stream."""
    for patience in range(100):
        async with backend.watch("") as watch:
            for _ in range(3):
                await backend.set("a", b"")
            for _ in range(patience % 10):
                await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_closing_a_watch_ends_the_iteration_of_who_waits(backend: StorageBackend) -> None:
    watch = backend.watch("")
    await watch.open()
    shown: list[Change] = []

    async def read() -> None:
        async for changes in watch:
            shown.extend(changes)

    reader = asyncio.create_task(read())
    await backend.set("a", b"")

    async def is_shown() -> bool:  # then the reader waits again
        return len(shown) == 1

    await until(is_shown)
    await watch.aclose()

    with anyio.fail_after(DEADLINE):
        await reader
    assert len(shown) == 1


async def test_a_wait_that_timed_out_has_taken_nothing(backend: StorageBackend) -> None:
    revisions: list[int] = []

    async def write() -> None:
        for _ in range(200):
            revisions.append(await backend.set("a", b""))  # noqa: PERF401 - the reader looks at it meanwhile

    async with backend.watch("") as watch:
        writer = asyncio.create_task(write())
        shown: list[int] = []
        timeouts = 0
        with anyio.fail_after(DEADLINE):
            while len(shown) < 200:
                try:
                    async with asyncio.timeout(0.0002):
                        shown += [change.revision for change in await anext(watch)]
                except TimeoutError:
                    timeouts += 1
        await writer

    assert shown == revisions
    assert timeouts > 0


async def test_a_wait_whose_task_was_cancelled_has_taken_nothing(backend: StorageBackend) -> None:
    """asyncio's own cancellation, which can strike between the arrival of a change and its being taken."""
    revisions: list[int] = []

    async def write() -> None:
        for _ in range(200):
            revisions.append(await backend.set("a", b""))  # noqa: PERF401 - the reader looks at it meanwhile

    async def take_one(watch: StorageWatch) -> tuple[Change, ...]:
        return await anext(watch)

    async with backend.watch("") as watch:
        writer = asyncio.create_task(write())
        shown: list[int] = []
        cancelled = 0
        with anyio.fail_after(DEADLINE):
            for patience in count():
                waiter = asyncio.create_task(take_one(watch))
                for _ in range(patience % 5):
                    await asyncio.sleep(0)
                waiter.cancel()
                try:
                    shown += [change.revision for change in await waiter]
                except asyncio.CancelledError:
                    cancelled += 1
                if len(shown) == 200:
                    break
        await writer

    assert shown == revisions
    assert cancelled > 0


async def test_opening_a_watch_may_be_cancelled_at_any_point(backend: StorageBackend, watchers: Watchers) -> None:
    for patience in range(30):
        watch = backend.watch("")
        opening = asyncio.create_task(watch.open())
        for _ in range(patience):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        del watch, opening

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


async def test_closing_a_watch_that_is_being_opened_waits_for_nothing(
    backend: StorageBackend, watchers: Watchers
) -> None:
    """Neither who closes nor who opens has to sit out the deadline of a call that nobody wants any more."""
    for patience in range(30):
        watch = backend.watch("")
        opening = asyncio.create_task(watch.open())
        for _ in range(patience):
            await asyncio.sleep(0)
        with anyio.fail_after(2):
            await watch.aclose()
            await opening
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    async def is_none_left() -> bool:
        return await watchers() == 0

    await until(is_none_left)


async def test_a_watch_whose_opening_was_cancelled_can_still_be_opened(backend: StorageBackend) -> None:
    watch = backend.watch("")
    opening = asyncio.create_task(watch.open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])

    async with watch:
        revision = await backend.set("a", b"")
        assert (await take(watch, 1))[0][0].revision == revision


async def test_a_slow_reader_of_a_long_backlog_has_a_bounded_buffer(backend: StorageBackend) -> None:
    """The store keeps what its reader does not take: 100,000 changes cost the client a few thousand."""
    start = await backend.set("a", b"")
    limiter = anyio.Semaphore(64)

    async def write(number: int) -> None:
        async with limiter:
            await backend.commit([Operation.create(f"k{number}-{n}", b"") for n in range(20)])

    await asyncio.gather(*(write(number) for number in range(5_000)))

    buffered: list[int] = []
    shown: list[int] = []
    async with backend.watch("", since=start) as watch:
        with anyio.fail_after(60):
            while len(shown) < 5_000:
                changes = await anext(watch)
                assert len(changes) == 20
                shown.append(changes[0].revision)
                if len(shown) % 10 == 0:
                    found = re.search(r"(\d+) buffered", repr(watch))
                    assert found is not None
                    buffered.append(int(found[1]))
                    await asyncio.sleep(0)  # let whoever reads ahead do so

    assert shown == sorted(set(shown))
    assert max(buffered) <= 1_000 + 1_000 * 20  # one message of etcd's holds up to 1000 revisions
    assert max(buffered) > 0


# --- all of it, at random --------------------------------------------------------------------------------------------


class Model:
    """A store that is plainly right: a dict for each revision."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.entries: dict[str, Entry] = {}
        self.history: list[tuple[int, dict[str, Entry], list[Change]]] = []

    def expected(self, key: str, choice: str) -> int:
        """Turn a choice into a mod_revision: the current one, an old one, or none."""
        current = self.entries[key].mod_revision if key in self.entries else 0
        return {"current": current, "none": 0, "stale": max(current - 1, 1)}[choice]

    def holds(self, operation: Operation) -> bool:
        current = self.entries.get(operation.key)
        return operation.expected is None or operation.expected == (current.mod_revision if current else 0)

    def apply(self, revision: int, operations: Sequence[Operation]) -> None:
        before = dict(self.entries)
        for operation in operations:
            old = self.entries.get(operation.key)
            if not operation.writes:
                continue
            if operation.value is None:
                self.entries.pop(operation.key, None)
                continue
            created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
            self.entries[operation.key] = Entry(operation.key, operation.value, revision, created, version)
        changes = [
            Change(key, revision, self.entries.get(key), before.get(key))
            for key in sorted(before.keys() | self.entries.keys())
            if self.entries.get(key) != before.get(key)
        ]
        if changes:
            assert revision > self.revision
            self.revision = revision
            self.history.append((revision, dict(self.entries), changes))


KEYS = ["a", "a/b", "b", "\udcff"]
_key = st.sampled_from(KEYS)
_value = st.binary(max_size=3)
_choice = st.sampled_from(["current", "current", "none", "stale"])
_step = st.one_of(
    st.tuples(st.just("set"), _key, _value, _choice),
    st.tuples(st.just("create"), _key, _value, _choice),
    st.tuples(st.just("swap"), _key, _value, _choice),
    st.tuples(st.just("delete"), _key, _value, st.sampled_from(["any", "current", "none", "stale"])),
    st.tuples(st.just("commit"), st.lists(st.tuples(_key, _value, _choice, st.integers(0, 4)), min_size=1, max_size=4)),
)


def commit_of(model: Model, parts: list[tuple[str, bytes, str, int]]) -> list[Operation]:
    """Make the operations of a commit, one for each key, of which the first writes."""
    operations: dict[str, Operation] = {}
    for key, value, choice, which in parts:
        expected = model.expected(key, choice)
        made = [
            Operation.put(key, value),
            Operation.create(key, value),
            Operation.swap(key, value, expected=expected, lease=None if expected else 0),
            Operation.delete(key, expected=expected or None),
            Operation.check(key, expected=expected),
        ]
        operations.setdefault(key, made[which if operations else which % 4])
    return list(operations.values())


async def run_step(backend: StorageBackend, model: Model, step: tuple[object, ...]) -> None:
    match step:
        case ("set", str(key), bytes(value), _):
            model.apply(await backend.set(key, value), [Operation.put(key, value)])
        case ("create", str(key), bytes(value), _):
            if key in model.entries:
                with pytest.raises(AlreadyExistsError):
                    await backend.create(key, value)
            else:
                model.apply(await backend.create(key, value), [Operation.create(key, value)])
        case ("swap", str(key), bytes(value), str(choice)):
            operation = Operation.swap(key, value, expected=model.expected(key, choice))
            assert operation.expected is not None
            if model.holds(operation):
                made = await backend.compare_and_swap(key, value, expected=operation.expected)
                model.apply(made, [operation])
            else:
                with pytest.raises(ConflictError) as caught:
                    await backend.compare_and_swap(key, value, expected=operation.expected)
                assert caught.value.current == model.entries.get(key)
        case ("delete", str(key), _, str(choice)):
            await run_delete(backend, model, key, None if choice == "any" else model.expected(key, choice))
        case ("commit", list(parts)):
            await run_commit(backend, model, commit_of(model, parts))


async def run_delete(backend: StorageBackend, model: Model, key: str, expected: int | None) -> None:
    operation = Operation.delete(key, expected=expected)
    if not model.holds(operation):
        with pytest.raises(ConflictError) as caught:
            await backend.delete(key, expected=expected)
        assert caught.value.current == model.entries.get(key)
    elif key not in model.entries:
        with pytest.raises(NotFoundError):
            await backend.delete(key, expected=expected)
    else:
        change = await backend.delete(key, expected=expected)
        assert change == Change(key, change.revision, None, model.entries[key])
        model.apply(change.revision, [operation])


async def run_commit(backend: StorageBackend, model: Model, operations: list[Operation]) -> None:
    failing = [operation for operation in operations if not model.holds(operation)]
    if failing:
        with pytest.raises(ConflictError) as caught:
            await backend.commit(operations)
        assert caught.value.subject == failing[0].key
        assert caught.value.current == model.entries.get(failing[0].key)
    else:
        model.apply(await backend.commit(operations), operations)


async def check_against(backend: StorageBackend, model: Model, start: int) -> None:
    page = await backend.list("")
    in_order = sorted(model.entries.values(), key=lambda entry: entry.key.encode(errors="surrogateescape"))
    assert page.entries == in_order
    assert await backend.count("") == len(in_order)
    for revision, entries, _ in model.history[-3:]:
        for key in KEYS:
            assert await backend.get(key, revision=revision) == entries.get(key)
    async with backend.watch("", since=start) as watch:
        for revision, _, changes in model.history:
            ((*shown,),) = await take(watch, 1)
            assert sorted(shown, key=lambda change: change.key) == changes
            assert watch.revision == revision


def test_a_random_sequence_of_writes_does_what_a_plain_model_does(kvorum_url: str) -> None:
    """Results, errors, the state at the end and at earlier revisions, and what a watch shows of all of it."""
    numbers = count()

    async def open_client() -> kvorum.Client:
        return await kvorum.connect(kvorum_url).__aenter__()

    with asyncio.Runner() as runner:
        client = runner.run(open_client())

        async def run(steps: list[tuple[object, ...]]) -> None:
            backend = kvorum.EtcdStorageBackend(client, f"{client.settings.prefix}-{next(numbers)}")
            start = await revision_of(backend)
            model = Model(start)
            for step in steps:
                await run_step(backend, model, step)
            await check_against(backend, model, start)

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(_step, max_size=15))
        def check(steps: list[tuple[object, ...]]) -> None:
            runner.run(run(steps))

        try:
            check()
        finally:
            runner.run(client.aclose())


async def test_revisions_that_cannot_be_are_refused(backend: StorageBackend) -> None:
    """etcd takes 0 for "now", and a negative one as well: nobody means that by one that was computed wrongly."""
    for revision in (0, -1):
        with pytest.raises(InvalidResourceError):
            await backend.get("a", revision=revision)
        with pytest.raises(InvalidResourceError):
            await backend.list("", revision=revision)
        with pytest.raises(InvalidResourceError):
            await backend.count("", revision=revision)
    with pytest.raises(InvalidResourceError):
        backend.watch("", since=-1)
