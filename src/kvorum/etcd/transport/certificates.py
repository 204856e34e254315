"""Certificates and keys in files.

They are read for each new connection, so that files may be replaced.
"""

import ssl
from functools import partial
from pathlib import Path
from typing import NoReturn, Self

import anyio.to_thread
import msgspec

from kvorum.errors import ConfigurationError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.settings import EtcdSettings


class Certificates(msgspec.Struct, frozen=True):
    """The contents of the files, in PEM, as gRPC takes it.

    Attributes:
        authorities: the certificates to trust; None for those that gRPC ships.
        chain: the client's certificate.
        key: its key. It is in no `repr`.
    """

    authorities: bytes | None = None
    chain: bytes | None = None
    key: bytes | None = None

    def __repr__(self) -> str:
        return f"<Certificates [{'with' if self.chain else 'without'} a client certificate]>"

    @classmethod
    async def read(cls, settings: EtcdSettings) -> Self:
        """Read the files that the settings name.

        Raises:
            ConfigurationError: a file cannot be read or is not valid PEM, or key and certificate do
                not match.
        """
        return await anyio.to_thread.run_sync(cls._read, settings)

    @classmethod
    def _read(cls, settings: EtcdSettings) -> Self:
        context(settings)  # OpenSSL reports what is wrong with a file; gRPC does not
        files = (settings.cacert, settings.cert, settings.key)
        return cls(*(None if path is None else Path(path).read_bytes() for path in files))

    def credentials(self) -> rpc.ChannelCredentials:
        """Return them as a channel takes them."""
        return rpc.ssl_channel_credentials(self.authorities, self.key, self.chain)


def context(settings: EtcdSettings) -> ssl.SSLContext:
    """Return the same settings for Python's own TLS. Reads files, so it blocks.

    Raises:
        ConfigurationError: see `Certificates.read`.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.cacert is None:
        made.load_default_certs()
    else:
        try:
            made.load_verify_locations(settings.cacert)
        except OSError as exc:  # ssl.SSLError is one
            raise ConfigurationError(
                f"cacert {settings.cacert}: {_problem(exc, 'certificate')}"
            ) from exc
    if settings.cert is not None and settings.key is not None:
        try:
            made.load_cert_chain(
                settings.cert, settings.key, password=partial(_refuse_passphrase, settings.key)
            )
        except OSError as exc:
            what = f"cert {settings.cert} with key {settings.key}"
            raise ConfigurationError(f"{what}: {_problem(exc, 'certificate and key')}") from exc
    return made


def _problem(exc: OSError, otherwise: str) -> str:
    if not isinstance(exc, ssl.SSLError):
        return exc.strerror or str(exc)
    if exc.reason == "KEY_VALUES_MISMATCH":
        return "the private key does not match the certificate"
    return f"no PEM {otherwise} found ({exc.reason or exc})"


def _refuse_passphrase(key: str) -> NoReturn:
    # OpenSSL would ask for it on the terminal.
    raise ConfigurationError(
        f"key {key} is encrypted; store it without a passphrase, readable by its owner only"
    )
