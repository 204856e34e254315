"""The checker of watches accepts every correct stream and finds each planted fault."""

from collections.abc import Callable

import msgspec
import pytest
from tests.unit.simulation import KEYS, Simulation, rules, simulated

from kvorum.storage.values import Change, Entry
from kvorum.testing.checkers.watch_streams import (
    BookmarkSeen,
    Relist,
    ShownChange,
    WatchedStream,
    check_resumed,
    check_watch,
)
from kvorum.testing.evidence.server_history import ServerHistory
from kvorum.testing.evidence.violation import Rule

Shown_ = tuple[ShownChange, ...]


Spoil = Callable[
    [WatchedStream, int, int], bool | None
]  # an index, and the next one; False: nothing to spoil


def events_at(stream: WatchedStream, place: int) -> Shown_:
    events = stream.shown[place]
    assert isinstance(events, tuple)
    return events


def with_first(stream: WatchedStream, place: int, **changes: object) -> None:
    first, *others = events_at(stream, place)
    stream.shown[place] = (msgspec.structs.replace(first, **changes), *others)


def drop(stream: WatchedStream, place: int, _: int) -> None:
    del stream.shown[place]


def drop_the_last(stream: WatchedStream, _: int, __: int) -> None:
    del stream.shown[-1]


def duplicate(stream: WatchedStream, place: int, _: int) -> None:
    stream.shown.insert(place, stream.shown[place])


def swap(stream: WatchedStream, place: int, following: int) -> None:
    stream.shown[place], stream.shown[following] = stream.shown[following], stream.shown[place]


def split(stream: WatchedStream, _: int, __: int) -> bool:
    for place in range(len(stream.shown)):
        events = events_at(stream, place)
        if len(events) > 1:
            stream.shown[place : place + 1] = [events[:1], events[1:]]
            return True
    return False


def merge(stream: WatchedStream, place: int, following: int) -> None:
    stream.shown[place] = events_at(stream, place) + events_at(stream, following)
    del stream.shown[following]


def off_by_one(stream: WatchedStream, place: int, _: int) -> None:
    events = events_at(stream, place)
    stream.shown[place] = tuple(
        msgspec.structs.replace(each, revision=each.revision + 1) for each in events
    )


def invent(stream: WatchedStream, place: int, _: int) -> None:
    events = events_at(stream, place)
    stream.shown[place] = (*events, ShownChange("added", events[0].revision, "invented", b""))


def before_the_start(stream: WatchedStream, _: int, __: int) -> None:
    stream.shown.insert(0, (ShownChange("added", stream.since or 0, "a", b"", None),))


def wrong_kind(stream: WatchedStream, place: int, _: int) -> None:
    is_added = events_at(stream, place)[0].kind == "added"
    with_first(stream, place, kind="modified" if is_added else "added")


def wrong_value(stream: WatchedStream, place: int, _: int) -> None:
    with_first(stream, place, value=b"other")


def wrong_previous(stream: WatchedStream, place: int, _: int) -> bool:
    if events_at(stream, place)[0].kind != "modified":
        return False
    with_first(stream, place, previous=b"other")
    return True


def bookmark_ahead(stream: WatchedStream, place: int, _: int) -> None:
    stream.shown.insert(place, BookmarkSeen(events_at(stream, place)[0].revision))


def bookmark_back(stream: WatchedStream, place: int, _: int) -> None:
    stream.shown.insert(place + 1, BookmarkSeen(events_at(stream, place)[0].revision - 1))


def another_prefix(stream: WatchedStream, _: int, __: int) -> None:
    stream.prefix = "b"


SPOILT: list[tuple[Spoil, set[Rule]]] = [
    (drop, {Rule.LOST_EVENT}),
    (drop_the_last, {Rule.LOST_EVENT}),
    (duplicate, {Rule.DUPLICATE_EVENT}),
    (swap, {Rule.EVENT_ORDER, Rule.LOST_EVENT}),
    (split, {Rule.SPLIT_REVISION}),
    (merge, {Rule.SPLIT_REVISION}),
    (off_by_one, {Rule.LOST_EVENT, Rule.INVENTED_EVENT}),
    (invent, {Rule.INVENTED_EVENT}),
    (before_the_start, {Rule.DUPLICATE_EVENT}),
    (wrong_kind, {Rule.WRONG_EVENT}),
    (wrong_value, {Rule.WRONG_EVENT}),
    (wrong_previous, {Rule.WRONG_PREVIOUS}),
    (bookmark_ahead, {Rule.LOST_EVENT}),
    (bookmark_back, {Rule.WRONG_BOOKMARK}),
    (another_prefix, {Rule.INVENTED_EVENT}),
]


@pytest.mark.parametrize(("spoil", "expected"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_a_planted_fault_in_a_watch_is_found(spoil: Spoil, expected: set[Rule]) -> None:
    planted = 0
    for seed in range(40):
        simulation = simulated(seed)
        stream = simulation.stream(since=3)
        stream.shown = [each for each in stream.shown if not isinstance(each, BookmarkSeen)]
        place = simulation.rng.randrange(1, len(stream.shown) - 1)
        if spoil(stream, place, place + 1) is not False:
            planted += 1
            found = rules(check_watch(stream, simulation.server_history))
            assert found & expected, (seed, found)
    assert planted >= 15


def test_a_watch_that_begins_with_all_there_is_is_checked_against_it() -> None:
    simulation = simulated(1)
    middle = simulation.server_history.end // 2
    there = [
        entry for key in KEYS if (entry := simulation.server_history.entry(key, middle)) is not None
    ]
    assert there
    initial = [
        (ShownChange("added", entry.mod_revision, entry.key, entry.value),) for entry in there
    ]
    rest = simulation.stream(since=middle).shown
    right = WatchedStream(
        prefix="",
        since=None,
        shown=[*initial, BookmarkSeen(middle), *rest],
        complete_to=simulation.server_history.end,
    )

    assert check_watch(right, simulation.server_history) == []
    for spoilt, rule in (
        ([*initial[1:], BookmarkSeen(middle), *rest], Rule.LOST_EVENT),
        ([*initial, initial[0], BookmarkSeen(middle), *rest], Rule.DUPLICATE_EVENT),
        (
            [*initial, (ShownChange("added", 1, "x", b""),), BookmarkSeen(middle), *rest],
            Rule.INVENTED_EVENT,
        ),
        ([*initial, *rest], Rule.WRONG_BOOKMARK),
    ):
        stream = WatchedStream(prefix="", since=None, shown=list(spoilt))
        if rule is Rule.WRONG_BOOKMARK:
            stream.shown = [each for each in stream.shown if not isinstance(each, BookmarkSeen)]
        assert rule in rules(check_watch(stream, simulation.server_history))


def difference(server_history: ServerHistory, before: int, at: int) -> tuple[ShownChange, ...]:
    """Return what a watch shows that has shown one revision and relists at another."""
    was = {key: entry for key in KEYS if (entry := server_history.entry(key, before)) is not None}
    now = {key: entry for key in KEYS if (entry := server_history.entry(key, at)) is not None}
    gone = [
        ShownChange("deleted", at, key, was[key].value, was[key].value)
        for key in was.keys() - now.keys()
    ]
    others = [
        ShownChange("modified", entry.mod_revision, key, entry.value, was[key].value)
        if key in was
        else ShownChange("added", entry.mod_revision, key, entry.value)
        for key, entry in now.items()
        if key not in was or was[key].mod_revision != entry.mod_revision
    ]
    return (*gone, *sorted(others, key=lambda event: event.revision))


def relisting(simulation: Simulation) -> tuple[WatchedStream, int]:
    """Return a stream with an initial list and a relist, and the index of the relist."""
    server_history = simulation.server_history
    first, lost, again = (
        server_history.end // 4,
        server_history.end // 2,
        server_history.end * 3 // 4,
    )
    initial = [
        (ShownChange("added", entry.mod_revision, entry.key, entry.value),)
        for entry in entries(server_history, first)
    ]
    rest = [each for each in simulation.stream(since=first).shown if isinstance(each, tuple)]
    before = [each for each in rest if each[0].revision <= lost]
    listing = Relist(
        again, difference(server_history, before[-1][0].revision if before else first, again)
    )
    shown: list[Shown_ | BookmarkSeen | Relist]
    shown = [
        *initial,
        BookmarkSeen(first),
        *before,
        listing,
        *[each for each in rest if each[0].revision > again],
    ]
    return WatchedStream(
        prefix="", since=None, shown=shown, complete_to=server_history.end
    ), shown.index(listing)


def entries(server_history: ServerHistory, revision: int) -> list[Entry]:
    return [entry for key in KEYS if (entry := server_history.entry(key, revision)) is not None]


def test_a_watch_that_lists_again_shows_the_difference() -> None:
    for seed in range(40):
        simulation = simulated(seed)
        stream, _ = relisting(simulation)
        assert check_watch(stream, simulation.server_history) == [], seed


SPOILT_DIFFERENCES: dict[str, tuple[Callable[[ShownChange], list[ShownChange]], set[Rule]]] = {
    "one is missing": (lambda _: [], {Rule.LOST_EVENT}),
    "one comes twice": (
        lambda event: [event, event],
        {Rule.WRONG_EVENT, Rule.INVENTED_EVENT, Rule.WRONG_PREVIOUS},
    ),
    "another value": (
        lambda event: [msgspec.structs.replace(event, value=b"other")],
        {Rule.INVENTED_EVENT, Rule.WRONG_PREVIOUS},
    ),
    "another revision": (
        lambda event: [msgspec.structs.replace(event, revision=event.revision - 1)],
        {Rule.INVENTED_EVENT},
    ),
    "one that never was": (
        lambda event: [event, ShownChange("deleted", event.revision, "x", b"", b"")],
        {Rule.INVENTED_EVENT},
    ),
}


@pytest.mark.parametrize("name", SPOILT_DIFFERENCES)
def test_a_planted_fault_in_a_difference_is_found(name: str) -> None:
    spoil, expected = SPOILT_DIFFERENCES[name]
    planted = 0
    for seed in range(40):
        simulation = simulated(seed)
        stream, place = relisting(simulation)
        listing = stream.shown[place]
        assert isinstance(listing, Relist)
        for number, event in enumerate(listing.events):
            events = (*listing.events[:number], *spoil(event), *listing.events[number + 1 :])
            stream.shown[place] = msgspec.structs.replace(listing, events=events)
            planted += 1
            found = rules(check_watch(stream, simulation.server_history))
            assert found & expected, (seed, event, found)
    assert planted >= 15


def test_a_list_again_at_an_older_revision_is_found() -> None:
    simulation = simulated(3)
    stream, place = relisting(simulation)
    listing = stream.shown[place]
    assert isinstance(listing, Relist)
    stream.shown.append(listing)

    assert Rule.WRONG_BOOKMARK in rules(check_watch(stream, simulation.server_history))


def test_a_selector_makes_coming_in_an_addition_and_going_out_a_deletion() -> None:
    def entry(revision: int, value: bytes) -> Entry:
        return Entry("a", value, revision, 2, revision)

    states = [
        None,
        entry(2, b"no"),
        entry(3, b"yes"),
        entry(4, b"yes too"),
        entry(5, b"no more"),
        None,
    ]
    log = [(Change("a", at + 1, states[at], states[at - 1]),) for at in range(1, 6)]
    shown: list[Shown_ | BookmarkSeen | Relist] = [
        (ShownChange("added", 3, "a", b"yes"),),
        (ShownChange("modified", 4, "a", b"yes too", b"yes"),),
        (ShownChange("deleted", 5, "a", b"yes too", b"yes too"),),
    ]
    stream = WatchedStream(
        prefix="",
        since=0,
        shown=shown,
        matches=lambda entry: entry.value.startswith(b"yes"),
        complete_to=6,
    )

    assert check_watch(stream, ServerHistory(log, end=6)) == []
    stream.matches = lambda _: True
    assert check_watch(stream, ServerHistory(log, end=6)) != []


def test_resumed_watches_neither_leave_out_nor_repeat() -> None:
    simulation = simulated(2)
    whole = simulation.stream().shown
    whole = [each for each in whole if not isinstance(each, BookmarkSeen)]
    middle = whole[len(whole) // 2][0].revision  # type: ignore[index]
    front = [each for each in whole if each[0].revision <= middle]  # type: ignore[index]
    first = WatchedStream(prefix="", since=0, shown=front)
    for since, is_right in ((middle, True), (middle + 1, False), (middle - 1, False)):
        second = simulation.stream(since=since)
        assert (check_resumed([first, second], simulation.server_history) == []) == is_right
