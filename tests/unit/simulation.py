"""Simulated histories: correct by construction, for the tests of the checkers.

Calls of several clients overlap. Each takes effect between its start and its end, or long after
its client gave up. Simulated time decides the order; no server is involved.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from copy import copy
from functools import cache

import msgspec

from kvorum.memory import timeline
from kvorum.storage.values import Change, Entry
from kvorum.testing.checkers.watch_streams import (
    BookmarkSeen,
    WatchedStream,
)
from kvorum.testing.evidence.history import (
    Call,
    Count,
    History,
    Observation,
    Outcome,
    Snapshot,
    Write,
)
from kvorum.testing.evidence.server_history import ServerHistory
from kvorum.testing.evidence.violation import Rule, Violation

KEYS = ["a", "b", "c/1"]
NAMES = ["get", "get", "list", "count", "set", "swap", "delete", "commit"]


class Simulation:
    """Clients and a store in simulated time. Everything that it produces is correct."""

    def __init__(self, seed: int, *, clients: int = 3, calls: int = 25) -> None:
        self.rng = random.Random(seed)
        self.timeline = timeline.Timeline()
        self.history = History()
        self.log: list[tuple[Change, ...]] = []
        self.numbers = itertools.count(1)
        self.values = itertools.count(1)
        self._known: dict[str, int] = {}  # the revision of a key that some client has seen
        self._ties = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        for client in range(clients):
            self._at(self.rng.random(), self._starts(f"c{client}", calls))
        while self._agenda:
            now, _, act = heapq.heappop(self._agenda)
            act(now)
        self.server_history = ServerHistory(self.log, end=self.timeline.revision)

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._ties), act))

    def _starts(self, client: str, calls: int) -> Callable[[float], None]:
        def start(now: float) -> None:
            if not calls:
                return
            made = getattr(
                self,
                f"_{self.rng.choice(NAMES)}",
            )()
            number = next(self.numbers)
            is_unknown = bool(made.requested) and self.rng.random() < 0.15
            effect = now + self.rng.random()
            end = effect + self.rng.random()
            answer: list[Call] = []

            def act(_: float) -> None:
                answer.append(self._effect(made))

            def finish(now: float) -> None:
                call = (
                    answer[0]
                    if answer and not is_unknown
                    else msgspec.structs.replace(made, outcome=Outcome.UNKNOWN)
                )
                ended = next(self.numbers)
                self.history.calls.append(
                    msgspec.structs.replace(call, client=client, started=number, ended=ended)
                )
                self._at(now + self.rng.random() / 2, self._starts(client, calls - 1))

            if is_unknown and self.rng.random() < 0.5:
                if self.rng.random() < 0.5:
                    self._at(
                        effect + 5 * self.rng.random(), act
                    )  # perhaps long after the client gave up
            else:
                self._at(effect, act)
            self._at(end, finish)

        return start

    # --- what is asked for ---

    def _call(self, name: str, *requested: Write) -> Call:
        return Call(client="", name=name, started=0, ended=None, requested=requested)

    def _value(self) -> bytes:
        return b"v%d" % next(self.values)

    def _now(self, key: str) -> Entry | None:
        return self.timeline.entry(key.encode(), self.timeline.revision)

    def _expected(self, key: str) -> int:
        return self.rng.choice([self._known.get(key, 0), self._known.get(key, 0), 0, 999])

    def _get(self) -> Call:
        return msgspec.structs.replace(
            self._call("get"), observation=Observation(self.rng.choice(KEYS), exists=False)
        )

    def _list(self) -> Call:
        snapshot = Snapshot(
            "c" if self.rng.random() < 0.3 else "", None, self.rng.choice([None, 1, 2]), (), 0, 0
        )
        return msgspec.structs.replace(self._call("list"), snapshot=snapshot)

    def _count(self) -> Call:
        return msgspec.structs.replace(self._call("count"), count=Count("", 0))

    def _set(self) -> Call:
        return self._call("set", Write(self.rng.choice(KEYS), self._value()))

    def _swap(self) -> Call:
        key = self.rng.choice(KEYS)
        return self._call("swap", Write(key, self._value(), self._expected(key)))

    def _delete(self) -> Call:
        key = self.rng.choice(KEYS)
        return self._call(
            "delete", Write(key, None, self.rng.choice([None, self._known.get(key) or None]))
        )

    def _commit(self) -> Call:
        one, other = self.rng.sample(KEYS, 2)
        seconds = [
            *(Write(other, self._value()) for _ in range(5)),
            Write(other, None),
            *(Write(other, None, self._expected(other), False) for _ in range(2)),
        ]
        return self._call("commit", Write(one, self._value()), self.rng.choice(seconds))

    # --- what happens ---

    def _effect(self, call: Call) -> Call:
        now = self.timeline.revision
        if call.observation is not None:
            observation = Observation.of(call.observation.key, self._now(call.observation.key))
            self._known[observation.key] = observation.revision
            return msgspec.structs.replace(call, observation=observation)
        if call.snapshot is not None:
            start = call.snapshot.prefix.encode()
            entries = list(self.timeline.entries(start, b"\xff", now))
            entries = [entry for entry in entries if entry.key.startswith(call.snapshot.prefix)]
            shown = tuple(entries[: call.snapshot.limit])
            snapshot = msgspec.structs.replace(
                call.snapshot, entries=shown, remaining=len(entries) - len(shown), revision=now
            )
            return msgspec.structs.replace(call, snapshot=snapshot)
        if call.count is not None:
            number = sum(1 for _ in self.timeline.entries(b"", b"\xff", now))
            return msgspec.structs.replace(call, count=Count("", number))
        return self._write(call)

    def _write(self, call: Call) -> Call:
        for write in call.requested:
            current = self._now(write.key)
            found = current.mod_revision if current else 0
            if write.expected not in {None, found}:
                observation = Observation.of(write.key, current, unlike=write.expected)
                return msgspec.structs.replace(
                    call, outcome=Outcome.REFUSED, observation=observation
                )
            if call.name == "delete" and current is None:
                return msgspec.structs.replace(
                    call, outcome=Outcome.REFUSED, observation=Observation(write.key, exists=False)
                )
        changes = self.timeline.write(
            {
                each.key.encode(): timeline.Write(each.key, each.value)
                for each in call.requested
                if each.writes
            }
        )
        self.log.append(tuple(changes))
        change = changes[0] if call.name == "delete" else None
        return msgspec.structs.replace(call, revision=self.timeline.revision, change=change)

    # --- what a watch of it shows ---

    def stream(self, *, prefix: str = "", since: int = 0) -> WatchedStream:
        stream = WatchedStream(prefix=prefix, since=since, complete_to=self.server_history.end)
        for revision, changes in self.server_history.revisions.items():
            mine = [change for change in changes if change.key.startswith(prefix)]
            if mine and revision > since:
                stream.add_changes(mine)
                if self.rng.random() < 0.2:
                    stream.shown.append(BookmarkSeen(revision))
        return stream


def rules(violations: Iterable[Violation]) -> set[Rule]:
    return {violation.rule for violation in violations}


_simulations = cache(Simulation)


def simulated(seed: int) -> Simulation:
    """Return a simulation that the caller may change. Each seed is simulated only once."""
    made, known = copy(_simulations(seed)), _simulations(seed)
    made.rng = random.Random()
    made.rng.setstate(known.rng.getstate())
    made.history = History()
    made.history.calls += known.history.calls
    made.log = list(known.log)
    return made
