"""The earliest end of each lease, according to the calls of clients."""

from collections import defaultdict
from collections.abc import Sequence

from kvorum.testing.evidence import Call, Outcome


class LeaseEnds:
    """The leases of a history: their revocations, and when they can have expired.

    A lease that was granted elsewhere may have ended at any time.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._granted: dict[int, Call] = {}
        self._revoked: dict[int, list[Call]] = defaultdict(list)
        for call in calls:
            if call.name == "grant_lease" and call.lease:
                self._granted[call.lease] = call
            elif call.name == "revoke_lease":
                self._revoked[call.lease].append(call)
        moments = [(call.started, call.seconds[0]) for call in calls]
        moments += [(call.ended, call.seconds[1]) for call in calls if call.ended is not None]
        self._moments: list[tuple[int, float]] = sorted(moments)

    def revocations(self, lease: int) -> list[Call]:
        """Return the calls that may have revoked a lease."""
        return [call for call in self._revoked[lease] if call.outcome is not Outcome.REFUSED]

    def done_revocations(self) -> list[Call]:
        """Return the calls that did revoke a lease."""
        return [
            call
            for calls in self._revoked.values()
            for call in calls
            if call.outcome is Outcome.DONE
        ]

    def runs_out(self, lease: int) -> float | None:
        """Return the earliest time at which it can have expired; None if unknown."""
        grant = self._granted.get(lease)
        return None if grant is None else grant.seconds[0] + grant.ttl

    def earliest(self, lease: int) -> int:
        """Return the earliest position in the history at which it can have ended."""
        runs_out = self.runs_out(lease)
        if runs_out is None:
            return 0
        by_time = (
            max((number for number, second in self._moments if second < runs_out), default=0) + 1
        )
        return min([by_time, *(call.started for call in self.revocations(lease))])
