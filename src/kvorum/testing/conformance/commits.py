"""The contract of the storage port for transactions."""

import asyncio

import pytest

from kvorum.errors import (
    ConflictError,
    InvalidResourceError,
)
from kvorum.storage import Entry, Operation, StorageBackend
from kvorum.testing.conformance.probes import keys_of


class CommitsConformance:
    """Tests of transactions."""

    async def test_a_commit_applies_all_its_operations_at_one_revision(
        self, backend: StorageBackend
    ) -> None:
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
        self, backend: StorageBackend, failing: Operation
    ) -> None:
        a = await backend.set("a", b"1")
        b = await backend.set("b", b"1")
        c = await backend.set("c", b"1")
        held = [
            Operation.swap("a", b"2", expected=a),
            Operation.delete("b", expected=b),
            Operation.put("d", b"2"),
        ]

        with pytest.raises(ConflictError) as caught:
            await backend.commit([*held, failing])

        assert caught.value.subject == "c"
        assert caught.value.expected == failing.expected
        assert caught.value.current == Entry("c", b"1", c, c, 1)
        assert keys_of(await backend.list("")) == ["a", "b", "c"]
        assert [entry.value for entry in (await backend.list("")).entries] == [b"1", b"1", b"1"]

    async def test_a_refused_commit_names_the_first_key_that_is_not_as_expected(
        self, backend: StorageBackend
    ) -> None:
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

    async def test_a_key_may_stand_in_one_operation_of_a_commit_only(
        self, backend: StorageBackend
    ) -> None:
        with pytest.raises(InvalidResourceError, match="a is in two"):
            await backend.commit(
                [
                    Operation.put("a", b"1"),
                    Operation.check("a", expected=0),
                    Operation.put("b", b""),
                ]
            )

        assert await backend.count("") == 0

    @pytest.mark.parametrize(
        "operations", [[], [Operation.check("a", expected=0)]], ids=["none", "checks only"]
    )
    async def test_a_commit_that_writes_nothing_is_refused(
        self, backend: StorageBackend, operations: list[Operation]
    ) -> None:
        """There is no revision to return."""
        with pytest.raises(InvalidResourceError):
            await backend.commit(operations)

    async def test_a_commit_takes_128_operations_and_no_more(self, backend: StorageBackend) -> None:
        operations = [Operation.create(f"k{number:03}", b"") for number in range(129)]

        with pytest.raises(InvalidResourceError, match="129"):
            await backend.commit(operations)
        assert await backend.count("") == 0

        revision = await backend.commit(operations[:128])
        entries = (await backend.list("")).entries
        assert len(entries) == 128
        assert {entry.mod_revision for entry in entries} == {revision}

    async def test_a_commit_may_check_127_keys_for_one_that_it_writes(
        self, backend: StorageBackend
    ) -> None:
        checks = [Operation.check(f"k{number:03}", expected=0) for number in range(127)]
        await backend.commit([*checks, Operation.put("a", b"")])

        assert await backend.exists("a")

    async def test_a_commit_that_deletes_a_missing_key_does_the_rest(
        self, backend: StorageBackend
    ) -> None:
        await backend.commit([Operation.delete("missing"), Operation.put("a", b"1")])

        assert keys_of(await backend.list("")) == ["a"]

    async def test_two_commits_that_check_what_the_other_writes_cannot_both_succeed(
        self, backend: StorageBackend
    ) -> None:
        """Write skew: each is valid for what it read, but not both together."""
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
