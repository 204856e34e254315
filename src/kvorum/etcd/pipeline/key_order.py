"""The order of the writes of one key: each waits until the one before it is done.

One write of a key at a time waits to be sent, or is in flight. So planning a batch never looks at
those behind it, however many they are.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from kvorum.etcd.pipeline.calls import AnyCall, Unanswered


class KeyOrder:
    """The lines of all keys that have a write waiting or in flight.

    Attributes:
        waiting: how many writes wait behind another one.
    """

    def __init__(self) -> None:
        self.waiting: int = 0
        # None for an empty line, as most are.
        self._lines: dict[bytes, deque[AnyCall] | None] = {}

    def __iter__(self) -> Iterator[AnyCall]:
        """Yield the calls that wait behind another one."""
        return chain.from_iterable(line for line in self._lines.values() if line is not None)

    def admit(self, call: AnyCall) -> bool:
        """Take a write in; tell whether it is the first of its key.

        Otherwise it waits in line, and `release` returns it in time.
        """
        lines, key = self._lines, call.key
        if key not in lines:
            lines[key] = None
            return True
        line = lines[key]
        if line is None:
            lines[key] = deque((call,))
        else:
            line.append(call)
        self.waiting += 1
        return False

    def release_free(self, keys: Iterable[bytes]) -> list[bytes]:
        """End the first write of each key, unless another one waits behind it.

        Return the other keys, for `release`.
        """
        lines, others = self._lines, []
        for key in keys:
            if lines.get(key):
                others.append(key)
            else:
                lines.pop(key, None)
        return others

    def release(self, key: bytes, revision: int = 0) -> AnyCall | None:
        """End the first write of a key; return the next one, None if there is none.

        Calls that are over are dropped. Compare-and-swaps that can never apply are settled: a
        mod_revision that has passed does not come back.

        Args:
            key: the key.
            revision: one at which the key is known to be; 0 if that is unknown.
        """
        line = self._lines.get(key)
        while line:
            call = line.popleft()
            self.waiting -= 1
            if call.is_done:
                continue
            if call.expected and call.expected < revision:
                call.settle(Unanswered.SUPERSEDED)
            else:
                return call
        self._lines.pop(key, None)
        return None

    def clear(self) -> None:
        """Forget all writes."""
        self._lines.clear()
        self.waiting = 0
