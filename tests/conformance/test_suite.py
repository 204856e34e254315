"""The suite accepts a correct backend and finds the fault in each faulty one."""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Final

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

HEAD: Final = """
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest

from kvorum import *
from kvorum.testing import StorageConformance, Store


class MyStore(Store):
    def __init__(self, backend):
        self._backend = backend

    @property
    def backend(self):
        return self._backend

    async def compact(self, revision):
        await self._backend.compact(revision)

    async def watchers(self):
        return self._backend.open_watches


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # as anyio's own does where trio is installed
"""

TESTS: Final = """
@asynccontextmanager
async def open_{name}():
    yield MyStore({name}())


class Test{name}(StorageConformance):
    @pytest.fixture
    def open_store(self):
        return open_{name}
"""

# What `-x` does, for each class by itself.
ONE_FAILURE_FOR_EACH: Final = """
import pytest

failed = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        failed.add(item.cls)
    return report


def pytest_runtest_setup(item):
    if item.cls in failed:
        pytest.skip("its fault has been found")
"""


@pytest.fixture(autouse=True)
def printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys hold bytes that are no text, and a failure shows them; pytester reads UTF-8 only."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:backslashreplace")


def run_suite(
    pytester: pytest.Pytester, backends: Iterable[type[MemoryStorageBackend]], *arguments: str
) -> pytest.RunResult:
    """Run the suite as the author of a backend does: in another project and another process."""
    parts = [HEAD]
    for backend in backends:
        fault = "" if backend is MemoryStorageBackend else inspect.getsource(backend)
        parts += [fault, TESTS.format(name=backend.__name__)]
    pytester.makepyfile("\n\n".join(parts))
    return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", *arguments)


def test_a_sound_backend_passes(pytester: pytest.Pytester) -> None:
    result = run_suite(pytester, [MemoryStorageBackend], "-W", "error")

    assert result.ret == 0
    assert result.parseoutcomes()["passed"] > 150


def test_a_class_without_open_store_is_told_what_is_missing(pytester: pytest.Pytester) -> None:
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


def test_each_planted_fault_is_found(pytester: pytest.Pytester) -> None:
    """One run for all of them: to start a process for each costs more than the tests do."""
    pytester.makeconftest(ONE_FAILURE_FOR_EACH)

    result = run_suite(pytester, FAULTS, "-rf", "-q")

    found = re.findall(r"^FAILED \S+::Test(\w+)::", result.stdout.str(), re.MULTILINE)
    assert sorted(found) == sorted(fault.__name__ for fault in FAULTS)
    assert result.parseoutcomes().get("errors", 0) == 0
