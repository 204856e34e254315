"""Lists by page: one revision for all pages, few requests with selectors, and corrupt values."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kinds import Box, Crate, box, box_by_hand, crate, version_of

import kvorum
from kvorum import (
    ConflictError,
    CorruptResourceError,
    HistoryLostError,
    InvalidResourceError,
    NotFoundError,
    Repository,
    ResourceList,
)

Compact = Callable[[int], Awaitable[None]]


def names(found: ResourceList[Box]) -> list[str]:
    return [each.metadata.name for each in found]


@pytest.fixture
def boxes(client: kvorum.Client) -> Repository[Box]:
    return client.repository(Box)


@pytest.fixture
async def four(boxes: Repository[Box]) -> Repository[Box]:
    """Four boxes, of which two are red."""
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "red"), ("d", "blue")):
        await boxes.add(box(name, colour=colour))
    return boxes


@pytest.fixture
def page_sizes(client: kvorum.Client, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many keys each request of a list asked for."""
    asked: list[int | None] = []
    backend = client.backend
    read = backend.list

    async def count(*args: Any, limit: int | None = None, **options: Any) -> kvorum.Page:
        asked.append(limit)
        return await read(*args, limit=limit, **options)

    monkeypatch.setattr(backend, "list", count)
    return asked


# --- pages ----------------------------------------------------------------------------------------


async def test_all_pages_show_the_revision_of_the_first(four: Repository[Box]) -> None:
    pages = [await four.list(limit=1)]
    while pages[-1].continuation is not None:
        if len(pages) == 2:
            await four.add(box("e"))
            await four.delete("d")
        pages.append(await four.list(limit=1, continue_from=pages[-1].continuation))

    assert [names(page) for page in pages] == [["a"], ["b"], ["c"], ["d"]]
    assert [page.remaining for page in pages] == [3, 2, 1, 0]
    assert len({page.resource_version for page in pages}) == 1


async def test_a_continuation_used_twice_gives_the_same_page_twice(four: Repository[Box]) -> None:
    first = await four.list(limit=2)
    second = await four.list(limit=2, continue_from=first.continuation)
    await four.delete("c")
    again = await four.list(limit=2, continue_from=first.continuation)

    assert list(again) == list(second)
    assert again.resource_version == second.resource_version


async def test_the_limit_may_change_from_page_to_page(four: Repository[Box]) -> None:
    first = await four.list(limit=1)
    rest = await four.list(continue_from=first.continuation)

    assert names(rest) == ["b", "c", "d"]
    assert rest.continuation is None
    assert rest.remaining == 0


@pytest.mark.parametrize("limit", [4, 5, 1000, None])
async def test_a_limit_that_is_not_passed_leaves_nothing_to_go_on_with(
    four: Repository[Box], limit: int | None
) -> None:
    found = await four.list(limit=limit)

    assert names(found) == ["a", "b", "c", "d"]
    assert found.continuation is None
    assert found.remaining == 0
    assert found.corrupt == ()


async def test_what_remains_is_not_counted_under_a_selector(four: Repository[Box]) -> None:
    for found in (
        await four.list(limit=1, labels="colour=red"),
        await four.list(limit=1, fields="spec.size=0"),
    ):
        assert found.remaining is None
        assert found.continuation is not None
    assert (await four.list(labels="colour=red")).remaining is None


async def test_the_next_page_under_a_selector_starts_after_the_last_key_that_was_read(
    four: Repository[Box],
) -> None:
    first = await four.list(labels="colour=red", limit=1)
    second = await four.list(labels="colour=red", limit=1, continue_from=first.continuation)
    third = await four.list(labels="colour=red", limit=1, continue_from=second.continuation)

    assert [names(page) for page in (first, second, third)] == [["a"], ["c"], []]
    assert third.continuation is None


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused(four: Repository[Box], limit: int) -> None:
    with pytest.raises(InvalidResourceError, match="limit"):
        await four.list(limit=limit)
    with pytest.raises(InvalidResourceError, match="limit"):
        await anext(four.scan(limit=limit))


async def test_the_next_page_of_a_list_at_a_revision_is_at_it(four: Repository[Box]) -> None:
    then = (await four.list()).resource_version
    await four.delete("a")
    first = await four.list(limit=1, at=then)
    second = await four.list(continue_from=first.continuation)

    assert names(first) + names(second) == ["a", "b", "c", "d"]
    assert second.resource_version == then


async def test_a_list_below_the_compaction_is_lost_history(
    four: Repository[Box], compact: Compact
) -> None:
    then = (await four.list()).resource_version
    await compact(version_of(await four.delete("a")))

    with pytest.raises(HistoryLostError) as caught:
        await four.list(at=then)

    assert caught.value.continuation is None


# --- continuations --------------------------------------------------------------------------------


async def test_an_expired_continuation_says_how_to_go_on_knowingly(
    four: Repository[Box], compact: Compact
) -> None:
    first = await four.list(limit=2)
    await four.add(box("e"))
    deletion = await four.delete("c")
    await compact(version_of(deletion))

    with pytest.raises(HistoryLostError, match="continuation") as caught:
        await four.list(limit=1, continue_from=first.continuation)
    second = await four.list(limit=1, continue_from=caught.value.continuation)
    await four.delete("e")
    third = await four.list(limit=1, continue_from=second.continuation)

    assert [names(second), names(third)] == [["d"], ["e"]]
    assert second.resource_version >= version_of(deletion)
    assert third.resource_version == second.resource_version


@pytest.mark.parametrize(
    "given", ["", "x", "not one", "ÿ", "====", base64.urlsafe_b64encode(bytes(40)).decode()]
)
async def test_other_text_than_a_continuation_is_refused(four: Repository[Box], given: str) -> None:
    with pytest.raises(InvalidResourceError, match="not a continuation"):
        await four.list(continue_from=given)


async def test_a_continuation_that_was_changed_in_any_place_is_refused(
    four: Repository[Box],
) -> None:
    good = (await four.list(limit=2)).continuation
    assert good is not None

    for place in range(len(good)):
        other = "A" if good[place] != "A" else "B"
        for changed in (
            good[:place] + other + good[place + 1 :],
            good[:place],
            good[:place] + good[place + 1 :],
        ):
            with pytest.raises(InvalidResourceError):
                await four.list(continue_from=changed)
    for changed in (good + "A", good + "=", " " + good):
        with pytest.raises(InvalidResourceError):
            await four.list(continue_from=changed)


async def test_a_continuation_belongs_to_its_kind_and_query(
    four: Repository[Box], client: kvorum.Client
) -> None:
    crates = client.repository(Crate)
    for namespace in ("x", "y"):
        for name in ("a", "b"):
            await crates.add(crate(namespace, name))
    boxes = (await four.list(limit=1)).continuation
    red = (await four.list(limit=1, labels="colour=red")).continuation
    of_x = (await crates.list(limit=1, namespace="x")).continuation

    for query in (
        four.list(continue_from=red),
        four.list(continue_from=boxes, labels="colour=red"),
        four.list(continue_from=red, fields="spec.size=0", labels="colour=red"),
        four.list(continue_from=of_x),
        crates.list(continue_from=boxes),
        crates.list(continue_from=of_x),
        crates.list(continue_from=of_x, namespace="y"),
    ):
        with pytest.raises(InvalidResourceError, match="another list"):
            await query
    assert len(await crates.list(continue_from=of_x, namespace="x")) == 1


async def test_a_continuation_fits_the_same_selector_in_another_spelling(
    four: Repository[Box],
) -> None:
    first = await four.list(limit=1, labels="colour in (red)")
    second = await four.list(limit=1, labels={"colour": "red"}, continue_from=first.continuation)

    assert names(second) == ["c"]


async def test_a_continuation_has_a_revision_of_its_own(four: Repository[Box]) -> None:
    first = await four.list(limit=1)

    with pytest.raises(InvalidResourceError, match="either"):
        await four.list(continue_from=first.continuation, at=first.resource_version)


# --- how many requests ----------------------------------------------------------------------------


async def fill(client: kvorum.Client, number: int, *, red: set[int]) -> None:
    for start in range(0, number, 100):
        numbers = range(start, min(start + 100, number))
        await client.backend.commit(
            [
                kvorum.Operation.put(
                    f"boxes/b{each:04}",
                    box_by_hand(f"b{each:04}", colour="red" if each in red else "blue"),
                )
                for each in numbers
            ]
        )


@pytest.mark.parametrize("match", [0, 500, 999])
async def test_one_match_in_a_thousand_takes_ten_requests(
    client: kvorum.Client, boxes: Repository[Box], page_sizes: list[int | None], match: int
) -> None:
    await fill(client, 1000, red={match})
    found: list[str] = []
    page = await boxes.list(labels="colour=red", limit=1)
    found += names(page)

    assert found == [f"b{match:04}"]
    assert len(page_sizes) <= 10
    assert page_sizes == [2**number for number in range(len(page_sizes))]


async def test_a_field_selector_grows_its_pages_like_labels_do(
    client: kvorum.Client, boxes: Repository[Box], page_sizes: list[int | None]
) -> None:
    await fill(client, 1000, red=set())

    assert names(await boxes.list(fields="metadata.name=b0999", limit=5)) == ["b0999"]
    assert len(page_sizes) <= 9


async def test_a_limit_without_a_selector_asks_for_no_more_than_that(
    client: kvorum.Client, boxes: Repository[Box], page_sizes: list[int | None]
) -> None:
    await fill(client, 100, red=set())

    assert len(await boxes.list(limit=30)) == 30
    assert page_sizes == [30]


async def test_a_long_list_is_read_in_pages_of_a_bounded_size(
    client: kvorum.Client, boxes: Repository[Box], page_sizes: list[int | None]
) -> None:
    await fill(client, 2_500, red={2_400})

    assert len(await boxes.list()) == 2_500
    assert page_sizes == [1000, 1000, 1000]
    page_sizes.clear()
    assert names(await boxes.list(labels="colour=red")) == ["b2400"]
    assert page_sizes == [1000, 1000, 1000]
    page_sizes.clear()
    assert len(await boxes.list(limit=1_200)) == 1_200
    assert page_sizes == [1000, 200]


async def test_a_list_that_a_compaction_overtakes_starts_over(
    client: kvorum.Client, boxes: Repository[Box], compact: Compact, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(client, 1_100, red=set())
    backend = client.backend
    read = backend.list
    overtaken = 0

    async def overtake(prefix: str, *, after: str | None = None, **options: Any) -> kvorum.Page:
        nonlocal overtaken
        if after is not None and overtaken < 2:
            overtaken += 1
            await compact(
                await backend.set("boxes/b0000", box_by_hand("b0000", time=str(overtaken)))
            )
        return await read(prefix, after=after, **options)

    monkeypatch.setattr(backend, "list", overtake)
    found = await boxes.list()

    assert overtaken == 2
    assert len(found) == 1_100
    assert found[0].metadata.labels == {"time": "2"}


# --- scan -----------------------------------------------------------------------------------------


async def test_a_scan_reads_all_pages_at_one_revision(four: Repository[Box]) -> None:
    scan = four.scan(limit=2)
    shown = [(await anext(scan)).metadata.name]
    then = scan.resource_version
    await four.add(box("e"))
    await four.delete("d")
    shown += [each.metadata.name async for each in scan]

    assert shown == ["a", "b", "c", "d"]
    assert scan.resource_version == then
    with pytest.raises(StopAsyncIteration):
        await anext(scan)


async def test_a_scan_can_be_read_page_by_page(four: Repository[Box]) -> None:
    pages = [page async for page in four.scan(limit=3).pages()]

    assert [names(page) for page in pages] == [["a", "b", "c"], ["d"]]
    assert pages[0].resource_version == pages[1].resource_version


async def test_a_scan_takes_what_a_list_takes(four: Repository[Box], client: kvorum.Client) -> None:
    then = (await four.list()).resource_version
    await four.delete("a")
    await client.backend.set("boxes/bad", b"{")

    scan = four.scan(labels="colour=red", at=then, limit=1)
    assert [each.metadata.name async for each in scan] == ["a", "c"]
    scan = four.scan(fields="metadata.name!=b", on_corrupt="collect", limit=1)
    assert [each.metadata.name async for each in scan] == ["c", "d"]
    assert [error.name for error in scan.corrupt] == ["bad"]
    first = await four.list(limit=1, at=then)
    assert [each.metadata.name async for each in four.scan(continue_from=first.continuation)] == [
        "b",
        "c",
        "d",
    ]


async def test_a_scan_of_nothing_ends_at_once(boxes: Repository[Box]) -> None:
    assert [each async for each in boxes.scan()] == []
    assert [names(page) async for page in boxes.scan().pages()] == [[]]


async def test_a_scan_whose_history_is_lost_says_how_to_go_on(
    four: Repository[Box], compact: Compact
) -> None:
    scan = four.scan(limit=2)
    shown = [(await anext(scan)).metadata.name, (await anext(scan)).metadata.name]
    await compact(version_of(await four.delete("c")))

    with pytest.raises(HistoryLostError) as caught:
        await anext(scan)
    rest = four.scan(continue_from=caught.value.continuation)
    shown += [each.metadata.name async for each in rest]

    assert shown == ["a", "b", "d"]
    assert "unread" in repr(scan)


# --- what cannot be decoded -----------------------------------------------------------------------


@pytest.fixture
async def seven(four: Repository[Box], client: kvorum.Client) -> Repository[Box]:
    """Four boxes, and three values that are not boxes."""
    for key, value in (("aa", b"{"), ("Bad Name", box_by_hand("x")), ("cc", box_by_hand("other"))):
        await client.backend.set(f"boxes/{key}", value)
    return four


async def test_a_list_fails_at_the_first_value_that_cannot_be_decoded(
    seven: Repository[Box], client: kvorum.Client
) -> None:
    with pytest.raises(CorruptResourceError) as caught:
        await seven.list()

    assert caught.value.key == client.backend.location("boxes/Bad Name")
    entry = await client.backend.get("boxes/Bad Name")
    assert entry is not None
    assert caught.value.revision == entry.mod_revision


async def test_a_list_collects_what_cannot_be_decoded_and_gives_the_rest(
    seven: Repository[Box], client: kvorum.Client
) -> None:
    found = await seven.list(on_corrupt="collect")

    assert names(found) == ["a", "b", "c", "d"]
    assert [error.name for error in found.corrupt] == ["Bad Name", "aa", "cc"]
    assert [error.key for error in found.corrupt] == [
        client.backend.location(f"boxes/{key}") for key in ("Bad Name", "aa", "cc")
    ]
    assert "3 corrupt" in repr(found)


async def test_pages_tell_of_what_is_corrupt_where_it_is(seven: Repository[Box]) -> None:
    pages = [page async for page in seven.scan(limit=2, on_corrupt="collect").pages()]

    assert [name for page in pages for name in names(page)] == ["a", "b", "c", "d"]
    assert [error.name for page in pages for error in page.corrupt] == ["Bad Name", "aa", "cc"]


async def test_a_label_selector_hides_no_value_whose_labels_cannot_be_read(
    seven: Repository[Box],
) -> None:
    """The labels of the two JSON values are readable, and do not match."""
    found = await seven.list(labels="colour=red", on_corrupt="collect")

    assert names(found) == ["a", "c"]
    assert [error.name for error in found.corrupt] == ["aa"]


async def test_an_unknown_way_to_treat_corruption_is_refused(four: Repository[Box]) -> None:
    with pytest.raises(InvalidResourceError, match="on_corrupt"):
        await four.list(on_corrupt="ignore")  # type: ignore[arg-type]  # what mypy refuses is refused at run time, too


async def test_what_a_list_has_collected_can_be_removed(seven: Repository[Box]) -> None:
    for error in (await seven.list(on_corrupt="collect")).corrupt:
        await seven.delete(
            error.name, namespace=error.namespace, resource_version=error.revision, corrupt=True
        )

    assert names(await seven.list()) == ["a", "b", "c", "d"]


async def test_a_namespaced_kind_names_and_removes_what_is_corrupt_at_any_depth(
    client: kvorum.Client,
) -> None:
    crates = client.repository(Crate)
    await crates.add(crate("x", "good"))
    for key in ("no-namespace", "x/bad", "x/too/deep", "UPPER/x"):
        await client.backend.set(f"crates/{key}", b"")

    corrupt = (await crates.list(on_corrupt="collect")).corrupt
    assert [(error.namespace, error.name) for error in corrupt] == [
        ("UPPER", "x"),
        (None, "no-namespace"),
        ("x", "bad"),
        ("x", "too/deep"),
    ]
    for error in corrupt:
        await crates.delete(error.name, namespace=error.namespace, corrupt=True)
    assert len(await crates.list()) == 1


@pytest.mark.parametrize(
    ("key", "namespace", "name"),
    [
        ("crates/x/", "x", ""),
        ("crates/", None, ""),
        ("crates/x/Bad Name", "x", "Bad Name"),
        ("crates/X/a", "X", "a"),
    ],
)
async def test_a_value_at_a_key_that_no_resource_can_have_is_named_and_removed(
    client: kvorum.Client, key: str, namespace: str | None, name: str
) -> None:
    """Its bytes are those of a resource, but no method would accept its name."""
    crates = client.repository(Crate)
    stored = (await crates.add(crate("x", "good"))).metadata.stored
    assert stored is not None
    here = {b'"good"': f'"{name}"'.encode(), b'"x"': f'"{namespace}"'.encode()}
    value = stored.value
    for old, new in here.items():
        value = value.replace(old, new)
    await client.backend.set(key, value)

    (error,) = (await crates.list(on_corrupt="collect")).corrupt
    assert (error.namespace, error.name) == (namespace, name)
    await crates.delete(error.name, namespace=error.namespace, corrupt=True)

    assert len(await crates.list()) == 1
    with pytest.raises((InvalidResourceError, NotFoundError)):
        await crates.delete(error.name, namespace=error.namespace, corrupt=True)


async def test_what_can_be_decoded_is_not_removed_as_corrupt(four: Repository[Box]) -> None:
    with pytest.raises(InvalidResourceError, match="can be decoded"):
        await four.delete("a", corrupt=True)

    assert await four.exists("a")


async def test_a_removal_of_what_is_corrupt_keeps_its_preconditions(
    seven: Repository[Box], client: kvorum.Client
) -> None:
    with pytest.raises(NotFoundError):
        await seven.delete("nowhere", corrupt=True)
    with pytest.raises(InvalidResourceError, match="name"):
        await seven.delete("", corrupt=True)
    with pytest.raises(ConflictError) as caught:
        await seven.delete("aa", resource_version=1, corrupt=True)
    with pytest.raises(InvalidResourceError, match="uid"):
        await seven.delete("aa", uid="x", corrupt=True)  # type: ignore[call-overload]  # as above

    assert caught.value.expected == 1
    assert await client.backend.exists("boxes/aa")


async def test_a_value_that_was_fixed_meanwhile_is_not_removed_as_corrupt(
    seven: Repository[Box], client: kvorum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = client.backend
    remove = backend.delete

    async def fix_first(key: str, **options: Any) -> kvorum.Change:
        await backend.set(key, box_by_hand("aa"))
        return await remove(key, **options)

    monkeypatch.setattr(backend, "delete", fix_first)
    with pytest.raises(ConflictError):
        await seven.delete("aa", corrupt=True)

    assert await seven.exists("aa")


# --- at random ------------------------------------------------------------------------------------


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    colours=st.lists(st.sampled_from(["red", "blue", "corrupt"]), max_size=30),
    limits=st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
async def test_pages_of_any_sizes_make_up_what_one_list_returns(
    colours: list[str], limits: list[int]
) -> None:
    async with kvorum.connect("memory://") as client:
        boxes = client.repository(Box)
        for number, colour in enumerate(colours):
            value = b"" if colour == "corrupt" else box_by_hand(f"b{number:02}", colour=colour)
            await client.backend.set(f"boxes/b{number:02}", value)
        for labels in (None, "colour=red"):
            whole = await boxes.list(labels=labels, on_corrupt="collect")
            found: list[Box] = []
            corrupt: list[str] = []
            page = await boxes.list(labels=labels, on_corrupt="collect", limit=limits[0])
            for turn in range(1, 100):
                assert len(page) <= limits[(turn - 1) % len(limits)]
                found += page
                corrupt += [error.key for error in page.corrupt]
                if page.continuation is None:
                    break
                limit = limits[turn % len(limits)]
                page = await boxes.list(
                    labels=labels,
                    on_corrupt="collect",
                    limit=limit,
                    continue_from=page.continuation,
                )

            assert found == list(whole)
            assert corrupt == [error.key for error in whole.corrupt]
