"""The known issues of etcd's versions: one table, and what Kvorum does about them.

Sources: etcd's changelogs and advisories, as named in each row; issues of old versions were also
reproduced.
"""

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from kvorum.errors import ServerError

_log = logging.getLogger(__name__)

# A patch of -1 is a version before the first release of that minor version.
Version = tuple[int, int, int]

# From this version on (and 3.5.28, 3.6.0) some releases of etcd tell their version to root only:
# see pull requests 14663 and 21666. A server that does not tell is taken for the oldest of them:
# the others have at least the same fixes.
FIRST_ROOT_ONLY_STATUS: Final[Version] = (3, 4, 42)


class Hazard(msgspec.Struct, frozen=True):
    """A known issue of some versions.

    Attributes:
        name: its identifier.
        consequence: what can happen, and what Kvorum or its operator does about it.
        source: where it is documented.
        fixed: the first patch of each minor version with a fix; None if there is none.
        unaffected_from: the first minor version that never had it.
        affected_from: the first version that has it.
    """

    name: str
    consequence: str
    source: str
    fixed: Mapping[tuple[int, int], int | None]
    unaffected_from: tuple[int, int]
    affected_from: Version = (3, 0, 0)

    def affects(self, version: Version) -> bool:
        """Return whether a version has it; an unlisted one below `unaffected_from` has."""
        minor, is_released = version[:2], version[2] >= 0
        if version < self.affected_from and (is_released or (*minor, 0) != self.affected_from):
            return False
        if (
            minor not in self.fixed
            and minor >= self.unaffected_from
            and (is_released or minor > self.unaffected_from)
        ):
            return False
        patch = self.fixed.get(minor)
        return patch is None or version[2] < patch


READ_ONLY: Final = "read-only-transactions"
ROLES: Final = "nested-transactions-bypass-rbac"
QUOTA: Final = "nested-puts-bypass-quota"
EVENTS_LOST: Final = "events-lost-behind-compaction"

HAZARDS: Final = (
    Hazard(
        "lost-entries",
        "a member killed under load can lose committed writes: use 3.5.3 or newer",
        "etcd 3.5.3 changelog, issue 13766",
        fixed={(3, 5): 3},
        unaffected_from=(3, 6),
        affected_from=(3, 5, 0),
    ),
    Hazard(
        READ_ONLY,
        "a read-only transaction can crash the server if its caller leaves: Kvorum sends none",
        "etcd issue 14110; fixed in 3.4.23 and 3.5.7",
        fixed={(3, 4): 23, (3, 5): 7},
        unaffected_from=(3, 6),
    ),
    Hazard(
        ROLES,
        "nested transactions bypass RBAC: Kvorum does not batch writes while auth is in use",
        "CVE-2026-33343 and its follow-up; fixed in 3.4.44, 3.5.30 and 3.6.11",
        fixed={(3, 4): 44, (3, 5): 30, (3, 6): 11},
        unaffected_from=(3, 7),
    ),
    Hazard(
        QUOTA,
        "puts in nested transactions bypass the quota: Kvorum sends none when space runs out",
        "etcd 3.5.33, 3.6.14 and 3.7.1 changelogs",
        fixed={(3, 4): None, (3, 5): 33, (3, 6): 14, (3, 7): 1},
        unaffected_from=(3, 8),
    ),
    Hazard(
        "deletions-stop-at-the-quota",
        "deletions in transactions are refused without space: raise the quota, or use etcdctl",
        "etcd issue 13429; fixed in 3.4.20 and 3.5.7",
        fixed={(3, 4): 20, (3, 5): 7},
        unaffected_from=(3, 6),
    ),
    Hazard(
        "progress-on-demand",
        "a requested progress notification can overtake events: Kvorum requests none",
        "etcd issue 15220; fixed in 3.4.31 and 3.5.13",
        fixed={(3, 4): 31, (3, 5): 13},
        unaffected_from=(3, 6),
    ),
    Hazard(
        EVENTS_LOST,
        "a lagging watch can lose events to compaction: Kvorum checks for gaps behind it",
        "etcd pull requests 17610 and 17612; fixed in 3.4.31 and 3.5.13",
        fixed={(3, 4): 31, (3, 5): 13},
        unaffected_from=(3, 6),
    ),
)

ALL: Final = frozenset(hazard.name for hazard in HAZARDS)


def hazards_of(version: Version) -> tuple[Hazard, ...]:
    """Return the known issues of a version."""
    return tuple(hazard for hazard in HAZARDS if hazard.affects(version))


def hazard_names(*versions: Version) -> frozenset[str]:
    """Return the names of the known issues that any of these versions has."""
    return frozenset(hazard.name for version in versions for hazard in hazards_of(version))


# A service may connect often, so the caches let each warning pass once in a process.


@lru_cache(maxsize=1000)
def log_hazards(address: str, version: Version) -> None:
    """Warn of the known issues of the server at an address, once for each version of it."""
    for hazard in hazards_of(version):
        _log.warning("etcd %s at %s: %s", format_version(version), address, hazard.consequence)


@lru_cache(maxsize=1000)
def log_hidden_version(address: str) -> None:
    """Warn once that the server at an address does not report its version to this user."""
    _log.warning(
        "etcd at %s reports its version to root only; treated as %s",
        address,
        format_version(FIRST_ROOT_ONLY_STATUS),
    )


def has_hazard(version: Version | None, name: str) -> bool:
    """Return whether a version has an issue; an unknown version has."""
    return version is None or name in hazard_names(version)


def parse_version(text: str) -> Version:
    """Parse a version as a server reports it, for example `3.5.1`.

    A pre-release such as `3.7.0-rc.1` counts as the patch before, since it may lack the fixes of
    its release. So does a vendor's build such as `3.5.9-k3s1`, which looks the same.

    Raises:
        ServerError: it is not a version.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(-)?", text)
    if found is None:
        raise ServerError("UNKNOWN", f"its version is {text!r}")
    return int(found[1]), int(found[2]), int(found[3]) - bool(found[4])


def format_version(version: Version) -> str:
    """Return a version for a message."""
    major, minor, patch = version
    return f"{major}.{minor}.{patch}" if patch >= 0 else f"{major}.{minor}.0 (not released)"
