"""Whose turn it is: the writes of one key wait in a line of their own, in which nobody overtakes.

One write of a key at a time waits to be sent, or is under way. So whoever plans a batch never looks
at those behind it, however many they are.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from kvorum.etcd.pipeline.batch import Pending, Unanswered


class KeyOrder:
    """The lines of all keys that have a write waiting or under way.

    Attributes:
        standing: how many writes stand behind another one.
    """

    def __init__(self) -> None:
        self.standing: int = 0
        self._lines: dict[
            bytes, deque[Pending[Any]] | None
        ] = {}  # None for no line: mostly nobody stands there

    def __iter__(self) -> Iterator[Pending[Any]]:
        """Go through those who stand behind another one."""
        return chain.from_iterable(line for line in self._lines.values() if line is not None)

    def admit(self, call: Pending[Any]) -> bool:
        """Let a write come; tell whether it is its turn.

        Else it stands in line, and `end` returns it in time.
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
        self.standing += 1
        return False

    def end_free(self, keys: Iterable[bytes]) -> list[bytes]:
        """End the turns of those of these keys where nobody stands in line, as mostly.

        Return the others, for `end`.
        """
        lines, others = self._lines, []
        for key in keys:
            if lines.get(key):
                others.append(key)
            else:
                lines.pop(key, None)
        return others

    def end(self, key: bytes, revision: int = 0) -> Pending[Any] | None:
        """End the turn of the write of a key; return the one whose turn it is now, if any stands there.

        Those that nobody waits for any more are dropped, and compare-and-swaps that can never apply
        are settled: a mod_revision that has passed does not come back.

        Args:
            key: the key.
            revision: one at which the key is known to be; 0 if that is not known.
        """
        line = self._lines.get(key)
        while line:
            call = line.popleft()
            self.standing -= 1
            if call.is_over:
                continue
            if call.expected and call.expected < revision:
                call.settle(Unanswered.SUPERSEDED)
            else:
                return call
        self._lines.pop(key, None)
        return None

    def clear(self) -> None:
        """Forget all."""
        self._lines.clear()
        self.standing = 0
