"""What type checkers see of the public API. Checked by mypy and pyright; never run.

Each line that must be rejected has an ignore comment for both, and both report an ignore comment
that is not needed.
"""

from typing import ClassVar, assert_never, assert_type

import msgspec

import kvorum
from kvorum.lab import LabWorker, LabWorkerPhase, LabWorkerRepository


class QueueSpec(msgspec.Struct, rename="camel"):
    max_length: int


class QueueStatus(msgspec.Struct, rename="camel"):
    length: int = 0


class Queue(kvorum.Resource[QueueSpec, QueueStatus]):
    kind: ClassVar[kvorum.Kind] = kvorum.Kind(
        "Queue", plural="queues", api_version="example.org/v1"
    )


async def a_repository_knows_its_kind(client: kvorum.Client) -> None:
    queues = client.repository(Queue)

    assert_type(queues, kvorum.Repository[Queue])
    assert_type(await queues.get("q"), Queue)
    assert_type(await queues.get("q", None), Queue | None)
    assert_type(await queues.get("q", default="nothing"), Queue | str)
    assert_type(await queues.exists("q"), bool)
    assert_type(await queues.count(), int)
    assert_type(await queues.patch("q", {"spec": {"maxLength": 1}}), Queue)
    assert_type(await queues.delete("q"), Queue)
    assert_type(await client.repository(LabWorker).get("x"), LabWorker)
    assert_type(await queues.get_many(["q"]), list[Queue | kvorum.KvorumError])


async def a_resource_knows_its_spec_and_status(client: kvorum.Client) -> None:
    queue = Queue(
        metadata=kvorum.Metadata(name="q"), spec=QueueSpec(max_length=1), status=QueueStatus()
    )
    stored = await client.repository(Queue).add(queue, ttl=1.5)

    assert_type(stored, Queue)
    assert_type(stored.spec, QueueSpec)
    assert_type(stored.status.length, int)
    assert_type(stored.metadata.resource_version, int)
    assert_type(stored.metadata.labels, dict[str, str])


async def a_list_is_a_sequence(client: kvorum.Client) -> None:
    queues = await client.repository(Queue).list(labels={"a": "b"}, fields="spec.maxLength=1")

    assert_type(queues, kvorum.ResourceList[Queue])
    assert_type(queues[0], Queue)
    assert_type(queues.resource_version, int)
    for queue in queues:
        assert_type(queue, Queue)


async def a_watch_tells_typed_events(client: kvorum.Client) -> None:
    watch = client.repository(Queue).watch(initial=True)

    assert_type(watch, kvorum.Watch[Queue])
    async with watch:
        async for event in watch:
            match event:
                case kvorum.Added(resource=queue):
                    assert_type(queue, Queue)
                case kvorum.Modified(resource=queue, previous=before):
                    assert_type(queue, Queue)
                    assert_type(before, Queue)
                case kvorum.Deleted(resource=queue):
                    assert_type(event, kvorum.Deleted[Queue])
                case kvorum.Bookmark(resource_version=revision):
                    assert_type(revision, int)
            assert_type(event.resource_version, int)
        async for events in watch.revisions():
            assert_type(events[0].resource_version, int)


async def a_watch_that_was_asked_to_shows_what_is_corrupt(client: kvorum.Client) -> None:
    watch = client.repository(Queue).watch(initial=True, on_corrupt="event")

    assert_type(watch, kvorum.TolerantWatch[Queue])
    async for event in watch:
        match event:
            case (
                kvorum.Added(resource=queue)
                | kvorum.Modified(resource=queue)
                | kvorum.Deleted(resource=queue)
            ):
                assert_type(queue, Queue)
            case kvorum.Corrupt(key=key, name=name, revision=at, reason=why):
                assert_type((key, name, at, why), tuple[str, str, int, str])
            case kvorum.Bookmark():
                pass
            case _:
                assert_never(event)
        assert_type(event.resource_version, int)


async def other_callers_need_no_case_for_corrupt(client: kvorum.Client) -> None:
    async for event in client.repository(Queue).watch():
        match event:
            case kvorum.Added() | kvorum.Modified() | kvorum.Deleted() | kvorum.Bookmark():
                pass
            case _:
                assert_never(event)


async def finders_say_what_they_have_left_out(client: kvorum.Client) -> None:
    workers = LabWorkerRepository(client)
    found = await workers.find_active_workers(on_corrupt="collect")

    assert_type(found.corrupt, tuple[kvorum.CorruptResourceError, ...])
    assert_type(await workers.count(on_corrupt="collect"), int)


async def a_change_may_be_a_function_of_any_form(client: kvorum.Client) -> None:
    queues = client.repository(Queue)

    def in_place(queue: Queue) -> None:
        queue.status.length += 1

    def another(queue: Queue) -> Queue:
        return queue

    async def later(queue: Queue) -> None:
        queue.status.length += 1

    assert_type(await queues.mutate("q", in_place), Queue)
    assert_type(await queues.mutate("q", another), Queue)
    assert_type(await queues.mutate("q", later), Queue)


async def the_lab_repository_is_typed(client: kvorum.Client) -> None:
    workers = LabWorkerRepository(client)

    assert_type(await workers.get("w"), LabWorker)
    assert_type((await workers.get("w")).status.phase, LabWorkerPhase)
    assert_type(LabWorker.new("w", lab_track="x"), LabWorker)


async def what_operators_get_is_typed(client: kvorum.Client) -> None:
    assert_type(client.admin, kvorum.Admin)
    assert_type(await client.admin.status(), tuple[kvorum.EndpointStatus, ...])
    assert_type(await client.admin.members(), tuple[kvorum.Member, ...])
    assert_type(await client.admin.alarms(), tuple[kvorum.Alarm, ...])
    assert_type(await client.admin.hash(1), tuple[kvorum.EndpointHash, ...])
    assert_type(await client.health(), kvorum.Health)


async def what_must_be_refused(client: kvorum.Client) -> None:
    client.repository(int)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    Queue(metadata=kvorum.Metadata(name="q"), spec="text", status=QueueStatus())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.repository(Queue).add(LabWorker.new("w", lab_track="x"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.repository(Queue).update("q")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kvorum.connect(2379)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
