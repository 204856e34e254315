"""What all benchmarks share: one embedded server, one client, workers of about 0.9 KB, and coroutines made measurable.

pytest-benchmark knows no coroutines (it would time the making of one, never awaited), so `run` runs them on one event
loop that lives as long as the session.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

import kvorum
from kvorum.lab import LabWorker

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="session")
def run() -> Iterator[Run[Any]]:
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def client(run: Run[Any]) -> Iterator[kvorum.Client]:
    client = kvorum.connect("embedded://", settings=kvorum.EtcdSettings(timeout=30.0))
    run(client.__aenter__())
    version = ".".join(map(str, client.connection.version))
    print(f"\netcd {version}, {os.cpu_count()} cores")
    yield client
    run(client.aclose())


@pytest.fixture(scope="session")
def make_worker() -> Callable[[int], LabWorker]:
    """Make workers whose stored form has about 0.9 KB."""
    return _worker


def _worker(number: int) -> LabWorker:
    worker = LabWorker.new(f"worker-{number:06}", lab_track=f"track-{number % 20:02}")
    worker.metadata.labels |= {"region": "us-east-1", "tier": "standard", "serial": str(number)}
    worker.metadata.annotations["note"] = "x" * 268
    return worker
