"""The contract of the storage port for the events of a watch."""

import asyncio

import anyio
import pytest

from kvorum.errors import (
    FutureRevisionError,
    HistoryLostError,
)
from kvorum.storage import Change, Entry, Operation, StorageBackend
from kvorum.testing.conformance.probes import DEADLINE, fill, revision_of, take, take_until, until
from kvorum.testing.conformance.store import Compact, Watchers


class WatchingConformance:
    """Tests of the events of a watch."""

    # --- delivered events ---

    async def test_a_watch_shows_each_change_with_what_was_before(
        self, backend: StorageBackend
    ) -> None:
        async with backend.watch("") as watch:
            first = await backend.set("a", b"1")
            second = await backend.set("a", b"2")
            third = (await backend.delete("a")).revision
            fourth = await backend.set("a", b"3")
            changes = await take(watch, 4)

        one, two = Entry("a", b"1", first, first, 1), Entry("a", b"2", second, first, 2)
        assert changes == [
            (Change("a", first, one, None),),
            (Change("a", second, two, one),),
            (Change("a", third, None, two),),
            (Change("a", fourth, Entry("a", b"3", fourth, fourth, 1), None),),
        ]

    async def test_a_watch_from_now_shows_nothing_from_before_it_was_opened(
        self, backend: StorageBackend
    ) -> None:
        await backend.set("a", b"1")
        watch = backend.watch("")
        before = await backend.set("a", b"2")  # created, not opened: "now" is when it opens
        async with watch:
            assert watch.revision >= before
            revision = await backend.set("a", b"3")

            ((change,),) = await take(watch, 1)
            assert change.revision == revision

    async def test_now_is_when_a_watch_is_first_iterated_if_it_is_not_entered(
        self, backend: StorageBackend
    ) -> None:
        watch = backend.watch("")
        await backend.set("a", b"1")
        waiting = asyncio.create_task(take(watch, 1))

        async def is_open() -> bool:
            return watch.revision > 0

        await until(is_open)
        revision = await backend.set("a", b"2")

        (((change,),),) = (await waiting,)
        assert change.revision == revision
        await watch.aclose()

    async def test_a_watch_since_a_revision_shows_everything_after_it_and_not_itself(
        self, backend: StorageBackend
    ) -> None:
        revisions = [await backend.set("a", b"%d" % number) for number in range(20)]

        for start in range(19):
            async with backend.watch("", since=revisions[start]) as watch:
                assert watch.revision == revisions[start]
                shown = [change.revision for (change,) in await take(watch, 19 - start)]
                assert shown == revisions[start + 1 :]
                assert watch.revision == revisions[-1]

    async def test_a_watch_since_0_shows_each_revision_once_and_in_order_from_the_first_on(
        self, backend: StorageBackend
    ) -> None:
        """Revision 0 precedes every change: the watch shows the whole history, and deletions."""
        writes = [await backend.set(key, b"1") for key in ("all/a", "all/b", "all/c")]
        writes += [await backend.set("all/a", b"2"), (await backend.delete("all/b")).revision]
        watch = backend.watch("all/", since=0)
        try:
            await watch.open()
        except HistoryLostError:
            # the store is part of a larger one that was compacted before this test
            return

        assert watch.revision == 0
        assert [changes[0].revision for changes in await take(watch, 5)] == writes
        writes.append(await backend.set("all/c", b"2"))
        assert [changes[0].revision for changes in await take(watch, 1)] == writes[-1:]
        assert watch.revision == writes[-1]
        await watch.aclose()

    async def test_a_watch_since_0_of_a_compacted_store_is_refused(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        await backend.set("a", b"1")
        await compact(await backend.set("a", b"2"))
        watch = backend.watch("", since=0)

        with pytest.raises(HistoryLostError), anyio.fail_after(DEADLINE):
            await watch.open()

        await watch.aclose()

    async def test_a_watch_since_the_current_revision_is_a_watch_from_now(
        self, backend: StorageBackend
    ) -> None:
        current = await backend.set("a", b"1")
        async with backend.watch("", since=await revision_of(backend)) as watch:
            assert watch.revision >= current
            revision = await backend.set("a", b"2")

            assert (await take(watch, 1))[0][0].revision == revision

    async def test_a_commit_is_shown_whole(self, backend: StorageBackend) -> None:
        a = await backend.set("a", b"1")
        b = await backend.set("b", b"1")
        async with backend.watch("") as live:
            revision = await backend.commit(
                [
                    Operation.put("c", b"2"),
                    Operation.delete("b"),
                    Operation.swap("a", b"2", expected=a),
                    Operation.check("nowhere", expected=0),
                    Operation.delete("missing"),
                ]
            )
            await backend.set("end", b"")
            async with backend.watch("", since=b) as late:
                for watch in (live, late):
                    (changes, _) = await take(watch, 2)
                    assert {change.revision for change in changes} == {revision}
                    assert sorted(changes, key=lambda change: change.key) == [
                        Change(
                            "a",
                            revision,
                            Entry("a", b"2", revision, a, 2),
                            Entry("a", b"1", a, a, 1),
                        ),
                        Change("b", revision, None, Entry("b", b"1", b, b, 1)),
                        Change("c", revision, Entry("c", b"2", revision, revision, 1), None),
                    ]

    async def test_a_commit_of_128_changes_is_one_tuple(self, backend: StorageBackend) -> None:
        async with backend.watch("") as watch:
            await backend.commit([Operation.create(f"k{number}", b"") for number in range(128)])

            (changes,) = await take(watch, 1)
            assert len(changes) == 128

    async def test_a_watch_shows_the_keys_of_its_prefix_only(self, backend: StorageBackend) -> None:
        async with (
            backend.watch("workers/") as workers,
            backend.watch("w\udcff") as last,
            backend.watch("") as everything,
        ):
            await fill(
                backend, "workers", "workers/a", "workers-old/a", "workers0", "w\udcff", "x", "a"
            )
            await backend.commit(
                [Operation.put("workers/b", b""), Operation.put("workers-old/b", b"")]
            )
            await fill(backend, "workers/end", "w\udcff/end", "end")

            assert [change.key for change in await take_until(workers, "workers/end")] == [
                "workers/a",
                "workers/b",
            ]
            assert [change.key for change in await take_until(last, "w\udcff/end")] == ["w\udcff"]
            assert len(await take_until(everything, "end")) == 11

    async def test_concurrent_writes_are_shown_in_order_and_without_duplicates(
        self, backend: StorageBackend
    ) -> None:
        async with backend.watch("") as watch:
            revisions = await asyncio.gather(
                *(backend.set(f"k{number % 7}", b"") for number in range(200))
            )
            await backend.set("end", b"")
            shown = await take_until(watch, "end")

        assert [change.revision for change in shown] == sorted(
            revisions
        )  # writes of several keys may share a revision

    async def test_any_number_of_watches_shows_the_same(self, backend: StorageBackend) -> None:
        start = await backend.set("a", b"")
        watches = [backend.watch("", since=start) for _ in range(20)]
        revisions = [await backend.set("a", b"") for _ in range(20)]

        for watch in watches:
            assert [changes[0].revision for changes in await take(watch, 20)] == revisions
            await watch.aclose()

    async def test_the_revision_of_a_watch_is_what_it_delivered_last(
        self, backend: StorageBackend
    ) -> None:
        watch = backend.watch("")
        assert watch.revision == 0
        async with watch:
            start = watch.revision
            revisions = [await backend.set("a", b"") for _ in range(3)]
            assert watch.revision == start
            for revision in revisions:
                await take(watch, 1)
                assert watch.revision == revision
        assert watch.revision == revisions[-1]

    async def test_a_compaction_of_what_was_shown_does_not_disturb_a_watch(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        async with backend.watch("") as watch:
            for number in range(50):
                revision = await backend.set("a", b"%d" % number)
                assert (await take(watch, 1))[0][0].revision == revision
                if number % 10 == 9:
                    await compact(revision)

    # --- refused starts ---

    async def test_a_watch_since_the_future_is_refused(self, backend: StorageBackend) -> None:
        """Etcd would stay silent until then: for weeks, after a restored backup."""
        current = await backend.set("a", b"")
        watch = backend.watch("", since=current + 1_000_000)

        with pytest.raises(FutureRevisionError) as caught, anyio.fail_after(DEADLINE):
            await watch.open()

        assert caught.value.revision == current + 1_000_000
        assert caught.value.current >= current
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    async def test_a_watch_since_lost_history_is_refused_when_it_is_opened(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        old = await backend.set("a", b"1")
        await backend.set("a", b"2")
        await compact(await backend.set("a", b"3"))
        watch = backend.watch("", since=old)

        with pytest.raises(HistoryLostError) as caught, anyio.fail_after(DEADLINE):
            await watch.open()

        assert caught.value.revision == old + 1
        await watch.aclose()

    async def test_a_deletion_at_the_compacted_revision_is_lost_history(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        """Etcd silently compacts this revision, too: the watch would miss a deletion."""
        old = await backend.set("a", b"1")
        deletion = await backend.delete("a")
        await backend.set("b", b"1")
        await compact(deletion.revision)

        watch = backend.watch("", since=old)
        with pytest.raises(HistoryLostError) as caught, anyio.fail_after(DEADLINE):
            await watch.open()

        assert caught.value.revision == deletion.revision
        await watch.aclose()

    async def test_a_watch_since_the_compacted_revision_itself_is_complete(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        await backend.set("a", b"1")
        current = await backend.set("a", b"2")
        deletion = await backend.delete("a")
        await compact(current)

        async with backend.watch("", since=current) as watch:
            assert await take(watch, 1) == [(deletion,)]

    async def test_a_watch_since_lost_history_raises_once_and_ends(
        self, backend: StorageBackend, compact: Compact
    ) -> None:
        old = await backend.set("a", b"1")
        await backend.set("a", b"2")
        current = await backend.set("a", b"3")
        await compact(current)
        watch = backend.watch("", since=old)

        with pytest.raises(HistoryLostError) as caught:
            await take(watch, 1)
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

        assert caught.value.compact_revision in {0, current}
        await watch.aclose()

    async def test_an_error_of_opening_leaves_a_watch_that_can_be_closed(
        self, backend: StorageBackend, watchers: Watchers
    ) -> None:
        current = await backend.set("a", b"")
        watch = backend.watch("", since=current + 1_000_000)
        with pytest.raises(FutureRevisionError):
            await watch.open()

        await watch.aclose()

        async def is_none_left() -> bool:
            return await watchers() == 0

        await until(is_none_left)
