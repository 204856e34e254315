"""Faults: short in the suite, long with `--long`."""

import pytest


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether there is time for the numbers that the documentation names."""
    return bool(request.config.getoption("--long"))
