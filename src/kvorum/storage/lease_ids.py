"""Ids of leases, which tell whether a lease was granted for one key alone.

Such an id has a mark in front, then a digest of the key, then 32 random bits. So every client knows
it, also in another process. An id that is drawn here for any other lease never has the mark. Those
that etcd draws itself begin with bits of a member's id; that one fits a key by chance is a matter
of 1 to 2^31.
"""

import hashlib
import secrets
from typing import Final

_MARK: Final = 0x6B76  # "kv"; an id starts with it in hexadecimal
_UNMARKED: Final = 2**62  # the ids below it, which do not start with the mark


def any_id() -> int:
    """Draw an id for a lease that any keys may be put on."""
    return secrets.randbelow(_UNMARKED - 1) + 1


def id_for(key: bytes) -> int:
    """Draw an id for a lease that is for one key alone."""
    return _front(key) << 32 | secrets.randbits(32)


def is_for(key: bytes, lease: int) -> bool:
    """Tell whether a lease was granted for that key alone."""
    return lease >= _UNMARKED and lease >> 32 == _front(key)


def _front(key: bytes) -> int:
    return _MARK << 16 | int.from_bytes(hashlib.blake2b(key, digest_size=2).digest(), "big")
