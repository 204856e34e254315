"""Which element of a list or mapping keeps the unknown fields that another version wrote."""

from collections.abc import Callable

from tests.rigs import (
    NewDisk,
    Newer,
    NewLine,
    NewPort,
    OldDisk,
    Older,
    OldLine,
    OldPort,
    OldRig,
    new_rig,
)

# --- lists ----------------------------------------------------------------------------------------


async def disks_after(
    older: Older, newer: Newer, change: Callable[[list[OldDisk]], None]
) -> list[NewDisk]:
    """Change a list whose elements have names: root (10, 1.5), data (20, 2.5)."""
    await newer.add(new_rig())
    await older.mutate("a", lambda rig: change(rig.spec.disks))
    return (await newer.get("a")).spec.disks


async def lines_after(
    older: Older, newer: Newer, change: Callable[[list[OldLine]], None]
) -> list[NewLine]:
    """Change a list without names: first (1, red), second (2, blue), third (3, green)."""
    await newer.add(new_rig())
    await older.mutate("a", lambda rig: change(rig.spec.lines))
    return (await newer.get("a")).spec.lines


async def test_an_element_is_matched_by_content_wherever_it_went(
    older: Older, newer: Newer
) -> None:
    lines = await lines_after(older, newer, lambda lines: lines.reverse())

    assert lines == [
        NewLine("third", 3, "green"),
        NewLine("second", 2, "blue"),
        NewLine("first", 1, "red"),
    ]


async def test_a_removed_element_takes_its_unknown_fields_with_it(
    older: Older, newer: Newer
) -> None:
    lines = await lines_after(older, newer, lambda lines: lines.__delitem__(0))

    assert lines == [NewLine("second", 2, "blue"), NewLine("third", 3, "green")]


async def test_an_inserted_element_has_no_unknown_fields_and_moves_none(
    older: Older, newer: Newer
) -> None:
    lines = await lines_after(older, newer, lambda lines: lines.insert(1, OldLine("new", 9)))

    assert [line.color for line in lines] == ["red", "", "blue", "green"]


async def test_elements_of_equal_content_are_matched_in_their_order(
    older: Older, newer: Newer
) -> None:
    rig = new_rig()
    rig.spec.lines = [
        NewLine("same", 1, "red"),
        NewLine("same", 1, "blue"),
        NewLine("same", 1, "green"),
    ]
    await newer.add(rig)
    await older.mutate("a", lambda rig: rig.spec.lines.__delitem__(0))

    assert [line.color for line in (await newer.get("a")).spec.lines] == ["red", "blue"]


async def test_a_changed_element_is_matched_by_its_name_whatever_else_changed(
    older: Older, newer: Newer
) -> None:
    def change(disks: list[OldDisk]) -> None:
        disks[0].size, disks[1].size = 11, 21
        disks.reverse()
        disks.insert(0, OldDisk("swap", 4))

    disks = await disks_after(older, newer, change)

    assert disks == [NewDisk("swap", 4), NewDisk("data", 21, 2.5), NewDisk("root", 11, 1.5)]


async def test_a_renamed_element_is_a_new_one(older: Older, newer: Newer) -> None:
    """Its index says nothing: it is identified by its name, which is new."""

    def change(disks: list[OldDisk]) -> None:
        disks[0].name = "boot"

    disks = await disks_after(older, newer, change)

    assert disks == [NewDisk("boot", 10), NewDisk("data", 20, 2.5)]


async def test_a_name_that_several_elements_have_matches_none_of_them(
    older: Older, newer: Newer
) -> None:
    """A duplicate name is ambiguous, and a field at the wrong element is worse than a lost one."""
    rig = new_rig()
    rig.spec.disks = [NewDisk("data", 1, 1.5), NewDisk("data", 2, 2.5), NewDisk("data", 3, 3.5)]
    await newer.add(rig)

    def turn(rig: OldRig) -> None:
        rig.spec.disks = [*rig.spec.disks[1:], OldDisk("data", 4)]

    await older.mutate("a", turn)

    assert (await newer.get("a")).spec.disks == [
        NewDisk("data", 2, 2.5),
        NewDisk("data", 3, 3.5),
        NewDisk("data", 4),
    ]


async def test_a_changed_element_without_a_name_is_matched_by_index_in_a_list_of_the_same_length(
    older: Older, newer: Newer
) -> None:
    def change(lines: list[OldLine]) -> None:
        lines[1].text = "changed"

    lines = await lines_after(older, newer, change)

    assert lines[1] == NewLine("changed", 2, "blue")


async def test_a_changed_element_without_a_name_is_a_new_one_in_a_list_of_another_length(
    older: Older, newer: Newer
) -> None:
    def change(lines: list[OldLine]) -> None:
        lines[2].text = "changed"
        del lines[0]

    lines = await lines_after(older, newer, change)

    assert lines == [NewLine("second", 2, "blue"), NewLine("changed", 3)]


async def test_a_list_that_a_patch_sets_is_as_the_patch_says(older: Older, newer: Newer) -> None:
    """RFC 7396 replaces arrays whole. Where that is not meant, there is `mutate`."""
    await newer.add(new_rig())

    await older.patch("a", {"spec": {"disks": [{"name": "root", "size": 11}]}})

    rig = await newer.get("a")
    assert rig.spec.disks == [NewDisk("root", 11)]
    assert rig.spec.lines == new_rig().spec.lines


# --- mappings -------------------------------------------------------------------------------------


async def test_a_value_of_a_mapping_is_matched_by_its_key_whatever_it_became(
    older: Older, newer: Newer
) -> None:
    """Lists in a value follow the rules for lists."""

    def change(rig: OldRig) -> None:
        rig.spec.ports = {"http": OldPort(8080, [OldLine("in", 1), OldLine("out", 2)])}

    await newer.add(new_rig())
    await older.mutate("a", change)

    assert (await newer.get("a")).spec.ports == {
        "http": NewPort(8080, [NewLine("in", 1, "pink"), NewLine("out", 2)], "tcp")
    }


async def test_a_renamed_key_is_a_removal_and_an_addition(older: Older, newer: Newer) -> None:
    def rename(rig: OldRig) -> None:
        rig.spec.ports["web"] = rig.spec.ports.pop("http")

    await newer.add(new_rig())
    await older.mutate("a", rename)

    assert (await newer.get("a")).spec.ports == {
        "web": NewPort(80, [NewLine("in", 1)]),
        "dns": NewPort(53, [], "udp"),
    }


async def test_a_key_that_was_removed_and_comes_back_later_has_no_unknown_fields(
    older: Older, newer: Newer
) -> None:
    await newer.add(new_rig())
    await older.mutate("a", lambda rig: rig.spec.ports.__delitem__("dns"))
    await older.mutate("a", lambda rig: rig.spec.ports.__setitem__("dns", OldPort(53)))

    assert (await newer.get("a")).spec.ports["dns"] == NewPort(53)
