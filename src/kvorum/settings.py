"""Where etcd is and how to talk to it: one frozen struct."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import msgspec

from kvorum.arguments import (
    check_options,
    problem_of_count,
    problem_of_seconds,
    problem_of_text,
    short_repr,
)
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
        timeout: seconds that a call may take, unless it has its own deadline.
        max_value_size: the largest value that is sent, in bytes. etcd takes requests of up to
            1.5 MiB.
        page_size: how many keys one request of a list asks for; fewer if values are large or the
            link is slow.
        pipeline: whether concurrent calls are batched; see `docs/pipeline.md`.
        tls: whether to use TLS. Implied by each of the following four.
        cacert: path of the CA certificates to trust, PEM; None: those that gRPC ships.
        cert: path of the client's certificate, PEM, followed by its intermediates.
        key: path of the client's key, PEM, without a passphrase.
        server_name: the name in the server's certificate, if it differs from the endpoint's host.
        user: the user to authenticate as.
        password: the user's password. It does not show in a `repr`.
        password_file: path of a file that holds the password instead. Read each time it is needed.
        discover_interval: seconds between reads of the cluster's member list, which adds endpoints;
            None: never.

    Raises:
        ConfigurationError: a value cannot be used. The message names it.
    """

    endpoints: tuple[str, ...] = (f"localhost:{DEFAULT_PORT}",)
    prefix: str = DEFAULT_PREFIX
    timeout: float = 5.0
    max_value_size: int = 1_000_000
    page_size: int = 1000
    pipeline: bool = True
    tls: bool = False
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    discover_interval: float | None = None

    def __post_init__(self) -> None:
        if self.cacert or self.cert or self.key or self.server_name:
            msgspec.structs.force_setattr(self, "tls", True)
        check_options([*self._problems_of_types(), *self._problems_of_place()])

    def _problems_of_types(self) -> Iterator[str | None]:
        yield problem_of_seconds("timeout", self.timeout)
        if self.discover_interval is not None:
            yield problem_of_seconds("discover_interval", self.discover_interval)
        yield problem_of_count("max_value_size", self.max_value_size)
        yield problem_of_count("page_size", self.page_size)
        for name in ("pipeline", "tls"):
            if not isinstance(value := getattr(self, name), bool):
                yield f"{name} must be True or False, not {short_repr(value)}"
        for name in ("server_name", "user", "password"):
            value = getattr(self, name)
            if not isinstance(value, str | None):  # not shown: it may be a secret
                yield f"{name} must be text, not {type(value).__name__}"
        for name in ("cacert", "cert", "key", "password_file"):
            if not isinstance(value := getattr(self, name), str | PathLike | None):
                yield f"{name} must be a path, not {short_repr(value)}"

    def _problems_of_place(self) -> Iterator[str]:
        endpoints: object = self.endpoints
        if isinstance(endpoints, str) or not isinstance(endpoints, Sequence):
            yield "endpoints must be a tuple of host:port, such as ('localhost:2379',)"
        else:
            yield from (
                f"endpoint {_shown(each)} is not host:port"
                for each in endpoints
                if not is_endpoint(each)
            )
            if not endpoints:
                yield "there is no endpoint"
        if problem := problem_of_text("prefix", self.prefix):
            yield problem
        elif not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > _MAX_PREFIX:
            rule = (
                "letters, digits, '.', '_', '~', '-' and single slashes between, "
                f"at most {_MAX_PREFIX} characters"
            )
            yield f"prefix {short_repr(self.prefix)} is not made of {rule}"

    def check(self) -> None:
        """Refuse a combination of values that no connection can be made with.

        Raises:
            ConfigurationError: a value is missing, or excludes another one.
        """
        problems = []
        if (self.cert is None) != (self.key is None):
            problems.append(
                f"{'key' if self.key is None else 'cert'} is missing: cert and key go together"
            )
        if self.password is not None and self.password_file is not None:
            problems.append("password and password_file exclude each other")
        has_password = self.password is not None or self.password_file is not None
        if self.user is None and has_password:
            problems.append("there is a password, but no user")
        if self.user is not None and not has_password:
            problems.append(f"user {self.user!r} has no password: give password or password_file")
        if problems:
            raise ConfigurationError("; ".join(problems))

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["password"] = "***" if self.password is not None else None
        return f"EtcdSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [
            (n, "***" if n == "password" and self.password else getattr(self, n))
            for n in self.__struct_fields__
        ]

    @classmethod
    def from_url(cls, url: str, *, base: Self | None = None) -> Self:
        """Read `etcd://host[:port][,host[:port]…][/prefix]`, or `etcds://` for TLS.

        Args:
            url: the URL. The port defaults to 2379, the prefix to `kvorum`.
            base: settings to take everything else from.

        Raises:
            ConfigurationError: it is not such a URL.
        """
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise ConfigurationError(f"{_shown(url)} is not a URL") from exc
        if parts.scheme not in {"etcd", "etcds"}:
            raise ConfigurationError(
                f"{_shown(url)} does not start with etcd:// or etcds://"
                " (connect also takes embedded:// and memory://)"
            )
        if not parts.netloc:
            raise ConfigurationError(f"{_shown(url)} names no host; it should be {_FORM}")
        if "@" in url or parts.query or parts.fragment:
            raise ConfigurationError(
                f"{_shown(url)} has more than {_FORM}; a user goes into EtcdSettings or ETCD_USER"
            )
        changes: dict[str, object] = {
            "endpoints": tuple(_with_port(endpoint) for endpoint in parts.netloc.split(",")),
            "tls": parts.scheme == "etcds",
        }
        if prefix := unquote(parts.path).strip("/"):
            changes["prefix"] = prefix
        return msgspec.structs.replace(base if base is not None else cls(), **changes)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the variables ETCD_*. Empty ones count as unset.

        `ETCD_ENDPOINTS` (comma-separated, each with or without `http://` or `https://`, which
        implies TLS) overrides `ETCD_HOST` and `ETCD_PORT`. The others are `ETCD_PREFIX`,
        `ETCD_TIMEOUT` (seconds), `ETCD_PIPELINE` (`on` or `off`), `ETCD_CACERT`, `ETCD_CERT`,
        `ETCD_KEY`, `ETCD_SERVER_NAME` (each of these four implies TLS), `ETCD_USER`,
        `ETCD_PASSWORD` or `ETCD_PASSWORD_FILE`, and `ETCD_DISCOVER_INTERVAL` (seconds).

        Args:
            environ: the variables; the process's environment by default.

        Raises:
            ConfigurationError: a variable cannot be used. The message names it.
        """
        environ = os.environ if environ is None else environ
        given = {
            name: value for name, value in environ.items() if name in _VARIABLES and value.strip()
        }
        fields: dict[str, object] = {}
        problems: list[str] = []
        for variable, value in given.items():
            name, read = _VARIABLES[variable]
            try:
                # One at a time, so that the message can name the variable.
                fields[name] = getattr(msgspec.structs.replace(cls(), **{name: read(value)}), name)
            except ValueError as exc:
                problems.append(f"{variable}: {exc}")
        if problems:
            raise ConfigurationError("; ".join(problems))
        if "ETCD_ENDPOINTS" in given:
            fields["endpoints"] = _endpoints_of(given["ETCD_ENDPOINTS"])
        elif "endpoints" in fields:
            host, port = (
                given.get("ETCD_HOST", "localhost"),
                given.get("ETCD_PORT", str(DEFAULT_PORT)),
            )
            fields["endpoints"] = (f"{host.strip()}:{port.strip()}",)
        fields["tls"] = bool(_TLS.search(given.get("ETCD_ENDPOINTS", "")))
        return msgspec.structs.replace(cls(), **fields)


def _endpoints_of(text: str) -> tuple[str, ...]:
    listed = [endpoint.strip() for endpoint in text.split(",") if endpoint.strip()]
    return tuple(
        _with_port(re.sub(r"^(https?|etcds?)://", "", endpoint).rstrip("/")) for endpoint in listed
    )


def _switch(text: str) -> bool:
    if text.lower() in {"on", "true", "1", "yes"}:
        return True
    if text.lower() in {"off", "false", "0", "no"}:
        return False
    raise ValueError(f"it is on or off, not {text!r}")


# What each variable sets, and how it is read. Host and port are validated alone, then combined.
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = MappingProxyType(
    {
        "ETCD_ENDPOINTS": ("endpoints", _endpoints_of),
        "ETCD_HOST": ("endpoints", lambda host: (f"{host.strip()}:{DEFAULT_PORT}",)),
        "ETCD_PORT": ("endpoints", lambda port: (f"localhost:{port.strip()}",)),
        "ETCD_PREFIX": ("prefix", lambda prefix: prefix.strip().strip("/")),
        "ETCD_TIMEOUT": ("timeout", float),
        "ETCD_PIPELINE": ("pipeline", lambda text: _switch(text.strip())),
        "ETCD_CACERT": ("cacert", str.strip),
        "ETCD_CERT": ("cert", str.strip),
        "ETCD_KEY": ("key", str.strip),
        "ETCD_SERVER_NAME": ("server_name", str.strip),
        "ETCD_USER": ("user", str.strip),
        "ETCD_PASSWORD": ("password", str),
        "ETCD_PASSWORD_FILE": ("password_file", str.strip),
        "ETCD_DISCOVER_INTERVAL": ("discover_interval", float),
    }
)


def _with_port(endpoint: str) -> str:
    found = _ENDPOINT.fullmatch(endpoint)
    return f"{endpoint}:{DEFAULT_PORT}" if found and not found["port"] else endpoint


def is_endpoint(endpoint: object) -> bool:
    """Return whether this is a string `host:port`."""
    if not isinstance(endpoint, str):
        return False
    found = _ENDPOINT.fullmatch(endpoint)
    return found is not None and found["port"] is not None and 0 < int(found["port"]) < 65536


def _shown(address: object) -> str:
    """Return what a message may show of an address: nothing if it may hold a password."""
    text = repr(address)
    return "(not shown: it may hold a password)" if re.search(r"[@?#]", text) else text
