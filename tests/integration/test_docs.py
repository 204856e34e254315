"""Every Python example in README and docs runs, in order, against a real etcd."""

import ast
import inspect
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

import kvorum.testing  # noqa: F401 - examples import it; the first time takes long, and reads files

ROOT = Path(__file__).parents[2]
PROJECT = (
    ROOT / "docs" / "testing.md"
)  # its examples are the files of a project, with tests of its own
DOCUMENTS = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path != PROJECT
]


def compiled(example: Example, url: str) -> object:
    """Compile an example for the server at `url`, with its own line numbers and top-level await."""
    source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    source = source.replace("etcd://localhost:2379", url)
    return compile(
        source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
async def test_the_examples_of_a_page_run_in_order(path: Path, kvorum_url: str) -> None:
    namespace: dict[str, Any] = {"__name__": path.stem}
    async with AsyncExitStack() as after:
        # A page may keep open in `stack` what one example opens for those after it.
        after.push_async_callback(lambda: namespace.get("stack", AsyncExitStack()).aclose())
        for example in Document.parse(
            str(path), CodeBlockParser("python", lambda _: None)
        ).examples():
            result = eval(compiled(example, kvorum_url), namespace)  # type: ignore[arg-type] # noqa: S307 - our own pages
            if inspect.iscoroutine(result):
                await result


def test_the_project_of_the_page_about_testing_passes_its_own_tests(
    pytester: pytest.Pytester, pytestconfig: pytest.Config
) -> None:
    sources = [
        str(example.parsed)
        for example in Document.parse(str(PROJECT), CodeBlockParser("python")).examples()
    ]
    for source in sources:
        name = re.match(r"# (\w+\.py)\n", source)
        assert name is not None, source
        pytester.path.joinpath(name[1]).write_text(source)
    arguments = [
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--import-mode=prepend",
    ]
    if binary := pytestconfig.getoption("--kvorum-etcd-bin"):
        arguments.append(f"--kvorum-etcd-bin={binary}")

    result = pytester.runpytest_subprocess(*arguments)

    assert result.ret == 0
    own = "".join(sources).count("def test_")
    assert own == 5
    assert (
        result.parseoutcomes()["passed"] > own + 150
    )  # the suite for backends is one of the files


def test_readme_and_guide_have_examples() -> None:
    """Otherwise the test above could pass without running anything."""
    counts = {
        path.name: len(list(Document.parse(str(path), CodeBlockParser("python")).examples()))
        for path in DOCUMENTS
    }

    assert counts["README.md"] >= 2
    assert counts["guide.md"] >= 15
    assert counts["storage.md"] >= 8


def test_each_test_that_the_table_of_faults_names_is_there() -> None:
    """The table is useful only if its names are right."""
    table = (
        (ROOT / "docs" / "verification.md")
        .read_text(encoding="utf-8")
        .partition("## Each kind of fault")[2]
    )
    named = re.findall(r"`(\w+\.py)(?:::(\w+))?`", table.partition("\n## ")[0])
    sources = {
        path.name: path
        for folder in ("tests", "src/kvorum/testing")
        for path in (ROOT / folder).rglob("*.py")
    }

    assert len(named) > 80
    for file, test in named:
        assert f"def {test}" in sources[file].read_text(encoding="utf-8"), (file, test)
