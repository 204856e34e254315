"""The rules of Kubernetes for names, labels and annotations."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.resources.names import (
    problems_of_label,
    problems_of_label_value,
    problems_of_qualified_name,
    problems_of_subdomain,
)

LOWER = string.ascii_lowercase + string.digits
ALNUM = string.ascii_letters + string.digits

# What a hostile or careless caller may pass as any of them. The first eleven are those of
# conformance.md, rule 9.
NEVER = [
    "/",
    ".",
    "..",
    "a/../b",
    "a" * 300,
    "a\0b",
    "\0",
    "a//b",
    "/a",
    "a/",
    "a b",
    " a",
    "a ",
    "a\n",  # `$` in a regular expression would let this through
    "\ta",
    "-a",
    "a-",
    ".a",
    "a.",
    "é",
    "a\u0660",  # a digit, but not one of ours
    "\u212a",  # the Kelvin sign, which lower() makes a k
    "\udcff",
    "a:b",
    "a,b",
    "*",
    "%2e",
]


def near(alphabet: str, size: int) -> st.SearchStrategy[str]:
    """Text that is likely to be right, or wrong in one place."""
    return st.text(alphabet + "-_./A \n", max_size=size)


# --- a naive second opinion -----------------------------------------------------------------------


def is_word(text: str, ends: str, middle: str) -> bool:
    return (
        text != ""
        and text[0] in ends
        and text[-1] in ends
        and all(letter in ends + middle for letter in text)
    )


def is_label(text: str) -> bool:
    return len(text) <= 63 and is_word(text, LOWER, "-")


def is_subdomain(text: str) -> bool:
    return len(text) <= 253 and all(is_word(part, LOWER, "-") for part in text.split("."))


def is_bare_name(text: str) -> bool:
    return len(text) <= 63 and is_word(text, ALNUM, "-_.")


def is_qualified_name(text: str) -> bool:
    *prefixes, name = text.split("/")
    return is_bare_name(name) and (
        prefixes == [] or (len(prefixes) == 1 and is_subdomain(prefixes[0]))
    )


# --- subdomains: names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "0", "worker-001", "a.b.c", "0.1", "a--b", "x" * 253, ".".join(["ab"] * 84)]
)
def test_a_subdomain_is_a_name(name: str) -> None:
    assert problems_of_subdomain(name) == []


@pytest.mark.parametrize("name", ["", "Worker", "a_b", "a..b", "a.-b", "a-.b", "x" * 254, *NEVER])
def test_what_is_no_subdomain_is_no_name(name: str) -> None:
    problems = problems_of_subdomain(name)

    assert len(problems) == 1
    assert problems[0].startswith("name ")


@given(near(LOWER, 12))
def test_subdomains_are_told_as_the_naive_rule_does(text: str) -> None:
    assert (problems_of_subdomain(text) == []) == is_subdomain(text)


def test_a_name_that_is_too_long_is_counted_and_not_repeated() -> None:
    """Messages, and the logs they are written to, stay short."""
    assert problems_of_subdomain("x" * 5000) == [
        "name has 5000 characters, at most 253 are allowed"
    ]


# --- labels: namespaces and plurals ---------------------------------------------------------------


@pytest.mark.parametrize("label", ["a", "0", "team-a", "a--b", "x" * 63])
def test_a_label_is_a_namespace(label: str) -> None:
    assert problems_of_label(label) == []


@pytest.mark.parametrize("label", ["", "Team", "a_b", "a.b", "x" * 64, *NEVER])
def test_what_is_no_label_is_no_namespace(label: str) -> None:
    problems = problems_of_label(label)

    assert len(problems) == 1
    assert problems[0].startswith("namespace ")


@given(near(LOWER, 12))
def test_labels_are_told_as_the_naive_rule_does(text: str) -> None:
    assert (problems_of_label(text) == []) == is_label(text)


# --- qualified names: keys of labels and annotations, finalizers ----------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "A",
        "lab-track",
        "a_b",
        "a.b",
        "1",
        "x" * 63,
        "example.org/A_b.c",
        "a/b",
        f"{'x' * 253}/{'y' * 63}",
    ],
)
def test_a_qualified_name_may_have_a_prefix(name: str) -> None:
    assert problems_of_qualified_name(name, "the label key") == []


@pytest.mark.parametrize(
    "name",
    ["", "_a", "a_", "x" * 64, "A/b", "a_b/c", "a/b/c", f"{'x' * 254}/y", f"a/{'y' * 64}", *NEVER],
)
def test_what_is_no_qualified_name_is_refused(name: str) -> None:
    problems = problems_of_qualified_name(name, "the label key")

    assert problems != []
    assert all("the label key" in problem for problem in problems)


def test_prefix_and_name_are_both_complained_about() -> None:
    assert len(problems_of_qualified_name("A B/c d", "the label key")) == 2


@given(near(ALNUM, 12))
def test_qualified_names_are_told_as_the_naive_rule_does(text: str) -> None:
    assert (problems_of_qualified_name(text, "it") == []) == is_qualified_name(text)


# --- values of labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "a", "A", "comp-sci-101", "a_b.C", "x" * 63])
def test_the_value_of_a_label_may_be_empty(value: str) -> None:
    assert problems_of_label_value(value, "it") == []


@pytest.mark.parametrize("value", ["_a", "a_", "x" * 64, "a/b", *NEVER])
def test_what_is_no_value_of_a_label_is_refused(value: str) -> None:
    problems = problems_of_label_value(value, "the value of label 'x',")

    assert len(problems) == 1
    assert problems[0].startswith("the value of label 'x', ")


@given(near(ALNUM, 12))
def test_values_of_labels_are_told_as_the_naive_rule_does(text: str) -> None:
    assert (problems_of_label_value(text, "it") == []) == (text == "" or is_bare_name(text))
