"""Why no secure connection can be made, found out with Python's TLS: gRPC only says "unavailable".

With TLS 1.3 a server checks the client's certificate after the client considers the connection
made. So its verdict arrives with the first read.
"""

import asyncio
import ssl
from contextlib import suppress
from typing import Final

import anyio
import anyio.to_thread

from kvorum.errors import TlsError
from kvorum.etcd.transport.certificates import context
from kvorum.settings import EtcdSettings

_TIMEOUT: Final = 1.0
_PREFACE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # of HTTP/2, with empty settings
)


async def tls_error_of(address: str, settings: EtcdSettings) -> TlsError | None:
    """Return what is wrong with TLS at an unreachable server; None if it is something else."""
    reason = None
    with anyio.move_on_after(_TIMEOUT), suppress(OSError):
        reason = await (_of_tls(address, settings) if settings.tls else _of_no_tls(address))
    return None if reason is None else TlsError(address, reason)


async def _of_no_tls(address: str) -> str | None:
    """Check whether a server speaks TLS although the client does not. Only a greeting is sent."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        await _greet(address, unverified, None)
    except ssl.SSLError as exc:
        if "ALERT" not in (exc.reason or ""):  # what answered does not speak TLS
            return None
    return "the server requires TLS: connect with etcds://, or give its CA's certificate"


async def _of_tls(address: str, settings: EtcdSettings) -> str | None:
    made = await anyio.to_thread.run_sync(context, settings)
    try:
        await _greet(address, made, settings.server_name)
    except ssl.SSLCertVerificationError as exc:
        trusted = settings.cacert or "the CAs of this machine"
        return (
            f"the server's certificate is not accepted: {exc.verify_message} (trusted: {trusted})"
        )
    except ssl.SSLError as exc:
        if "ALERT" in (exc.reason or ""):
            return await _of_alert(settings, exc.reason or "")
        return await _of_silence(address)
    except (ConnectionError, EOFError):
        return await _of_silence(address)
    return None


async def _of_silence(address: str) -> str | None:
    """Check whether a server that does not speak TLS speaks HTTP/2 without it."""
    try:
        await _greet(address, None, None)
    except EOFError:
        return None
    return "the server does not use TLS: connect with etcd://, and without certificates"


async def _of_alert(settings: EtcdSettings, alert: str) -> str:
    words = alert.partition("ALERT_")[2].replace("_", " ").lower()
    if settings.cert is None:
        return f"the server wants a client's certificate: give cert and key (its alert: {words})"
    problem = await anyio.to_thread.run_sync(_problem_of_own, settings)
    return (
        f"the server does not accept the client's certificate {settings.cert}: {problem or words}"
    )


async def _greet(address: str, tls: ssl.SSLContext | None, server_name: str | None) -> None:
    """Connect, send the preface of an HTTP/2 client, and wait for the first byte of an answer."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    name = None if tls is None else server_name or host
    if tls is not None:
        tls.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name)
    try:
        writer.write(_PREFACE)
        await writer.drain()
        await reader.readexactly(1)
    finally:
        writer.transport.abort()


def _problem_of_own(settings: EtcdSettings) -> str | None:
    """Return what is wrong with the client's own certificate, for example that it has expired.

    Python does not read dates from certificates, but OpenSSL checks them in a handshake. So a
    client and a server that trusts this certificate alone shake hands, in memory.
    """
    assert settings.cert is not None  # noqa: S101 - the caller has checked
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for side in (server, client):
        side.load_cert_chain(settings.cert, settings.key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(settings.cert)
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in ends * 4:  # more rounds than a handshake has
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as exc:
            return exc.verify_message
    return None
