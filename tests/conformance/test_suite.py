"""The suite finds what is wrong with a backend.

Else it would be worth nothing to whoever writes one.
"""

import inspect
from collections.abc import Sequence

import pytest

from kvorum import (
    Change,
    ConflictError,
    Entry,
    MemoryStorageBackend,
    NotFoundError,
    Operation,
    Page,
    StorageWatch,
)

PROJECT = """
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest

from kvorum import *
from kvorum.testing import StorageConformance, Store


{fault}


class MyStore(Store):
    def __init__(self):
        self._backend = {name}()

    @property
    def backend(self):
        return self._backend

    async def compact(self, revision):
        await self._backend.compact(revision)

    async def watchers(self):
        return self._backend.open_watches


@asynccontextmanager
async def open_mine():
    yield MyStore()


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # as anyio's own does where trio is installed


class TestMine(StorageConformance):
    @pytest.fixture
    def open_store(self):
        return open_mine
"""


@pytest.fixture(autouse=True)
def printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys hold bytes that are no text, and a failure shows them; pytester reads UTF-8 only."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:backslashreplace")


def run_suite(
    pytester: pytest.Pytester, backend: type[MemoryStorageBackend], *arguments: str
) -> pytest.RunResult:
    """Run the suite as somebody would who has written a backend, in a project and a process of their own."""
    fault = "" if backend is MemoryStorageBackend else inspect.getsource(backend)
    pytester.makepyfile(PROJECT.format(fault=fault, name=backend.__name__))
    return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", *arguments)


def test_a_sound_backend_passes(pytester: pytest.Pytester) -> None:
    result = run_suite(pytester, MemoryStorageBackend, "-W", "error")

    assert result.ret == 0
    assert result.parseoutcomes()["passed"] > 150


def test_who_does_not_say_how_to_open_a_store_is_told_how(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from kvorum.testing import StorageConformance

        class TestMine(StorageConformance):
            pass
        """
    )

    result = pytester.runpytest_subprocess("-x")

    result.stdout.fnmatch_lines(["*NotImplementedError: TestMine needs a fixture `open_store`*"])


# --- planted faults -------------------------------------------------------------------------------


class BlindSwaps(MemoryStorageBackend):
    async def compare_and_swap(
        self,
        key: str,
        value: bytes,
        *,
        expected: int,
        lease: int | None = None,
        unique: bool = False,
        expected_value: bytes | None = None,
    ) -> int:
        del expected, expected_value
        return await self.set(key, value, lease=lease or 0, unique=unique)


class CreatesThatOverwrite(MemoryStorageBackend):
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        return await self.set(key, value, lease=lease, unique=unique)


class ListsOfNow(MemoryStorageBackend):
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        del revision
        return await super().list(prefix, limit=limit, after=after)


class PrefixesWithoutAnEnd(MemoryStorageBackend):
    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        return await super().count(prefix[:-1], revision=revision)


class WatchesThatRepeat(MemoryStorageBackend):
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        return super().watch(prefix, since=since - 1 if since else since, bookmarks=bookmarks)


class WatchesInPieces(MemoryStorageBackend):
    class Pieces(StorageWatch):
        def __init__(self, whole: StorageWatch) -> None:
            self._whole = whole
            self._pieces: list[Change] = []

        @property
        def revision(self) -> int:
            return self._whole.revision

        async def open(self) -> None:
            await self._whole.open()

        async def aclose(self) -> None:
            await self._whole.aclose()

        async def __anext__(self) -> tuple[Change, ...]:
            if not self._pieces:
                self._pieces += await anext(self._whole)
            return (self._pieces.pop(0),)

    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        return self.Pieces(super().watch(prefix, since=since, bookmarks=bookmarks))


class ErrorsAsNone(MemoryStorageBackend):
    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        try:
            return await super().get(key, revision=revision)
        except Exception:  # noqa: BLE001 - that is the fault
            return None


class DeletionsOfNothing(MemoryStorageBackend):
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        try:
            return await super().delete(key, expected=expected, expected_value=expected_value)
        except NotFoundError:
            return Change(key, 1, None, None)


class CommitsInSteps(MemoryStorageBackend):
    async def commit(self, operations: Sequence[Operation]) -> int:
        revision = 0
        for operation in operations:
            if operation.writes:
                revision = await super().commit([operation])
        return revision


class ConflictsWithoutTheCurrentEntry(MemoryStorageBackend):
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        try:
            return await super().delete(key, expected=expected, expected_value=expected_value)
        except ConflictError as exc:
            raise ConflictError(key, expected=exc.expected) from None


class LeasesThatAreForgotten(MemoryStorageBackend):
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        del lease
        return await super().set(key, value, unique=unique)


class ListsThatForgetTheirOrder(MemoryStorageBackend):
    async def keys(self, pattern: str = "*") -> Sequence[str]:
        return list(reversed(await super().keys(pattern)))


FAULTS: list[type[MemoryStorageBackend]] = [
    BlindSwaps,
    CreatesThatOverwrite,
    ListsOfNow,
    PrefixesWithoutAnEnd,
    WatchesThatRepeat,
    WatchesInPieces,
    ErrorsAsNone,
    DeletionsOfNothing,
    CommitsInSteps,
    ConflictsWithoutTheCurrentEntry,
    LeasesThatAreForgotten,
    ListsThatForgetTheirOrder,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(
    pytester: pytest.Pytester, fault: type[MemoryStorageBackend]
) -> None:
    result = run_suite(pytester, fault, "-x", "-q")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, passed=result.parseoutcomes().get("passed", 0))
