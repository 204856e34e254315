"""The entries that a watch has delivered, and the difference that a new list makes."""

from hypothesis import given
from hypothesis import strategies as st

from kvorum.repository.known import Known
from kvorum.storage import Change, Entry


def entry(
    key: str = "a",
    revision: int = 1,
    *,
    value: bytes | None = None,
    uid: str = "u",
    created: int = 1,
) -> Entry:
    text = b'{"metadata": {"uid": "%s"}}' % uid.encode() if value is None else value
    return Entry(key, text, revision, created, 1)


def known(*entries: Entry) -> Known:
    known = Known()
    for each in entries:
        known.put(each)
    return known


def gone(last: Entry, revision: int) -> Change:
    return Change(last.key, revision, None, last)


def changed(now: Entry, last: Entry | None = None) -> Change:
    return Change(now.key, now.mod_revision, now, last)


def test_what_is_as_it_was_is_no_change() -> None:
    assert known(entry("a"), entry("b")).replace([entry("a"), entry("b")], 9) == []


def test_deletions_come_first_then_the_rest_by_revision() -> None:
    a, b, c, d = entry("a", 1), entry("b", 2), entry("c", 7), entry("d", 5)

    changes = known(a, b, entry("d", 3)).replace([c, d], 9)

    assert changes == [gone(a, 9), gone(b, 9), changed(d, entry("d", 3)), changed(c)]


def test_another_uid_is_another_resource() -> None:
    first, second = entry(uid="u1"), entry(revision=5, uid="u2")

    assert known(first).replace([second], 9) == [gone(first, 9), changed(second)]


def test_the_same_uid_is_the_same_resource_however_its_key_was_created() -> None:
    """A backup that is restored key by key creates all keys again."""
    first, second = entry(created=1), entry(revision=5, created=5)

    assert known(first).replace([second], 9) == [changed(second, first)]


def test_without_uids_the_creation_of_the_key_tells_a_replacement() -> None:
    first = entry(value=b"{}", created=1)
    written = entry(revision=5, value=b"{}", created=1)
    replaced = entry(revision=5, value=b"{}", created=5)

    assert known(first).replace([written], 9) == [changed(written, first)]
    assert known(first).replace([replaced], 9) == [gone(first, 9), changed(replaced)]


def test_the_same_revision_with_another_value_is_a_change() -> None:
    """A store that was restored reaches the same revisions again."""
    first, second = entry(value=b'{"metadata": {"uid": "u"}, "x": 1}'), entry()

    assert known(first).replace([second], 9) == [changed(second, first)]


def test_the_same_value_of_a_key_with_another_history_is_no_change_but_is_kept() -> None:
    """What is kept is compared with the store later, so it must be what the store has."""
    first, second = entry(created=1), entry(created=3)
    it = known(first)

    assert it.unchanged(second) is None
    assert it.replace([second], 9) == []
    assert it.get("a") is second


def test_an_unreadable_value_is_a_change_once_and_deletes_nothing() -> None:
    first, bad = entry(), entry(revision=5, value=b"?")
    it = known(first)

    assert it.replace([bad], 9, unreadable={"a"}) == [changed(bad)]
    assert it.replace([bad], 10, unreadable={"a"}) == []
    assert it.get("a") == first
    assert it.replace([], 11) == [gone(first, 11)]


def test_another_unreadable_value_at_the_same_revision_is_a_change() -> None:
    """A store that was restored from a backup can reach a revision again."""
    first, second, third = (entry(revision=5, value=value) for value in (b"?", b"!", b"."))
    it = Known()
    it.mark_unreadable(first)

    assert it.replace([first], 9, unreadable={"a"}) == []
    assert it.replace([second], 9, unreadable={"a"}) == [changed(second)]
    assert it.replace([second], 9, unreadable={"a"}) == []
    assert it.replace([third], 9, unreadable={"a"}) == [changed(third)]


def test_a_value_that_can_be_read_again_is_new() -> None:
    it = known(entry())
    it.mark_unreadable(entry(revision=5, value=b"?"))
    again = entry(revision=6)

    assert it.replace([again], 9) == [changed(again)]


def test_an_unchanged_entry_is_kept_as_the_known_one() -> None:
    """So that a list does not hold a second copy of each value."""
    first = entry()
    it = known(first)

    assert it.unchanged(entry()) is first
    assert it.unchanged(entry(revision=2)) is None
    it.mark_unreadable(entry(revision=2, value=b"?"))
    assert it.unchanged(entry()) is None


entries = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        lambda revision, uid: entry("?", revision, uid=uid),
        st.integers(1, 5),
        st.sampled_from(["u1", "u2"]),
    ),
).map(lambda of: [Entry(key, e.value, e.mod_revision, 1, 1) for key, e in of.items()])


@given(st.lists(entries, min_size=1, max_size=4))
def test_the_changes_turn_each_list_into_the_next(lists: list[list[Entry]]) -> None:
    it, copy = Known(), dict[str, Entry]()
    for listed in lists:
        for change in it.replace(listed, 9):
            assert change.previous is None or change.previous == copy[change.key]
            copy.pop(change.key, None)
            if change.entry is not None:
                copy[change.key] = change.entry

        assert copy == {each.key: each for each in listed}
