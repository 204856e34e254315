"""Which form a batch may take: that depends on what the servers cannot be trusted with, and on who asks."""

from functools import lru_cache
from typing import Literal

import msgspec


class Forms(msgspec.Struct, frozen=True):
    """What may be sent.

    Attributes:
        reads: `flat`: a read-only transaction; `nested`: within another one, which goes through the cluster's log and
            cannot stop an old server; `single`: none.
        writes: whether writes may be nested.
        probe: whether a batch of writes has to compare a key at its top level, so that all members refuse it alike.
        guard_quota: whether batches of writes pass by the quota, so that somebody has to look after it.
    """

    reads: Literal["flat", "nested", "single"]
    writes: bool
    probe: bool
    guard_quota: bool


@lru_cache(maxsize=16)
def forms_of(hazards: frozenset[str], *, has_identity: bool) -> Forms:
    """Return what may be sent to servers with these hazards (see `versions`).

    Args:
        hazards: those of any server of the cluster, by name.
        has_identity: whether the servers may take this client for a user: by a token, or by its certificate.
    """
    is_unchecked = "nested-transactions-pass-roles" in hazards
    may_nest = not (is_unchecked and has_identity)
    reads: Literal["flat", "nested", "single"] = "flat"
    if "read-only-transactions" in hazards:
        reads = "nested" if may_nest else "single"  # a nested read shows anybody anything
    # Without a user also on servers that check: another member may not, and the comparison costs next to nothing.
    return Forms(reads, may_nest, not has_identity, "nested-puts-pass-the-quota" in hazards)
