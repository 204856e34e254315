"""Where etcd is and how to talk to it: one frozen struct, from a URL, from the environment, or by hand."""

import os
import re
from collections.abc import Mapping
from typing import Self
from urllib.parse import unquote, urlsplit

import msgspec

from kvorum.errors import ConfigurationError

DEFAULT_PORT = 2379
DEFAULT_PREFIX = "kvorum"

_PREFIX = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")
_ENDPOINT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?")
_MAX_PREFIX = 512


class EtcdSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is and how to talk to it.

    Attributes:
        endpoints: `host:port` of each member.
        prefix: what all keys start with, without slashes around it.
        timeout: how long a call may take, in seconds, unless it says otherwise.
        max_value_size: the largest value that is sent, in bytes; etcd itself takes requests of up to 1.5 MiB.
        page_size: how many keys one request of a list asks for.
        tls: whether to talk TLS.
        cacert: path of the certificates to trust, PEM.
        cert: path of the client's certificate, PEM.
        key: path of the client's key, PEM.
        user: name of the user to authenticate as.
        password: and the password. It shows in no `repr`.

    Raises:
        ConfigurationError: a value cannot be used; the message names it.
    """

    endpoints: tuple[str, ...] = (f"localhost:{DEFAULT_PORT}",)
    prefix: str = DEFAULT_PREFIX
    timeout: float = 5.0
    max_value_size: int = 1_000_000
    page_size: int = 1000
    tls: bool = False
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"endpoint {endpoint!r} is not host:port" for endpoint in self.endpoints if not _is_endpoint(endpoint)
        ]
        if not self.endpoints:
            problems.append("there is no endpoint")
        if not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > _MAX_PREFIX:
            rule = f"letters, digits, '.', '_', '~', '-' and single slashes between, at most {_MAX_PREFIX} characters"
            problems.append(f"prefix {self.prefix!r} is not made of {rule}")
        problems += [
            f"{name} must be greater than 0, not {value}"
            for name in ("timeout", "max_value_size", "page_size")
            if not (value := getattr(self, name)) > 0
        ]
        if problems:
            raise ConfigurationError("; ".join(problems))

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["password"] = "***" if self.password is not None else None
        return f"EtcdSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(n, "***" if n == "password" and self.password else getattr(self, n)) for n in self.__struct_fields__]

    @classmethod
    def from_url(cls, url: str, *, base: Self | None = None) -> Self:
        """Read `etcd://host[:port][,host[:port]…][/prefix]`, or `etcds://` for TLS.

        Args:
            url: the URL; the port defaults to 2379, the prefix to `kvorum`.
            base: settings to take all the rest from.

        Raises:
            ConfigurationError: it is no such URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"etcd", "etcds"}:
            raise ConfigurationError(f"{_redacted(url)!r} does not start with etcd:// or etcds://")
        if "@" in parts.netloc or parts.query or parts.fragment:
            rest = "etcd://host[:port][,host[:port]…][/prefix]; a user goes into EtcdSettings or ETCD_USER"
            raise ConfigurationError(f"{_redacted(url)!r} has more than {rest}")
        if not parts.netloc:
            raise ConfigurationError(f"{url!r} names no host")
        changes: dict[str, object] = {
            "endpoints": tuple(_with_port(endpoint) for endpoint in parts.netloc.split(",")),
            "tls": parts.scheme == "etcds",
        }
        if prefix := unquote(parts.path).strip("/"):
            changes["prefix"] = prefix
        return msgspec.structs.replace(base if base is not None else cls(), **changes)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the variables ETCD_* (empty ones count as not set).

        `ETCD_ENDPOINTS` (comma-separated; `http://` and `https://` in front are understood, the second means TLS) goes
        before `ETCD_HOST` and `ETCD_PORT`. The others are `ETCD_PREFIX`, `ETCD_TIMEOUT` (seconds), `ETCD_CACERT`,
        `ETCD_CERT`, `ETCD_KEY`, `ETCD_USER` and `ETCD_PASSWORD`. A CA certificate means TLS.

        Args:
            environ: where to look; the process's environment by default.

        Raises:
            ConfigurationError: a variable cannot be used; the message names it.
        """
        environ = os.environ if environ is None else environ
        given = {name[5:].lower(): value.strip() for name, value in environ.items() if name.startswith("ETCD_")}
        given = {name: value for name, value in given.items() if value}
        names = ("prefix", "timeout", "cacert", "cert", "key", "user", "password")
        fields: dict[str, object] = {name: given[name] for name in names if name in given}
        if "prefix" in given:
            fields["prefix"] = given["prefix"].strip("/")
        endpoints, tls = _endpoints_of(given)
        if endpoints:
            fields["endpoints"] = endpoints
        fields["tls"] = tls or "cacert" in given
        try:
            return msgspec.convert(fields, cls, strict=False)
        except msgspec.ValidationError as exc:
            # msgspec words what __post_init__ raises as its own, with a path of fields: "… - at `$.timeout`".
            reason = re.sub(r"`\$\.(\w+)`", lambda match: f"ETCD_{match[1].upper()}", str(exc))
            raise ConfigurationError(f"the environment cannot be used: {reason}") from exc


def _endpoints_of(given: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """Return the endpoints that the environment names, and whether they want TLS."""
    if "endpoints" not in given:
        host, port = given.get("host"), given.get("port")
        return ((f"{host or 'localhost'}:{port or DEFAULT_PORT}",) if host or port else ()), False
    listed = [endpoint.strip() for endpoint in given["endpoints"].split(",") if endpoint.strip()]
    bare = tuple(_with_port(re.sub(r"^(https?|etcds?)://", "", endpoint).rstrip("/")) for endpoint in listed)
    return bare, any(endpoint.startswith(("https://", "etcds://")) for endpoint in listed)


def _with_port(endpoint: str) -> str:
    found = _ENDPOINT.fullmatch(endpoint)
    return f"{endpoint}:{DEFAULT_PORT}" if found and not found["port"] else endpoint


def _is_endpoint(endpoint: str) -> bool:
    found = _ENDPOINT.fullmatch(endpoint)
    return found is not None and found["port"] is not None and 0 < int(found["port"]) < 65536


def _redacted(url: str) -> str:
    """Return the URL without what stands before an `@`: it may be a password, and this goes into a message."""
    return re.sub(r"//[^/]*@", "//***@", url)
