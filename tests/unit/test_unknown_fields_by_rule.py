"""What is kept of fields that a type does not know, one rule of `unknown_fields` at a time."""

import json
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec
import pytest
from tests.unit.older_types import (
    Disk,
    Local,
    Named,
    Net,
    Node,
    Numbered,
    Plain,
    Remote,
    Typed,
)

from kvorum.encoding.unknown_fields import unknown_fields_of


class Frozen(msgspec.Struct, frozen=True, order=True):
    size: int = 0


class Row(msgspec.Struct, array_like=True):
    size: int = 0
    inner: Plain | None = None


class LeftRow(msgspec.Struct, array_like=True, tag="left"):
    size: int = 0


class RightRow(msgspec.Struct, array_like=True, tag="right"):
    size: int = 0


class Pair(NamedTuple):
    plain: Plain
    size: int = 0


class Sparse(msgspec.Struct, omit_defaults=True):
    id: int = 0
    size: int = 0


class Holder(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Any of these fields; those that are not set are not in the bytes."""

    plain: Plain | None = None
    by_name: dict[str, Plain] = {}
    plains: list[Plain] = []
    named: list[Named] = []
    typed: list[Typed] = []
    numbered: list[Numbered] = []
    device: Disk | Net | None = None
    devices: list[Disk | Net] = []
    pair: tuple[Plain, Named] | None = None
    with_gaps: list[Plain | None] = []
    with_words: list[Plain | str] = []
    one_or_many: Plain | list[Plain] | None = None
    device_or_many: Disk | Net | list[Plain] | None = None
    lists: list[list[Plain]] = []
    mappings: list[dict[str, Plain]] = []
    locals: list[Local] = []
    volumes: list[Local | Remote] = []
    sparse: list[Sparse] = []
    frozen: set[Frozen] = set()
    row: Row | None = None
    rows: list[Row] = []
    side: LeftRow | RightRow | None = None
    sides: list[LeftRow | RightRow] = []
    named_pair: Pair | None = None
    described: Annotated[
        Plain | None, msgspec.Meta(title="a title is no reason to drop anything")
    ] = None
    tree: Node | None = None


def carried_text(old: str, change: Callable[[Holder], None] = lambda _: None) -> str:
    """Return what an older program makes of `old`, with the fields that it does not know."""
    plan = unknown_fields_of(Holder)
    assert plan is not None
    holder = msgspec.json.decode(old, type=Holder)
    change(holder)
    new = msgspec.json.encode(holder, order="sorted")
    return bytes(plan.carry(msgspec.Raw(old.encode()), msgspec.Raw(new))).decode()


EVERYWHERE = [
    '{"x":1.10}',
    '{"plain":{"note":null,"size":1,"x":1.10}}',
    '{"byName":{"a":{"note":null,"size":1,"x":1.10},"b":{"note":null,"size":2}}}',
    '{"plains":[{"note":null,"size":1,"x":1.10},{"note":null,"size":2}]}',
    '{"named":[{"name":"a","size":1,"x":1.10}]}',
    '{"typed":[{"id":1,"type":"a","x":1.10}]}',
    '{"numbered":[{"id":1,"inner":{"note":null,"size":1,"x":1.10},"y":1e400}]}',
    '{"device":{"inner":{"note":null,"size":1,"x":1.10},"type":"net","y":2}}',
    '{"devices":[{"size":1,"type":"disk","x":1.10},{"inner":null,"type":"net","y":2}]}',
    '{"lists":[[{"note":null,"size":1,"x":1.10}],[]]}',
    '{"mappings":[{"a":{"note":null,"size":1,"x":1.10}},{}]}',
    '{"tree":{"children":[{"children":[],"left":null,"size":2,"x":1}],"left":null,"size":1,"x":2}}',
    '{"tree":{"children":[],"left":{"children":[],"left":null,"size":2,"x":1},"size":1}}',
    '{"volumes":[{"id":1,"type":"local","x":1.10}]}',
    '{"described":{"note":null,"size":1,"x":1.10}}',
    '{"namedPair":[{"note":null,"size":1,"x":1.10},2]}',
    '{"row":[1,{"note":null,"size":1,"x":1.10}]}',
]


@pytest.mark.parametrize("text", EVERYWHERE)
def test_unknown_fields_are_kept_wherever_there_is_an_object(text: str) -> None:
    assert carried_text(text) == text


def test_unknown_fields_in_a_tuple_of_fixed_length_are_kept() -> None:
    """Rule 1 says "an object", wherever it stands."""
    text = '{"pair":[{"note":null,"size":1,"x":1.10},{"name":"a","size":2,"y":2}]}'

    assert carried_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        '{"withGaps":[{"note":null,"size":1,"x":1.10},null]}',
        '{"withGaps":[null]}',
        '{"withWords":[{"note":null,"size":1,"x":1.10},"word"]}',
        '{"withWords":["word"]}',
    ],
)
def test_a_list_may_hold_other_things_between_its_objects(text: str) -> None:
    """Otherwise no resource with such a list could be updated."""
    assert carried_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        '{"oneOrMany":{"note":null,"size":1,"x":1.10}}',
        '{"oneOrMany":[{"note":null,"size":1,"x":1.10}]}',
        '{"deviceOrMany":{"size":1,"type":"disk","x":1.10}}',
        '{"deviceOrMany":[{"note":null,"size":1,"x":1.10}]}',
    ],
)
def test_unknown_fields_are_kept_where_there_may_be_an_object_or_a_list_of_them(text: str) -> None:
    assert carried_text(text) == text


def test_an_object_that_went_away_takes_its_unknown_fields_along() -> None:
    def clear(holder: Holder) -> None:
        holder.plain = None

    assert carried_text('{"plain":{"note":null,"size":1,"x":1.10}}', clear) == "{}"


def test_a_known_field_that_is_gone_is_not_carried_back() -> None:
    """Rule 2: a type that omits defaults omits it, and that is its new value."""

    def clear(holder: Holder) -> None:
        holder.by_name = {}

    assert carried_text('{"byName":{"a":{"x":1}},"y":1}', clear) == '{"y":1}'


def test_another_variant_of_a_union_takes_no_fields_over() -> None:
    """The unknown fields belong to another type."""

    def swap(holder: Holder) -> None:
        holder.device = Net()

    old = '{"device":{"size":1,"type":"disk","x":1.10}}'

    assert carried_text(old, swap) == '{"device":{"inner":null,"type":"net"}}'


def test_an_entry_of_a_mapping_is_found_by_its_key() -> None:
    """Rule 3: an entry that was renamed is another one."""

    def rename(holder: Holder) -> None:
        holder.by_name = {"b": holder.by_name["a"], "c": holder.by_name["c"]}

    old = '{"byName":{"a":{"note":null,"size":1,"x":1},"c":{"note":null,"size":1,"x":3}}}'

    expected = '{"byName":{"b":{"note":null,"size":1},"c":{"note":null,"size":1,"x":3}}}'
    assert carried_text(old, rename) == expected


def test_an_element_is_found_by_its_content_wherever_it_went() -> None:
    def turn(holder: Holder) -> None:
        holder.plains.insert(0, Plain(size=9))
        holder.plains.append(holder.plains.pop(1))

    old = '{"plains":[{"note":null,"size":1,"x":1},{"note":null,"size":2,"x":2}]}'

    expected = (
        '{"plains":[{"note":null,"size":9},{"note":null,"size":2,"x":2},'
        '{"note":null,"size":1,"x":1}]}'
    )
    assert carried_text(old, turn) == expected


def test_an_element_that_changed_is_found_by_its_name() -> None:
    def change(holder: Holder) -> None:
        holder.named.pop(0)
        holder.named[0].size = 9
        holder.named.append(Named("c"))

    old = '{"named":[{"name":"a","size":1,"x":1},{"name":"b","size":2,"x":2}]}'

    assert (
        carried_text(old, change) == '{"named":[{"name":"b","size":9,"x":2},{"name":"c","size":0}]}'
    )


def test_an_element_that_was_renamed_is_another_one() -> None:
    """If elements have names, the index does not matter."""

    def rename(holder: Holder) -> None:
        holder.named[0].name = "c"

    old = '{"named":[{"name":"a","size":1,"x":1}]}'

    assert carried_text(old, rename) == '{"named":[{"name":"c","size":1}]}'


def test_the_first_identity_counts() -> None:
    """`type` has precedence over `id`, as for conditions."""

    def change(holder: Holder) -> None:
        holder.typed[0].id, holder.typed[1].id = 2, 1

    old = '{"typed":[{"id":1,"type":"a","x":1},{"id":2,"type":"b","x":2}]}'

    assert (
        carried_text(old, change)
        == '{"typed":[{"id":2,"type":"a","x":1},{"id":1,"type":"b","x":2}]}'
    )


def test_an_element_without_a_name_is_found_by_its_place_if_the_length_is_the_same() -> None:
    def change(holder: Holder) -> None:
        holder.plains[1].size = 9

    old = '{"plains":[{"note":null,"size":1,"x":1},{"note":null,"size":2,"x":2}]}'

    assert (
        carried_text(old, change)
        == '{"plains":[{"note":null,"size":1,"x":1},{"note":null,"size":9,"x":2}]}'
    )


def test_an_element_without_a_name_that_changed_in_a_list_of_another_length_is_a_new_one() -> None:
    """Its old element is unknown, and a field in the wrong element is worse than a lost one."""

    def change(holder: Holder) -> None:
        holder.plains.pop(0)
        holder.plains[0].size = 9

    old = '{"plains":[{"note":null,"size":1,"x":1},{"note":null,"size":2,"x":2}]}'

    assert carried_text(old, change) == '{"plains":[{"note":null,"size":9}]}'


def test_elements_that_are_equal_keep_their_order() -> None:
    def drop_last(holder: Holder) -> None:
        holder.plains.pop()

    old = '{"plains":[{"note":null,"size":1,"x":1},{"note":null,"size":1,"x":2}]}'

    assert carried_text(old, drop_last) == '{"plains":[{"note":null,"size":1,"x":1}]}'


def test_an_element_that_takes_over_a_name_of_several_is_a_new_one() -> None:
    """In a list of events, say, a new one must not get the fields of one that was dropped."""

    def turn(holder: Holder) -> None:
        holder.typed.pop(0)
        holder.typed.append(Typed("a", 4))

    old = (
        '{"typed":[{"id":1,"type":"a","x":1},{"id":2,"type":"a","x":2},{"id":3,"type":"a","x":3}]}'
    )

    expected = '{"typed":[{"id":2,"type":"a","x":2},{"id":3,"type":"a","x":3},{"id":4,"type":"a"}]}'
    assert carried_text(old, turn) == expected


def test_an_element_whose_name_several_have_is_found_by_its_place_if_the_length_is_the_same() -> (
    None
):
    def change(holder: Holder) -> None:
        holder.typed[1].id = 9

    old = '{"typed":[{"id":1,"type":"a","x":1},{"id":2,"type":"a","x":2}]}'

    assert (
        carried_text(old, change)
        == '{"typed":[{"id":1,"type":"a","x":1},{"id":9,"type":"a","x":2}]}'
    )


def test_the_tag_of_a_struct_is_no_name() -> None:
    """Its default name is `type`, and all elements share its value."""

    def change(holder: Holder) -> None:
        holder.devices.pop(0)
        holder.locals.pop(0)
        holder.volumes.pop(0)
        holder.devices[0], holder.volumes[0] = Disk(9), Remote(2, Plain(9))

    old = (
        '{"devices":[{"size":1,"type":"disk","x":1},{"size":2,"type":"disk","x":2}],'
        '"locals":[{"id":1,"type":"local","x":1},{"id":2,"type":"local","x":2}],'
        '"volumes":[{"id":1,"type":"remote","x":1},{"id":2,"type":"remote","x":2}]}'
    )

    assert json.loads(carried_text(old, change)) == {
        "devices": [{"size": 9, "type": "disk"}],
        "locals": [{"id": 2, "type": "local", "x": 2}],
        "volumes": [{"id": 2, "inner": {"note": None, "size": 9}, "type": "remote", "x": 2}],
    }


def test_a_name_that_is_left_out_of_the_bytes_is_its_default() -> None:
    """The newer type may write what the older one omits, or the other way round."""

    def change(holder: Holder) -> None:
        holder.sparse.pop()
        holder.sparse[0].size = 9

    for zero in ('"id":0,', ""):
        old = '{"sparse":[{' + zero + '"size":1,"x":1},{"id":2,"x":2}]}'

        assert carried_text(old, change) == '{"sparse":[{"size":9,"x":1}]}'


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (
            '{"lists":[[{"note":null,"size":1,"x":1}],[{"note":null,"size":2,"x":2}]]}',
            '{"lists":[[{"note":null,"size":2,"x":2}]]}',
        ),
        (
            '{"mappings":[{"a":{"note":null,"size":1,"x":1}},{"a":{"size":2,"x":2}}]}',
            '{"mappings":[{"a":{"note":null,"size":2,"x":2}}]}',
        ),
        ('{"rows":[[1,null,1.10],[2,null,2.20]]}', '{"rows":[[2,null,2.20]]}'),
        ('{"sides":[["left",1,1.10],["right",2,2.20]]}', '{"sides":[["right",2,2.20]]}'),
    ],
)
def test_an_element_that_is_no_object_is_found_by_its_content_too(old: str, expected: str) -> None:
    def drop_first(holder: Holder) -> None:
        for elements in (holder.lists, holder.mappings, holder.rows, holder.sides):
            del elements[:1]

    assert carried_text(old, drop_first) == expected


def test_elements_of_a_set_are_told_apart_by_known_fields_only() -> None:
    """The only case where an unknown field is dropped: a set has equal values once."""

    def add(holder: Holder) -> None:
        holder.frozen.add(Frozen(9))

    old = '{"frozen":[{"size":1,"x":1},{"size":1,"x":2},{"size":2,"x":3}]}'

    assert carried_text(old, add) == '{"frozen":[{"size":1,"x":1},{"size":2,"x":3},{"size":9}]}'


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (
            '{"row":[1,{"note":null,"size":1,"x":1.10},2.20,"c"]}',
            '{"row":[9,{"note":null,"size":1,"x":1.10},2.20,"c"]}',
        ),
        ('{"row":[1]}', '{"row":[9,null]}'),
        ('{"side":["left",1,1.10]}', '{"side":["left",9,1.10]}'),
    ],
)
def test_a_struct_that_is_stored_as_an_array_keeps_the_places_beyond_those_it_knows(
    old: str, expected: str
) -> None:
    """Rule 5: a newer type can add fields at the end only, since the index identifies them."""

    def change(holder: Holder) -> None:
        for row in (holder.row, holder.side):
            if row is not None:
                row.size = 9

    assert carried_text(old, change) == expected


def test_another_variant_that_is_stored_as_an_array_takes_nothing_over() -> None:
    def swap(holder: Holder) -> None:
        holder.side = RightRow(2)

    assert carried_text('{"side":["left",1,1.10]}', swap) == '{"side":["right",2]}'


# --- text that others wrote -----------------------------------------------------------------------


def test_what_is_carried_stays_as_it_was_written() -> None:
    value = '[1.10,1e400,-0.0,123456789012345678901234567890,"\\u00e9", {"b" : 1, "a" : 2}]'

    assert carried_text('{ "x" : ' + value + " }") == '{"x":' + value + "}"


@pytest.mark.parametrize("name", ["\\u00e9", "\\u0061", "\\u003c\\u003e\\u0026"])
def test_an_element_is_found_by_its_name_however_that_was_written(name: str) -> None:
    """Go escapes `<`, Python's json `é`: a name is a name, not its spelling in JSON."""

    def change(holder: Holder) -> None:
        holder.named[0].size = 9

    old = '{"named":[{"name":"' + name + '","size":1,"x":1.10}]}'

    assert json.loads(carried_text(old, change))["named"][0]["x"] == 1.1


def test_a_variant_is_known_by_its_tag_however_that_was_written() -> None:
    old = '{"device":{"size":1,"type":"\\u0064isk","x":1.10}}'

    assert carried_text(old) == '{"device":{"size":1,"type":"disk","x":1.10}}'


def test_text_with_space_in_it_carries_all_the_same() -> None:
    old = """
        { "plains" : [ { "x" : 1 , "size" : 1 } ] ,
          "byName" : { "a" : { "size" : 1 , "y" : 2 } } }
    """

    expected = (
        '{"byName":{"a":{"note":null,"size":1,"y":2}},"plains":[{"note":null,"size":1,"x":1}]}'
    )
    assert carried_text(old) == expected


# --- places without unknown fields ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [int, list[int], dict[str, str], tuple[int, str], str | None])
def test_a_type_without_objects_has_no_plan(kind: Any) -> None:
    assert unknown_fields_of(kind) is None


@pytest.mark.parametrize("text", EVERYWHERE)
def test_an_object_that_lacks_nothing_is_returned_as_it_is(text: str) -> None:
    """Most updates have nothing to carry; they copy nothing either."""
    plan = unknown_fields_of(Holder)
    assert plan is not None
    new = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(text, type=Holder), order="sorted"))

    assert plan.carry(new, new) is new


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ('{"x":1}', ["x"]),
        ('{"plain":{"size":1,"x":1}}', ["plain.x"]),
        ('{"byName":{"a":{"x":1},"b":{}}}', ["byName.a.x"]),
        ('{"plains":[{},{"x":1,"y":{"z":1}}]}', ["plains[1].x", "plains[1].y"]),
        ('{"device":{"type":"net","inner":{"x":1}}}', ["device.inner.x"]),
        ('{"tree":{"left":{"left":{"x":1}}}}', ["tree.left.left.x"]),
        ('{"pair":[{"x":1},{"name":"a","y":1}]}', ["pair[0].x", "pair[1].y"]),
        (
            '{"withGaps":[null,{"x":1}],"withWords":["x",{"y":1}]}',
            ["withGaps[1].x", "withWords[1].y"],
        ),
        ('{"oneOrMany":{"x":1}}', ["oneOrMany.x"]),
        ('{"oneOrMany":[{"x":1}]}', ["oneOrMany[0].x"]),
        ('{"row":[1,{"x":1},2],"side":["left",1,2]}', ["row[1].x", "row[2]", "side[2]"]),
        ('{"described":{"x":1}}', ["described.x"]),
        ('{"x":1e400}', ["x"]),
    ],
)
def test_unknown_fields_are_named_by_their_paths(text: str, paths: list[str]) -> None:
    plan = unknown_fields_of(Holder)
    assert plan is not None

    assert list(plan.unknown_paths(msgspec.Raw(text.encode()), "")) == paths
