"""The contract of the storage port for get, list, count and keys."""

import pytest

from kvorum.errors import (
    FutureRevisionError,
    HistoryLostError,
    InvalidResourceError,
)
from kvorum.storage import Change, Entry, Operation, StorageBackend
from kvorum.testing.conformance.probes import fill, keys_of, take
from kvorum.testing.conformance.store import Compact

UNUSUAL = [
    "A",
    "a",
    "a\0",
    "a/b",
    "a b",
    "aé",
    "é",
    "z\uffff",
    "\U0001f600",
    "a\udcff",
    "a\udcff\udcff",
    "\udcff",
]


class ReadingConformance:
    """Tests of get, list, count and keys."""

    # --- get ---

    async def test_a_key_that_was_never_written_is_none(self, backend: StorageBackend) -> None:
        assert await backend.get("a") is None

    async def test_what_was_written_is_read_with_all_that_the_store_knows_about_it(
        self, backend: StorageBackend
    ) -> None:
        created = await backend.set("a", b"1")
        changed = await backend.set("a", b"2")

        assert await backend.get("a") == Entry(
            "a", b"2", mod_revision=changed, create_revision=created, version=2
        )

    async def test_a_value_may_be_empty_and_still_be_one(self, backend: StorageBackend) -> None:
        revision = await backend.set("a", b"")

        assert await backend.get("a") == Entry("a", b"", revision, revision, 1)
        assert await backend.exists("a")

    async def test_a_value_is_bytes_of_any_kind(self, backend: StorageBackend) -> None:
        value = bytes(range(256))
        await backend.set("a", value)

        entry = await backend.get("a")
        assert entry is not None
        assert entry.value == value

    async def test_a_key_is_read_as_it_was_at_a_revision(self, backend: StorageBackend) -> None:
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
    async def test_a_revision_that_was_not_reached_is_refused_and_named(
        self, backend: StorageBackend, read: str
    ) -> None:
        future = await backend.set("a", b"") + 1_000_000

        with pytest.raises(FutureRevisionError) as caught:
            await getattr(backend, read)("a", revision=future)

        assert caught.value.revision == future

    @pytest.mark.parametrize("read", ["get", "list", "count"])
    async def test_a_revision_that_was_compacted_is_lost_history(
        self, backend: StorageBackend, compact: Compact, read: str
    ) -> None:
        old = await backend.set("a", b"1")
        await compact(await backend.set("a", b"2"))

        with pytest.raises(HistoryLostError) as caught:
            await getattr(backend, read)("a", revision=old)

        assert caught.value.revision == old

    async def test_the_revision_of_the_compaction_itself_can_still_be_read(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        revision = await backend.set("a", b"1")
        await backend.set("a", b"2")
        await compact(revision)

        assert await backend.get("a", revision=revision) == Entry("a", b"1", revision, revision, 1)

    async def test_a_key_exists_from_its_first_write_to_its_deletion(
        self, backend: StorageBackend
    ) -> None:
        assert not await backend.exists("a")
        await backend.set("a", b"")
        assert await backend.exists("a")
        await backend.delete("a")
        assert not await backend.exists("a")

    # --- list and count ---

    async def test_nothing_is_listed_as_an_empty_page_that_has_its_revision(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("b", b"")

        page = await backend.list("a")
        assert page.entries == []
        assert page.remaining == 0
        assert page.revision >= revision

    async def test_a_list_is_in_the_order_of_the_bytes_of_the_keys(
        self, backend: StorageBackend
    ) -> None:
        """Keys of other programs need not be UTF-8: they are decoded with surrogate escapes."""
        await fill(backend, *UNUSUAL)

        page = await backend.list("")
        assert keys_of(page) == sorted(
            UNUSUAL, key=lambda key: key.encode(errors="surrogateescape")
        )
        assert [entry.value for entry in page.entries] == [
            e.key.encode(errors="surrogateescape") for e in page.entries
        ]

    @pytest.mark.parametrize("key", UNUSUAL)
    async def test_a_key_of_any_characters_is_a_key_like_others(
        self, backend: StorageBackend, key: str
    ) -> None:
        revision = await backend.create(key, b"1")
        async with backend.watch(key, since=revision) as watch:
            swapped = await backend.compare_and_swap(key, b"2", expected=revision)
            change = await backend.delete(key, expected=swapped)

            assert change == Change(
                key, change.revision, None, Entry(key, b"2", swapped, revision, 2)
            )
            assert (await take(watch, 2))[1] == (change,)

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("workers/", ["workers/", "workers/a", "workers/é"]),
            (
                "workers",
                ["workers", "workers-old/a", "workers/", "workers/a", "workers/é", "workers0"],
            ),
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
        self, backend: StorageBackend, prefix: str, expected: list[str]
    ) -> None:
        """Clients get the end of a range wrong: prefixes ending in 0xff deleted unrelated keys."""
        await fill(
            backend,
            "workers",
            "workers/",
            "workers/a",
            "workers/é",
            "workers-old/a",
            "workers0",
            "worker",
            "x",
        )
        await fill(
            backend, "w\udcff", "w\udcff\udcff", "\udcff", "\udcffw", "é", "éa", "ê", "w\udcfe"
        )

        page = await backend.list(prefix)
        assert keys_of(page) == expected
        assert page.remaining == 0
        assert await backend.count(prefix) == len(expected)
        assert list(await backend.keys(prefix + "*")) == expected

    async def test_the_empty_prefix_lists_everything(self, backend: StorageBackend) -> None:
        await fill(backend, "a", "b/c", "\udcff")

        assert keys_of(await backend.list("")) == ["a", "b/c", "\udcff"]
        assert await backend.count("") == 3

    async def test_pages_of_a_limit_make_up_the_whole_and_say_what_remains(
        self, backend: StorageBackend
    ) -> None:
        await fill(backend, *"abcdefg")

        first = await backend.list("", limit=3)
        second = await backend.list("", limit=3, after="c", revision=first.revision)
        third = await backend.list("", limit=3, after="f", revision=first.revision)
        assert [keys_of(page) for page in (first, second, third)] == [
            ["a", "b", "c"],
            ["d", "e", "f"],
            ["g"],
        ]
        assert [page.remaining for page in (first, second, third)] == [4, 1, 0]
        assert {page.revision for page in (first, second, third)} == {first.revision}

    @pytest.mark.parametrize("limit", [7, 8, 10_000])
    async def test_a_limit_that_is_not_reached_leaves_nothing_out(
        self, backend: StorageBackend, limit: int
    ) -> None:
        await fill(backend, *"abcdefg")

        page = await backend.list("", limit=limit)
        assert keys_of(page) == list("abcdefg")
        assert page.remaining == 0

    @pytest.mark.parametrize("limit", [0, -1])
    async def test_a_limit_below_one_never_means_no_limit(
        self, backend: StorageBackend, limit: int
    ) -> None:
        """Etcd takes 0 for "no limit", so a caller with no room left would get everything."""
        await fill(backend, *"abc")

        try:
            page = await backend.list("", limit=limit)
        except InvalidResourceError:
            return
        assert page.entries == []

    async def test_a_page_is_what_was_there_at_its_revision_whatever_came_since(
        self, backend: StorageBackend
    ) -> None:
        await fill(backend, *"abcd")
        first = await backend.list("", limit=2)
        await backend.set("bb", b"")
        await backend.set("c", b"new")
        await backend.delete("d")

        second = await backend.list("", limit=2, after="b", revision=first.revision)
        assert [(entry.key, entry.value) for entry in second.entries] == [("c", b"c"), ("d", b"d")]
        assert second.revision == first.revision

    async def test_a_list_at_a_revision_is_the_state_at_it(self, backend: StorageBackend) -> None:
        revision = await fill(backend, *"abc")
        await backend.delete("a")
        await backend.set("b", b"new")

        page = await backend.list("", revision=revision)
        assert [(entry.key, entry.value) for entry in page.entries] == [
            ("a", b"a"),
            ("b", b"b"),
            ("c", b"c"),
        ]
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
            ("x", []),  # after it
            ("w/a\0", ["w/b", "w/c"]),
        ],
    )
    async def test_after_leaves_out_a_key_and_all_before_it(
        self, backend: StorageBackend, after: str, expected: list[str]
    ) -> None:
        await fill(backend, "v", "w/a", "w/b", "w/c", "x", "y")

        page = await backend.list("w/", after=after)
        assert keys_of(page) == expected
        assert page.remaining == 0

    async def test_a_key_that_continues_the_last_one_is_on_the_next_page(
        self, backend: StorageBackend
    ) -> None:
        await fill(backend, "a", "a\0", "a\0\0", "aa")

        assert keys_of(await backend.list("a", after="a")) == ["a\0", "a\0\0", "aa"]

    async def test_a_list_without_a_limit_brings_all_keys_however_many(
        self, backend: StorageBackend
    ) -> None:
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

    # --- keys ---

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
        self, backend: StorageBackend, pattern: str, expected: list[str]
    ) -> None:
        """Every other character is literal, whatever it means in a regular expression."""
        await fill(backend, "b", "w/a", "w/a1", "w/b/c", "w.a", "w+a", "w[1]", "wa\nb")

        assert sorted(await backend.keys(pattern)) == sorted(expected)

    async def test_keys_are_sorted(self, backend: StorageBackend) -> None:
        await fill(backend, "c", "a", "b", "B")

        assert list(await backend.keys()) == ["B", "a", "b", "c"]

    # --- revisions ---

    async def test_revisions_that_cannot_be_are_refused(self, backend: StorageBackend) -> None:
        """Etcd takes 0 and negative revisions for "now", which hides a wrongly computed one."""
        for revision in (0, -1):
            with pytest.raises(InvalidResourceError):
                await backend.get("a", revision=revision)
            with pytest.raises(InvalidResourceError):
                await backend.list("", revision=revision)
            with pytest.raises(InvalidResourceError):
                await backend.count("", revision=revision)
        with pytest.raises(InvalidResourceError):
            backend.watch("", since=-1)
