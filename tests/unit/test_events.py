"""Events, as a `match` statement sees them."""

from typing import ClassVar

import msgspec
import pytest

from kvorum.errors import CorruptResourceError
from kvorum.repository.events import Added, Bookmark, Deleted, Modified, WatchEvent
from kvorum.resources.model import Kind, Metadata, Resource


class BoxSpec(msgspec.Struct):
    size: int = 0


class BoxStatus(msgspec.Struct):
    pass


class Box(Resource[BoxSpec, BoxStatus]):
    kind: ClassVar[Kind] = Kind(
        "Box", plural="boxes", api_version="example.org/v1", namespaced=True
    )


def box(size: int = 1, version: int = 7, namespace: str | None = None) -> Box:
    metadata = Metadata(name="a", namespace=namespace, resource_version=version)
    return Box(metadata=metadata, spec=BoxSpec(size=size), status=BoxStatus())


def described(event: WatchEvent[Box]) -> str:
    """What users write."""
    match event:
        case Added(resource=b):
            return f"added {b.spec.size}"
        case Modified(resource=b, previous=old):
            return f"modified {old.spec.size} to {b.spec.size}"
        case Deleted(b):
            return f"deleted {b.spec.size}"
        case Bookmark(version):
            return f"up to {version}"


@pytest.mark.parametrize(
    ("event", "description"),
    [
        (Added(box(2)), "added 2"),
        (Modified(box(2), box(1)), "modified 1 to 2"),
        (Deleted(box(2)), "deleted 2"),
        (Bookmark(9), "up to 9"),
    ],
)
def test_events_are_told_apart_by_matching(event: WatchEvent[Box], description: str) -> None:
    assert described(event) == description


@pytest.mark.parametrize(
    "event", [Added(box()), Modified(box(), box(0, 3)), Deleted(box()), Bookmark(7)]
)
def test_every_event_has_a_resource_version(event: WatchEvent[Box]) -> None:
    assert event.resource_version == 7


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Added(box()), "<Added boxes/a at 7>"),
        (Modified(box(namespace="team-a"), box()), "<Modified boxes/team-a/a at 7>"),
        (Deleted(box()), "<Deleted boxes/a at 7>"),
        (Bookmark(7), "<Bookmark at 7>"),
    ],
)
def test_an_event_shows_what_it_is_about(event: WatchEvent[Box], text: str) -> None:
    assert repr(event) == text


def test_equal_events_tell_the_same() -> None:
    assert Added(box()) == Added(box())
    assert Modified(box(), box(0)) == Modified(box(), box(0))
    assert Deleted(box()) == Deleted(box())
    assert Bookmark(7) == Bookmark(7)


def test_events_of_different_sorts_or_content_differ() -> None:
    different: list[object] = [
        Added(box()),
        Added(box(2)),
        Added(box(version=8)),
        Modified(box(), box(0)),
        Modified(box(), box(2)),
        Deleted(box()),
        Bookmark(7),
        Bookmark(8),
        box(),
        7,
    ]

    assert all((one == other) == (one is other) for one in different for other in different)


def test_the_previous_state_is_decoded_when_it_is_asked_for_and_once() -> None:
    """Most consumers never ask; others may ask twice."""
    decoded: list[Box] = []

    def decode() -> Box:
        decoded.append(box(0, 3))
        return decoded[-1]

    event = Modified(box(), decode)
    assert repr(event) == "<Modified boxes/a at 7>"
    assert decoded == []

    first, second = event.previous, event.previous

    assert first is second is decoded[0]
    assert len(decoded) == 1


def test_a_lazy_previous_state_equals_one_that_is_there() -> None:
    assert Modified(box(), lambda: box(0)) == Modified(box(), box(0))


def test_a_previous_state_that_cannot_be_decoded_says_so_each_time() -> None:
    def decode() -> Box:
        raise CorruptResourceError("boxes/a", 3, "not JSON")

    event = Modified(box(), decode)

    for _ in range(2):
        with pytest.raises(CorruptResourceError, match="boxes/a at revision 3"):
            _ = event.previous


@pytest.mark.parametrize("event", [Added(box()), Modified(box(), box()), Deleted(box())])
def test_events_about_resources_are_not_hashable(event: WatchEvent[Box]) -> None:
    """The resources in them can change."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(event)


def test_bookmarks_are_hashable() -> None:
    assert {Bookmark(7), Bookmark(7), Bookmark(8)} == {Bookmark(7), Bookmark(8)}
