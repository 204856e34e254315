"""Which form a batch may take on a server: its version decides, and whether it knows users. See `versions`."""

from functools import lru_cache
from typing import Literal

import msgspec

from kvorum.etcd.versions import Version, hazards_of


class Forms(msgspec.Struct, frozen=True):
    """What may be sent.

    Attributes:
        reads: `flat`: a read-only transaction; `nested`: within another one, which goes through the cluster's log and
            cannot stop an old server; `single`: none.
        writes: whether writes may be nested.
        witness: whether a batch of writes needs an operation at the top level, for whose key permission is checked.
        guard_quota: whether batches of writes pass by the quota, so that somebody has to look after it.
    """

    reads: Literal["flat", "nested", "single"]
    writes: bool
    witness: bool
    guard_quota: bool


@lru_cache(maxsize=8)
def forms_of(version: Version, *, has_user: bool) -> Forms:
    """Return what may be sent to servers of a version, by a client that has a user or none."""
    hazards = {hazard.name for hazard in hazards_of(version)}
    is_unchecked = "nested-transactions-pass-roles" in hazards
    may_nest = not (is_unchecked and has_user)
    reads: Literal["flat", "nested", "single"] = "flat"
    if "read-only-transactions" in hazards:
        # A nested read shows anybody anything.
        reads = "nested" if may_nest else "single"
    return Forms(reads, may_nest, is_unchecked, "nested-puts-pass-the-quota" in hazards)
