"""Cisco Modeling Labs on a worker: how it is set up, and what it says about itself."""

import msgspec

from kvorum.lab.fields import Format, Span, written

ADMIN_USERNAME = Format(
    r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", "a user name of CML (up to 64 letters, digits and _.@-)"
)

_NODE_LIMIT = Span(1, None, "nodes")
_SECRETS = frozenset({"license_token", "admin_password"})


class CmlConfig(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """How CML is set up. Its secrets never show in a `repr` or an error; in the store they are plain text.

    Attributes:
        license_token: the token to register with; secret. None for a worker that goes without a
            licence.
        admin_username: who administers CML.
        admin_password: and how they prove it; secret. None leaves it to whoever sets CML up.
        max_nodes: how many nodes the licence is good for; None if there is no other limit than the
            host.
        max_unlicensed_nodes: how many nodes may run without a licence (CML-Free has 5).
    """

    license_token: str | None = None
    admin_username: str = written("admin")
    admin_password: str | None = None
    max_nodes: int | None = None
    max_unlicensed_nodes: int = written(5)

    def node_limit(self, *, licensed: bool) -> int | None:
        """Return how many nodes may run, with or without a licence.

        None if as many as the host can take.
        """
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
    # The two ways in which a copied secret usually breaks, told without showing it.
    if value is not None and (not value or value != value.strip()):
        return [f"{path} is empty, or has white space around it"]
    return []


class CmlStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What CML says about itself.

    Attributes:
        version: as `2.8.1`; empty as long as it has not answered.
        ready: whether it can start labs.
        licensed: whether it holds a valid licence.
        api_url: where its API is.
    """

    version: str = ""
    ready: bool = False
    licensed: bool = False
    api_url: str = ""
