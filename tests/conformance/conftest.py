"""Deployments of etcd: authentication, number of members, and with or without batching."""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trustme
from anyio.from_thread import start_blocking_portal

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, ServerTls
from kvorum.embedded.binary import find_binary

SECURITIES: Final = ("plain", "tls", "mutual-tls", "tls-and-roles")
PREFIX: Final = "suite"
PASSWORD: Final = "a secret"


class Deployment:
    """A cluster, and the settings of two clients: a user, and an operator with all rights."""

    def __init__(self, etcd: EmbeddedEtcd, user: EtcdSettings, operator: EtcdSettings) -> None:
        self.etcd = etcd
        self.user = user
        self.operator = operator


class Deployments:
    """The deployments in use. Each is started once and runs until the end of the session."""

    def __init__(
        self, binary: Path, folder: Path, roles_of: Callable[[kvorum.Client], Any]
    ) -> None:
        self.stack = AsyncExitStack()
        self._binary = binary
        self._folder = folder
        self._roles_of = roles_of
        self._started: dict[tuple[str, int], Deployment] = {}
        ca = trustme.CA()
        self._cacert = self._file("ca.pem", ca.cert_pem)
        self._server = self._issue(ca, "127.0.0.1")
        self._client = self._issue(ca, "client")

    def _file(self, name: str, blob: trustme.Blob) -> str:
        path = self._folder / name
        path.write_bytes(blob.bytes())
        return str(path)

    def _issue(self, ca: trustme.CA, name: str) -> tuple[str, str]:
        issued = ca.issue_cert(name)
        return self._file(f"{name}.pem", issued.cert_chain_pems[0]), self._file(
            f"{name}.key", issued.private_key_pem
        )

    async def get(self, security: str, members: int) -> Deployment:
        if (security, members) not in self._started:
            self._started[security, members] = await self._start(security, members)
        return self._started[security, members]

    async def _start(self, security: str, members: int) -> Deployment:
        client_ca = self._cacert if security == "mutual-tls" else None
        tls = None if security == "plain" else ServerTls(*self._server, client_ca)
        flags = ["--auth-token=simple", "--bcrypt-cost=4"]
        etcd = EmbeddedEtcd(binary=self._binary, members=members, tls=tls, arguments=flags)
        await self.stack.enter_async_context(etcd)
        cacert = None if tls is None else self._cacert
        cert, key = self._client if client_ca else (None, None)
        any_user = EtcdSettings(
            endpoints=etcd.endpoints, prefix=PREFIX, cacert=cacert, cert=cert, key=key
        )
        if security != "tls-and-roles":
            return Deployment(etcd, any_user, any_user)
        async with kvorum.connect(any_user) as client:
            roles = self._roles_of(client)
            await roles.add_role("worker", readwrite=f"/{PREFIX}/")
            await roles.add_user("worker", PASSWORD, "worker")
            await roles.enable(PASSWORD)
        user, operator = (
            EtcdSettings(
                endpoints=etcd.endpoints, prefix=PREFIX, cacert=cacert, user=name, password=PASSWORD
            )
            for name in ("worker", "root")
        )
        return Deployment(etcd, user, operator)


def chosen(version: tuple[int, ...], *, is_long: bool) -> list[tuple[str, int, bool]]:
    """Return the deployments to test.

    All of them, or enough to cover each pair of security, size, pipeline and version.
    """
    if is_long:
        return [
            (security, members, on)
            for security in SECURITIES
            for members in (1, 3)
            for on in (True, False)
        ]
    is_old = version < (3, 5)
    return [
        (security, 1 if (number % 2 == 0) is is_old else 3, (number in {0, 3}) is is_old)
        for number, security in enumerate(SECURITIES)
    ]


# Cached, because it runs `etcd --version`, and is asked for each of the tests.
binary_of = cache(find_binary)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "deployment" in metafunc.fixturenames:
        binary = binary_of(metafunc.config.getoption("--kvorum-etcd-bin"))
        names = chosen(binary.version, is_long=bool(metafunc.config.getoption("--long")))
        ids = [f"{name}-{members}-{'pipeline' if on else 'single'}" for name, members, on in names]
        metafunc.parametrize("deployment", names, ids=ids, indirect=True)


@pytest.fixture(scope="session")
def start_deployment(
    kvorum_etcd: EmbeddedEtcd,
    tmp_path_factory: pytest.TempPathFactory,
    roles_of: Callable[[kvorum.Client], Any],
) -> Iterator[Callable[[str, int], Deployment]]:
    """Start a deployment, or return the running one. It runs on an event loop in its own thread."""
    made = Deployments(kvorum_etcd.binary, tmp_path_factory.mktemp("certificates"), roles_of)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(made.stack):
        yield lambda security, members: portal.call(made.get, security, members)


@pytest.fixture
def deployment(
    request: pytest.FixtureRequest, start_deployment: Callable[[str, int], Deployment]
) -> Deployment:
    security, members, on = request.param
    started = start_deployment(security, members)
    return Deployment(
        started.etcd, msgspec.structs.replace(started.user, pipeline=on), started.operator
    )
