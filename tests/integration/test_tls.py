"""TLS: which certificates are trusted, and what errors say about those that are not."""

import datetime as dt
import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest
import trustme

import kvorum
from kvorum import ConfigurationError, EmbeddedEtcd, EtcdSettings, ServerTls, TlsError

YESTERDAY = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)


class Files:
    """Certificates on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.cacert = self._write("ca.pem", self.ca.cert_pem)
        self._numbers = itertools.count()

    def _write(self, name: str, *blobs: trustme.Blob) -> str:
        path = self.folder / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(path)

    def issue(
        self, name: str, *identities: str, ca: trustme.CA | None = None, expired: bool = False
    ) -> tuple[str, str]:
        """Issue a certificate; return its path and that of its key."""
        until = YESTERDAY if expired else None
        path = f"{name}-{next(self._numbers)}"
        issued = (ca or self.ca).issue_cert(*identities, common_name=name, not_after=until)
        return (
            self._write(f"{path}.pem", *issued.cert_chain_pems),
            self._write(f"{path}.key", issued.private_key_pem),
        )

    def other_ca(self) -> str:
        return self._write("other-ca.pem", trustme.CA().cert_pem)

    def server(
        self, *, wants_client: bool = False, identities: tuple[str, ...] = ("127.0.0.1",)
    ) -> ServerTls:
        cert, key = self.issue("server", *identities)
        return ServerTls(cert, key, self.cacert if wants_client else None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
async def tls(files: Files, kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server with TLS that requires no client certificate."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=files.server()) as etcd:
        yield etcd


@pytest.fixture(scope="module")
async def mutual(files: Files, kvorum_etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """A server that requires client certificates."""
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=files.server(wants_client=True)) as etcd:
        yield etcd


def settings(
    etcd: EmbeddedEtcd, cacert: str | None = None, pair: tuple[str, str] | None = None
) -> EtcdSettings:
    cert, key = pair or (None, None)
    return EtcdSettings(
        endpoints=etcd.endpoints, tls=True, cacert=cacert, cert=cert, key=key, timeout=2
    )


async def refusal(settings: EtcdSettings) -> str:
    """Return the reason why connecting fails."""
    started = anyio.current_time()
    with pytest.raises(TlsError) as caught:
        async with kvorum.connect(settings):
            pass
    assert anyio.current_time() - started < 2 * settings.timeout
    assert caught.value.endpoint == settings.endpoints[0]
    return caught.value.reason


# --- what works -----------------------------------------------------------------------------------


async def test_a_client_that_trusts_the_ca_reads_writes_and_watches(
    tls: EmbeddedEtcd, files: Files
) -> None:
    url = f"{tls.url}/lab"
    async with kvorum.connect(url, settings=EtcdSettings(cacert=files.cacert)) as client:
        async with client.backend.watch("") as watch:
            revision = await client.backend.set("a", b"1")

            (change,) = await anext(watch)
        assert change.revision == revision
        entry = await client.backend.get("a")
        assert entry is not None
        assert entry.value == b"1"
        assert (await client.health()).is_healthy


async def test_a_client_with_a_certificate_is_accepted(mutual: EmbeddedEtcd, files: Files) -> None:
    async with kvorum.connect(
        settings(mutual, files.cacert, files.issue("client", "client"))
    ) as client:
        await client.backend.set("a", b"1")

        assert await client.backend.exists("a")


async def test_the_name_in_a_certificate_may_differ_from_the_address(
    files: Files, kvorum_etcd: EmbeddedEtcd
) -> None:
    """Behind a tunnel or a port-forward the address is not the one in the certificate."""
    certificates = files.server(identities=("etcd.example",))
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=certificates) as etcd:
        right = msgspec.structs.replace(settings(etcd, files.cacert), server_name="etcd.example")
        async with kvorum.connect(right) as client:
            await client.backend.set("a", b"1")

        wrong = msgspec.structs.replace(right, server_name="other.example")
        assert "other.example" in await refusal(wrong)
        assert "127.0.0.1" in await refusal(settings(etcd, files.cacert))


async def test_a_certificate_means_tls() -> None:
    assert EtcdSettings(cacert="/ca.pem").tls
    assert EtcdSettings.from_url("etcd://localhost", base=EtcdSettings(cacert="/ca.pem")).tls


# --- what does not, and why -----------------------------------------------------------------------


async def test_a_plain_client_learns_that_the_server_talks_tls(tls: EmbeddedEtcd) -> None:
    reason = await refusal(EtcdSettings(endpoints=tls.endpoints, timeout=2))

    assert "the server requires TLS" in reason
    assert "etcds://" in reason


async def test_a_plain_client_learns_that_the_server_requires_tls_and_a_certificate(
    mutual: EmbeddedEtcd,
) -> None:
    assert "the server requires TLS" in await refusal(
        EtcdSettings(endpoints=mutual.endpoints, timeout=2)
    )


async def test_a_tls_client_learns_that_the_server_is_plain(
    kvorum_etcd: EmbeddedEtcd, files: Files
) -> None:
    assert "the server does not use TLS" in await refusal(settings(kvorum_etcd, files.cacert))


async def test_a_server_of_another_ca_is_not_trusted(tls: EmbeddedEtcd, files: Files) -> None:
    other = files.other_ca()

    reason = await refusal(settings(tls, other))
    assert "the server's certificate is not accepted" in reason
    assert other in reason


async def test_a_server_of_a_private_ca_is_not_trusted_by_default(tls: EmbeddedEtcd) -> None:
    assert "the server's certificate is not accepted" in await refusal(settings(tls))


async def test_a_server_whose_certificate_has_expired_is_not_trusted(
    files: Files, kvorum_etcd: EmbeddedEtcd
) -> None:
    cert, key = files.issue("expired-server", "127.0.0.1", expired=True)
    async with EmbeddedEtcd(binary=kvorum_etcd.binary, tls=ServerTls(cert, key)) as etcd:
        assert "expired" in await refusal(settings(etcd, files.cacert))


async def test_a_client_without_a_certificate_learns_that_it_needs_one(
    mutual: EmbeddedEtcd, files: Files
) -> None:
    assert "wants a client's certificate" in await refusal(settings(mutual, files.cacert))


async def test_a_client_whose_certificate_has_expired_learns_that(
    mutual: EmbeddedEtcd, files: Files
) -> None:
    pair = files.issue("expired-client", "client", expired=True)

    reason = await refusal(settings(mutual, files.cacert, pair))
    assert pair[0] in reason
    assert "expired" in reason


async def test_a_client_of_another_ca_learns_that_its_certificate_is_not_accepted(
    mutual: EmbeddedEtcd, files: Files
) -> None:
    pair = files.issue("other-client", "client", ca=trustme.CA())

    reason = await refusal(settings(mutual, files.cacert, pair))
    assert "does not accept the client's certificate" in reason
    assert pair[0] in reason


async def test_an_unavailable_server_is_not_reported_as_a_problem_of_tls(files: Files) -> None:
    away = EtcdSettings(endpoints=("127.0.0.1:1",), cacert=files.cacert, timeout=2)
    with pytest.raises(kvorum.UnavailableError) as caught:
        async with kvorum.connect(away):
            pass

    assert not isinstance(caught.value, TlsError)


@pytest.mark.parametrize("part", ["cacert", "cert", "key"])
@pytest.mark.parametrize("fault", ["missing", "nonsense"])
async def test_an_unusable_file_is_named(
    files: Files, tmp_path: Path, part: str, fault: str
) -> None:
    cert, key = files.issue("client", "client")
    bad = tmp_path / "bad.pem"
    if fault == "nonsense":
        bad.write_text("this is no certificate")
    given = msgspec.structs.replace(
        EtcdSettings(cacert=files.cacert, cert=cert, key=key), **{part: str(bad)}
    )

    with pytest.raises(ConfigurationError, match=str(bad)):
        async with kvorum.connect(given):
            pass


async def test_a_key_of_another_certificate_is_refused(files: Files) -> None:
    cert, _ = files.issue("client", "client")
    _, key = files.issue("other", "client")

    with pytest.raises(ConfigurationError, match="the private key does not match the certificate"):
        async with kvorum.connect(EtcdSettings(cacert=files.cacert, cert=cert, key=key)):
            pass


def test_half_a_pair_is_refused_before_anything_is_opened() -> None:
    for half in (EtcdSettings(cert="/c.pem"), EtcdSettings(key="/k.pem")):
        with pytest.raises(ConfigurationError, match="cert and key go together"):
            kvorum.connect(half)


# --- replaced on disk -----------------------------------------------------------------------------


async def test_certificates_that_were_replaced_on_disk_are_used_by_the_next_connection(
    tmp_path: Path, kvorum_etcd: EmbeddedEtcd
) -> None:
    """The CA changes during the life of a cluster; the client is not restarted."""
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
    old, new = Files(folders[0]), Files(folders[1])
    old_server, new_server = old.server(wants_client=True), new.server(wants_client=True)
    pair = old.issue("client", "client")
    new_pair = new.issue("client", "client")
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, tls=old_server) as etcd,
        kvorum.connect(settings(etcd, old.cacert, pair)) as client,
    ):
        await client.backend.set("a", b"1")
        old_files = [old_server.cert, old_server.key, old.cacert, *pair]
        new_files = [new_server.cert, new_server.key, new.cacert, *new_pair]
        for source, target in zip(new_files, old_files, strict=True):
            shutil.copy(source, target)
        await etcd.restart()

        assert await client.backend.exists("a")
        async with client.backend.watch("") as watch:
            await client.backend.set("a", b"2")
            await anext(watch)


async def test_a_certificate_that_expires_while_the_client_runs_is_named(
    tmp_path: Path, kvorum_etcd: EmbeddedEtcd
) -> None:
    """That of a certificate which was not replaced; gRPC calls it corrupted data."""
    mine = Files(tmp_path)
    cert, key = mine.issue("client", "client")
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, tls=mine.server(wants_client=True)) as etcd,
        kvorum.connect(settings(etcd, mine.cacert, (cert, key))) as client,
    ):
        await client.backend.set("a", b"1")
        for source, target in zip(
            mine.issue("client", "client", expired=True), (cert, key), strict=True
        ):
            shutil.copy(source, target)
        await etcd.restart()

        for call in (client.backend.get("a"), client.ping()):
            with pytest.raises(TlsError, match="expired"):
                await call
        (endpoint,) = (await client.health()).endpoints
        assert "expired" in endpoint.error
        for source, target in zip(mine.issue("client", "client"), (cert, key), strict=True):
            shutil.copy(source, target)
        await client.backend.set("a", b"2")


async def test_certificates_that_are_half_replaced_do_not_disturb(
    tmp_path: Path, kvorum_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    """Files are replaced one after the other, and a connection may be lost meanwhile."""
    mine = Files(tmp_path)
    certificates = mine.server(wants_client=True)
    cert, key = mine.issue("client", "client")
    _, other_key = mine.issue("other", "client")
    async with (
        EmbeddedEtcd(binary=kvorum_etcd.binary, tls=certificates) as etcd,
        kvorum.connect(settings(etcd, mine.cacert, (cert, key))) as client,
    ):
        shutil.copy(other_key, key)
        await etcd.restart()

        await client.backend.set("a", b"1")
        assert "unusable certificates on disk" in caplog.text
