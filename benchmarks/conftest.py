"""Fixtures of all benchmarks: one server, the contenders, and the races between them.

pytest-benchmark does not support coroutines (it would time their creation), and runs all rounds of
one benchmark before those of the next. So `run` runs coroutines on one event loop for the session;
`compete` lets the contenders take turns, and passes the timings of each to pytest-benchmark
afterwards.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmarks import sample
from benchmarks.contenders import Contender, lineup
from benchmarks.race import Heat, Result, Run, race
from benchmarks.referee import Referee
from benchmarks.scoreboard import Scoreboard

import kvorum

Heats = Callable[[], Mapping[str, Callable[[], Heat]]]
Compete = Callable[[str, str, str, Heats], None]

_board = pytest.StashKey[Scoreboard]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="fewer rounds of fewer calls, in less than a minute"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_board] = Scoreboard()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(300))  # the first request runs the race for all
            if item.config.getoption("--quick") and _params(item).get("tasks") in {16, 256}:
                item.add_marker(pytest.mark.skip(reason="--quick"))


def _params(item: pytest.Item) -> dict[str, Any]:
    return (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's tables
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    board = config.stash[_board]
    if board:
        terminalreporter.section("races")
        for line in board.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def is_quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def rounds(is_quick: bool) -> int:
    return 3 if is_quick else 5


# --- contenders ---


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def settings(run: Run, request: pytest.FixtureRequest) -> Iterator[kvorum.EtcdSettings]:
    """Start the server; return its address. Its writes wait for the disk, as in production."""
    etcd = kvorum.EmbeddedEtcd(binary=request.config.getoption("--kvorum-etcd-bin"), fsync=True)
    run(etcd.__aenter__())
    version = ".".join(map(str, etcd.version))
    size = len(sample.stored_form_of(1))
    request.config.stash[
        _board
    ].header = f"etcd {version}, {os.cpu_count()} cores, values of {size} bytes"
    yield kvorum.EtcdSettings(endpoints=etcd.endpoints, timeout=30.0)
    run(etcd.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def referee(run: Run, settings: kvorum.EtcdSettings) -> Iterator[Referee]:
    with Referee(settings.endpoints[0], run) as referee:
        yield referee


@pytest.fixture(scope="session")
def contenders(run: Run, settings: kvorum.EtcdSettings) -> Iterator[dict[str, Contender]]:
    opening = lineup(settings)
    yield run(opening.__aenter__())
    run(opening.__aexit__(None, None, None))


# --- races ---


@pytest.fixture(scope="session")
def results() -> dict[tuple[str, str], Mapping[str, Result]]:
    return {}


@pytest.fixture
def compete(
    benchmark: Any,
    results: dict[tuple[str, str], Mapping[str, Result]],
    rounds: int,
    request: pytest.FixtureRequest,
) -> Compete:
    """Run the race of an operation and a column once, and report one contender's result."""

    def compete(operation: str, column: str, name: str, heats: Heats) -> None:
        if (operation, column) not in results:
            results[operation, column] = race(heats(), rounds)
            request.config.stash[_board].add(operation, column, results[operation, column])
        benchmark.group = operation
        result = results[operation, column].get(name)
        if result is None:
            pytest.skip(f"{name} has no means for it")
        _report(benchmark, result)

    return compete


def _report(benchmark: Any, result: Result) -> None:
    """Pass timings to pytest-benchmark, which has no public way to accept them."""
    benchmark._mode = "a race"
    stats = benchmark._make_stats(result.heats[0].calls)
    for heat in result.heats:
        stats.update(heat.seconds)
    if result.has_latencies:
        benchmark.extra_info.update(
            {f"p{percent}": result.latency(percent) for percent in (50, 99)}
        )
