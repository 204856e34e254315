"""The mark `slow`: tests that need a server, and tests that take more than a tenth of a second.

The first are known by their fixtures. The second are listed in `slow.txt`, by class and function
and without the module, so that moving a test keeps its mark. Two options keep the list true:

- `--measure-slow` rewrites it from the run at hand, for the tests that this run covers.
- `--slow-limit=SECONDS` fails the run if a test without the mark takes longer. CI does not use it:
  its machines are busy.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import pytest

LIMIT: Final = 0.1  # seconds
LIST: Final = Path(__file__).with_name("slow.txt")


def name_of(nodeid: str) -> str:
    """Return the class and function of a test, without its module and parameters."""
    return nodeid.partition("::")[2].partition("[")[0]


def remeasured(
    listed: Iterable[str], seconds: Mapping[str, float], limit: float = LIMIT
) -> list[str]:
    """Return the new list: measured tests by their time, and all others unchanged."""
    kept = {name for name in listed if name not in seconds}
    return sorted(kept | {name for name, took in seconds.items() if took > limit})


def needs_server(item: pytest.Item) -> bool:
    """Tell whether a test runs on an etcd that its fixtures start."""
    callspec = getattr(item, "callspec", None)
    store = callspec.params.get("store_url") if callspec is not None else None
    return store == "etcd" or "kvorum_etcd" in getattr(item, "fixturenames", ())


class Slow:
    """Marks slow tests, and measures the others."""

    def __init__(self, config: pytest.Config) -> None:
        self._limit: float | None = config.getoption("--slow-limit")
        self._measure: float | None = config.getoption("--measure-slow")
        self._listed = LIST.read_text().split()
        self._seconds: dict[str, float] = {}
        self._names: set[str] | None = None  # of all tests, if all are collected

    @pytest.hookimpl(tryfirst=True)  # before `-m` selects
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if config.args == config.getini("testpaths"):
            self._names = {name_of(item.nodeid) for item in items}
        listed = frozenset(self._listed)
        for item in items:
            if needs_server(item):
                item.add_marker("needs_server")
            if needs_server(item) or name_of(item.nodeid) in listed:
                item.add_marker("slow")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how long a test took. With xdist this runs where the reports arrive."""
        if report.when == "call" and "needs_server" not in report.keywords:
            name = name_of(report.nodeid)
            self._seconds[name] = max(self._seconds.get(name, 0), report.duration)

    def _too_slow(self) -> list[str]:
        limit = self._limit
        if limit is None:
            return []
        listed = frozenset(self._listed)
        return [name for name, took in self._seconds.items() if took > limit and name not in listed]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        is_worker = hasattr(session.config, "workerinput")  # of xdist: it has a part of the tests
        if self._measure is not None and not is_worker:
            listed = remeasured(self._listed, self._seconds, self._measure)
            self._listed = [each for each in listed if self._names is None or each in self._names]
            LIST.write_text("".join(f"{name}\n" for name in self._listed))
        if self._too_slow() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name in self._too_slow():
            terminalreporter.write_line(
                f"SLOW {name} took {self._seconds[name]:.2f} s and is not marked:"
                " run it with --measure-slow, or make it faster"
            )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-limit", type=float, metavar="SECONDS", help="fail if an unmarked test takes longer"
    )
    parser.addoption(
        "--measure-slow",
        type=float,
        nargs="?",
        const=LIMIT,
        metavar="SECONDS",
        help=f"rewrite {LIST.name}: the tests of this run that take longer (default {LIMIT})",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs a server, or takes more than 0.1 s")
    config.addinivalue_line("markers", "needs_server: runs on an etcd that its fixtures start")
    config.pluginmanager.register(Slow(config), "kvorum-slow")
