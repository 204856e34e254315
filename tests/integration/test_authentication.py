"""Users, their tokens, and what they may do."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

import kvorum
from kvorum import (
    AuthenticationError,
    ConfigurationError,
    EmbeddedEtcd,
    EtcdSettings,
    Observer,
    Operation,
    PermissionDeniedError,
)
from kvorum.etcd.policies import Policies
from kvorum.etcd.transport import TokenTiming, TransportPolicies
from kvorum.observer import Call
from kvorum.testing import FaultProxy

ROOT = "a secret of root"
ALICE = "a secret of alice"
JWT_TTL = 2.0

pytestmark = pytest.mark.timeout(120)  # etcd hashes passwords slowly on purpose


def jwt_flags(folder: Path) -> list[str]:
    """Return the flag for signed tokens that end soon."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "token.key", folder / "token.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return [
        f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl={JWT_TTL:g}s"
    ]


@pytest.fixture(params=["simple", "jwt"])
def kind(request: pytest.FixtureRequest) -> Literal["simple", "jwt"]:
    kind: Literal["simple", "jwt"] = request.param
    return kind


@pytest.fixture
async def etcd(kind: str, kvorum_etcd: EmbeddedEtcd, tmp_path: Path) -> AsyncIterator[EmbeddedEtcd]:
    """A server that does not check users yet."""
    flags = ["--auth-token=simple"] if kind == "simple" else jwt_flags(tmp_path)
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=flags) as etcd:
        yield etcd


def settings(etcd: EmbeddedEtcd, user: str, password: str) -> EtcdSettings:
    return EtcdSettings(endpoints=etcd.endpoints, prefix="lab", user=user, password=password)


@pytest.fixture
async def guarded(etcd: EmbeddedEtcd, roles_of: Callable[..., Any]) -> EmbeddedEtcd:
    """The server, once it does: alice may read /lab/open/ and write /lab/mine/ and /lab/inbox/."""
    async with kvorum.connect(etcd.url) as client:
        roles = roles_of(client)
        await roles.add_role("reader", read="/lab/open/")
        await roles.add_role("owner", readwrite="/lab/mine/")
        await roles.add_role("sender", write="/lab/inbox/")
        await roles.add_user("alice", ALICE, "reader", "owner", "sender")
        await roles.enable(ROOT)
    return etcd


@pytest.fixture
async def root(guarded: EmbeddedEtcd) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(settings(guarded, "root", ROOT)) as client:
        yield client


class Tokens(Observer):
    """Keeps the operations whose token a server refused; may hold requests for a token.

    Attributes:
        refused: those operations.
        fetching: set once a request for a token is held.
        fetch: lets it through; None to hold none.
        fetched: awaited whenever a token was fetched.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.fetching = anyio.Event()
        self.fetch: anyio.Event | None = None
        self.fetched: Callable[[], Awaitable[None]] | None = None

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        if self.fetch is not None and call.operation == "authenticate":
            self.fetching.set()
            await self.fetch.wait()

    def request_failed(self, call: Call, _endpoint: str, error: kvorum.KvorumError) -> None:
        if isinstance(error, AuthenticationError):
            self.refused.append(call.operation)

    async def after_authentication(self, _endpoint: str) -> None:
        if self.fetched is not None:
            await self.fetched()


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
async def alice(guarded: EmbeddedEtcd, tokens: Tokens) -> AsyncIterator[kvorum.Client]:
    async with kvorum.connect(settings(guarded, "alice", ALICE), observer=tokens) as client:
        yield client


# --- what a user may do ---------------------------------------------------------------------------


async def test_a_role_reads_one_prefix_and_writes_another(
    alice: kvorum.Client, root: kvorum.Client
) -> None:
    await root.backend.set("open/a", b"1")
    mine, store = await alice.backend.create("mine/a", b"1"), alice.backend

    assert await store.exists("open/a")
    assert [entry.key for entry in (await store.list("open/")).entries] == ["open/a"]
    await store.compare_and_swap("mine/a", b"2", expected=mine)
    await store.set("inbox/a", b"1")
    async with store.watch("open/") as watch:
        await root.backend.set("open/b", b"1")
        (change,) = await anext(watch)
    assert change.key == "open/b"


async def test_what_a_user_may_not_do_is_named_with_its_key_and_is_not_done(
    alice: kvorum.Client, root: kvorum.Client
) -> None:
    store = alice.backend
    first = await root.backend.set("open/a", b"1")
    refused = {
        "put /lab/open/a": store.set("open/a", b"2"),
        "transaction /lab/open/a": store.compare_and_swap("open/a", b"2", expected=first),
        "transaction /lab/open/b": store.create("open/b", b"2"),
        "transaction /lab/mine/b, /lab/open/c": store.commit(
            [Operation.put("mine/b", b""), Operation.put("open/c", b"")]
        ),
        "read /lab/inbox/a": store.get("inbox/a"),
        "read /lab/": store.list(""),
        "watch /lab/inbox/": anext(store.watch("inbox/")),
    }

    for operation, call in refused.items():
        with pytest.raises(PermissionDeniedError) as caught:
            await call
        assert caught.value.operation == operation
        assert operation in str(caught.value)
    entry = await root.backend.get("open/a")
    assert entry is not None
    assert entry.mod_revision == first
    assert await root.backend.keys("*") == ["open/a"]


async def test_a_user_that_may_read_nothing_there_is_answered_all_the_same(
    alice: kvorum.Client,
) -> None:
    """A readiness probe asks whether etcd answers; a refusal is an answer."""
    assert await alice.ping() > 0
    assert (await alice.health()).is_healthy


class Secretive(Observer):
    """Refuses questions about the server, as etcd 3.6.9 does to all users but root."""

    def __init__(self, code: StatusCode, words: str) -> None:
        self._error = AioRpcError(code, Metadata(), Metadata(), details=words)

    async def before_request(self, call: Call, _endpoint: str, _message: object) -> None:
        if call.operation in {"status", "alarms"}:
            raise self._error


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_server_that_tells_only_root_how_it_is_serves_others_all_the_same(
    guarded: EmbeddedEtcd,
) -> None:
    """Its version stays unknown, so it is taken for the oldest one that does that."""
    secretive = Secretive(StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
    async with kvorum.connect(settings(guarded, "alice", ALICE), observer=secretive) as client:
        await client.backend.set("mine/a", b"1")

        health = await client.health()
        (endpoint,) = health.endpoints
        assert health.is_healthy
        assert health.alarms is None
        assert endpoint.version == ""
        assert "nested-transactions-bypass-rbac" in endpoint.hazards


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_client_without_a_user_cannot_open_at_such_a_server(guarded: EmbeddedEtcd) -> None:
    secretive = Secretive(StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty")
    with pytest.raises(AuthenticationError):
        async with kvorum.connect(EtcdSettings(endpoints=guarded.endpoints), observer=secretive):
            pass


# --- logging in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_wrong_password_is_refused_at_once(guarded: EmbeddedEtcd) -> None:
    for user, password in (("alice", "another secret"), ("nobody", ALICE)):
        with pytest.raises(AuthenticationError) as caught:
            async with kvorum.connect(settings(guarded, user, password)):
                pass
        assert password not in str(caught.value)


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_client_without_a_user_learns_that_the_server_requires_one(
    guarded: EmbeddedEtcd,
) -> None:
    """A server that tells its version to root only refuses the first request."""
    with pytest.raises(AuthenticationError):
        async with kvorum.connect(EtcdSettings(endpoints=guarded.endpoints)) as client:
            await client.backend.get("a")


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_user_does_no_harm_before_the_server_checks_users(
    etcd: EmbeddedEtcd, roles_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Services are often set up before authentication is enabled."""
    async with kvorum.connect(settings(etcd, "root", ROOT)) as client:
        await client.backend.set("a", b"1")
        assert "authentication is disabled in etcd" in caplog.text
        await roles_of(client).enable(ROOT)

        await client.backend.set("a", b"2")
        assert await client.backend.exists("a")


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_password_comes_from_a_file_and_is_read_again_when_it_is_needed(
    guarded: EmbeddedEtcd, root: kvorum.Client, roles_of: Callable[..., Any], tmp_path: Path
) -> None:
    """Mounted secrets change while the process runs."""
    path = tmp_path / "password"
    path.write_text(f"{ALICE}\n")
    given = EtcdSettings(
        endpoints=guarded.endpoints, prefix="lab", user="alice", password_file=str(path)
    )
    async with kvorum.connect(given) as client:
        await client.backend.set("mine/a", b"1")
        await roles_of(root).change_password("alice", "a newer secret")
        path.write_text("a newer secret")
        await guarded.restart()

        await client.backend.set("mine/a", b"2")


async def test_a_password_file_that_is_not_there_is_named(
    kvorum_etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match=path):
        async with kvorum.connect(
            EtcdSettings(endpoints=kvorum_etcd.endpoints, user="alice", password_file=path)
        ):
            pass


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (EtcdSettings(user="alice"), "has no password"),
        (EtcdSettings(password=ALICE), "no user"),
        (
            EtcdSettings(user="alice", password=ALICE, password_file="/run/secrets/etcd"),
            "exclude each other",
        ),
    ],
)
def test_half_a_user_is_refused_before_anything_is_opened(
    given: EtcdSettings, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        kvorum.connect(given)


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_server_that_has_forgotten_the_token_gets_another(
    guarded: EmbeddedEtcd, alice: kvorum.Client, tokens: Tokens
) -> None:
    """Simple tokens are in the server's memory. Sixteen concurrent calls authenticate once."""
    store = alice.backend
    await store.set("mine/a", b"1")
    token = alice.connection.cluster.tokens.token
    await guarded.restart()
    await alice.connection.cluster.prepare(
        alice.connection.cluster.current, anyio.current_time() + 5
    )

    async with anyio.create_task_group() as group:
        for number in range(16):
            group.start_soon(store.set, f"mine/{number}", b"2")

    assert alice.connection.cluster.tokens.token != token
    assert 0 < len(tokens.refused) <= 16
    assert await store.count("mine/") == 17


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_call_waits_for_the_token_of_another_task_no_longer_than_its_own_deadline(
    alice: kvorum.Client, tokens: Tokens
) -> None:
    alice.connection.cluster.tokens.metadata = (("token", "forgotten.1"),)
    tokens.fetch = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(alice.backend.get, "mine/a")  # it has more time, and fetches a token
        with anyio.fail_after(5):
            await tokens.fetching.wait()
        with anyio.fail_after(2), kvorum.deadline(0.2), pytest.raises(kvorum.UnavailableError):
            await alice.backend.get("mine/a")
        tokens.fetch.set()

    assert await alice.backend.get("mine/a") is None


@pytest.mark.parametrize("kind", ["simple"], indirect=True)
async def test_a_watch_gets_another_token_too(guarded: EmbeddedEtcd, alice: kvorum.Client) -> None:
    """Old servers report a lack of permission when they do not know the token of a watch."""
    await guarded.restart()
    async with alice.backend.watch("mine/") as watch:
        revision = await alice.backend.set("mine/a", b"1")

        (change,) = await anext(watch)
    assert change.revision == revision


@pytest.mark.parametrize("kind", ["jwt"], indirect=True)
async def test_a_token_that_ends_is_renewed_before(alice: kvorum.Client, tokens: Tokens) -> None:
    """Calls and a watch continue for three lives of a token, and no call is refused."""
    store, used = alice.backend, alice.connection.cluster.tokens
    seen = {used.token}
    shown = 0
    async with store.watch("mine/") as watch:
        with anyio.move_on_after(3 * JWT_TTL):
            while True:
                revision = await store.set("mine/a", b"1")
                (change,) = await anext(watch)
                assert change.revision == revision
                seen.add(used.token)
                shown += 1
                await anyio.sleep(0.02)
    assert shown > 50
    assert len(seen) >= 3
    assert tokens.refused == []


# As seen by a client whose clock is an hour behind: it renews no token before a server refuses it.
LATE = Policies(
    transport=TransportPolicies(tokens=TokenTiming(wall_clock=lambda: time.time() - 3600))
)


async def until_refused(client: kvorum.Client, tokens: Tokens) -> None:
    """Call until the token has ended."""
    with anyio.fail_after(20):
        while not tokens.refused:
            await client.backend.exists("mine/a")
            await anyio.sleep(0.1)


@pytest.mark.parametrize("kind", ["jwt"], indirect=True)
async def test_a_token_is_renewed_when_it_ended_by_the_clock_of_the_server_alone(
    guarded: EmbeddedEtcd, tokens: Tokens
) -> None:
    """For calls and for watches."""
    given = settings(guarded, "alice", ALICE)
    async with kvorum.connect(given, observer=tokens, policies=LATE) as alice:
        used = alice.connection.cluster.tokens
        spent, metadata = used.token, used.metadata
        await until_refused(alice, tokens)
        assert used.token != spent

        used.token, used.metadata = spent, metadata
        async with alice.backend.watch("mine/") as watch:
            await alice.backend.set("mine/b", b"1")
            await anext(watch)


@pytest.mark.parametrize("kind", ["jwt"], indirect=True)
async def test_a_watch_that_is_cut_off_when_its_token_has_ended_continues(
    guarded: EmbeddedEtcd, root: kvorum.Client, tokens: Tokens
) -> None:
    """etcd checks the token when a watch begins, so the stream that resumes it needs another."""
    async with FaultProxy(guarded.endpoints[0]) as proxy:
        given = msgspec.structs.replace(
            settings(guarded, "alice", ALICE), endpoints=(proxy.endpoint,)
        )
        async with (
            kvorum.connect(given, observer=tokens, policies=LATE) as client,
            client.backend.watch("mine/") as watch,
        ):
            used = client.connection.cluster.tokens
            spent, metadata = used.token, used.metadata
            await until_refused(client, tokens)
            used.token, used.metadata = spent, metadata
            proxy.cut()

            revision = await root.backend.set("mine/a", b"1")
            with anyio.fail_after(20):
                (change,) = await anext(watch)
            assert change.revision == revision
            assert watch.statistics().resumes == 1


@pytest.mark.parametrize("kind", ["jwt"], indirect=True)
async def test_users_that_change_while_a_token_is_fetched_disturb_no_call(
    alice: kvorum.Client, root: kvorum.Client, roles_of: Callable[..., Any], tokens: Tokens
) -> None:
    """Fetching one takes as long as hashing a password.

    A JWT belongs to one revision of the users, and may be old by then.
    """
    await roles_of(root).add_user("first", "a secret")
    changed = 0

    async def change() -> None:
        nonlocal changed
        if changed < 2:
            await roles_of(root).add_user(f"user-{changed}", "a secret")
            changed += 1

    tokens.fetched = change
    await alice.backend.set("mine/a", b"1")
    assert changed == 2


async def test_a_change_of_the_users_disturbs_no_call(
    alice: kvorum.Client, root: kvorum.Client, roles_of: Callable[..., Any]
) -> None:
    """Each raises the revision of etcd's users; tokens and requests of an older one are refused."""
    done: list[int] = []

    async def write() -> None:
        while len(done) < 200:
            done.append(await alice.backend.set("mine/a", b"1"))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(write)
        for number in range(5):
            await roles_of(root).add_user(f"user-{number}", "a secret")

    async with alice.backend.watch("mine/") as watch:
        await alice.backend.set("mine/a", b"2")
        await anext(watch)


# --- secrets --------------------------------------------------------------------------------------


async def test_no_secret_shows_in_reprs_logs_or_errors(
    guarded: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with kvorum.connect(settings(guarded, "alice", ALICE)) as client:
        await client.backend.set("mine/a", b"1")
        with pytest.raises(PermissionDeniedError) as caught:
            await client.backend.set("other", b"1")
        cluster = client.connection.cluster
        shown = [
            client,
            client.settings,
            client.connection,
            cluster,
            cluster.tokens,
            *cluster.servers,
            caught.value,
        ]
        texts = [*map(repr, shown), str(caught.value), caplog.text, repr(caught.value.__dict__)]
        token = cluster.tokens.token

    assert token
    for text in texts:
        assert ALICE not in text
        assert token not in text


def test_a_replaced_password_does_not_show_either() -> None:
    given = msgspec.structs.replace(EtcdSettings(user="alice", password=ALICE), timeout=3)

    assert ALICE not in repr(given)
