"""Tests under faults: short in the suite, long with `--long`."""

import pytest


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether to run with the documented numbers."""
    return bool(request.config.getoption("--long"))
