"""The contract of the storage port for leases."""

from typing import Final

import anyio
import pytest

from kvorum.errors import (
    ConflictError,
    InvalidResourceError,
    LeaseNotFoundError,
)
from kvorum.storage import Change, Entry, Operation, StorageBackend
from kvorum.testing.conformance.probes import keys_of, lease_of, take

NO_SUCH_LEASE: Final = 0x7E57


class LeasesConformance:
    """Tests of leases."""

    async def test_a_key_says_which_lease_it_lives_on(self, backend: StorageBackend) -> None:
        lease = await backend.grant_lease(600)
        await backend.set("a", b"", lease=lease)
        await backend.create("b", b"", lease=lease)
        await backend.compare_and_swap("c", b"", expected=0, lease=lease)
        await backend.commit(
            [Operation.put("d", b"", lease=lease), Operation.create("e", b"", lease=lease)]
        )

        assert {entry.lease for entry in (await backend.list("")).entries} == {lease}
        assert await backend.count("") == 5

    async def test_leases_are_different_ones(self, backend: StorageBackend) -> None:
        assert len({await backend.grant_lease(600) for _ in range(3)}) == 3

    async def test_a_revoked_lease_takes_its_keys_with_it_and_no_others(
        self, backend: StorageBackend
    ) -> None:
        lease, other = await backend.grant_lease(600), await backend.grant_lease(600)
        revision = await backend.set("a", b"1", lease=lease)
        await backend.set("b", b"", lease=other)
        await backend.set("c", b"")
        async with backend.watch("") as watch:
            await backend.revoke_lease(lease)

            ((change,),) = await take(watch, 1)
            assert change == Change(
                "a", change.revision, None, Entry("a", b"1", revision, revision, 1, lease)
            )
        assert keys_of(await backend.list("")) == ["b", "c"]

    async def test_an_expired_lease_takes_its_keys_with_it_and_not_too_early(
        self, backend: StorageBackend
    ) -> None:
        async with backend.watch("") as watch:
            started = anyio.current_time()
            await backend.set("a", b"1", lease=await backend.grant_lease(1))
            (_, (change,)) = await take(watch, 2)

        assert change.entry is None
        assert change.key == "a"
        assert anyio.current_time() - started >= 1

    async def test_a_lease_can_be_revoked_once(self, backend: StorageBackend) -> None:
        lease = await backend.grant_lease(600)
        await backend.revoke_lease(lease)

        with pytest.raises(LeaseNotFoundError) as caught:
            await backend.revoke_lease(lease)

        assert caught.value.lease == lease

    async def test_a_plain_write_takes_a_key_off_its_lease(self, backend: StorageBackend) -> None:
        lease = await backend.grant_lease(600)
        for key in "ab":
            await backend.set(key, b"1", lease=lease)
        await backend.set("a", b"2")
        await backend.commit([Operation.put("b", b"2")])
        await backend.revoke_lease(lease)

        assert [(entry.value, entry.lease) for entry in (await backend.list("")).entries] == [
            (b"2", 0),
            (b"2", 0),
        ]

    async def test_a_swap_keeps_a_key_on_its_lease(self, backend: StorageBackend) -> None:
        """Otherwise an update would keep a resource alive after its owner has gone."""
        lease = await backend.grant_lease(600)
        for key in "ab":
            await backend.set(key, b"1", lease=lease)
        for key in "a":
            entry = await backend.get(key)
            assert entry is not None
            await backend.compare_and_swap(key, b"2", expected=entry.mod_revision)
        entry = await backend.get("b")
        assert entry is not None
        await backend.commit([Operation.swap("b", b"2", expected=entry.mod_revision)])

        assert await lease_of(backend, "a") == lease
        assert await lease_of(backend, "b") == lease
        await backend.revoke_lease(lease)
        assert await backend.count("") == 0

    async def test_a_swap_of_a_key_without_a_lease_gives_it_none(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("a", b"1")
        await backend.compare_and_swap("a", b"2", expected=revision)

        assert await lease_of(backend, "a") == 0

    async def test_a_swap_may_move_a_key_to_another_lease_or_to_none(
        self, backend: StorageBackend
    ) -> None:
        first, second = await backend.grant_lease(600), await backend.grant_lease(600)
        revision = await backend.set("a", b"1", lease=first)

        revision = await backend.compare_and_swap("a", b"2", expected=revision, lease=second)
        assert await lease_of(backend, "a") == second
        revision = await backend.compare_and_swap("a", b"3", expected=revision, lease=0)
        assert await lease_of(backend, "a") == 0
        revision = await backend.commit([Operation.swap("a", b"4", expected=revision, lease=first)])
        assert await lease_of(backend, "a") == first
        await backend.commit([Operation.swap("a", b"5", expected=revision, lease=0)])
        assert await lease_of(backend, "a") == 0

    async def test_a_lease_that_does_not_exist_refuses_every_write(
        self, backend: StorageBackend
    ) -> None:
        revision = await backend.set("a", b"1")

        with pytest.raises(LeaseNotFoundError):
            await backend.set("a", b"2", lease=NO_SUCH_LEASE)
        with pytest.raises(LeaseNotFoundError):
            await backend.create("b", b"2", lease=NO_SUCH_LEASE)
        with pytest.raises(LeaseNotFoundError):
            await backend.compare_and_swap("a", b"2", expected=revision, lease=NO_SUCH_LEASE)
        with pytest.raises(LeaseNotFoundError):
            await backend.commit(
                [Operation.put("c", b"2"), Operation.put("b", b"2", lease=NO_SUCH_LEASE)]
            )
        with pytest.raises(LeaseNotFoundError):
            await backend.revoke_lease(NO_SUCH_LEASE)

        assert (await backend.list("")).entries == [Entry("a", b"1", revision, revision, 1)]

    @pytest.mark.parametrize("expected", ["stale", "gone"])
    async def test_a_swap_that_conflicts_says_so_even_if_the_lease_is_gone_too(
        self, backend: StorageBackend, expected: str
    ) -> None:
        """A write that is not applied needs no lease: the caller has to read again first."""
        revision = await backend.set("a", b"1")
        if expected == "gone":
            await backend.delete("a")
        else:
            await backend.set("a", b"2")

        with pytest.raises(ConflictError):
            await backend.compare_and_swap("a", b"3", expected=revision, lease=NO_SUCH_LEASE)
        with pytest.raises(ConflictError):
            await backend.commit([Operation.swap("a", b"3", expected=revision)])

    async def test_a_commit_that_must_keep_a_lease_needs_a_key_that_has_one(
        self, backend: StorageBackend
    ) -> None:
        with pytest.raises(InvalidResourceError):
            await backend.commit([Operation.swap("a", b"1", expected=0)])

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12, 1e300])
    async def test_a_ttl_that_no_store_can_keep_is_refused_as_the_callers_mistake(
        self, backend: StorageBackend, ttl: float
    ) -> None:
        """Not as an outage: a caller that retries such a request would retry forever."""
        with pytest.raises(InvalidResourceError):
            await backend.grant_lease(ttl)
