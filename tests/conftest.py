"""What all tests share."""

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio: grpc.aio knows no other."""
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Fail a test in which Kvorum's code blocks the event loop."""
    with blockbuster_ctx("kvorum") as guard:
        # grpc.aio joins its polling thread when the last channel of the process goes, which takes no time.
        guard.functions["threading.Lock.acquire"].can_block_in("threading.py", {"_wait_for_tstate_lock"})
        yield guard
