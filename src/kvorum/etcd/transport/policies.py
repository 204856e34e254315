"""Times and limits of the transport, in one place so that tests can inject others."""

import time
from collections.abc import Callable
from typing import Final

from kvorum.runtime import Limits


class ClusterTiming(Limits, frozen=True):
    """When a server is given up, and how often a token is renewed. Times are in seconds.

    Attributes:
        renewals: how often one call, or the opening of a watch, may renew the token.
        least_share: the least time for one of several servers to connect; with less, a server on a
            long link would never be reached.
        round: the pause between two rounds while opening, drawn at random from this range.
        diagnosis: the time for finding the reason of a failure once the deadline has passed.
        suspect: the time for a server to get ready after a connection to it was lost.
        whole: the part of a share that counts as all of it, since a caller has used some of its
            time before it gets here.
    """

    renewals: int = 3
    least_share: float = 1.0
    round: tuple[float, float] = (0.05, 0.25)
    diagnosis: float = 0.2
    suspect: float = 2.0
    whole: float = 0.9


class TokenTiming(Limits, frozen=True):
    """When a token that names its end is renewed.

    Attributes:
        spent: the part of its life after which it is renewed.
        least_life: seconds; a clock that is ahead must not make each call authenticate.
        wall_clock: seconds since 1970, which the end of a token is compared with.
    """

    spent: float = 0.8
    least_life: float = 1.0
    wall_clock: Callable[[], float] = time.time


class MembersTiming(Limits, frozen=True):
    """How often the members of a cluster are asked for their versions. All in seconds.

    Attributes:
        period: between two questions.
        retry: the same, while the version of a member is unknown.
        least: the same, however often a connection changes.
        fresh: for how long an answer counts.
        limit: for one question: for the list, and for all members together.
        first: for how long a client that opens waits for the first answer.
    """

    period: float = 60.0
    retry: float = 10.0
    least: float = 1.0
    fresh: float = 150.0
    limit: float = 2.0
    first: float = 0.3


class StreamLimits(Limits, frozen=True):
    """How many watches share a connection.

    Attributes:
        streams: on one connection, until a server turns out to take fewer.
        least: `streams` is not lowered below this: the server may just have been slow.
        connections: beside the first. When all are full the emptiest one is used: the limit may be
            wrong.
    """

    streams: int = 200
    least: int = 8
    connections: int = 32


class TransportPolicies(Limits, frozen=True):
    """The policies of one connection."""

    cluster: ClusterTiming = ClusterTiming()
    tokens: TokenTiming = TokenTiming()
    members: MembersTiming = MembersTiming()
    streams: StreamLimits = StreamLimits()


DEFAULTS: Final = TransportPolicies()
