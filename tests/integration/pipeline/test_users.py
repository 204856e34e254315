"""Batches give a user no permission that single calls do not have."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.integration.pipeline.batching import all_of, warm_up

import kvorum
from kvorum import EmbeddedEtcd, Entry, EtcdSettings, PermissionDeniedError, ServerTls

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def guarded(kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(
        binary=kvorum_etcd.binary, arguments=["--auth-token=simple", "--bcrypt-cost=4"]
    ) as etcd:
        yield etcd


async def test_what_a_role_does_not_allow_is_refused_in_a_batch_too(
    guarded: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    """Nested transactions bypass RBAC on some versions: writes are not batched there."""
    async with kvorum.connect(guarded.url) as client:
        roles = roles_of(client)
        await roles.add_role("owner", readwrite="/lab/mine/")
        await roles.add_user("alice", "a secret", "owner")
        await roles.enable("another secret")
    settings = EtcdSettings(
        endpoints=guarded.endpoints, prefix="lab", user="alice", password="a secret"
    )
    async with kvorum.connect(settings) as alice:
        store = alice.backend
        written = await all_of(
            *(store.set(f"{'other' if n % 2 else 'mine'}/{n}", b"1") for n in range(100))
        )
        created = await all_of(
            *(store.create(f"{'other' if n % 2 else 'mine'}/c{n}", b"1") for n in range(100))
        )
        found = await all_of(
            *(store.get(f"{'other' if n % 2 else 'mine'}/{n}") for n in range(100))
        )

    assert [type(answer) for answer in written] == [int, PermissionDeniedError] * 50
    assert [type(answer) for answer in created] == [int, PermissionDeniedError] * 50
    assert [type(answer) for answer in found] == [Entry, PermissionDeniedError] * 50


async def test_an_unauthenticated_client_is_rejected_in_a_batch_too_once_auth_is_enabled(
    guarded: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any]
) -> None:
    """Also while calls are in flight, on servers that check nothing in nested transactions."""
    async with (
        kvorum.connect(guarded.url) as client,
        kvorum.connect(f"{guarded.url}/lab") as anonymous,
    ):
        await warm_up(anonymous)
        await roles_of(client).enable("a secret")
        written = await all_of(
            *(anonymous.backend.set(f"k{number}", b"1") for number in range(100))
        )
        created = await all_of(
            *(anonymous.backend.create(f"c{number}", b"1") for number in range(100))
        )
        found = await all_of(
            *(anonymous.backend.get(f"warm-{number % 10}") for number in range(100))
        )

    assert all(
        isinstance(answer, kvorum.AuthenticationError) for answer in (*written, *created, *found)
    )


async def test_a_user_by_certificate_gets_no_more_permission_from_a_batch(
    kvorum_etcd: EmbeddedEtcd, roles_of: Callable[[kvorum.Client], Any], tmp_path: Path
) -> None:
    """Such a client has neither a name nor a password, but is a user all the same."""
    ca = trustme.CA()
    files = {}
    for name, issued in {
        "server": ca.issue_cert("127.0.0.1"),
        "alice": ca.issue_cert("a", common_name="alice"),
    }.items():
        files[name] = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(files[name][0])
        issued.private_key_pem.write_to_path(files[name][1])
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ServerTls(*files["server"], str(tmp_path / "ca.pem"))
    flags = ["--auth-token=simple", "--bcrypt-cost=4"]
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=tls, arguments=flags) as etcd:
        settings = EtcdSettings(
            endpoints=etcd.endpoints,
            prefix="lab",
            cacert=str(tmp_path / "ca.pem"),
            cert=files["alice"][0],
            key=files["alice"][1],
        )
        async with kvorum.connect(settings) as client:
            roles = roles_of(client)
            await roles.add_role("owner", readwrite="/lab/mine/")
            await roles.add_user("alice", "a secret", "owner")
            await roles.enable("another secret")
        async with kvorum.connect(settings) as alice:
            store = alice.backend
            written = await all_of(
                *(store.create(f"{'other' if n % 2 else 'mine'}/{n}", b"1") for n in range(40))
            )
            found = await all_of(
                *(store.get(f"{'other' if n % 2 else 'mine'}/{n}") for n in range(40))
            )

    assert [type(answer) for answer in written] == [int, PermissionDeniedError] * 20
    assert [type(answer) for answer in found] == [Entry, PermissionDeniedError] * 20
