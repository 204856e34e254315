"""Which form a batch may take.

That depends on what the servers cannot be trusted with, and on who asks.
"""

from typing import Literal

import msgspec

from kvorum.etcd.transport import QUOTA, READ_ONLY, ROLES, Known


class Capabilities(msgspec.Struct, frozen=True):
    """What may be sent.

    Attributes:
        reads: `flat`: a read-only transaction; `nested`: within another one, which goes through the
            cluster's log and cannot stop an old server; `single`: none.
        writes: whether writes may be nested.
        probe: whether a batch of writes has to compare a key at its top level, so that all members
            refuse it alike.
        guard_quota: whether batches of writes pass by the quota, so that somebody has to look after
            it.
    """

    reads: Literal["flat", "nested", "single"]
    writes: bool
    probe: bool
    guard_quota: bool


def capabilities_of(hazards: frozenset[str], members: Known, *, has_identity: bool) -> Capabilities:
    """Return what may be sent to a cluster with these hazards (see `versions`).

    Args:
        hazards: those of any server that this client talks to, by name.
        members: those of any member, which count for all that goes through the cluster's log.
        has_identity: whether the servers may take this client for a user: by a token, or by its
            certificate.
    """
    may_nest = not (has_identity and ROLES in members.hazards)
    reads: Literal["flat", "nested", "single"] = "flat"
    if READ_ONLY in hazards:
        reads = "nested" if may_nest else "single"  # a nested read shows anybody anything
    return Capabilities(
        reads,
        # Members that count nested puts refuse what the others take when the quota is used up: all
        # have to be alike.
        writes=may_nest and QUOTA not in members.uneven,
        # Without a user also on servers that check: another member may not, and the comparison
        # costs next to nothing.
        probe=not has_identity,
        guard_quota=QUOTA in members.hazards,
    )
