"""Where etcd is and how to talk to it: one frozen struct, from a URL, from the environment, or by hand."""

import math
import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import msgspec

from kvorum.errors import ConfigurationError

DEFAULT_PORT = 2379
DEFAULT_PREFIX = "kvorum"

_PREFIX = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")
_ENDPOINT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?")
_MAX_PREFIX = 512
_TLS = re.compile(r"\b(https|etcds)://")
_FORM = "etcd://host[:port][,host[:port]…][/prefix]"


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
        problems = [f"endpoint {_shown(each)} is not host:port" for each in self.endpoints if not _is_endpoint(each)]
        if not self.endpoints:
            problems.append("there is no endpoint")
        if not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > _MAX_PREFIX:
            rule = f"letters, digits, '.', '_', '~', '-' and single slashes between, at most {_MAX_PREFIX} characters"
            problems.append(f"prefix {self.prefix!r} is not made of {rule}")
        problems += [
            f"{name} must be greater than 0, not {value}"
            for name in ("timeout", "max_value_size", "page_size")
            if not 0 < (value := getattr(self, name)) < math.inf
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
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise ConfigurationError(f"{_shown(url)} is no URL") from exc
        if parts.scheme not in {"etcd", "etcds"}:
            raise ConfigurationError(f"{_shown(url)} does not start with etcd:// or etcds://")
        if not parts.netloc:
            raise ConfigurationError(f"{_shown(url)} names no host; it should be {_FORM}")
        if "@" in url or parts.query or parts.fragment:
            raise ConfigurationError(f"{_shown(url)} has more than {_FORM}; a user goes into EtcdSettings or ETCD_USER")
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

        `ETCD_ENDPOINTS` (comma-separated; `http://` or `https://` may stand in front, the second means TLS) goes
        before `ETCD_HOST` and `ETCD_PORT`. The others are `ETCD_PREFIX`, `ETCD_TIMEOUT` (seconds), `ETCD_CACERT`,
        `ETCD_CERT`, `ETCD_KEY`, `ETCD_USER` and `ETCD_PASSWORD`. A CA certificate means TLS.

        Args:
            environ: where to look; the process's environment by default.

        Raises:
            ConfigurationError: a variable cannot be used; the message names it.
        """
        environ = os.environ if environ is None else environ
        given = {name: value for name, value in environ.items() if name in _VARIABLES and value.strip()}
        fields: dict[str, object] = {}
        problems: list[str] = []
        for variable, value in given.items():
            name, read = _VARIABLES[variable]
            try:
                # Each by itself, so that the message can name the variable.
                fields[name] = getattr(msgspec.structs.replace(cls(), **{name: read(value)}), name)
            except ValueError as exc:
                problems.append(f"{variable}: {exc}")
        if problems:
            raise ConfigurationError("; ".join(problems))
        if "ETCD_ENDPOINTS" in given:
            fields["endpoints"] = _endpoints_of(given["ETCD_ENDPOINTS"])
        elif "endpoints" in fields:
            host, port = given.get("ETCD_HOST", "localhost"), given.get("ETCD_PORT", str(DEFAULT_PORT))
            fields["endpoints"] = (f"{host.strip()}:{port.strip()}",)
        fields["tls"] = "ETCD_CACERT" in given or bool(_TLS.search(given.get("ETCD_ENDPOINTS", "")))
        return msgspec.structs.replace(cls(), **fields)


def _endpoints_of(text: str) -> tuple[str, ...]:
    listed = [endpoint.strip() for endpoint in text.split(",") if endpoint.strip()]
    return tuple(_with_port(re.sub(r"^(https?|etcds?)://", "", endpoint).rstrip("/")) for endpoint in listed)


# What each variable sets, and how it is read. A host and a port are tried by themselves, then put together.
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = MappingProxyType(
    {
        "ETCD_ENDPOINTS": ("endpoints", _endpoints_of),
        "ETCD_HOST": ("endpoints", lambda host: (f"{host.strip()}:{DEFAULT_PORT}",)),
        "ETCD_PORT": ("endpoints", lambda port: (f"localhost:{port.strip()}",)),
        "ETCD_PREFIX": ("prefix", lambda prefix: prefix.strip().strip("/")),
        "ETCD_TIMEOUT": ("timeout", float),
        "ETCD_CACERT": ("cacert", str.strip),
        "ETCD_CERT": ("cert", str.strip),
        "ETCD_KEY": ("key", str.strip),
        "ETCD_USER": ("user", str.strip),
        "ETCD_PASSWORD": ("password", str),
    }
)


def _with_port(endpoint: str) -> str:
    found = _ENDPOINT.fullmatch(endpoint)
    return f"{endpoint}:{DEFAULT_PORT}" if found and not found["port"] else endpoint


def _is_endpoint(endpoint: str) -> bool:
    found = _ENDPOINT.fullmatch(endpoint)
    return found is not None and found["port"] is not None and 0 < int(found["port"]) < 65536


def _shown(text: str) -> str:
    """Return what a message may show of an address: nothing, if there may be a password in it."""
    return "(not shown: it may hold a password)" if re.search(r"[@?#]", text) else repr(text)
