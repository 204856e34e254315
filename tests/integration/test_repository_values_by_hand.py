"""What a repository does about values that another program has written, on both stores."""

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from tests.kinds import (
    Task,
    TaskSpec,
    task,
    task_by_hand,
    version_of,
)

import kvorum
from kvorum import (
    CorruptResourceError,
    Repository,
)


async def test_a_value_written_by_hand_is_read_updated_and_deleted(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    revision = await store.set("tasks/a", task_by_hand("a"))
    read = await tasks.get("a")
    assert version_of(read) == revision
    assert read.spec == TaskSpec()
    assert list(await tasks.list()) == [read]

    read.spec.owner = "ann"
    updated = await tasks.update(read)
    assert updated.metadata.uid
    assert updated.metadata.generation == 1
    assert updated == await tasks.get("a")

    await tasks.delete("a", uid=updated.metadata.uid)
    assert not await tasks.exists("a")


async def test_fields_that_this_type_does_not_know_survive_every_write(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    metadata = {"name": "a", "colour": {"of": "metadata"}}
    value = task_by_hand(
        "a", metadata=metadata, spec={"colour": "blue"}, status={"size": 7}, extra=[1, 2.50, None]
    )
    await store.set("tasks/a", value)
    current = await tasks.get("a")
    current.spec.owner = "ann"
    current = await tasks.update(current)
    current.status.phase = "Done"
    await tasks.update_status(current)
    await tasks.mutate("a", lambda c: c.metadata.labels.update(x="y"))
    await tasks.patch("a", {"spec": {"wantedCopies": 2}})

    entry = await store.get("tasks/a")
    assert entry is not None
    stored = msgspec.json.decode(entry.value)
    assert stored["metadata"]["colour"] == {"of": "metadata"}
    assert stored["spec"] == {"owner": "ann", "wantedCopies": 2, "colour": "blue"}
    assert stored["status"] == {"phase": "Done", "size": 7}
    assert stored["extra"] == [1, 2.5, None]


async def test_a_form_that_is_not_ours_is_rewritten_once_by_an_update_that_changes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    await store.set("tasks/a", task_by_hand("a", spec={"owner": "ann"}))
    read = await tasks.get("a")
    rewritten = await tasks.update(read)
    again = await tasks.update(rewritten)

    assert version_of(rewritten) > version_of(read)
    assert rewritten.spec == read.spec
    assert again == rewritten == await tasks.get("a")


async def test_the_lease_of_a_resource_that_others_have_put_survives_an_update(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    lease = await store.grant_lease(600)
    await store.set("tasks/a", task_by_hand("a"), lease=lease)
    await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    await store.revoke_lease(lease)

    assert not await tasks.exists("a")


CORRUPT = {
    "no JSON": b"\xff\xfe",
    "empty": b"",
    "no object": b"[]",
    "no metadata": b'{"apiVersion": "test.kvorum.dev/v1", "kind": "Task", "spec": {}}',
    "another kind": task_by_hand("bad", kind="LabWorker"),
    "another api version": task_by_hand("bad", apiVersion="test.kvorum.dev/v2"),
    "another name": task_by_hand("good"),
    "a wrong type": task_by_hand("bad", spec={"wantedCopies": "many"}),
    "a newer form": task_by_hand("bad", metadata={"name": "bad", "formVersion": 99}),
    "too deep": task_by_hand("bad", spec=None).replace(b"null", b"[" * 100_000 + b"]" * 100_000),
    "cut off": task_by_hand("bad")[:-3],
}


@pytest.mark.parametrize("value", CORRUPT.values(), ids=CORRUPT.keys())
async def test_a_value_that_cannot_be_decoded_is_named_by_every_verb_and_left_alone(
    tasks: Repository[Task], store: kvorum.StorageBackend, value: bytes
) -> None:
    await tasks.add(task("a-good"))
    revision = await store.set("tasks/bad", value)
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: tasks.get("bad"),
        lambda: tasks.get("bad", None),
        tasks.list,
        lambda: tasks.count(fields="metadata.name!=x"),
        lambda: tasks.mutate("bad", lambda _: None),
        lambda: tasks.patch("bad", {}),
        lambda: tasks.delete("bad"),
        lambda: tasks.update(task("bad", resource_version=revision)),
    ]

    for verb in verbs:
        with pytest.raises(CorruptResourceError) as caught:
            await verb()
        assert caught.value.key.endswith("tasks/bad")
        assert caught.value.revision == revision
        assert str(revision) in str(caught.value)
    entry = await store.get("tasks/bad")
    assert entry is not None
    assert entry.value == value
    assert await tasks.exists("bad")


async def test_a_value_that_cannot_be_decoded_is_named_by_the_key_that_etcdctl_takes(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """`CorruptResourceError.key` is "the key, as etcd knows it": an operator has to fix it."""
    await store.set("tasks/bad", b"")

    with pytest.raises(CorruptResourceError) as caught:
        await tasks.get("bad")

    assert caught.value.key == store.location("tasks/bad")
    assert (caught.value.namespace, caught.value.name) == (None, "bad")


async def test_a_value_that_became_corrupt_is_named_when_an_update_meets_it(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    added = await tasks.add(task("bad"))
    revision = await store.set("tasks/bad", b"")

    for owner in ("", "ann"):
        added.spec.owner = owner
        with pytest.raises(CorruptResourceError) as caught:
            await tasks.update(added)
        assert caught.value.revision == revision
