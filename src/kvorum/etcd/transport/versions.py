"""What a version of etcd cannot be trusted with: one table, and what follows for Kvorum.

Sources: etcd's changelogs and advisories, as named in each row; those of old versions were also
measured.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from kvorum.errors import ServerError

Version = tuple[
    int, int, int
]  # a patch of -1 is what came before the first release of a minor version

# From this version on (and 3.5.28, 3.6.0) etcd told its version to root alone for some releases:
# see its pull requests 14663 and 21666. One that does not tell is trusted with no more than the
# oldest of them; the others mended no less.
OLDEST_THAT_TELLS_ROOT_ALONE: Final[Version] = (3, 4, 42)


class Hazard(msgspec.Struct, frozen=True):
    """Something that goes wrong on some versions.

    Attributes:
        name: what it is about, as a word for programs.
        consequence: what can happen, and what Kvorum or its operator does about it.
        source: where that is known from.
        mended: the first patch of each minor version that is free of it; None if none is.
        newest: from which minor version on all are free of it.
        first: the first version that has it.
    """

    name: str
    consequence: str
    source: str
    mended: Mapping[tuple[int, int], int | None]
    newest: tuple[int, int]
    first: Version = (3, 0, 0)

    def affects(self, version: Version) -> bool:
        """Tell whether a version has it.

        One of which nothing is known has it, if it is older than `newest`.
        """
        minor, is_released = version[:2], version[2] >= 0
        if version < self.first and (is_released or (*minor, 0) != self.first):
            return False
        if (
            minor not in self.mended
            and minor >= self.newest
            and (is_released or minor > self.newest)
        ):
            return False
        patch = self.mended.get(minor)
        return patch is None or version[2] < patch


READ_ONLY: Final = "read-only-transactions"
ROLES: Final = "nested-transactions-pass-roles"
QUOTA: Final = "nested-puts-pass-the-quota"
EVENTS_LOST: Final = "events-lost-behind-compaction"

HAZARDS: Final = (
    Hazard(
        "lost-entries",
        "committed writes of a member that is killed under load can be lost: use 3.5.3 or newer in production",
        "etcd 3.5.3 changelog, issue 13766",
        mended={(3, 5): 3},
        newest=(3, 6),
        first=(3, 5, 0),
    ),
    Hazard(
        READ_ONLY,
        "a read-only transaction whose caller goes away can stop the server: Kvorum sends none",
        "etcd issue 14110; mended in 3.4.23 and 3.5.7",
        mended={(3, 4): 23, (3, 5): 7},
        newest=(3, 6),
    ),
    Hazard(
        ROLES,
        "nested transactions pass by the check of roles: Kvorum sends none where users are checked",
        "CVE-2026-33343 and its sequel; mended in 3.4.44, 3.5.30 and 3.6.11",
        mended={(3, 4): 44, (3, 5): 30, (3, 6): 11},
        newest=(3, 7),
    ),
    Hazard(
        QUOTA,
        "puts in nested transactions are taken although the quota is used up: Kvorum sends none then",
        "etcd 3.5.33, 3.6.14 and 3.7.1 changelogs",
        mended={(3, 4): None, (3, 5): 33, (3, 6): 14, (3, 7): 1},
        newest=(3, 8),
    ),
    Hazard(
        "deletions-stop-at-the-quota",
        "deletions, which are transactions, are refused when the quota is used up: raise it, or use etcdctl",
        "etcd issue 13429; mended in 3.4.20 and 3.5.7",
        mended={(3, 4): 20, (3, 5): 7},
        newest=(3, 6),
    ),
    Hazard(
        "progress-on-demand",
        "a progress notification that was asked for can overtake events: Kvorum does not ask",
        "etcd issue 15220; mended in 3.4.31 and 3.5.13",
        mended={(3, 4): 31, (3, 5): 13},
        newest=(3, 6),
    ),
    Hazard(
        EVENTS_LOST,
        "events of a watch that lags can be left out when history is compacted: Kvorum checks what comes behind it",
        "etcd pull requests 17610 and 17612; mended in 3.4.31 and 3.5.13",
        mended={(3, 4): 31, (3, 5): 13},
        newest=(3, 6),
    ),
)

ALL: Final = frozenset(hazard.name for hazard in HAZARDS)


def hazards_of(version: Version) -> tuple[Hazard, ...]:
    """Return what a version cannot be trusted with."""
    return tuple(hazard for hazard in HAZARDS if hazard.affects(version))


def names_of(*versions: Version) -> frozenset[str]:
    """Return the names of what any of these versions cannot be trusted with."""
    return frozenset(hazard.name for version in versions for hazard in hazards_of(version))


def has_hazard(version: Version | None, name: str) -> bool:
    """Tell whether a version has a hazard; one that is not known has."""
    return version is None or name in names_of(version)


def version_of(text: str) -> Version:
    """Read what a server says of its version, as `3.5.1`.

    One that is not released, as `3.7.0-rc.1`, counts as the patch before: what that release mends
    it may not have yet. The same goes for builds of a vendor's, as `3.5.9-k3s1`, for nothing tells
    them apart.

    Raises:
        ServerError: it is none.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(-)?", text)
    if found is None:
        raise ServerError("an unknown version", text)
    return int(found[1]), int(found[2]), int(found[3]) - bool(found[4])


def text_of(version: Version) -> str:
    """Return a version in the words of a message."""
    major, minor, patch = version
    return f"{major}.{minor}.{patch}" if patch >= 0 else f"{major}.{minor}.0 (not released)"
