"""A lease tells by its id whether it is for one key alone."""

from kvorum.storage.lease_ids import any_id, id_for, is_for


def test_a_lease_for_a_key_is_known_by_its_id_to_that_key_alone() -> None:
    ids = {id_for(b"/lab/a") for _ in range(1000)}

    assert len(ids) == 1000
    assert all(0 < lease < 2**63 and is_for(b"/lab/a", lease) for lease in ids)
    assert not any(is_for(b"/lab/b", lease) for lease in ids)


def test_any_other_lease_is_for_no_key_alone() -> None:
    ids = {any_id() for _ in range(100_000)}

    assert all(0 < lease < 2**62 for lease in ids)
    assert all(lease >= 2**62 for lease in (id_for(b""), id_for(b"/lab/a")))
    assert not is_for(b"/lab/a", 0)
