"""On which connection to a server a further watch is put: plain bookkeeping, without I/O.

A connection takes so many streams at a time. The one beyond that waits, without a word, for another
to end: etcd with TLS before 3.4.20 and 3.5.5 takes 250, and each version as many as
`--max-concurrent-streams` says. Each watch has a stream of its own, so a client with many needs
further connections; each is closed with its last watch.
"""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

C = TypeVar("C")

LIMIT: Final = 200  # on a connection, as long as no server turns out to take fewer

# Of what a connection takes: below that it is not lowered, since a server may have been slow for
# another reason.
LEAST: Final = 8

# Connections beside the first. When all are as full as they should be, the emptiest is used: the
# limit may be wrong.
MOST: Final = 32


class StreamSlot(Generic[C]):
    """One stream's place.

    Attributes:
        channel: where it is, until it is left: errors that are kept refer to this.
        others: how many streams were there before it.
    """

    def __init__(self, streams: "Streams[C]", channel: C, others: int) -> None:
        self.channel: C = channel
        self.others: int = others
        self._streams = streams
        self._is_left = False

    def leave(self) -> C | None:
        """Give it up; return the channel if nothing uses it any more, to be closed. Again.

        Returns None.
        """
        if self._is_left:
            return None
        self._is_left = True
        channel = self.channel
        del self.channel
        return self._streams.leave(channel)


class Streams(Generic[C]):
    """The streams of watches to one server.

    Attributes:
        limit: how many a connection takes, as far as that is known.
        further: the channels beside the first one.
    """

    def __init__(self) -> None:
        self.limit: int = LIMIT
        self.further: list[C] = []
        self._open: dict[C, int] = {}

    @property
    def total(self) -> int:
        """How many are open."""
        return sum(self._open.values())

    def place(self, first: C, make: Callable[[], C], *, alone: bool = False) -> StreamSlot[C]:
        """Find a place for another stream.

        Args:
            first: the channel that is there in any case.
            make: makes a further one.
            alone: whether to put it where no other stream is.
        """
        channels = (first, *self.further)
        limit = 1 if alone else self.limit
        channel = next((each for each in channels if self._open.get(each, 0) < limit), None)
        if channel is None and len(self.further) < MOST:
            channel = make()
            self.further.append(channel)
        elif channel is None:
            channel = min(channels, key=lambda each: self._open.get(each, 0))
        others = self._open.get(channel, 0)
        self._open[channel] = others + 1
        return StreamSlot(self, channel, others)

    def leave(self, channel: C) -> C | None:
        """Take note that a stream has ended.

        Return its channel if that is a further one, and unused now.
        """
        self._open[channel] -= 1
        if self._open[channel]:
            return None
        del self._open[channel]
        if channel not in self.further:
            return None
        self.further.remove(channel)
        return channel

    def take_further(self) -> list[C]:
        """Give the further channels away, to be closed.

        What was learned of the limit is forgotten.
        """
        further, self.further, self.limit = self.further, [], LIMIT
        return further
