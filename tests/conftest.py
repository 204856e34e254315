"""Fixtures and options of all tests."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http.client import HTTPConnection
from typing import Any

import anyio
import anyio.to_thread
import pytest
from aetcd import rpc
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

import kvorum
from kvorum.etcd.pipeline.admission import Admission
from kvorum.etcd.transport.errors import Call

pytest_plugins = ["pytester", "tests.slow"]

# The duration of an example says more about the machine.
settings.register_profile("kvorum", deadline=None)
settings.load_profile("kvorum")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--single", action="store_true", help="send each call alone, as with the pipeline off"
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run the tests in tests/faults with the documented numbers",
    )
    parser.addoption("--soak-seed", type=int, default=1, help="the seed of the faults of the soak")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio, the only loop that grpc.aio supports."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def calls_are_batched_or_not(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switch batching off for all clients, if `--single` is given."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--single"):
            patch.setattr(Admission, "may_wait", lambda *_: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Fail a test in which Kvorum's code blocks the event loop.

    Installed once for the session: patching the blocking functions takes longer than most tests.
    """
    with blockbuster_ctx("kvorum") as guard:
        # grpc.aio joins its polling thread when the last channel of the process goes, which takes
        # no time.
        guard.functions["threading.Lock.acquire"].can_block_in(
            "threading.py", {"_wait_for_tstate_lock"}
        )
        # coverage locks its data, sometimes while another thread has the lock.
        guard.functions["threading.Lock.acquire"].can_block_in(
            "coverage/collector.py", {"lock_data"}
        )
        yield guard


# --- what neither the public API nor the storage port offers --------------------------------------


def _ask(endpoint: str, method: str, path: str, body: bytes = b"") -> str:
    """Send a request to etcd's JSON gateway, which shares the port with gRPC.

    For what neither the public API nor the storage port offers.
    """
    connection = HTTPConnection(endpoint, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return text
    finally:
        connection.close()


@pytest.fixture(scope="session")
def ask_etcd() -> Callable[..., str]:
    """Send a request to etcd's JSON gateway: endpoint, method, path, body."""
    return _ask


@pytest.fixture
def compact_etcd(kvorum_etcd: kvorum.EmbeddedEtcd) -> Callable[[int], Awaitable[None]]:
    """Compact the history before a revision, in etcd."""

    async def run(revision: int) -> None:
        async with kvorum.connect(kvorum_etcd.url) as client:
            await client.admin.compact(revision)

    return run


class Roles:
    """Manage users and roles with a client that may do so. `enable` adds the user `root`."""

    def __init__(self, client: kvorum.Client) -> None:
        self._client = client

    async def _call(self, method: str, request: Any) -> None:
        cluster = self._client.connection.cluster
        call, deadline = Call(method, "the users", writes=True), anyio.current_time() + 5
        await cluster.call(
            cluster.current, lambda channel: getattr(channel.auth, method), request, call, deadline
        )

    async def add_user(self, name: str, password: str, *roles: str) -> None:
        await self._call("UserAdd", rpc.AuthUserAddRequest(name=name, password=password))
        for role in roles:
            await self._call("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=name, role=role))

    async def change_password(self, name: str, password: str) -> None:
        await self._call(
            "UserChangePassword", rpc.AuthUserChangePasswordRequest(name=name, password=password)
        )

    async def add_role(self, name: str, **prefixes: str) -> None:
        """Add a role; `read`, `write` or `readwrite` name a prefix."""
        await self._call("RoleAdd", rpc.AuthRoleAddRequest(name=name))
        for kind, prefix in prefixes.items():
            start = prefix.encode()
            end = start[:-1] + bytes([start[-1] + 1])
            granted = rpc.Permission(
                permType=rpc.Permission.Type.Value(kind.upper()), key=start, range_end=end
            )
            await self._call(
                "RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name=name, perm=granted)
            )

    async def enable(self, password: str) -> None:
        """Enable authentication on the server."""
        await self._call("RoleAdd", rpc.AuthRoleAddRequest(name="root"))
        await self.add_user("root", password, "root")
        await self._call("AuthEnable", rpc.AuthEnableRequest())

    async def enable_again(self) -> None:
        await self._call("AuthEnable", rpc.AuthEnableRequest())

    async def disable(self) -> None:
        """Disable authentication on the server; all tokens become invalid."""
        await self._call("AuthDisable", rpc.AuthDisableRequest())


@pytest.fixture(scope="session")
def roles_of() -> type[Roles]:
    return Roles


@pytest.fixture
def watchers_of_etcd(kvorum_etcd: kvorum.EmbeddedEtcd) -> Callable[[], Awaitable[int]]:
    """Count the watches that etcd serves, of all clients."""

    return partial(watchers_of, kvorum_etcd)


async def watchers_of(etcd: kvorum.EmbeddedEtcd) -> int:
    """Count the watches that the members serve."""
    total = 0
    for endpoint in etcd.metrics_endpoints:
        text = await anyio.to_thread.run_sync(_ask, endpoint, "GET", "/metrics")
        found = [
            line
            for line in text.splitlines()
            if line.startswith("etcd_debugging_mvcc_watcher_total ")
        ]
        total += int(float(found[0].split()[1]))
    return total


@pytest.fixture(scope="session")
def count_watchers() -> Callable[[kvorum.EmbeddedEtcd], Awaitable[int]]:
    return watchers_of
