"""The contract of the storage port for invalid arguments: only the caller's own call fails."""

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, Final, TypeAlias

import pytest

from kvorum.errors import InvalidResourceError
from kvorum.storage import Operation, StorageBackend
from kvorum.testing.conformance.probes import take

_BEYOND: Final = 2**63  # beyond any revision


class _One(IntEnum):
    ONE = 1


_NO_NUMBERS: Final[list[Any]] = [
    *(True, 5.0, float("nan"), float("inf"), "5", b"5", [5], (), object(), _One.ONE),
    *(_BEYOND, -_BEYOND - 1, -1, 10**5000),
]
_NO_VALUES: Final[list[Any]] = [None, "text", bytearray(b"a"), memoryview(b"a"), {"a": 1}, 5, [1]]
_NO_TEXTS: Final[list[Any]] = [None, b"a", 5, ["a"], object()]

Call: TypeAlias = Callable[[StorageBackend, Any], Awaitable[Any]]


async def _watch(backend: StorageBackend, since: Any) -> None:
    async with backend.watch("", since=since):
        pass


async def _watch_prefix(backend: StorageBackend, prefix: Any) -> None:
    async with backend.watch(prefix):
        pass


_NUMBERS: Final[dict[str, Call]] = {
    "get(revision)": lambda backend, given: backend.get("a", revision=given),
    "list(revision)": lambda backend, given: backend.list("", revision=given),
    "list(limit)": lambda backend, given: backend.list("", limit=given),
    "select(limit)": lambda backend, given: backend.select("", lambda entry: entry, limit=given),
    "list_with_labels(revision)": lambda backend, given: backend.list_with_labels(
        "", None, revision=given
    ),
    "count(revision)": lambda backend, given: backend.count("", revision=given),
    "watch(since)": _watch,
    "set(lease)": lambda backend, given: backend.set("a", b"2", lease=given),
    "create(lease)": lambda backend, given: backend.create("b", b"2", lease=given),
    "compare_and_swap(lease)": lambda backend, given: backend.compare_and_swap(
        "b", b"2", expected=0, lease=given
    ),
    "compare_and_swap(expected)": lambda backend, given: backend.compare_and_swap(
        "a", b"2", expected=given
    ),
    "delete(expected)": lambda backend, given: backend.delete("a", expected=given),
    "revoke_lease": lambda backend, given: backend.revoke_lease(given),
}

_VALUES: Final[dict[str, Call]] = {
    "set": lambda backend, given: backend.set("a", given),
    "create": lambda backend, given: backend.create("b", given),
    "compare_and_swap": lambda backend, given: backend.compare_and_swap("b", given, expected=0),
}

_TEXTS: Final[dict[str, Call]] = {
    "get": lambda backend, given: backend.get(given),
    "exists": lambda backend, given: backend.exists(given),
    "set": lambda backend, given: backend.set(given, b""),
    "create": lambda backend, given: backend.create(given, b""),
    "compare_and_swap": lambda backend, given: backend.compare_and_swap(given, b"", expected=0),
    "delete": lambda backend, given: backend.delete(given),
    "list": lambda backend, given: backend.list(given),
    "count": lambda backend, given: backend.count(given),
    "keys": lambda backend, given: backend.keys(given),
    "watch": _watch_prefix,
}


class ArgumentsConformance:
    """Tests of arguments of a wrong type or out of range.

    Each runs while another watch of the backend is open, which must not be affected.
    """

    async def _is_refused(self, backend: StorageBackend, call: Call, given: list[Any]) -> None:
        await backend.set("a", b"1")
        async with backend.watch("") as innocent:
            for each in given:
                with pytest.raises(InvalidResourceError) as caught:
                    await call(backend, each)
                assert len(str(caught.value)) < 300, "a message is short, whatever was given"
            revision = await backend.set("a", b"2")

            ((change,),) = await take(innocent, 1)
            assert (change.key, change.revision) == ("a", revision)
        assert [(entry.key, entry.value) for entry in (await backend.list("")).entries] == [
            ("a", b"2")
        ]

    @pytest.mark.parametrize("call", _NUMBERS)
    async def test_a_wrong_or_out_of_range_number_fails_its_caller_only(
        self, backend: StorageBackend, call: str
    ) -> None:
        """A number beyond 64 bits once ended the watches of all callers of a client."""
        await self._is_refused(backend, _NUMBERS[call], _NO_NUMBERS)

    @pytest.mark.parametrize("call", _VALUES)
    async def test_a_value_that_is_not_bytes_is_refused(
        self, backend: StorageBackend, call: str
    ) -> None:
        """A `bytearray` could change after the call, and None would be a deletion."""
        await self._is_refused(backend, _VALUES[call], _NO_VALUES)

    @pytest.mark.parametrize("call", _TEXTS)
    async def test_a_key_a_prefix_or_a_pattern_that_is_no_text_is_refused(
        self, backend: StorageBackend, call: str
    ) -> None:
        await self._is_refused(backend, _TEXTS[call], _NO_TEXTS)

    async def test_a_swap_that_expects_nothing_is_refused_and_overwrites_nothing(
        self, backend: StorageBackend
    ) -> None:
        """None means "any revision" for a deletion; for a swap it is a forgotten argument."""
        nothing: Any = None

        await self._is_refused(
            backend, lambda on, given: on.compare_and_swap("a", b"2", expected=given), [nothing]
        )

    @pytest.mark.parametrize("ttl", ["60", None, True, [60], float("-inf")])
    async def test_a_ttl_that_is_no_number_is_refused(
        self, backend: StorageBackend, ttl: Any
    ) -> None:
        with pytest.raises(InvalidResourceError, match="ttl"):
            await backend.grant_lease(ttl)

    async def test_what_is_settled_is_the_error_of_a_write(self, backend: StorageBackend) -> None:
        given: Any
        for given in (None, 5, "a", [], InvalidResourceError("a", "it is wrong")):
            with pytest.raises(InvalidResourceError, match="OutcomeUnknownError"):
                await backend.settle(given)

    @pytest.mark.parametrize("keep", [None, 5, "a", {}])
    async def test_entries_are_selected_by_a_function(
        self, backend: StorageBackend, keep: Any
    ) -> None:
        with pytest.raises(InvalidResourceError, match="keep must be a function"):
            await backend.select("", keep)

    @pytest.mark.parametrize(
        "operations", [["a"], [None], [("a", b"")], None, 5, {"a": b""}, iter([])]
    )
    async def test_a_commit_of_what_is_no_operation_is_refused(
        self, backend: StorageBackend, operations: list[Any]
    ) -> None:
        with pytest.raises(InvalidResourceError, match="Operation"):
            await backend.commit(operations)

    async def test_an_operation_writes_bytes(self) -> None:
        for given in _NO_VALUES:
            for make in (Operation.create, Operation.put):
                with pytest.raises(InvalidResourceError, match="bytes"):
                    make("a", given)
            with pytest.raises(InvalidResourceError, match="bytes"):
                Operation.swap("a", given, expected=1)
            if given is not None:  # which is how a deletion is written
                with pytest.raises(InvalidResourceError, match="bytes"):
                    Operation(key="a", value=given)

    async def test_an_operation_expects_and_leases_by_whole_numbers(self) -> None:
        makes: list[Callable[[Any], Operation]] = [
            lambda given: Operation.swap("a", b"", expected=given),
            lambda given: Operation.delete("a", expected=given),
            lambda given: Operation.check("a", expected=given),
            lambda given: Operation(key="a", value=b"", expected=given),
            lambda given: Operation.put("a", b"", lease=given),
            lambda given: Operation.create("a", b"", lease=given),
            lambda given: Operation.swap("a", b"", expected=1, lease=given),
            lambda given: Operation(key="a", value=b"", lease=given),
        ]
        for given in _NO_NUMBERS:
            for make in makes:
                with pytest.raises(InvalidResourceError):
                    make(given)
