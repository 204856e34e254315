"""Which connection to a server a new watch is put on: plain bookkeeping, without I/O.

A connection takes a limited number of streams at a time. The one beyond that silently waits for
another to end: etcd with TLS before 3.4.20 and 3.5.5 takes 250, and each version as many as
`--max-concurrent-streams` says. Each watch has a stream of its own, so a client with many watches
needs further connections; each is closed with its last watch.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from kvorum.etcd.transport.policies import StreamLimits

C = TypeVar("C")


class StreamSlot(Generic[C]):
    """The slot of one stream on a channel.

    Attributes:
        channel: the channel; gone after `release`, since errors that are kept refer to this.
        others: how many streams the channel had before this one.
    """

    def __init__(self, streams: "Streams[C]", channel: C, others: int) -> None:
        self.channel: C = channel
        self.others: int = others
        self._streams = streams
        self._is_released = False

    def release(self) -> C | None:
        """Give the slot back. Return the channel if it is unused now and has to be closed.

        Idempotent: a second call returns None.
        """
        if self._is_released:
            return None
        self._is_released = True
        channel = self.channel
        del self.channel
        return self._streams.release(channel)


class Streams(Generic[C]):
    """The streams of watches to one server.

    Attributes:
        limits: the limits to start with.
        limit: how many streams a connection takes, as far as known.
        further: the channels beside the first one.
    """

    def __init__(self, limits: StreamLimits) -> None:
        self.limits: StreamLimits = limits
        self.limit: int = limits.streams
        self.further: list[C] = []
        self._open: dict[C, int] = {}

    @property
    def total(self) -> int:
        """How many are open."""
        return sum(self._open.values())

    def place(self, first: C, make: Callable[[], C], *, alone: bool = False) -> StreamSlot[C]:
        """Find a slot for another stream.

        Args:
            first: the channel that is always there.
            make: makes a further one.
            alone: whether to use a channel without other streams.
        """
        channels = (first, *self.further)
        limit = 1 if alone else self.limit
        channel = next((each for each in channels if self._open.get(each, 0) < limit), None)
        if channel is None and len(self.further) < self.limits.connections:
            channel = make()
            self.further.append(channel)
        elif channel is None:
            channel = min(channels, key=lambda each: self._open.get(each, 0))
        others = self._open.get(channel, 0)
        self._open[channel] = others + 1
        return StreamSlot(self, channel, others)

    def learn_limit(self, streams: int) -> None:
        """Record that a connection took no more than so many streams."""
        self.limit = max(streams, self.limits.least)

    def release(self, channel: C) -> C | None:
        """Record that a stream has ended. Return its channel if that is further and unused."""
        self._open[channel] -= 1
        if self._open[channel]:
            return None
        del self._open[channel]
        if channel not in self.further:
            return None
        self.further.remove(channel)
        return channel

    def take_further(self) -> list[C]:
        """Hand over the further channels, to be closed. The learned limit is forgotten."""
        further, self.further, self.limit = self.further, [], self.limits.streams
        return further
