"""Leases by an injected clock, and the keys attached to them."""

from collections.abc import Callable, Iterable
from itertools import count

import msgspec

from kvorum.errors import LeaseNotFoundError
from kvorum.storage import id_for, is_for


class _Lease(msgspec.Struct):
    expires_at: float
    keys: set[bytes]


class LeaseTable:
    """Leases and the keys attached to them.

    Args:
        clock: tells the time, in seconds from any start; it never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leases: dict[int, _Lease] = {}
        self._key_leases: dict[bytes, int] = {}
        self._ids = count(1)
        self._earliest: float | None = None  # when the first one expires; None if not computed

    def grant(self, ttl: float, key: bytes | None = None) -> int:
        """Grant a lease, for `key` alone if one is given; return its id."""
        lease = next(self._ids) if key is None else id_for(key)
        while key is not None and lease in self._leases:
            lease = id_for(key)
        self._leases[lease] = _Lease(self._clock() + ttl, set())
        self._earliest = None
        return lease

    def check(self, lease: int) -> None:
        """Make sure that there is such a lease.

        Raises:
            LeaseNotFoundError: it was never granted, or has ended.
        """
        if lease not in self._leases:
            raise LeaseNotFoundError(lease)

    def end(self, lease: int) -> set[bytes]:
        """End a lease; return the keys that were attached to it."""
        keys = self._leases.pop(lease).keys
        for key in keys:
            del self._key_leases[key]
        self._earliest = None
        return keys

    def is_idle(self, lease: int, key: bytes) -> bool:
        """Return whether a lease was granted for this key alone, and no key is attached to it."""
        return is_for(key, lease) and lease in self._leases and not self._leases[lease].keys

    def attach(self, key: bytes, lease: int) -> None:
        """Attach a key to a lease (0: to none) instead of its previous one."""
        if (old := self._key_leases.pop(key, 0)) != 0:
            self._leases[old].keys.discard(key)
        if lease:
            self._leases[lease].keys.add(key)
            self._key_leases[key] = lease

    def due(self) -> Iterable[int]:
        """Return the expired leases, in the order in which they expired."""
        if self.time_left() > 0:
            return ()
        now = self._clock()
        due = [
            (lease.expires_at, number)
            for number, lease in self._leases.items()
            if lease.expires_at <= now
        ]
        return [number for _, number in sorted(due)]

    def time_left(self) -> float:
        """Return the seconds until the next lease expires, or infinity. Below 0 if one is due."""
        if self._earliest is None:
            self._earliest = min(
                (lease.expires_at for lease in self._leases.values()), default=float("inf")
            )
        return self._earliest - self._clock()
