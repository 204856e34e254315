"""JSON Merge Patch on JSON text (RFC 7396)."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.encoding.merge_patch import merge_patch

Json: TypeAlias = Any

names = st.sampled_from("abcé")
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
values: st.SearchStrategy[Json] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(names, values, max_size=4)


def text_of(value: Json) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def naive_merge(target: Json, patch: Json) -> Json:
    """The pseudocode of RFC 7396, section 2, on plain data."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = naive_merge(result.get(name), value)
    return result


# --- the RFC --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ('{"a":"b"}', {"a": "c"}, '{"a":"c"}'),
        ('{"a":"b"}', {"b": "c"}, '{"a":"b","b":"c"}'),
        ('{"a":"b"}', {"a": None}, "{}"),
        ('{"a":"b","b":"c"}', {"a": None}, '{"b":"c"}'),
        ('{"a":["b"]}', {"a": "c"}, '{"a":"c"}'),
        ('{"a":"c"}', {"a": ["b"]}, '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', {"a": {"b": "d", "c": None}}, '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', {"a": [1]}, '{"a":[1]}'),
        ('{"e":null}', {"a": 1}, '{"a":1,"e":null}'),
        ("[1,2]", {"a": "b", "c": None}, '{"a":"b"}'),
        ("{}", {"a": {"bb": {"ccc": None}}}, '{"a":{"bb":{}}}'),
    ],
)
def test_the_examples_of_the_rfc_come_out(
    target: str, patch: Mapping[str, Any], result: str
) -> None:
    """Appendix A, but for its four examples whose patch is no object: those patch no resource."""
    assert merge_patch(target.encode(), patch) == result.encode()


def test_the_example_in_the_text_of_the_rfc_comes_out() -> None:
    """Section 3."""
    target = {
        "title": "Goodbye!",
        "author": {"givenName": "John", "familyName": "Doe"},
        "tags": ["example", "sample"],
        "content": "This will be unchanged",
    }
    patch = {
        "title": "Hello!",
        "phoneNumber": "+01-123-456-7890",
        "author": {"familyName": None},
        "tags": ["example"],
    }

    assert json.loads(merge_patch(text_of(target), patch)) == {
        "title": "Hello!",
        "author": {"givenName": "John"},
        "tags": ["example"],
        "content": "This will be unchanged",
        "phoneNumber": "+01-123-456-7890",
    }


@given(values, objects)
def test_any_patch_does_what_the_pseudocode_of_the_rfc_does(
    target: Json, patch: dict[str, Json]
) -> None:
    assert json.loads(merge_patch(text_of(target), patch)) == naive_merge(target, patch)


@given(objects, objects)
def test_a_patch_applied_twice_does_what_it_did_once(
    target: dict[str, Json], patch: dict[str, Json]
) -> None:
    once = merge_patch(text_of(target), patch)

    assert merge_patch(once, patch) == once


# --- text -----------------------------------------------------------------------------------------


@given(objects, objects)
def test_the_result_of_canonical_text_is_canonical(
    target: dict[str, Json], patch: dict[str, Json]
) -> None:
    result = merge_patch(text_of(target), patch)

    assert result == text_of(json.loads(result))


@given(objects)
def test_an_empty_patch_changes_no_byte(target: dict[str, Json]) -> None:
    assert merge_patch(text_of(target), {}) == text_of(target)


@pytest.mark.parametrize(
    "untouched",
    [
        b"1.10",
        b"1e400",
        b"-0.0",
        b"123456789012345678901234567890",
        b"0." + b"1" * 400,
        b'{"b" : [1.0, 2.50] }',
    ],
)
def test_what_a_patch_does_not_touch_stays_as_it_was_written(untouched: bytes) -> None:
    """Numbers that Python would round, or cannot parse, must not change."""
    target = b'{"deep":{"a":1,"z":' + untouched + b'},"z":' + untouched + b"}"

    result = merge_patch(target, {"deep": {"a": 2}, "new": True})

    assert result == b'{"deep":{"a":2,"z":' + untouched + b'},"new":true,"z":' + untouched + b"}"


def test_space_around_is_no_matter() -> None:
    target = b'\n{ "a" :\t{ "b" : 1 } ,\n "c" : 2 }\n'

    assert merge_patch(target, {"a": {"d": 3}}) == b'{"a":{"b":1,"d":3},"c":2}'


def test_nulls_within_a_list_stay() -> None:
    """A list replaces; null in it removes nothing."""
    assert merge_patch(b'{"a":[1]}', {"a": [None, {"b": None}]}) == b'{"a":[null,{"b":null}]}'


def test_any_mapping_is_a_patch() -> None:
    class ReadOnly(Mapping[str, object]):
        def __init__(self, **items: object) -> None:
            self._items = items

        def __getitem__(self, name: str) -> object:
            return self._items[name]

        def __iter__(self) -> Any:
            return iter(self._items)

        def __len__(self) -> int:
            return len(self._items)

    assert merge_patch(b'{"a":{"b":1}}', ReadOnly(a=ReadOnly(b=None, c=1))) == b'{"a":{"c":1}}'


@pytest.mark.parametrize("value", [object(), {"a": object()}, [object()], 1j])
def test_what_json_does_not_know_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        merge_patch(b"{}", {"a": value})
