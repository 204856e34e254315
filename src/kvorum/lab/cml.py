"""Cisco Modeling Labs on a worker: its configuration, and what it reports."""

import msgspec

from kvorum.lab.fields import Format, Span, written

ADMIN_USERNAME = Format(
    r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", "a user name of CML (up to 64 letters, digits and _.@-)"
)

_NODE_LIMIT = Span(1, None, "nodes")
_SECRETS = frozenset({"license_token", "admin_password"})


class CmlConfig(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The configuration of CML.

    Its secrets never appear in a `repr` or an error; the store has them as plain text.

    Attributes:
        license_token: the token to register with; secret. None for a worker without a licence.
        admin_username: the administrator's user name.
        admin_password: the administrator's password; secret. None: the installer chooses one.
        max_nodes: the number of nodes that the licence allows; None if only the host limits it.
        max_unlicensed_nodes: the number of nodes allowed without a licence (CML-Free has 5).
    """

    license_token: str | None = None
    admin_username: str = written("admin")
    admin_password: str | None = None
    max_nodes: int | None = None
    max_unlicensed_nodes: int = written(5)

    def node_limit(self, *, licensed: bool) -> int | None:
        """Return the maximum number of nodes; None if only the host limits it."""
        return self.max_nodes if licensed else self.max_unlicensed_nodes

    def problems(self, path: str) -> list[str]:
        """Return what is wrong with it; `path` is its JSON path."""
        return [
            *_problems_of_secret(f"{path}.licenseToken", self.license_token),
            *ADMIN_USERNAME.problems_of(f"{path}.adminUsername", self.admin_username),
            *_problems_of_secret(f"{path}.adminPassword", self.admin_password),
            *_NODE_LIMIT.problems_of(f"{path}.maxNodes", self.max_nodes),
            *_NODE_LIMIT.problems_of(f"{path}.maxUnlicensedNodes", self.max_unlicensed_nodes),
        ]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(name, self._shown(name)) for name in self.__struct_fields__]

    def _shown(self, name: str) -> object:
        value: object = getattr(self, name)
        return "***" if name in _SECRETS and value is not None else value


def _problems_of_secret(path: str, value: str | None) -> list[str]:
    # The two usual errors of copied secrets, reported without showing them.
    if value is not None and (not value or value != value.strip()):
        return [f"{path} is empty, or has white space around it"]
    return []


class CmlStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What CML reports.

    Attributes:
        version: such as `2.8.1`; empty until it has answered.
        ready: whether it can start labs.
        licensed: whether it has a valid licence.
        api_url: the URL of its API.
    """

    version: str = ""
    ready: bool = False
    licensed: bool = False
    api_url: str = ""
