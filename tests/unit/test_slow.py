"""The list of slow tests keeps what a run did not cover, and follows what it did."""

from tests.slow import name_of, remeasured


def test_a_test_keeps_its_mark_when_it_moves_to_another_module() -> None:
    assert name_of("tests/unit/test_a.py::TestThis::test_x[1-a::b]") == "TestThis::test_x"
    assert name_of("tests/unit/test_b.py::TestThis::test_x") == "TestThis::test_x"


def test_what_a_run_covers_is_listed_by_its_time_and_the_rest_stays() -> None:
    listed = ["test_not_run", "test_now_fast", "test_still_slow"]
    seconds = {"test_now_fast": 0.01, "test_still_slow": 0.5, "test_now_slow": 0.2, "test_new": 0.1}

    assert remeasured(listed, seconds, 0.1) == ["test_not_run", "test_now_slow", "test_still_slow"]
