"""Watches of a user whose token is rejected.

It is renewed at the server that rejected it, and as often as for a call.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from typing_extensions import override

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings, Observer
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport import ClusterTiming, TransportPolicies
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import WatchTiming
from kvorum.etcd.watch.stream import WatchStream
from kvorum.observer import Call
from kvorum.testing import FaultProxy

ROOT, ALICE = "a secret of root", "a secret of alice"
DEADLINE = 20

Forget: TypeAlias = Callable[[], Awaitable[None]]  # makes the server forget the tokens of alice

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def etcd(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[..., Any]
) -> AsyncIterator[EmbeddedEtcd]:
    """A server with authentication, and fast password hashes. Alice may read and write /lab/."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--bcrypt-cost=4"]) as etcd:
        async with kvorum.connect(etcd.url) as client:
            roles = roles_of(client)
            await roles.add_role("owner", readwrite="/lab/")
            await roles.add_user("alice", ALICE, "owner")
            await roles.enable(ROOT)
        yield etcd


@pytest.fixture
async def forget(etcd: EmbeddedEtcd, roles_of: Callable[..., Any]) -> AsyncIterator[Forget]:
    """Make the server forget the tokens of alice, as it does when her password is set."""
    settings = EtcdSettings(endpoints=etcd.endpoints, user="root", password=ROOT)
    async with kvorum.connect(settings) as root:
        roles = roles_of(root)

        async def run() -> None:
            await roles.change_password("alice", ALICE)

        yield run


def settings_of(*endpoints: str) -> EtcdSettings:
    return EtcdSettings(endpoints=endpoints, prefix="lab", user="alice", password=ALICE, timeout=10)


async def test_a_token_is_renewed_at_the_server_that_refused_it(
    etcd: EmbeddedEtcd, forget: Forget
) -> None:
    """The current server may be another one by then, and not even be connected.

    Other watches, and calls, continue.
    """
    async with (
        FaultProxy(etcd.endpoints[0]) as one,
        FaultProxy(etcd.endpoints[0]) as two,
        kvorum.connect(settings_of(one.endpoint, two.endpoint)) as client,
    ):
        cluster = client.connection.cluster
        proxy = one if client.connection.endpoint == one.endpoint else two
        refusing = cluster.current
        first = await client.backend.set("a", b"1")
        async with client.backend.watch("") as other:
            await forget()
            watch = client.backend.watch("", since=first)
            proxy.hold("replies")
            opening = asyncio.create_task(watch.open())
            with anyio.fail_after(DEADLINE):
                await proxy.wait(lambda now: now.held > 0)
                cluster.leave(refusing)
                assert not cluster.current.is_open
                await proxy.heal()
                await opening

                revision = await client.backend.set("a", b"2")
                assert [(await anext(each))[0].revision for each in (watch, other)] == [
                    revision,
                    revision,
                ]
        await watch.aclose()


class Changes(Observer):
    """Changes the user before the next creations of watches, so that their tokens are rejected.

    Attributes:
        left: how many creations are still to be rejected.
        servers: where those were that have been.
    """

    def __init__(self, forget: Forget) -> None:
        self.left = 0
        self.servers: list[str] = []
        self._forget = forget

    @override
    async def before_watch(
        self, subject: str, endpoint: str, revision: int, message: object, /
    ) -> None:
        if self.left:
            self.left -= 1
            self.servers.append(endpoint)
            await self._forget()


@pytest.fixture
def changes(forget: Forget) -> Changes:
    return Changes(forget)


async def test_a_watch_renews_its_token_as_often_as_a_call(
    etcd: EmbeddedEtcd, changes: Changes
) -> None:
    """Three times in one attempt. A later one may succeed, so the error does not blame the user."""
    create = rpc.WatchCreateRequest(key=b"/lab/a", range_end=b"", start_revision=1, prev_kv=False)
    async with kvorum.connect(settings_of(*etcd.endpoints), observer=changes) as client:
        connection = client.connection
        changes.left = 3
        stream = await WatchStream.open(
            connection, create, "/lab/a", anyio.current_time() + DEADLINE
        )
        stream.cancel()
        assert len(changes.servers) == 3
        changes.left = 4
        with pytest.raises(kvorum.UnavailableError, match="are users being changed"):
            await WatchStream.open(connection, create, "/lab/a", anyio.current_time() + DEADLINE)


async def test_a_watch_renews_its_token_as_often_as_the_policies_say(
    etcd: EmbeddedEtcd, changes: Changes
) -> None:
    create = rpc.WatchCreateRequest(key=b"/lab/a", range_end=b"", start_revision=1, prev_kv=False)
    policies = Policies(transport=TransportPolicies(cluster=ClusterTiming(renewals=1)))
    settings = settings_of(*etcd.endpoints)
    async with kvorum.connect(settings, observer=changes, policies=policies) as client:
        changes.left = 2
        with pytest.raises(kvorum.UnavailableError, match="are users being changed"):
            await WatchStream.open(
                client.connection, create, "/lab/a", anyio.current_time() + DEADLINE
            )
    assert changes.left == 0


@pytest.mark.parametrize("times", [3, 6])
async def test_a_watch_opens_while_its_user_is_changed_again_and_again(
    etcd: EmbeddedEtcd, changes: Changes, times: int
) -> None:
    """One attempt makes three renewals, as a call does. It is retried until the deadline."""
    async with kvorum.connect(settings_of(*etcd.endpoints), observer=changes) as client:
        first = await client.backend.set("a", b"1")
        changes.left = times
        async with client.backend.watch("", since=first) as watch:
            revision = await client.backend.set("a", b"2")
            with anyio.fail_after(DEADLINE):
                assert (await anext(watch))[0].revision == revision
    assert len(changes.servers) == times


@pytest.mark.parametrize("times", [3, 6])
async def test_a_watch_resumes_while_its_user_is_changed_again_and_again(
    etcd: EmbeddedEtcd, changes: Changes, times: int
) -> None:
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(settings_of(*etcd.endpoints)) as direct,
        kvorum.connect(settings_of(proxy.endpoint), observer=changes) as client,
        client.backend.watch("") as watch,
    ):
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        changes.left = times
        proxy.cut()
        with anyio.fail_after(DEADLINE):
            revision = await direct.backend.set("a", b"2")
            assert (await waiting)[0].revision == revision
    assert len(changes.servers) == times


class InVain(Observer):
    """Changes the user before each check of a watch that resumes, so that its token is rejected.

    Attributes:
        left: how many checks are still to be rejected.
    """

    def __init__(self, forget: Forget) -> None:
        self.left = 5  # more than the renewals of one call
        self._forget = forget

    @override
    async def before_request(self, call: Call, endpoint: str, message: object, /) -> None:
        is_check = isinstance(message, rpc.RangeRequest) and message.keys_only and call.revision
        if is_check and self.left:
            self.left -= 1
            await self._forget()


async def test_a_token_that_is_refused_to_the_checks_of_a_watch_does_not_end_it(
    etcd: EmbeddedEtcd, forget: Forget
) -> None:
    """A call fails then, and its caller may retry. An open watch retries by itself."""
    in_vain = InVain(forget)
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(settings_of(*etcd.endpoints)) as direct,
        kvorum.connect(settings_of(proxy.endpoint), observer=in_vain) as client,
        client.backend.watch("") as watch,
    ):
        await direct.backend.set("a", b"1")
        await anext(watch)
        proxy.cut()
        revision = await direct.backend.set("a", b"2")
        with anyio.fail_after(DEADLINE):
            assert (await anext(watch))[0].revision == revision
    assert in_vain.left == 0


# --- authentication that is turned off and on, and passwords that change --------------------------


@pytest.fixture
async def roles(etcd: EmbeddedEtcd, roles_of: Callable[..., Any]) -> AsyncIterator[Any]:
    settings = EtcdSettings(endpoints=etcd.endpoints, user="root", password=ROOT)
    async with kvorum.connect(settings) as root:
        yield roles_of(root)


async def test_calls_and_watches_of_a_user_survive_that_authentication_is_turned_off_and_on(
    etcd: EmbeddedEtcd, roles: Any
) -> None:
    """Old servers reject a token that they have forgotten even while authentication is off."""
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(settings_of(proxy.endpoint)) as client,
        client.backend.watch("") as watch,
    ):
        for change in (roles.disable, roles.enable_again):
            await change()
            for cut in (False, True):
                if cut:
                    proxy.cut()
                    await client.backend.exists("a")  # a write would not be retried
                revision = await client.backend.set("a", b"1")
                with anyio.fail_after(DEADLINE):
                    assert (await anext(watch))[0].revision == revision
        assert client.connection.cluster.tokens.token


@pytest.mark.parametrize("follows", [True, False])
async def test_a_watch_waits_a_while_for_the_file_with_its_new_password(
    etcd: EmbeddedEtcd, roles: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, follows: bool
) -> None:
    """If it is not updated in time, the watch fails with the error of the user."""
    timing = WatchTiming() if follows else WatchTiming(password=0.2)
    policies = Policies(watches=timing)
    caplog.set_level("DEBUG", "kvorum.etcd.watch.reader")
    file = tmp_path / "password"
    file.write_text(ALICE)
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(
            msgspec.structs.replace(
                settings_of(proxy.endpoint), password=None, password_file=str(file)
            ),
            policies=policies,
        ) as client,
        client.backend.watch("") as watch,
    ):
        waiting = asyncio.ensure_future(anext(watch))
        await roles.change_password("alice", "another")
        proxy.cut()
        with anyio.fail_after(DEADLINE):
            while "authentication failed" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                await anyio.sleep(0.01)
            if not follows:
                with pytest.raises(kvorum.AuthenticationError):
                    await waiting
                return
        file.write_text("another")
        revision = await client.backend.set("a", b"1")
        with anyio.fail_after(DEADLINE):
            assert (await waiting)[0].revision == revision
