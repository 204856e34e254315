"""The contract of the storage port for set, create, compare-and-swap and delete."""

import asyncio
from itertools import pairwise

import pytest

from kvorum.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidResourceError,
    NotFoundError,
    ResourceTooLargeError,
)
from kvorum.storage import Change, Entry, Operation, StorageBackend
from kvorum.testing.conformance.probes import fill, keys_of, revision_of


class WritingConformance:
    """Tests of set, create, compare-and-swap and delete."""

    # --- set and create ---

    async def test_each_write_makes_its_own_revision_and_returns_it(
        self, backend: StorageBackend
    ) -> None:
        revisions = [
            await backend.set("a", b"1"),
            await backend.set("a", b"1"),  # writing the same value is a write
            await backend.create("b", b"1"),
            await backend.compare_and_swap("c", b"1", expected=0),
            (await backend.delete("a")).revision,
            await backend.commit([Operation.put("a", b"2"), Operation.put("d", b"2")]),
        ]

        assert all(later > earlier for earlier, later in pairwise(revisions))
        assert await revision_of(backend) >= revisions[-1]

    async def test_a_recreated_key_starts_over(self, backend: StorageBackend) -> None:
        await backend.set("a", b"1")
        await backend.set("a", b"2")
        await backend.delete("a")
        revision = await backend.set("a", b"3")

        assert await backend.get("a") == Entry("a", b"3", revision, revision, 1)

    async def test_create_leaves_what_exists_as_it_is(self, backend: StorageBackend) -> None:
        revision = await backend.create("a", b"1")

        with pytest.raises(AlreadyExistsError) as caught:
            await backend.create("a", b"2")

        assert caught.value.subject == "a"
        assert await backend.get("a") == Entry("a", b"1", revision, revision, 1)

    async def test_of_many_creations_of_one_key_one_succeeds(self, backend: StorageBackend) -> None:
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
    async def test_a_key_that_is_empty_or_too_long_is_refused_by_every_verb(
        self, backend: StorageBackend, key: str
    ) -> None:
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

    async def test_a_key_that_is_no_text_at_all_is_refused(self, backend: StorageBackend) -> None:
        """A lone surrogate encodes no byte. All impossible keys raise the same error."""
        with pytest.raises(InvalidResourceError):
            await backend.set("a\ud800", b"")

    async def test_a_value_that_is_too_large_is_refused_with_its_size(
        self, backend: StorageBackend
    ) -> None:
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

        assert [(entry.key, entry.value) for entry in (await backend.list("")).entries] == [
            ("a", b"1")
        ]

    async def test_the_largest_value_is_stored(self, backend: StorageBackend) -> None:
        await backend.set("a", bytes(1_000_000))

        entry = await backend.get("a")
        assert entry is not None
        assert len(entry.value) == 1_000_000

    async def test_a_commit_too_large_for_the_store_is_refused_as_such(
        self, backend: StorageBackend
    ) -> None:
        """Each value is small enough, but the request is not."""
        for number in (2, 3):  # etcd refuses above 1.5 MiB, gRPC above 2 MiB
            with pytest.raises(ResourceTooLargeError):
                await backend.commit(
                    [Operation.put(f"a{i}", bytes(900_000)) for i in range(number)]
                )

        assert await backend.count("") == 0

    # --- compare and swap ---

    async def test_a_swap_at_the_expected_revision_writes(self, backend: StorageBackend) -> None:
        first = await backend.set("a", b"1")
        second = await backend.compare_and_swap("a", b"2", expected=first)

        assert await backend.get("a") == Entry("a", b"2", second, first, 2)

    async def test_a_stale_swap_is_a_conflict_that_carries_what_is_there(
        self, backend: StorageBackend
    ) -> None:
        first = await backend.set("a", b"1")
        second = await backend.set("a", b"2")

        with pytest.raises(ConflictError) as caught:
            await backend.compare_and_swap("a", b"3", expected=first)

        assert caught.value.subject == "a"
        assert caught.value.expected == first
        assert caught.value.current == Entry("a", b"2", second, first, 2)
        assert await backend.get("a") == caught.value.current

    async def test_a_swap_that_expects_none_creates(self, backend: StorageBackend) -> None:
        revision = await backend.compare_and_swap("a", b"1", expected=0)

        assert await backend.get("a") == Entry("a", b"1", revision, revision, 1)

    async def test_a_swap_that_expects_none_and_finds_one_is_a_conflict(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("a", b"1")

        with pytest.raises(ConflictError) as caught:
            await backend.compare_and_swap("a", b"2", expected=0)

        assert caught.value.current == Entry("a", b"1", revision, revision, 1)

    async def test_a_swap_of_a_key_that_is_gone_is_a_conflict_without_a_current_entry(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("a", b"1")
        await backend.delete("a")

        with pytest.raises(ConflictError) as caught:
            await backend.compare_and_swap("a", b"2", expected=revision)

        assert caught.value.current is None
        assert not await backend.exists("a")

    async def test_a_recreated_key_is_a_different_one_to_a_swap(
        self, backend: StorageBackend
    ) -> None:
        """The revision tells them apart; version 1 and an equal value would not."""
        first = await backend.set("a", b"1")
        await backend.delete("a")
        await backend.set("a", b"1")

        with pytest.raises(ConflictError):
            await backend.compare_and_swap("a", b"2", expected=first)

    async def test_a_counter_that_many_swap_loses_no_increment(
        self, backend: StorageBackend
    ) -> None:
        await backend.set("counter", b"0")

        async def increment() -> int:
            successes = 0
            for _ in range(10):
                entry = await backend.get("counter")
                assert entry is not None
                try:
                    await backend.compare_and_swap(
                        "counter", b"%d" % (int(entry.value) + 1), expected=entry.mod_revision
                    )
                except ConflictError:
                    continue
                successes += 1
            return successes

        successes = sum(await asyncio.gather(*(increment() for _ in range(20))))

        final = await backend.get("counter")
        assert final is not None
        assert int(final.value) == successes
        assert final.version == successes + 1
        assert successes >= 10  # each round has a winner

    async def test_a_swap_can_expect_the_value_that_was_read_too(
        self, backend: StorageBackend
    ) -> None:
        """A restored store reaches the same revision again, with another value."""
        first = await backend.set("a", b"1")
        with pytest.raises(ConflictError) as caught:
            await backend.compare_and_swap("a", b"3", expected=first, expected_value=b"2")
        second = await backend.compare_and_swap("a", b"2", expected=first, expected_value=b"1")
        with pytest.raises(ConflictError):
            await backend.compare_and_swap("a", b"3", expected=first, expected_value=b"1")

        assert caught.value.current == Entry("a", b"1", first, first, 1)
        assert "restored to an older state" in str(caught.value)
        assert await backend.get("a") == Entry("a", b"2", second, first, 2)

    async def test_a_value_is_expected_at_a_revision_only(self, backend: StorageBackend) -> None:
        for write in (
            lambda: backend.compare_and_swap("a", b"1", expected=0, expected_value=b""),
            lambda: backend.delete("a", expected_value=b""),
        ):
            with pytest.raises(InvalidResourceError):
                await write()

    # --- delete ---

    async def test_a_delete_can_expect_the_value_that_was_read_too(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("a", b"1")
        with pytest.raises(ConflictError) as caught:
            await backend.delete("a", expected=revision, expected_value=b"2")
        change = await backend.delete("a", expected=revision, expected_value=b"1")

        assert caught.value.current == change.previous == Entry("a", b"1", revision, revision, 1)

    async def test_delete_returns_what_was_removed_and_when(self, backend: StorageBackend) -> None:
        revision = await backend.set("a", b"1")
        change = await backend.delete("a")

        assert change == Change("a", change.revision, None, Entry("a", b"1", revision, revision, 1))
        assert change.revision > revision
        assert await backend.get("a") is None

    async def test_delete_removes_one_key_only(self, backend: StorageBackend) -> None:
        await fill(backend, "a", "a\0", "a/b", "aa", "b")
        await backend.delete("a")

        assert keys_of(await backend.list("")) == ["a\0", "a/b", "aa", "b"]

    async def test_a_missing_key_cannot_be_deleted(self, backend: StorageBackend) -> None:
        with pytest.raises(NotFoundError) as caught:
            await backend.delete("a")

        assert caught.value.subject == "a"

    async def test_delete_at_the_expected_revision_removes(self, backend: StorageBackend) -> None:
        revision = await backend.set("a", b"1")
        await backend.delete("a", expected=revision)

        assert not await backend.exists("a")

    async def test_a_stale_delete_is_a_conflict_and_the_key_stays(
        self, backend: StorageBackend
    ) -> None:
        first = await backend.set("a", b"1")
        second = await backend.set("a", b"2")

        with pytest.raises(ConflictError) as caught:
            await backend.delete("a", expected=first)

        assert caught.value.expected == first
        assert caught.value.current == await backend.get("a") == Entry("a", b"2", second, first, 2)

    async def test_a_delete_of_a_key_that_is_gone_but_was_expected_is_a_conflict(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("a", b"1")
        await backend.delete("a")

        with pytest.raises(ConflictError) as caught:
            await backend.delete("a", expected=revision)

        assert caught.value.current is None
