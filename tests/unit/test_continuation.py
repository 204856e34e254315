"""A continuation as text is parsed as it was, or refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import InvalidResourceError
from kvorum.repository.continuation import Continuation

QUERY = b"12345678"

continuations = st.builds(
    Continuation.at,
    st.just(QUERY),
    st.integers(0, 2**63 - 1),
    st.binary().map(lambda key: key.decode(errors="surrogateescape")),
)


@given(continuations)
def test_a_continuation_is_parsed_as_it_was(given: Continuation) -> None:
    found = Continuation.parse(str(given), query=QUERY, subject="boxes/")

    assert found == given
    assert found.key.encode(errors="surrogateescape") == given.after


@given(continuations)
def test_its_text_needs_no_quoting_in_a_url(given: Continuation) -> None:
    assert str(given).replace("-", "").replace("_", "").isalnum()


@given(continuations, st.data())
def test_no_change_of_a_character_goes_unnoticed(given: Continuation, data: st.DataObject) -> None:
    text = str(given)
    index = data.draw(st.integers(0, len(text) - 1))
    changed = (
        text[:index]
        + data.draw(st.characters(codec="utf-8").filter(lambda c: c != text[index]))
        + text[index + 1 :]
    )

    with pytest.raises(InvalidResourceError, match="not a continuation"):
        Continuation.parse(changed, query=QUERY, subject="boxes/")


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidResourceError, match="boxes/: continue_from is not a continuation"):
        Continuation.parse(text, query=QUERY, subject="boxes/")


def test_one_of_another_list_is_told_apart_from_a_broken_one() -> None:
    text = str(Continuation.at(QUERY, 7, "boxes/a"))

    with pytest.raises(InvalidResourceError, match="belongs to another list"):
        Continuation.parse(text, query=b"87654321", subject="boxes/")


def test_one_of_another_version_of_kvorum_says_so() -> None:
    other = msgspec.structs.replace(Continuation.at(QUERY, 7, "boxes/a"), form=2)

    with pytest.raises(InvalidResourceError, match="form 2"):
        Continuation.parse(str(other), query=QUERY, subject="boxes/")
