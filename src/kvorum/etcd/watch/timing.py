"""How long a watch waits, and for what."""

from kvorum.runtime import Limits


class WatchTiming(Limits, frozen=True, kw_only=True):
    """The waits of a watch, in seconds.

    Attributes:
        first_wait: the longest wait before the first new stream. It doubles with each stream that
            breaks without news, up to `longest_wait`; the wait is random, from 0 to that.
        longest_wait: see there.
        first_attempt: how long the first attempt to resume may take. It doubles with each attempt,
            up to the timeout of a call. If a server falls silent, keep-alive notices within 12
            seconds that the connection of the watches is dead. The connection of the calls, on
            which an attempt asks first, is given up by this deadline.
        password: how long an open watch waits while its user is rejected and the password is in a
            file that may be updated.
        check: how long an early check may take, one that need not succeed yet.
    """

    first_wait: float = 0.05
    longest_wait: float = 1.0
    first_attempt: float = 2.0
    password: float = 60.0
    check: float = 1.0

    def wait_after(self, breaks: int) -> float:
        """Return the longest wait before a new stream, after so many that broke without news."""
        return min(self.first_wait * _power_of_two(breaks), self.longest_wait)

    def attempt_after(self, breaks: int, timeout: float) -> float:
        """Return how long an attempt to resume may take: the first one after one break."""
        return min(self.first_attempt * _power_of_two(breaks - 1), timeout)


def _power_of_two(exponent: int) -> int:
    """Return 2**exponent, capped where it makes no difference.

    Uncapped, 2**1024 is reached after ten minutes, and does not fit into a float.
    """
    return 1 << min(exponent, 16)
