"""Check a history against the revisions of the store, in linear time.

Etcd numbers all writes, so most questions need no search. A write was told its revision, a read
must match the state at some revision, and both must fit what had ended before they started.

1. Each done write made the changes that it requested, all at the revision that it was told. What it
   expected was true.
2. Each change was made by exactly one call, done or of unknown outcome, or by the end of a lease: a
   key is deleted when its lease is revoked or expires, and not before.
3. A refused call changed nothing, and the reason that it was told was true.
4. Each read matches the state at some revision between what had ended before it started and what
   had not started when it ended. A snapshot matches the state at its revision, entry by entry.
5. Real time: a call that ended before another started has the smaller revision.
6. Calls may share a revision if there is an order of them in which each finds what it expected.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from msgspec import UNSET

from kvorum.storage import Change, Entry
from kvorum.testing.checkers.lease_ends import LeaseEnds
from kvorum.testing.evidence import (
    Call,
    Count,
    History,
    Observation,
    Outcome,
    Rule,
    ServerHistory,
    Snapshot,
    State,
    Violation,
    Write,
    contradictions,
    future_revision,
    settled_calls,
)


def check_revisions(
    history: History, server_history: ServerHistory, *, is_complete: bool = True
) -> list[Violation]:
    """Return all findings; none if the history is correct.

    Args:
        history: what the clients were told.
        server_history: the server's history.
        is_complete: whether the history holds every write under the prefix. If not, changes that no
            call claims are accepted.
    """
    check = _RevisionCheck(settled_calls(history.calls), server_history)
    check.claim()
    check.sweep()
    if is_complete:
        check.explain()
        check.outlived()
    check.order()
    check.replay()
    return check.violations + [
        Violation(Rule.WRONG_CHANGE, f"{one} and {other} settled the same call and disagree", other)
        for one, other in contradictions(history.calls)
    ]


class _RevisionCheck:
    def __init__(self, calls: list[Call], server_history: ServerHistory) -> None:
        self.violations: list[Violation] = []
        self._calls = calls
        self._server_history = server_history
        self._claims: dict[tuple[int, str], Call] = {}
        self._lows: dict[int, int] = {}  # by the start of a call: a revision reached before it
        self._seconds: list[
            tuple[int, float]
        ] = []  # revisions reached, and when that was known; both increase
        self._leases = LeaseEnds(calls)

    def _found(self, rule: Rule, call: Call | None, what: str) -> None:
        self.violations.append(
            Violation(rule, f"{call}: {what}" if call is not None else what, call)
        )

    # --- rules 1 and 2: done writes ---

    def claim(self) -> None:
        """Match every done write with its changes."""
        for call in self._calls:
            if call.outcome is Outcome.DONE and call.writes:
                self._claim(call)

    def _claim(self, call: Call) -> None:
        if call.revision > self._server_history.end:
            self._found(
                Rule.LOST_WRITE,
                call,
                f"revision {call.revision} is beyond the end {self._server_history.end}",
            )
            return
        for write in call.requested:
            self._check_expected(call, write)
            if write.writes and self._is_there(call, write, call.revision):
                self._take(call, write.key, call.revision)
        change = call.change
        if change is not None and change != self._server_history.change(
            change.key, change.revision
        ):
            self._found(Rule.WRONG_CHANGE, call, f"it was told {change}")

    def _check_expected(self, call: Call, write: Write) -> None:
        before = self._server_history.entry(write.key, call.revision - 1)
        found = before.mod_revision if before is not None else 0
        if write.expected is not None and write.expected != found:
            what = f"{write.key} was at {found} before {call.revision}, not at {write.expected}"
            self._found(Rule.BROKEN_EXPECTATION, call, what)

    def _is_there(self, call: Call, write: Write, revision: int) -> bool:
        """Return whether a revision made the requested change; report it if not."""
        change = self._server_history.change(write.key, revision)
        if change is None:
            absent = write.value is None and self._server_history.entry(write.key, revision) is None
            if not absent:
                self._found(
                    Rule.LOST_WRITE, call, f"revision {revision} did nothing to {write.key!r}"
                )
            return False
        written = change.entry.value if change.entry is not None else None
        if written != write.value:
            self._found(
                Rule.WRONG_VALUE, call, f"revision {revision} made {written!r} of {write.key!r}"
            )
        elif change.entry is not None and write.lease is not UNSET:
            before = change.previous.lease if change.previous is not None else 0
            lease = before if write.lease is None else write.lease
            if change.entry.lease != lease:
                leases = f"{change.entry.lease:x}, not {lease:x}"
                what = f"revision {revision} attached {write.key!r} to lease {leases}"
                self._found(Rule.WRONG_VALUE, call, what)
        return True

    def _take(self, call: Call, key: str, revision: int) -> None:
        other = self._claims.setdefault((revision, key), call)
        if other is not call:
            self._found(
                Rule.APPLIED_TWICE, call, f"{other} also claims revision {revision} of {key!r}"
            )

    # --- rules 3 to 5: reads and refusals in real time ---

    def sweep(self) -> None:
        """Visit all starts and ends in order, tracking the highest revision known to be reached."""
        reached = 0
        for is_end, call in self._moments():
            if not is_end:
                self._lows[call.started] = reached
            elif call.outcome is not Outcome.UNKNOWN:
                place = self._first_revision(call, self._lows[call.started])
                self._check_refusal(call, self._lows[call.started])
                if place > reached:
                    reached = place
                    self._seconds.append((reached, call.seconds[1]))

    def _check_refusal(self, call: Call, low: int) -> None:
        """Check a refusal about a revision or a lease against the state when the call started."""
        if call.outcome is not Outcome.REFUSED:
            return
        future = future_revision(call.error)
        if future and future <= low:
            what = (
                f"it was told that {future} has not been reached, but {low} was before it started"
            )
            self._found(Rule.FALSE_REFUSAL, call, what)
        runs_out = self._leases.runs_out(call.lease) if call.lease else None
        revoked = [
            each
            for each in self._leases.revocations(call.lease)
            if each.started < (call.ended or 0)
        ]
        if (
            runs_out is not None
            and call.seconds[1] < runs_out
            and not any(each is not call for each in revoked)
        ):
            what = f"it was told that lease {call.lease:x} is gone, but it had not ended"
            self._found(Rule.FALSE_REFUSAL, call, what)

    def _moments(self) -> Iterator[tuple[bool, Call]]:
        moments = [(call.started, False, call) for call in self._calls]
        moments += [(call.ended, True, call) for call in self._calls if call.ended is not None]
        moments.sort(key=lambda moment: moment[0])
        return ((is_end, call) for _, is_end, call in moments)

    def _first_revision(self, call: Call, low: int) -> int:
        """Return the earliest revision, from `low` on, at which a call can have taken effect."""
        if call.outcome is Outcome.DONE and call.writes:
            changed = any((call.revision, write.key) in self._claims for write in call.requested)
            if call.revision < low + changed:
                what = f"it got revision {call.revision}, but {low} was reached before it started"
                self._found(Rule.REAL_TIME, call, what)
            return call.revision
        if call.observation is not None:
            return self._first_revision_of_observation(call, call.observation, low)
        if call.snapshot is not None:
            if call.snapshot.at is not None:
                return max(low, call.snapshot.revision)
            if call.snapshot.revision < low:
                what = f"it shows {call.snapshot.revision}, but {low} was reached before it started"
                self._found(Rule.STALE_READ, call, what)
            return call.snapshot.revision
        if call.count is not None:
            return self._first_revision_of_count(call, call.count, low)
        return low

    def _first_revision_of_observation(self, call: Call, observation: Observation, low: int) -> int:
        key = observation.key
        if observation.unlike is not None and observation.revision == observation.unlike:
            what = f"{key!r} was at {observation.unlike}, as expected"
            self._found(Rule.FALSE_REFUSAL, call, what)
        if observation.at is not None:
            self._check_past(call, observation, observation.at)
            return max(low, observation.at)  # a later write gets a higher revision than this one
        if observation.revision:
            return self._first_revision_of_state(call, observation, low)
        first = self._server_history.first(key, exists=observation.exists, since=low)
        if first is None:
            state = "there" if observation.exists else "absent"
            self._found(Rule.STALE_READ, call, f"{key!r} was never {state} from {low} on")
        return low if first is None else first

    def _check_past(self, call: Call, observation: Observation, at: int) -> None:
        """Compare an observation with the state at the requested revision."""
        history = self._server_history
        if at > history.end:
            what = f"revision {at} is beyond the end {history.end}"
            self._found(Rule.INVENTED_READ, call, what)
        elif not self._agrees(observation, history.entry(observation.key, at)):
            self._found(Rule.WRONG_SNAPSHOT, call, f"{observation.key!r} was different at {at}")

    def _first_revision_of_state(self, call: Call, observation: Observation, low: int) -> int:
        key, revision = observation.key, observation.revision
        change = self._server_history.change(key, revision)
        if change is None or not self._agrees(observation, change.entry):
            what = f"revision {revision} did not make that of {key!r}"
            self._found(Rule.INVENTED_READ, call, what)
            return low
        until = self._server_history.until(key, revision)
        if max(low, revision) >= until:
            seen = f"{key!r} was at {revision} only until {until}"
            what = f"{seen}, but {low} was reached before it started"
            self._found(Rule.STALE_READ, call, what)
        return max(low, revision)

    def _agrees(self, observation: Observation, entry: Entry | None) -> bool:
        if entry is None or not observation.exists:
            return observation.exists == (entry is not None)
        if observation.entry is not None:
            return observation.entry == entry
        return (observation.revision, observation.value) == (entry.mod_revision, entry.value)

    def _first_revision_of_count(self, call: Call, count: Count, low: int) -> int:
        place = self._server_history.first_count(
            count.prefix, count.number, since=low if count.at is None else count.at
        )
        if count.at is not None:
            if count.at > self._server_history.end:
                self._found(
                    Rule.INVENTED_READ,
                    call,
                    f"revision {count.at} is beyond the end {self._server_history.end}",
                )
            elif place != count.at:
                self._found(
                    Rule.WRONG_SNAPSHOT, call, f"there were not {count.number} keys at {count.at}"
                )
            return max(low, count.at)
        if place is None:
            self._found(
                Rule.STALE_READ, call, f"there were never {count.number} keys from {low} on"
            )
        return low if place is None else place

    # --- rule 2: unclaimed changes ---

    def explain(self) -> None:
        """Find a call for every change that no done write claims."""
        unknown: dict[tuple[str, bytes | None], list[Call]] = defaultdict(list)
        for call in self._calls:
            if call.outcome is Outcome.UNKNOWN:
                for write in call.requested:
                    if write.writes:
                        unknown[write.key, write.value].append(call)
        explained: set[int] = set()
        for revision, changes in self._server_history.revisions.items():
            for change in changes:
                if (revision, change.key) in self._claims:
                    continue
                lease = (
                    change.previous.lease
                    if change.entry is None and change.previous is not None
                    else 0
                )
                value = change.entry.value if change.entry is not None else None
                author = self._author(unknown[change.key, value], changes, explained)
                if author is not None:
                    explained.add(author.started)
                    self._claim_unknown(author, revision)
                elif lease:
                    self._check_lease_end(change.key, lease, revision)
                else:
                    self._invented(revision, change.key, value)

    def _check_lease_end(self, key: str, lease: int, revision: int) -> None:
        """Report a key that was deleted before its lease can have ended."""
        if any(self._lows[call.started] < revision for call in self._leases.revocations(lease)):
            return
        runs_out = self._leases.runs_out(lease)
        known = next(
            (second for reached, second in self._seconds if reached >= revision),
            self._server_history.read_at,
        )
        if runs_out is not None and (time.monotonic() if known is None else known) < runs_out:
            what = f"{key!r} was gone at revision {revision}, before lease {lease:x} can have ended"
            self._found(Rule.LEASE_ENDED_EARLY, None, what)

    def outlived(self) -> None:
        """Report keys that exist although their lease was revoked."""
        for call in self._leases.done_revocations():
            for key in self._server_history.all_keys():
                entry = self._server_history.entry(key, self._server_history.end)
                if entry is not None and call.lease and entry.lease == call.lease:
                    self._found(
                        Rule.LEASE_OUTLIVED, call, f"{key!r} exists at {self._server_history.end}"
                    )

    def _author(
        self, candidates: list[Call], changes: tuple[Change, ...], explained: set[int]
    ) -> Call | None:
        """Return a call that can have made this change, or else one that requested it.

        The second case is a finding. Batched calls share a revision, so it may hold more than one
        call requested. Deletions carry no value, so several calls may fit: prefer the one that
        explains more of the revision, then one that expected exactly that state.
        """
        revision = changes[0].revision
        possible = [
            c for c in candidates if c.started not in explained and self._lows[c.started] < revision
        ]
        fitting = [call for call in possible if self._can_have_made(call, changes)]
        fitting.sort(
            key=lambda call: (
                -len(call.requested),
                all(write.expected is None for write in call.requested),
            )
        )
        return next(iter(fitting or possible), None)

    def _can_have_made(self, call: Call, changes: tuple[Change, ...]) -> bool:
        before = {
            write.key: self._server_history.entry(write.key, changes[0].revision - 1)
            for write in call.requested
        }
        found = {
            key: entry.mod_revision if entry is not None else 0 for key, entry in before.items()
        }
        if any(write.expected not in {None, found[write.key]} for write in call.requested):
            return False
        wanted = {
            i.key: i.value
            for i in call.requested
            if i.writes and (i.value is not None or found[i.key])
        }
        open_changes = {
            c.key: c.entry.value if c.entry is not None else None
            for c in changes
            if (c.revision, c.key) not in self._claims
        }
        return wanted.items() <= open_changes.items()

    def _claim_unknown(self, call: Call, revision: int) -> None:
        for write in call.requested:
            before = self._server_history.entry(write.key, revision - 1)
            found = before.mod_revision if before is not None else 0
            if write.expected is not None and write.expected != found:
                self._found(
                    Rule.BROKEN_EXPECTATION,
                    call,
                    f"{write.key!r} was at {found}, not at {write.expected}",
                )
            if write.writes and self._is_there(call, write, revision):
                self._take(call, write.key, revision)

    def _invented(self, revision: int, key: str, value: bytes | None) -> None:
        for call in self._calls:
            if any(
                write.writes and (write.key, write.value) == (key, value)
                for write in call.requested
            ):
                if call.outcome is Outcome.REFUSED:
                    self._found(
                        Rule.FALSE_REFUSAL,
                        call,
                        f"it was refused, but applied at revision {revision}",
                    )
                    return
                self._found(Rule.APPLIED_TWICE, call, f"it was also applied at revision {revision}")
                return
        self._found(
            Rule.INVENTED_WRITE,
            None,
            f"no call made revision {revision} of {key!r}, which wrote {value!r}",
        )

    # --- rule 6: calls that share a revision ---

    def order(self) -> None:
        """Find calls of one revision of which each would have to precede the other."""
        shared: dict[int, list[Call]] = defaultdict(list)
        for (revision, _), call in self._claims.items():
            shared[revision].append(call)
        for revision, calls in shared.items():
            self._order_of(revision, {call.started: call for call in calls})

    def _order_of(self, revision: int, calls: dict[int, Call]) -> None:
        before: TopologicalSorter[int] = TopologicalSorter()
        for call in calls.values() if len(calls) > 1 else ():
            for write in call.requested:
                writer = self._claims.get((revision, write.key))
                if write.expected is not None and writer is not None and writer is not call:
                    before.add(
                        writer.started, call.started
                    )  # it expects the state before that write
        try:
            before.prepare()
        except CycleError as exc:
            circle = [str(calls[started]) for started in exc.args[1][1:]]
            calls_of_it = ", ".join(circle)
            what = f"at {revision} each of these expects what the next one changed: {calls_of_it}"
            self._found(Rule.WRITE_SKEW, None, what)

    # --- rule 4: snapshots ---

    def replay(self) -> None:
        """Compare every snapshot with the state at its revision."""
        snapshots = [
            (call.snapshot.revision, call, call.snapshot)
            for call in self._calls
            if call.snapshot is not None
        ]
        state = State(self._server_history)
        for revision, call, snapshot in sorted(snapshots, key=lambda each: each[0]):
            if revision > self._server_history.end:
                self._found(
                    Rule.INVENTED_READ,
                    call,
                    f"revision {revision} is beyond the end {self._server_history.end}",
                )
                continue
            state.go_to(revision)
            self._check_snapshot(call, snapshot, state.range(snapshot.prefix, snapshot.after))

    def _check_snapshot(self, call: Call, snapshot: Snapshot, entries: list[Entry]) -> None:
        shown = entries[: snapshot.limit]
        if list(snapshot.entries) != shown:
            different = [e.key for e in {*shown} ^ {*snapshot.entries}] or ["their order"]
            self._found(
                Rule.WRONG_SNAPSHOT,
                call,
                f"at {snapshot.revision} it differs in {sorted(different)[:5]}",
            )
        if snapshot.remaining != len(entries) - len(shown):
            what = f"{len(entries) - len(shown)} keys remained, not {snapshot.remaining}"
            self._found(Rule.WRONG_SNAPSHOT, call, what)
