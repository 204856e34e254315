"""Rules for new content do not apply to old content that a write does not touch."""

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest

import kvorum
from kvorum import InvalidResourceError, Kind, Metadata, NotFoundError, Repository, Resource

KIND = Kind("Queue", plural="queues", api_version="test.kvorum.dev/v1")
FINALIZER = "test.kvorum.dev/x"


class QueueSpec(msgspec.Struct):
    size: int = 0
    owner: str = ""


class QueueStatus(msgspec.Struct):
    length: int = 0


class Queue(Resource[QueueSpec, QueueStatus]):
    kind: ClassVar[Kind] = KIND


class StricterQueue(Resource[QueueSpec, QueueStatus]):
    kind: ClassVar[Kind] = KIND

    def validate(self) -> list[str]:
        problems = [] if self.spec.size > 0 else ["spec.size must be above 0"]
        return (
            problems
            if self.status.length >= 0
            else [*problems, "status.length must not be negative"]
        )


class BrokenRule(Resource[QueueSpec, QueueStatus]):
    kind: ClassVar[Kind] = KIND

    def validate(self) -> list[str]:
        return {"": list[str]()}[self.spec.owner]


def by_hand(**metadata: Any) -> bytes:
    return msgspec.json.encode(
        {
            "apiVersion": KIND.api_version,
            "kind": KIND.name,
            "metadata": {"name": "q", **metadata},
            "spec": {},
        }
    )


BAD_METADATA = {
    "label key": {"labels": {"Bad Key!": "v"}},
    "label value": {"labels": {"a": "bad value!"}},
    "annotation": {"annotations": {"bad key!": "v"}},
    "finalizer": {"finalizers": ["bad finalizer!"]},
}


def finish(queue: Resource[Any, Any]) -> None:
    queue.metadata.finalizers.clear()


async def assert_can_be_updated_and_deleted(queues: Repository[Any]) -> None:
    """Write its status, delete it, remove its finalizers: it is gone."""
    await queues.mutate("q", lambda queue: setattr(queue.status, "length", 3))
    queue = await queues.get("q")
    queue.status.length = 4
    assert (await queues.update_status(queue)).status.length == 4
    assert (await queues.patch("q", {"status": {"length": 5}})).status.length == 5
    await queues.mutate("q", lambda queue: queue.metadata.finalizers.append(FINALIZER))
    assert (await queues.delete("q")).metadata.deletion_timestamp is not None
    await queues.mutate("q", finish)
    with pytest.raises(NotFoundError):
        await queues.get("q")


@pytest.mark.parametrize("stricter", [StricterQueue, BrokenRule])
async def test_a_resource_that_no_longer_validates_can_get_a_status_and_be_deleted(
    client: kvorum.Client, stricter: type[Resource[QueueSpec, QueueStatus]]
) -> None:
    """Otherwise a stricter rule would make stored resources undeletable."""
    spec = QueueSpec(owner="ann")
    await client.repository(Queue).add(
        Queue(metadata=Metadata(name="q"), spec=spec, status=QueueStatus())
    )

    await assert_can_be_updated_and_deleted(client.repository(stricter))


@pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA.keys())
async def test_what_was_written_by_hand_against_the_rules_can_be_deleted(
    client: kvorum.Client, metadata: dict[str, Any]
) -> None:
    await client.backend.set("queues/q", by_hand(**metadata))

    await assert_can_be_updated_and_deleted(client.repository(Queue))


def shrink(queue: Any) -> None:
    queue.spec.owner = "ben"


def miscount(queue: Any) -> None:
    queue.status.length = -1


def label(queue: Any) -> None:
    queue.metadata.labels["Worse Key!"] = "v"


def label_again(queue: Any) -> None:
    queue.metadata.labels["Bad Key!"] = "w"


@pytest.mark.parametrize("change", [shrink, miscount, label, label_again])
async def test_what_a_write_changes_is_judged_by_the_rules_of_now(
    client: kvorum.Client, change: Callable[[Any], None]
) -> None:
    before = await client.backend.set("queues/q", by_hand(labels={"Bad Key!": "v"}))

    with pytest.raises(InvalidResourceError):
        await client.repository(StricterQueue).mutate("q", change)

    entry = await client.backend.get("queues/q")
    assert entry is not None
    assert entry.mod_revision == before


async def test_what_a_rule_raises_for_new_content_is_raised_unchanged(
    client: kvorum.Client,
) -> None:
    queue = BrokenRule(
        metadata=Metadata(name="q"), spec=QueueSpec(owner="ann"), status=QueueStatus()
    )

    with pytest.raises(KeyError):
        await client.repository(BrokenRule).add(queue)


async def test_a_rule_that_raises_a_value_error_has_judged_the_value(client: kvorum.Client) -> None:
    class Raising(Queue):
        def validate(self) -> list[str]:
            raise ValueError("spec.size is odd")

    queue = Raising(metadata=Metadata(name="q"), spec=QueueSpec(), status=QueueStatus())
    with pytest.raises(InvalidResourceError, match="size is odd") as caught:
        await client.repository(Raising).add(queue)

    assert isinstance(caught.value.__cause__, ValueError)
