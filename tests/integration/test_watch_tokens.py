"""Watches of a user whose token is not taken.

It is renewed where it was refused, and as often as for a call.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import kvorum
from kvorum import EmbeddedEtcd, EtcdSettings
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.watch import WatchTiming
from kvorum.etcd.watch.last_change import LastChange
from kvorum.etcd.watch.reader import WatchReader
from kvorum.etcd.watch.stream import WatchStream
from kvorum.testing import FaultProxy

ROOT, ALICE = "a secret of root", "a secret of alice"
DEADLINE = 20

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def etcd(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[..., Any]
) -> AsyncIterator[EmbeddedEtcd]:
    """A server that checks users, and hashes their passwords fast.

    Alice may read and write /lab/.
    """
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=["--bcrypt-cost=4"]) as etcd:
        async with kvorum.connect(etcd.url) as client:
            roles = roles_of(client)
            await roles.add_role("owner", readwrite="/lab/")
            await roles.add_user("alice", ALICE, "owner")
            await roles.enable(ROOT)
        yield etcd


@pytest.fixture
async def forget(
    etcd: EmbeddedEtcd, roles_of: Callable[..., Any]
) -> AsyncIterator[Callable[[], Any]]:
    """Have the server forget alice's tokens, as it does when her password is set."""
    settings = EtcdSettings(endpoints=etcd.endpoints, user="root", password=ROOT)
    async with kvorum.connect(settings) as root:
        roles = roles_of(root)

        async def run() -> None:
            await roles.change_password("alice", ALICE)

        yield run


def settings_of(*endpoints: str) -> EtcdSettings:
    return EtcdSettings(endpoints=endpoints, prefix="lab", user="alice", password=ALICE, timeout=10)


async def test_a_token_is_renewed_at_the_server_that_refused_it(
    etcd: EmbeddedEtcd, forget: Callable[[], Any]
) -> None:
    """Another one may be the server of now, and not even be connected to.

    Other watches, and calls, go on.
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


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch, forget: Callable[[], Any]
) -> Callable[[int], list[str]]:
    """Have the user changed before each of the next creations of watches.

    Their tokens are refused.
    """

    def begin(times: int) -> list[str]:
        create = WatchStream._create
        changed: list[str] = []

        async def changed_before(stream: WatchStream, request: Any) -> None:
            if len(changed) < times:
                changed.append(stream.server.address)
                await forget()
            await create(stream, request)

        monkeypatch.setattr(WatchStream, "_create", changed_before)
        return changed

    return begin


async def test_a_watch_renews_its_token_as_often_as_a_call(
    etcd: EmbeddedEtcd, refuse: Callable[[int], list[str]]
) -> None:
    """Three times in one attempt.

    Then a later attempt may be luckier, so it is no refusal of the user.
    """
    create = rpc.WatchCreateRequest(key=b"/lab/a", range_end=b"", start_revision=1, prev_kv=False)
    async with kvorum.connect(settings_of(*etcd.endpoints)) as client:
        connection = client.connection
        changed = refuse(3)
        stream = await WatchStream.open(
            connection, create, "/lab/a", anyio.current_time() + DEADLINE
        )
        stream.cancel()
        assert len(changed) == 3
        refuse(4)
        with pytest.raises(kvorum.UnavailableError, match="are users being changed"):
            await WatchStream.open(connection, create, "/lab/a", anyio.current_time() + DEADLINE)


@pytest.mark.parametrize("times", [3, 6])
async def test_a_watch_opens_while_its_user_is_changed_again_and_again(
    etcd: EmbeddedEtcd, refuse: Callable[[int], list[str]], times: int
) -> None:
    """Three renewals are a call's, too. After them it is tried again, until its deadline."""
    async with kvorum.connect(settings_of(*etcd.endpoints)) as client:
        first = await client.backend.set("a", b"1")
        changed = refuse(times)
        async with client.backend.watch("", since=first) as watch:
            revision = await client.backend.set("a", b"2")
            with anyio.fail_after(DEADLINE):
                assert (await anext(watch))[0].revision == revision
    assert len(changed) == times


@pytest.mark.parametrize("times", [3, 6])
async def test_a_watch_goes_on_while_its_user_is_changed_again_and_again(
    etcd: EmbeddedEtcd, refuse: Callable[[int], list[str]], times: int
) -> None:
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(settings_of(*etcd.endpoints)) as direct,
        kvorum.connect(settings_of(proxy.endpoint)) as client,
        client.backend.watch("") as watch,
    ):
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        changed = refuse(times)
        proxy.cut()
        with anyio.fail_after(DEADLINE):
            revision = await direct.backend.set("a", b"2")
            assert (await waiting)[0].revision == revision
    assert len(changed) == times


async def test_a_token_that_is_refused_to_the_checks_of_a_watch_does_not_end_it(
    etcd: EmbeddedEtcd, forget: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call fails then, and the next one may be luckier.

    A watch that is open tries again by itself.
    """
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(settings_of(*etcd.endpoints)) as direct,
        kvorum.connect(settings_of(proxy.endpoint)) as client,
        client.backend.watch("") as watch,
    ):
        await direct.backend.set("a", b"1")
        await anext(watch)
        tokens = client.connection.cluster.tokens
        check, renew, left = LastChange.check, tokens.renew, 4

        async def renew_in_vain(*arguments: Any) -> None:
            nonlocal left
            await renew(*arguments)
            if left:
                left -= 1
                await forget()

        async def check_in_vain(last: LastChange, *arguments: Any) -> None:
            if left:
                await forget()
            monkeypatch.setattr(tokens, "renew", renew_in_vain)
            await check(last, *arguments)

        monkeypatch.setattr(LastChange, "check", check_in_vain)
        proxy.cut()
        revision = await direct.backend.set("a", b"2")
        with anyio.fail_after(DEADLINE):
            assert (await anext(watch))[0].revision == revision
    assert left == 0


# --- users that are no longer checked, and passwords that change ----------------------------------


@pytest.fixture
async def roles(etcd: EmbeddedEtcd, roles_of: Callable[..., Any]) -> AsyncIterator[Any]:
    settings = EtcdSettings(endpoints=etcd.endpoints, user="root", password=ROOT)
    async with kvorum.connect(settings) as root:
        yield roles_of(root)


async def test_calls_and_watches_of_a_user_outlive_that_users_are_checked_no_more_and_again(
    etcd: EmbeddedEtcd, roles: Any
) -> None:
    """Old servers refuse a token that they have forgotten even then."""
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
                    await client.backend.exists("a")  # a write would not be sent again
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
    caplog.set_level("DEBUG", "kvorum.etcd.watch.reader")
    file = tmp_path / "password"
    file.write_text(ALICE)
    async with (
        FaultProxy(etcd.endpoints[0]) as proxy,
        kvorum.connect(
            msgspec.structs.replace(
                settings_of(proxy.endpoint), password=None, password_file=str(file)
            )
        ) as client,
        kvorum.EtcdStorageBackend(client, "lab", watches=timing).watch("") as watch,
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


async def test_a_mistake_while_one_watch_opens_ends_no_other(
    kvorum_client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_once = WatchReader._open_once

    async def fail(feed: WatchReader, *rest: Any) -> None:
        assert not feed.subject.endswith("/bad/")
        await open_once(feed, *rest)

    monkeypatch.setattr(WatchReader, "_open_once", fail)
    async with kvorum_client.backend.watch("") as other:
        with pytest.raises(kvorum.InternalError) as caught:
            await kvorum_client.backend.watch("bad/").open()
        assert isinstance(caught.value.__cause__, AssertionError)
        revision = await kvorum_client.backend.set("a", b"1")
        with anyio.fail_after(DEADLINE):
            assert (await anext(other))[0].revision == revision
