"""The examples in docstrings run: each literal block after `::`, with the names of its module."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from sybil import Document, Example, Region
from sybil.document import PythonDocStringDocument

import kvorum
from kvorum.lab import LabWorker, LabWorkerRepository

SOURCES = Path(__file__).parents[2] / "src"
BLOCK = re.compile(
    r"^(?P<indent> *)(?:\S.*)?::\n\s*\n(?P<body>(?:(?P=indent) +\S.*\n|\s*\n)+)", re.MULTILINE
)


def blocks(document: Document) -> Iterator[Region]:
    for match in BLOCK.finditer(document.text):
        source = textwrap.dedent(match["body"]).rstrip()
        yield Region(match.start("body"), match.end("body"), source, lambda _: None)


def examples_of(path: Path) -> list[Example]:
    return list(PythonDocStringDocument.parse(str(path), blocks).examples())


EXAMPLES = [example for path in sorted(SOURCES.rglob("*.py")) for example in examples_of(path)]


def name_of(example: Example) -> str:
    return f"{Path(example.path).relative_to(SOURCES)}:{example.line}"


async def run(example: Example, names: dict[str, object]) -> None:
    """Run an example with its own line numbers; it may use `await`, as in an async function."""
    source = "\n" * (example.line - 1) + example.parsed
    code = compile(
        source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    result = eval(code, names)  # noqa: S307 - our own docstrings
    if inspect.iscoroutine(result):
        await result


@pytest.mark.anyio
@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
async def test_the_example_runs(example: Example) -> None:
    """One that follows a watch gets an event, and ends when it waits for the next one."""
    module = ".".join(Path(example.path).relative_to(SOURCES).with_suffix("").parts)
    async with kvorum.connect("memory://") as client, anyio.create_task_group() as tasks:
        workers = LabWorkerRepository(client)
        worker = await workers.add(LabWorker.new("worker-001", lab_track="ccna"))
        names = vars(importlib.import_module(module.removesuffix(".__init__"))) | {
            "kvorum": kvorum,
            "client": client,
            "workers": workers,
            "event": kvorum.Added(worker),
            "MyStore": kvorum.MemoryStorageBackend,
            "pytest": pytest,
        }
        tasks.start_soon(run, example, names)
        await anyio.wait_all_tasks_blocked()
        await workers.patch("worker-001", {"metadata": {"labels": {"seen": "yes"}}})
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


def test_examples_are_found() -> None:
    """Otherwise the test above would pass for nothing."""
    assert {Path(example.path).name for example in EXAMPLES} >= {
        "deadlines.py",
        "model.py",
        "checkpoint.py",
        "suite.py",
    }
