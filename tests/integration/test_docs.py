"""Every Python example in README and docs runs, in order, against a real etcd."""

import ast
import inspect
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def compiled(example: Example, url: str) -> object:
    """Compile an example with its own line numbers, for the server at `url`; `await` may stand at its top level."""
    source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    source = source.replace("etcd://localhost:2379", url)
    return compile(source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
async def test_the_examples_of_a_page_run_in_order(path: Path, kvorum_url: str) -> None:
    async with AsyncExitStack() as stack:
        # `stack` keeps open, until the end of the page, what one example opens for those after it.
        namespace: dict[str, object] = {"__name__": path.stem, "stack": stack}

        for example in Document.parse(str(path), CodeBlockParser("python", lambda _: None)).examples():
            result = eval(compiled(example, kvorum_url), namespace)  # type: ignore[arg-type] # noqa: S307 - our own pages
            if inspect.iscoroutine(result):
                await result


def test_readme_and_guide_have_examples() -> None:
    """Else the test above would pass for nothing, should the pages move or the parser change."""
    counts = {
        path.name: len(list(Document.parse(str(path), CodeBlockParser("python")).examples())) for path in DOCUMENTS
    }

    assert counts["README.md"] >= 2
    assert counts["guide.md"] >= 15
