"""The design page lists every module, with the first line of its docstring."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "kvorum"
PAGE = (ROOT / "docs" / "design.md").read_text()
FOLDERS = [SOURCE, *sorted(path.parent for path in SOURCE.rglob("*/__init__.py"))]


def name_of(folder: Path) -> str:
    return ".".join(("kvorum", *folder.relative_to(SOURCE).parts))


def summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} has no docstring"
    return docstring.splitlines()[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_table_of_a_folder_is_what_the_folder_holds(folder: Path) -> None:
    """A table by hand is wrong after the next change."""
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    folders = [path.parent for path in folder.glob("*/__init__.py")]
    told = {path.stem: summary(path) for path in modules}
    told |= {f"{path.name}/": summary(path / "__init__.py") for path in folders}
    rows = "".join(f"| `{name}` | {text} |\n" for name, text in sorted(told.items()))
    table = f"| module | what it is |\n|---|---|\n{rows}"

    section = re.search(rf"### `{re.escape(name_of(folder))}`\n\n((?:\|.*\n)*)", PAGE)

    assert section is not None, f"the page has no section for {name_of(folder)}"
    assert section[1] == table


def test_the_page_lists_no_folder_that_is_gone() -> None:
    assert set(re.findall(r"^### `(kvorum[a-z_.]*)`$", PAGE, re.MULTILINE)) == {
        name_of(folder) for folder in FOLDERS
    }
