"""No frame keeps the error that it raises: the error's traceback keeps the frame.

Such a cycle keeps the locals of all callers, and a watch among them, until the garbage collector
runs.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import kvorum

SOURCE = Path(kvorum.__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def raised_and_kept(function: ast.AST) -> Iterator[str]:
    """Yield the local names that a function raises and does not delete in a `finally`."""
    nodes = list(ast.walk(function))
    local = {each.arg for each in nodes if isinstance(each, ast.arg)}
    for each in nodes:
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            local.add(each.id)
    deleted = {
        target.id
        for each in nodes
        if isinstance(each, ast.Try)
        for statement in each.finalbody
        if isinstance(statement, ast.Delete)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for each in nodes:
        if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Name):
            yield from {each.exc.id} & (local - deleted)


def test_a_function_that_raises_a_local_name_deletes_it() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{function.lineno} raises {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, FUNCTIONS)
        for name in raised_and_kept(function)
    ]

    assert found == []


def test_a_name_that_is_raised_and_kept_is_found() -> None:
    kept = ast.parse("def f(error):\n    raise error")
    released = ast.parse(
        "def f(error):\n    try:\n        raise error\n    finally:\n        del error"
    )

    assert list(raised_and_kept(kept.body[0])) == ["error"]
    assert list(raised_and_kept(released.body[0])) == []
