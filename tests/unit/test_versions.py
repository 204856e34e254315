"""Which version of etcd has which known issue, compared with the changelogs."""

import pytest

from kvorum.errors import ServerError
from kvorum.etcd.transport.versions import HAZARDS, format_version, hazards_of, parse_version


@pytest.mark.parametrize(
    ("name", "has_it", "is_free"),
    [
        ("lost-entries", [(3, 5, 0), (3, 5, 2)], [(3, 4, 23), (3, 5, 3), (3, 6, 0)]),
        (
            "read-only-transactions",
            [(3, 3, 27), (3, 4, 22), (3, 5, 0), (3, 5, 6)],
            [(3, 4, 23), (3, 5, 7), (3, 6, 0)],
        ),
        (
            "nested-transactions-bypass-rbac",
            [(3, 4, 43), (3, 5, 29), (3, 6, 10)],
            [(3, 4, 44), (3, 5, 30), (3, 6, 11), (3, 7, 0), (4, 0, 0)],
        ),
        (
            "nested-puts-bypass-quota",
            [(3, 4, 99), (3, 5, 32), (3, 6, 13), (3, 7, 0)],
            [(3, 5, 33), (3, 6, 14), (3, 7, 1), (3, 8, 0)],
        ),
        (
            "deletions-stop-at-the-quota",
            [(3, 4, 19), (3, 5, 6)],
            [(3, 4, 20), (3, 5, 7), (3, 6, 0)],
        ),
        ("progress-on-demand", [(3, 4, 30), (3, 5, 12)], [(3, 4, 31), (3, 5, 13), (3, 6, 0)]),
    ],
)
def test_a_version_has_a_hazard_until_it_was_fixed(
    name: str, has_it: list[tuple[int, int, int]], is_free: list[tuple[int, int, int]]
) -> None:
    for version in has_it:
        assert name in {hazard.name for hazard in hazards_of(version)}, version
    for version in is_free:
        assert name not in {hazard.name for hazard in hazards_of(version)}, version


def test_every_hazard_has_a_consequence_and_a_source() -> None:
    assert len({hazard.name for hazard in HAZARDS}) == len(HAZARDS)
    assert all(hazard.consequence and hazard.source for hazard in HAZARDS)


def test_a_pre_release_has_the_hazards_of_the_patch_before() -> None:
    """The fixes of the release may have come after it."""
    assert parse_version("3.5.30") == (3, 5, 30)
    assert parse_version("3.5.30-rc.0") == (3, 5, 29)
    assert {hazard.name for hazard in hazards_of(parse_version("3.7.1-rc.0"))} == {
        "nested-puts-bypass-quota"
    }
    assert parse_version("3.7.0-alpha.0") < parse_version("3.7.0")


@pytest.mark.parametrize("text", ["3.7.0-alpha.0", "3.7.0-beta.0", "3.7.0-rc.1"])
def test_a_fix_of_the_first_release_of_a_minor_version_is_not_in_its_pre_releases(
    text: str,
) -> None:
    names = {hazard.name for hazard in hazards_of(parse_version(text))}

    assert "nested-transactions-bypass-rbac" in names
    assert "nested-transactions-bypass-rbac" not in {
        hazard.name for hazard in hazards_of((3, 7, 0))
    }
    assert "nested-transactions-bypass-rbac" not in {
        hazard.name for hazard in hazards_of(parse_version("3.8.0-alpha.0"))
    }


def test_an_issue_of_the_first_release_is_in_its_pre_releases() -> None:
    assert "lost-entries" in {hazard.name for hazard in hazards_of(parse_version("3.5.0-rc.1"))}
    assert "lost-entries" not in {hazard.name for hazard in hazards_of(parse_version("3.5.3"))}
    assert "lost-entries" in {hazard.name for hazard in hazards_of(parse_version("3.5.3-rc.0"))}


def test_a_version_reads_as_it_is_written() -> None:
    assert format_version((3, 5, 1)) == "3.5.1"
    assert format_version(parse_version("3.7.0-alpha.0")) == "3.7.0 (not released)"
    with pytest.raises(ServerError, match="its version is 'weird'") as caught:
        parse_version("weird")
    assert caught.value.code == "UNKNOWN"
