"""Which forms a batch may take: what the servers can be trusted with, by version and by client."""

from typing import Literal, TypeAlias

import msgspec

from kvorum.etcd.transport import QUOTA, READ_ONLY, ROLES, Known

ReadForm: TypeAlias = Literal["flat", "nested", "single"]


class Capabilities(msgspec.Struct, frozen=True):
    """What may be sent.

    Attributes:
        reads: `flat`: a read-only transaction; `nested`: within another one, which goes through the
            cluster's log and cannot stop an old server; `single`: no batches.
        writes: whether writes may be nested.
        probe: whether a batch of writes has to compare a key at its top level, so that all members
            refuse it alike.
        guard_quota: whether batches of writes bypass the quota, so that the client has to guard it.
    """

    reads: ReadForm
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
    reads: ReadForm = "flat"
    if READ_ONLY in hazards:
        reads = "nested" if may_nest else "single"  # a nested read bypasses the check of roles
    return Capabilities(
        reads,
        # When the quota is used up, members that count nested puts refuse what the others take: all
        # have to be alike.
        writes=may_nest and QUOTA not in members.uneven,
        # Also on servers that check roles: another member may not, and the comparison costs next to
        # nothing.
        probe=not has_identity,
        guard_quota=QUOTA in members.hazards,
    )
