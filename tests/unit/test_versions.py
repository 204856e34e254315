"""Which version of etcd has which hazard, against the changelogs' words."""

import pytest

from kvorum.etcd.versions import HAZARDS, hazards_of


@pytest.mark.parametrize(
    ("name", "has_it", "is_free"),
    [
        ("lost-entries", [(3, 5, 0), (3, 5, 2)], [(3, 4, 23), (3, 5, 3), (3, 6, 0)]),
        ("read-only-transactions", [(3, 3, 27), (3, 4, 22), (3, 5, 0), (3, 5, 6)], [(3, 4, 23), (3, 5, 7), (3, 6, 0)]),
        (
            "nested-transactions-pass-roles",
            [(3, 4, 43), (3, 5, 29), (3, 6, 10)],
            [(3, 4, 44), (3, 5, 30), (3, 6, 11), (3, 7, 0), (4, 0, 0)],
        ),
        (
            "nested-puts-pass-the-quota",
            [(3, 4, 99), (3, 5, 32), (3, 6, 13), (3, 7, 0)],
            [(3, 5, 33), (3, 6, 14), (3, 7, 1), (3, 8, 0)],
        ),
        ("deletions-stop-at-the-quota", [(3, 4, 19), (3, 5, 6)], [(3, 4, 20), (3, 5, 7), (3, 6, 0)]),
        ("progress-on-demand", [(3, 4, 30), (3, 5, 12)], [(3, 4, 31), (3, 5, 13), (3, 6, 0)]),
    ],
)
def test_a_version_has_a_hazard_until_it_was_mended(
    name: str, has_it: list[tuple[int, int, int]], is_free: list[tuple[int, int, int]]
) -> None:
    for version in has_it:
        assert name in {hazard.name for hazard in hazards_of(version)}, version
    for version in is_free:
        assert name not in {hazard.name for hazard in hazards_of(version)}, version


def test_every_hazard_says_what_follows_and_how_that_is_known() -> None:
    assert len({hazard.name for hazard in HAZARDS}) == len(HAZARDS)
    assert all(hazard.consequence and hazard.source for hazard in HAZARDS)
