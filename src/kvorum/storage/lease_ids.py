"""Lease ids that show whether a lease was granted for one key alone.

Such an id starts with a mark, then a digest of the key, then 32 random bits. So every client
recognizes it, in other processes, too. Ids drawn here for other leases never have the mark. Ids
drawn by etcd start with bits of a member's id; one matches a key by chance with a probability of
1 in 2^31.
"""

import hashlib
import secrets
from typing import Final

_MARK: Final = 0x6B76  # "kv": the first two bytes of an id
_UNMARKED: Final = 2**62  # ids below it do not start with the mark


def any_id() -> int:
    """Draw an id for a lease that any keys may be attached to."""
    return secrets.randbelow(_UNMARKED - 1) + 1


def id_for(key: bytes) -> int:
    """Draw an id for a lease for one key alone."""
    return _front(key) << 32 | secrets.randbits(32)


def is_for(key: bytes, lease: int) -> bool:
    """Return whether a lease was granted for this key alone."""
    return lease >= _UNMARKED and lease >> 32 == _front(key)


def _front(key: bytes) -> int:
    return _MARK << 16 | int.from_bytes(hashlib.blake2b(key, digest_size=2).digest(), "big")
