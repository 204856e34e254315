"""Label selectors: the grammar of Kubernetes, and what each requirement selects."""

from collections.abc import Mapping
from enum import Enum
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.errors import InvalidSelectorError
from kvorum.selectors.labels import (
    LabelOperator,
    LabelRequirement,
    LabelSelector,
    LabelSelectorLike,
)

WORKER = {
    "track": "comp-sci-101",
    "phase": "ready",
    "cores": "8",
    "gpu": "",
    "example.org/zone": "b",
}


# --- what each requirement selects ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_selected"),
    [
        ("", True),
        (" \t\r\n", True),
        ("phase=ready", True),
        ("phase==ready", True),
        ("phase=busy", False),
        ("phase=Ready", False),
        ("missing=ready", False),
        ("example.org/zone=b", True),
        ("gpu=", True),
        ("gpu==", True),
        ("phase=", False),
        ("missing=", False),
        ("phase!=busy", True),
        ("phase!=ready", False),
        ("missing!=ready", True),
        ("missing!=", True),
        ("gpu!=", False),
        ("phase in (ready,busy)", True),
        ("phase in (busy)", False),
        ("missing in (ready,busy)", False),
        ("gpu in (,x)", True),
        ("gpu in (x,)", True),
        ("gpu in ()", True),
        ("phase in ()", False),
        ("phase notin (busy,draining)", True),
        ("phase notin (busy,ready)", False),
        ("missing notin (ready)", True),
        ("gpu notin ()", False),
        ("gpu", True),
        ("missing", False),
        ("!missing", True),
        ("!gpu", False),
        ("cores>7", True),
        ("cores>8", False),
        ("cores<9", True),
        ("cores<8", False),
        ("cores>007", True),
        ("missing>0", False),
        ("missing<9", False),
        ("phase>0", False),
        ("phase<9", False),
        ("gpu<9", False),
        ("phase=ready,cores>7,!missing", True),
        ("phase=ready,cores>8,!missing", False),
        ("phase=ready,phase=busy", False),
    ],
)
def test_selects_what_kubernetes_selects(text: str, is_selected: bool) -> None:
    assert LabelSelector.parse(text).matches(WORKER) is is_selected


@pytest.mark.parametrize(
    ("label", "is_above", "is_below"),
    [
        ("6", True, False),
        ("5", False, False),
        ("4", False, True),
        ("-6", False, True),
        ("+6", True, False),
        ("006", True, False),
        ("9223372036854775807", True, False),
        ("9223372036854775808", False, False),  # no integer of 64 bits
        ("-9223372036854775808", False, True),
        ("-9223372036854775809", False, False),
        ("9" * 5000, False, False),  # Python refuses to read that
        ("", False, False),
        ("+", False, False),
        ("--6", False, False),
        ("6.0", False, False),
        ("1_0", False, False),
        (" 6", False, False),
        ("६", False, False),  # six, in Devanagari
        ("²", False, False),
    ],
)
def test_compares_only_labels_that_are_integers(label: str, is_above: bool, is_below: bool) -> None:
    """`int()` accepts more than Go. A label that is not an integer neither matches nor raises."""
    assert LabelSelector.parse("n>5").matches({"n": label}) is is_above
    assert LabelSelector.parse("n<5").matches({"n": label}) is is_below


# --- how it may be written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("a == b", "a=b"),
        (" a=b , c ", "a=b,c"),
        ("\ta\r\nin(c,b)", "a in (b,c)"),
        ("a in(b)", "a=b"),
        ("a notin( b )", "a!=b"),
        ("a in (b, c ,b)", "a in (b,c)"),
        ("a in ()", "a="),
        ("a in (b,,c)", "a in (,b,c)"),
        ("a in (b,,)", "a in (,b)"),
        ("a in (,,)", "a="),
        ("a=,b", "a=,b"),
        ("! a", "!a"),
        ("b,a", "a,b"),
        ("a=b,a==b", "a=b"),
        ("a>05", "a>5"),
        ("in in (in,notin)", "in in (in,notin)"),
        ("notin", "notin"),
        ("a=in", "a=in"),
        ("!in", "!in"),
        ("example.org/a", "example.org/a"),
    ],
)
def test_text_has_one_canonical_form(text: str, canonical: str) -> None:
    selector = LabelSelector.parse(text)

    assert str(selector) == canonical
    assert LabelSelector.parse(canonical) == selector


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("a=b", "a=b"),
        ({}, ""),
        ({"a": "b"}, "a=b"),
        ({"a": ""}, "a="),
        ({"a": "b", "c": ["e", "d"]}, "a=b,c in (d,e)"),
        ({"a": ("b", "c")}, "a in (b,c)"),
        ({"a": {"b"}}, "a=b"),
        (LabelSelector.one_of("a", "b", "c"), "a in (b,c)"),
        (LabelSelector.one_of("a", "b") & LabelSelector.absent("c"), "!c,a=b"),
        (LabelSelector.none_of("a", "b"), "a!=b"),
        (
            LabelSelector.exists("a") & LabelSelector.above("n", 5) & LabelSelector.below("n", 9),
            "a,n>5,n<9",
        ),
    ],
)
def test_text_mappings_and_objects_mean_the_same(value: LabelSelectorLike, text: str) -> None:
    assert LabelSelector.of(value) == LabelSelector.parse(text)


def test_members_of_enums_are_taken_as_their_values() -> None:
    """`str()` of such a member is its name, which must not get into the canonical text."""

    class Phase(str, Enum):  # noqa: UP042 - not a StrEnum on purpose
        READY = "ready"

    assert str(LabelSelector.of({"phase": Phase.READY})) == "phase=ready"


def test_order_and_spelling_make_no_difference() -> None:
    one, other = (
        LabelSelector.parse("a in (b,c), !d, e==f"),
        LabelSelector.parse("e=f,!d,a in (c,b,b)"),
    )

    assert one == other
    assert hash(one) == hash(other)
    assert one != LabelSelector.parse("a in (b,c),!d")
    assert one != "a in (b,c),!d,e=f"


def test_an_empty_selector_says_that_it_selects_everything() -> None:
    """So that a list can be answered without looking at the labels."""
    assert LabelSelector().is_everything
    assert LabelSelector.of({}).is_everything
    assert not LabelSelector.parse("a").is_everything


def test_requirements_can_be_read_to_answer_from_an_index() -> None:
    assert LabelSelector.parse("b in (d,c),a").requirements == (
        LabelRequirement("a", LabelOperator.EXISTS),
        LabelRequirement("b", LabelOperator.IN, ("c", "d")),
    )


def test_shows_its_text() -> None:
    assert repr(LabelSelector.parse("a = b")) == "<LabelSelector 'a=b'>"


# --- what is refused, and where -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a=b,", 4, "expected a label key or '!', found the end"),
        ("a=b, ", 5, "expected a label key or '!', found the end"),
        (",", 0, "expected a label key or '!', found ','"),
        ("a,,b", 2, "expected a label key or '!', found ','"),
        ("=b", 0, "expected a label key or '!', found '='"),
        (" ==b", 1, "expected a label key or '!', found '=='"),
        ("(a)", 0, "expected a label key or '!', found '('"),
        ("!", 1, "expected a label key, found the end"),
        ("!!a", 1, "expected a label key, found '!'"),
        ("!=a", 0, "expected a label key or '!', found '!='"),
        ("!a=b", 2, "expected ',' or the end, found '='"),
        ("a b", 2, "expected '=', '==', '!=', 'in', 'notin', '<', '>', ',' or the end, found 'b'"),
        ("a!b", 1, "expected '=', '==', '!=', 'in', 'notin', '<', '>', ',' or the end, found '!'"),
        ("a(b)", 1, "expected '=', '==', '!=', 'in', 'notin', '<', '>', ',' or the end, found '('"),
        ("a=b c", 4, "expected ',' or the end, found 'c'"),
        ("a=b=c", 3, "expected ',' or the end, found '='"),
        ("a===b", 3, "expected a label value, found '='"),
        ("a=(b)", 2, "expected a label value, found '('"),
        ("a=!b", 2, "expected a label value, found '!'"),
        ("a=)", 2, "expected ',' or the end, found ')'"),
        ("a in", 4, "expected '(', found the end"),
        ("a in b", 5, "expected '(', found 'b'"),
        ("a in (", 6, "expected ',' or ')', found the end"),
        ("a in (b", 7, "expected ',' or ')', found the end"),
        ("a in (b,", 8, "expected ',' or ')', found the end"),
        ("a in (b c)", 8, "expected ',' or ')', found 'c'"),
        ("a in (=)", 6, "expected a label value, ',' or ')', found '='"),
        ("a in (b))", 8, "expected ',' or the end, found ')'"),
        ("a in (b) c", 9, "expected ',' or the end, found 'c'"),
        ("a in (b),", 9, "expected a label key or '!', found the end"),
        ("a>", 2, "expected an integer"),
        ("a>,b", 2, "expected an integer"),
        ("a>x", 2, "expected an integer of 64 bits, found 'x'"),
        ("a<1.5", 2, "expected an integer of 64 bits, found '1.5'"),
        ("a<9223372036854775808", 2, "expected an integer of 64 bits, found '9223372036854775808'"),
        ("a>-5", 2, "the value '-5' is not a label value"),
        ("-a", 0, "the key '-a' is not a qualified name"),
        ("ok, !a_", 5, "the key 'a_' is not a qualified name"),
        ("a/b/c=d", 0, "the prefix of the key 'a/b' is not a DNS-1123 subdomain"),
        ("a=-b", 2, "the value '-b' is not a label value"),
        ("a in (b, c/d)", 9, "the value 'c/d' is not a label value"),
        ("a=" + "b" * 64, 2, "the value"),
        ("a=\0", 2, "the value '\\x00' is not a label value"),
        ("é=b", 0, "the key 'é' is not a qualified name"),
    ],
)
def test_refuses_a_malformed_text_where_it_stops_making_sense(
    text: str, position: int, reason: str
) -> None:
    with pytest.raises(InvalidSelectorError) as refused:
        LabelSelector.parse(text)

    assert (refused.value.selector, refused.value.position) == (text, position)
    assert refused.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("value", "selector", "reason"),
    [
        ({"-a": "b"}, "{'-a': 'b'}", "the key '-a' is not a qualified name"),
        ({"a": "b c"}, "{'a': 'b c'}", "the value 'b c' is not a label value"),
        (
            {"a": "b", "c": ["d", "e,f"]},
            "{'c': ['d', 'e,f']}",
            "the value 'e,f' is not a label value",
        ),
        ({"a": []}, "{'a': []}", "expected at least one value"),
        ({"a": None}, "{'a': None}", "expected a label value or a collection of them"),
        ({"a": 5}, "{'a': 5}", "expected a label value or a collection of them"),
        ({"a": {"b": "c"}}, "{'a': {'b': 'c'}}", "expected a label value or a collection of them"),
        ({"a": [5]}, "{'a': [5]}", "expected a label value, found 5"),
        ({"a": b"c"}, "{'a': b'c'}", "expected a label value, found 99"),
        ({5: "a"}, "{5: 'a'}", "expected a label key, found 5"),
        (5, "5", "expected text, a mapping or a LabelSelector"),
    ],
)
def test_refuses_a_malformed_mapping_and_shows_the_item(
    value: object, selector: str, reason: str
) -> None:
    with pytest.raises(InvalidSelectorError) as refused:
        LabelSelector.of(cast("LabelSelectorLike", value))

    assert (refused.value.selector, refused.value.position) == (selector, 0)
    assert refused.value.reason.startswith(reason)


def test_refuses_what_a_program_builds_wrongly() -> None:
    with pytest.raises(InvalidSelectorError, match="expected at least one value"):
        LabelSelector.one_of("a")
    with pytest.raises(InvalidSelectorError, match="expected at least one value"):
        LabelSelector.none_of("a")
    with pytest.raises(InvalidSelectorError, match="not a qualified name"):
        LabelSelector.exists("a b")
    with pytest.raises(InvalidSelectorError, match="expected an integer of 64 bits"):
        LabelSelector.above("a", 2**63)
    with pytest.raises(InvalidSelectorError, match="is not a label value"):
        LabelSelector.below("a", -1)


# --- properties -----------------------------------------------------------------------------------

keys = st.sampled_from(["a", "b", "in", "notin", "example.org/a", "A-b_c.d"])
values = st.sampled_from(["", "x", "y", "in", "3", "5", "7", "007"])
numbers = st.integers(0, 9)
requirements = st.one_of(
    st.builds(LabelSelector.one_of, keys, values, values),
    st.builds(LabelSelector.none_of, keys, values, values),
    st.builds(LabelSelector.exists, keys),
    st.builds(LabelSelector.absent, keys),
    st.builds(LabelSelector.above, keys, numbers),
    st.builds(LabelSelector.below, keys, numbers),
)


def everything_in(parts: list[LabelSelector]) -> LabelSelector:
    return LabelSelector(requirement for part in parts for requirement in part.requirements)


selectors = st.lists(requirements, max_size=4).map(everything_in)


def naively_matches(text: str, labels: Mapping[str, str]) -> bool:
    """Evaluate a canonical text by splitting it, without the code under test."""
    parts = text.replace(", ", ",").replace("(", "(,").split(",") if text else []
    joined: list[str] = []
    for part in parts:  # put lists together again
        if joined and "(" in joined[-1] and ")" not in joined[-1]:
            joined[-1] += f",{part}"
        else:
            joined.append(part)
    return all(naively_meets(part, labels) for part in joined)


def naively_meets(requirement: str, labels: Mapping[str, str]) -> bool:
    for operator in (" notin ", " in ", "!=", "=", ">", "<"):
        key, found, wanted = requirement.partition(operator)
        if not found:
            continue
        accepted = wanted.strip("()").split(",")[1:] if "(" in wanted else [wanted]
        if operator in {" notin ", "!="}:
            return key not in labels or labels[key] not in accepted
        if operator in {" in ", "="}:
            return key in labels and labels[key] in accepted
        if not labels.get(key, "").isdigit():
            return False
        return int(labels[key]) > int(wanted) if operator == ">" else int(labels[key]) < int(wanted)
    return requirement[1:] not in labels if requirement.startswith("!") else requirement in labels


@given(selectors)
def test_canonical_text_parses_to_an_equal_selector(selector: LabelSelector) -> None:
    again = LabelSelector.parse(str(selector))

    assert again == selector
    assert hash(again) == hash(selector)
    assert str(again) == str(selector)


@given(selectors, st.dictionaries(keys, values))
def test_agrees_with_a_naive_evaluation_of_its_text(
    selector: LabelSelector, labels: dict[str, str]
) -> None:
    assert selector.matches(labels) is naively_matches(str(selector), labels)


@given(selectors, selectors, st.dictionaries(keys, values))
def test_both_sides_of_a_conjunction_must_match(
    one: LabelSelector, other: LabelSelector, labels: dict[str, str]
) -> None:
    assert (one & other).matches(labels) is (one.matches(labels) and other.matches(labels))


@given(selectors, st.data())
def test_white_space_around_tokens_is_free(selector: LabelSelector, data: st.DataObject) -> None:
    space = st.sampled_from(["", " ", "\t", "\n  "])
    text = "".join(
        f"{data.draw(space)}{character}{data.draw(space)}" if character in ",()" else character
        for character in str(selector)
    )

    assert LabelSelector.parse(text) == selector


@given(st.text() | st.text("ab!=<>(), \tin5"))
def test_any_text_is_either_read_or_refused_within_its_bounds(text: str) -> None:
    """Selectors come from the command line and from HTTP: no text may raise anything else."""
    selector, position = None, 0
    try:
        selector = LabelSelector.parse(text)
    except InvalidSelectorError as error:
        position = error.position

    assert 0 <= position <= len(text)
    assert selector is None or LabelSelector.parse(str(selector)) == selector
