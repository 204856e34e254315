"""What a repository promises about reads and writes, on a real etcd."""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest

import kvorum
from kvorum import (
    AlreadyExistsError,
    ConfigurationError,
    ConflictError,
    CorruptResourceError,
    FutureRevisionError,
    InvalidResourceError,
    InvalidSelectorError,
    Kind,
    Metadata,
    NotFoundError,
    Operation,
    Repository,
    Resource,
    ResourceTooLargeError,
)
from kvorum.etcd.transport.server import Server
from kvorum.lab import LabWorker, LabWorkerPhase, LabWorkerRepository

DEADLINE = 10.0


class TaskSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    owner: str = ""
    wanted_copies: int = 1


class TaskStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    phase: str = ""
    copies_done: int = 0


class Task(Resource[TaskSpec, TaskStatus]):
    kind: ClassVar[Kind] = Kind("Task", plural="tasks", api_version="test.kvorum.dev/v1")


class OldTask(Resource[TaskSpec, TaskStatus]):
    """Its keys start like those of `Task`."""

    kind: ClassVar[Kind] = Kind("Task", plural="tasks-old", api_version="test.kvorum.dev/v1")


class TeamTask(Resource[TaskSpec, TaskStatus]):
    kind: ClassVar[Kind] = Kind(
        "TeamTask", plural="team-tasks", api_version="test.kvorum.dev/v1", namespaced=True
    )


def task(name: str = "a", *, owner: str = "", **metadata: Any) -> Task:
    return Task(
        metadata=Metadata(name=name, **metadata), spec=TaskSpec(owner=owner), status=TaskStatus()
    )


def team_task(namespace: str | None, name: str, *, owner: str = "") -> TeamTask:
    metadata = Metadata(name=name, namespace=namespace)
    return TeamTask(metadata=metadata, spec=TaskSpec(owner=owner), status=TaskStatus())


def by_hand(name: str, **parts: Any) -> bytes:
    """What somebody might put with etcdctl."""
    value = {
        "apiVersion": "test.kvorum.dev/v1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {},
    } | parts
    return msgspec.json.format(msgspec.json.encode(value), indent=2)


def version_of(resource: Resource[Any, Any]) -> int:
    return resource.metadata.resource_version


@pytest.fixture
def tasks(client: kvorum.Client) -> Repository[Task]:
    return client.repository(Task)


@pytest.fixture
def store(client: kvorum.Client) -> kvorum.StorageBackend:
    return client.backend


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call that goes to etcd, by what it does; a test clears it before it acts.

    What the client asks in the background, whenever it connects and every minute, is not counted.
    """
    made: list[str] = []
    send = Server.call

    async def count(self: Server, stub: Any, request: Any, call: Any, *rest: Any) -> Any:
        if call.operation not in {"status", "members"}:
            made.append(call.operation)
        return await send(self, stub, request, call, *rest)

    monkeypatch.setattr(Server, "call", count)
    return made


@pytest.fixture
async def small_pages(client: kvorum.Client) -> AsyncIterator[Repository[Task]]:
    async with kvorum.connect(msgspec.structs.replace(client.settings, page_size=10)) as small:
        yield small.repository(Task)


async def revision_of(store: kvorum.StorageBackend) -> int:
    return (await store.list("", limit=1)).revision


# --- add and get ----------------------------------------------------------------------------------


async def test_add_returns_the_resource_as_a_read_would_give_it(tasks: Repository[Task]) -> None:
    before = datetime.now(UTC)
    added = await tasks.add(
        task("a", owner="ann", labels={"x": "y"}, annotations={"n": "m"}, finalizers=["f"])
    )

    metadata = added.metadata
    assert added == await tasks.get("a")
    assert added.spec.owner == "ann"
    assert (metadata.labels, metadata.annotations, metadata.finalizers) == (
        {"x": "y"},
        {"n": "m"},
        ["f"],
    )
    assert metadata.uid
    assert metadata.generation == 1
    assert metadata.creation_timestamp is not None
    assert before <= metadata.creation_timestamp <= datetime.now(UTC)
    assert metadata.deletion_timestamp is None


async def test_a_resource_version_is_the_revision_of_the_write_and_not_in_the_bytes(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    added = await tasks.add(task())

    entry = await store.get("tasks/a")
    assert entry is not None
    assert entry.mod_revision == version_of(added)
    assert b"resourceVersion" not in entry.value
    assert b"resource_version" not in entry.value


async def test_add_leaves_what_it_was_given_as_it_is(tasks: Repository[Task]) -> None:
    given = task(labels={"x": "y"})
    added = await tasks.add(given)
    added.metadata.labels["x"] = "z"

    assert given == task(labels={"x": "y"})


async def test_what_the_store_owns_is_not_taken_from_the_caller(tasks: Repository[Task]) -> None:
    past = datetime(2001, 1, 1, tzinfo=UTC)
    added = await tasks.add(
        task(uid="mine", generation=7, creation_timestamp=past, deletion_timestamp=past)
    )

    assert added.metadata.uid != "mine"
    assert added.metadata.generation == 1
    assert added.metadata.creation_timestamp != past
    assert added.metadata.deletion_timestamp is None


async def test_a_resource_that_is_stored_already_cannot_be_added(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    added = await tasks.add(task())
    await tasks.delete("a")
    requests.clear()

    with pytest.raises(InvalidResourceError, match="resource version"):
        await tasks.add(added)

    assert requests == []
    assert not await store.exists("tasks/a")


async def test_a_second_add_of_a_name_is_refused_and_changes_nothing(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task(owner="ann"))

    with pytest.raises(AlreadyExistsError) as caught:
        await tasks.add(task(owner="bob"))

    assert caught.value.subject == "tasks/a"
    assert await tasks.get("a") == first


async def test_of_many_who_add_one_name_one_succeeds(tasks: Repository[Task]) -> None:
    results = await asyncio.gather(
        *(tasks.add(task(owner=str(number))) for number in range(20)), return_exceptions=True
    )

    (winner,) = [result for result in results if isinstance(result, Task)]
    assert sum(isinstance(result, AlreadyExistsError) for result in results) == 19
    assert await tasks.get("a") == winner


async def test_a_missing_resource_is_an_error_or_the_default(tasks: Repository[Task]) -> None:
    with pytest.raises(NotFoundError) as caught:
        await tasks.get("a")

    assert caught.value.subject == "tasks/a"
    assert await tasks.get("a", None) is None
    assert await tasks.get("a", default="nobody") == "nobody"
    assert not await tasks.exists("a")


async def test_a_resource_exists_until_it_is_deleted(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    assert await tasks.exists("a")
    await tasks.delete("a")
    assert not await tasks.exists("a")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        ".",
        "..",
        "a/../b",
        "a/b",
        "a" * 300,
        "Capital",
        "nul\0",
        "a b",
        "-a",
        "a-",
        "a.",
        "é",
        "a\n",
        "\ud800",
    ],
)
async def test_a_bad_name_is_refused_by_every_verb_without_a_request(
    tasks: Repository[Task], requests: list[str], name: str
) -> None:
    stored = await tasks.add(task())
    stored.metadata.name = name
    requests.clear()

    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: tasks.get(name),
        lambda: tasks.get(name, None),
        lambda: tasks.exists(name),
        lambda: tasks.add(task(name)),
        lambda: tasks.add(task(name), ttl=600),
        lambda: tasks.update(stored),
        lambda: tasks.update_status(stored),
        lambda: tasks.mutate(name, lambda _: None),
        lambda: tasks.patch(name, {}),
        lambda: tasks.delete(name),
    ]
    for verb in verbs:
        with pytest.raises(InvalidResourceError):
            await verb()
    assert requests == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"a b": "x"}},
        {"labels": {"a": "x y"}},
        {"labels": {"a": "x" * 64}},
        {"annotations": {"": "x"}},
        {"finalizers": ["a/b/c"]},
        {"labels": {"a": 7}},
    ],
)
async def test_metadata_that_breaks_a_rule_is_refused_without_a_request(
    tasks: Repository[Task], requests: list[str], metadata: dict[str, Any]
) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        await tasks.add(task(**metadata))

    assert caught.value.subject == "tasks/a"
    assert requests == []


async def test_a_resource_that_could_not_be_read_back_is_never_written(
    tasks: Repository[Task], requests: list[str]
) -> None:
    wrong = task()
    wrong.spec.wanted_copies = cast("int", "many")

    with pytest.raises(InvalidResourceError, match="wantedCopies"):
        await tasks.add(wrong)
    stored = await tasks.add(task())
    stored.spec.wanted_copies = cast("int", "many")
    requests.clear()
    with pytest.raises(InvalidResourceError, match="wantedCopies"):
        await tasks.update(stored)

    assert requests == []


async def test_a_resource_over_the_limit_is_refused_by_name_and_size(
    tasks: Repository[Task],
) -> None:
    stored = await tasks.add(task("b"))
    stored.spec.owner = "x" * 1_000_000

    with pytest.raises(ResourceTooLargeError) as caught:
        await tasks.add(task(owner="x" * 1_000_000))
    assert "tasks/a" in caught.value.subject
    assert caught.value.size is not None
    assert 1_000_000 < caught.value.size < 1_001_000
    with pytest.raises(ResourceTooLargeError):
        await tasks.update(stored)

    assert not await tasks.exists("a")
    assert (await tasks.get("b")).spec.owner == ""


async def test_a_resource_that_only_the_store_finds_too_large_is_refused_by_name(
    store_url: str,
) -> None:
    """Whoever raises our limit meets etcd's (1.5 MiB), and then gRPC's (2 MiB)."""
    async with kvorum.connect(
        store_url, settings=kvorum.EtcdSettings(max_value_size=100_000_000)
    ) as client:
        tasks = client.repository(Task)
        for size in (1_600_000, 2_200_000, 12_000_000):
            with pytest.raises(ResourceTooLargeError) as caught:
                await tasks.add(task(owner="x" * size))
            assert "tasks/a" in caught.value.subject
            assert caught.value.size is not None
            assert caught.value.limit is not None
            assert caught.value.size > size > caught.value.limit
            assert f"{caught.value.limit:,} are allowed" in str(caught.value)

        assert not await tasks.exists("a")


async def test_a_server_with_a_limit_of_its_own_is_quoted(kvorum_etcd: kvorum.EmbeddedEtcd) -> None:
    """It says that the request is too large, but not what would not be."""
    arguments = ["--max-request-bytes", "2000"]
    async with (
        kvorum.EmbeddedEtcd(binary=kvorum_etcd.binary, arguments=arguments) as etcd,
        kvorum.connect(etcd.url) as client,
    ):
        with pytest.raises(ResourceTooLargeError) as caught:
            await client.repository(Task).add(task(owner="x" * 5000))

    assert "tasks/a" in caught.value.subject
    assert caught.value.size is not None
    assert caught.value.size > 5000
    assert caught.value.limit is None
    assert "request is too large" in str(caught.value)


async def test_a_resource_of_another_class_is_refused(
    tasks: Repository[Task], requests: list[str]
) -> None:
    worker = cast("Task", LabWorker.new("a", lab_track="x"))

    for write in (tasks.add, tasks.update, tasks.update_status):
        with pytest.raises(InvalidResourceError, match="LabWorker is not a Task"):
            await write(worker)

    assert requests == []


def test_a_class_that_is_no_resource_or_declares_no_kind_has_no_repository(kvorum_url: str) -> None:
    class Undeclared(Resource[TaskSpec, TaskStatus]):
        pass

    client = kvorum.connect(kvorum_url)

    with pytest.raises(ConfigurationError, match="no subclass"):
        client.repository(int)  # type: ignore[type-var]  # what mypy refuses must be refused at run time, too
    with pytest.raises(ConfigurationError, match="declares no kind"):
        client.repository(Undeclared)


# --- add with a ttl -------------------------------------------------------------------------------


async def test_a_resource_with_a_ttl_goes_once_with_its_last_state_and_not_too_early(
    tasks: Repository[Task],
) -> None:
    """Updates in between neither lengthen its life nor make it immortal."""
    started = anyio.current_time()
    added = await tasks.add(task(), ttl=1)
    async with tasks.watch(since=version_of(added)) as watch:
        added.spec.owner = "ann"
        await tasks.update(added)
        await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
        last = await tasks.patch("a", {"status": {"phase": "Done"}})
        with anyio.fail_after(DEADLINE):
            events = [await anext(watch) for _ in range(4)]
            ended = anyio.current_time()
            end = await tasks.add(task("end"))
            after = await anext(watch)

    assert [type(event) for event in events] == [kvorum.Modified] * 3 + [kvorum.Deleted]
    deleted = events[-1]
    assert isinstance(deleted, kvorum.Deleted)
    last.metadata.resource_version = deleted.resource_version
    assert deleted.resource == last
    assert ended - started >= 1
    assert after == kvorum.Added(end)


async def test_an_add_with_a_ttl_that_is_refused_leaves_no_lease_behind(
    tasks: Repository[Task], requests: list[str]
) -> None:
    await tasks.add(task())
    requests.clear()

    with pytest.raises(AlreadyExistsError):
        await tasks.add(task(), ttl=600)

    assert requests == ["grant", "transaction on", "revoke"]


async def test_an_add_with_a_ttl_that_is_too_large_leaves_no_lease_behind(
    tasks: Repository[Task], requests: list[str]
) -> None:
    """Else each try leaves one on the server, for as long as the TTL is."""
    with pytest.raises(ResourceTooLargeError):
        await tasks.add(task(owner="x" * 1_000_000), ttl=600)

    assert requests.count("grant") == requests.count("revoke")


async def test_an_add_with_a_ttl_that_is_cancelled_leaves_no_lease_without_a_resource(
    tasks: Repository[Task], store: kvorum.StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted: list[int] = []
    grant = type(store).grant_lease_for

    async def grant_and_note(self: kvorum.StorageBackend, key: str, ttl: float) -> int:
        granted.append(await grant(self, key, ttl))
        adding.cancel()
        return granted[0]

    monkeypatch.setattr(type(store), "grant_lease_for", grant_and_note)
    adding = asyncio.create_task(tasks.add(task(), ttl=600))
    await asyncio.wait([adding])

    assert adding.cancelled()
    if not await tasks.exists("a"):
        with pytest.raises(kvorum.LeaseNotFoundError):
            await store.revoke_lease(granted[0])


@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
async def test_a_ttl_must_be_above_zero(
    tasks: Repository[Task], requests: list[str], ttl: float
) -> None:
    with pytest.raises(InvalidResourceError):
        await tasks.add(task(), ttl=ttl)

    assert requests == []


# --- update ---------------------------------------------------------------------------------------


async def test_update_stores_the_change_and_returns_it_as_a_read_would_give_it(
    tasks: Repository[Task],
) -> None:
    added = await tasks.add(task())
    added.spec.owner = "ann"
    updated = await tasks.update(added)

    assert updated == await tasks.get("a")
    assert updated.spec.owner == "ann"
    assert version_of(updated) > version_of(added)
    assert updated.metadata.uid == added.metadata.uid
    assert updated.metadata.creation_timestamp == added.metadata.creation_timestamp


async def test_generation_counts_the_changes_of_the_spec_alone(tasks: Repository[Task]) -> None:
    current = await tasks.add(task())
    current.metadata.labels["x"] = "y"
    current.status.phase = "Done"
    current = await tasks.update(current)
    assert current.metadata.generation == 1
    current.spec.owner = "ann"
    current = await tasks.update(current)
    assert current.metadata.generation == 2
    current = await tasks.patch("a", {"spec": {"owner": "bob"}})
    assert current.metadata.generation == 3


async def test_an_update_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    added = await tasks.add(task())
    revision = await revision_of(store)
    requests.clear()
    updated = await tasks.update(added)

    assert updated == added
    assert requests == ["read"]
    assert await revision_of(store) == revision


async def test_an_update_that_changes_only_what_the_store_owns_changes_nothing(
    tasks: Repository[Task],
) -> None:
    added = await tasks.add(task())
    changed = copy.deepcopy(added)
    changed.metadata.uid = "other"
    changed.metadata.generation = 77
    changed.metadata.creation_timestamp = None
    changed.metadata.deletion_timestamp = datetime.now(UTC)

    assert await tasks.update(changed) == added
    assert await tasks.get("a") == added


@pytest.mark.parametrize("owner", ["", "bob"], ids=["equal", "changed"])
async def test_a_stale_update_conflicts_whether_it_changes_anything_or_not(
    tasks: Repository[Task], requests: list[str], owner: str
) -> None:
    stale = await tasks.add(task())
    current = await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    stale.spec.owner = owner
    requests.clear()

    with pytest.raises(ConflictError) as caught:
        await tasks.update(stale)

    assert caught.value.subject == "tasks/a"
    assert caught.value.expected == version_of(stale)
    assert caught.value.current == current
    assert len(requests) == 1  # what is there now came with the refusal
    assert await tasks.get("a") == current


async def test_the_resource_that_a_conflict_carries_can_be_updated_at_once(
    tasks: Repository[Task],
) -> None:
    stale = await tasks.add(task())
    await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    stale.spec.owner = "ann"
    with pytest.raises(ConflictError) as caught:
        await tasks.update(stale)

    current: Task = caught.value.current
    current.spec.owner = "ann"
    updated = await tasks.update(current)

    assert updated.metadata.labels == {"x": "y"}
    assert updated.spec.owner == "ann"


@pytest.mark.parametrize("owner", ["", "bob"], ids=["equal", "changed"])
async def test_a_resource_that_is_gone_cannot_be_updated(
    tasks: Repository[Task], owner: str
) -> None:
    added = await tasks.add(task())
    await tasks.delete("a")
    added.spec.owner = owner

    with pytest.raises(NotFoundError) as caught:
        await tasks.update(added)

    assert caught.value.subject == "tasks/a"
    assert not await tasks.exists("a")


async def test_a_resource_that_came_again_is_not_the_one_that_was_read(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task())
    await tasks.delete("a")
    second = await tasks.add(task())
    first.spec.owner = "ann"

    with pytest.raises(ConflictError) as caught:
        await tasks.update(first)

    assert caught.value.current == second
    assert caught.value.current.metadata.uid != first.metadata.uid


async def test_a_resource_that_was_never_read_cannot_be_updated(
    tasks: Repository[Task], requests: list[str]
) -> None:
    with pytest.raises(InvalidResourceError, match="add it"):
        await tasks.update(task())

    assert requests == []


async def test_a_resource_that_was_renamed_never_overwrites_another(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """Two resources of one transaction have one version: it does not say which of them was read."""
    await store.commit(
        [
            Operation.create("tasks/a", by_hand("a", spec={"owner": "ann"})),
            Operation.create("tasks/b", by_hand("b", spec={"owner": "bob"})),
        ]
    )
    renamed = await tasks.get("a")
    renamed.metadata.name = "b"
    renamed.spec.owner = "eve"

    with pytest.raises(kvorum.KvorumError):
        await tasks.update(renamed)

    assert (await tasks.get("b")).spec.owner == "bob"


async def test_of_two_who_update_what_both_have_read_one_conflicts(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    one, two = await tasks.get("a"), await tasks.get("a")
    one.spec.owner, two.spec.owner = "one", "two"
    results = await asyncio.gather(tasks.update(one), tasks.update(two), return_exceptions=True)

    (winner,) = [result for result in results if isinstance(result, Task)]
    (loser,) = [result for result in results if isinstance(result, ConflictError)]
    assert loser.current == winner == await tasks.get("a")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
async def test_a_copy_is_updated_like_the_original(
    tasks: Repository[Task], requests: list[str], copied: Callable[[Task], Task]
) -> None:
    other = copied(await tasks.add(task()))
    other.spec.owner = "ann"
    requests.clear()
    updated = await tasks.update(other)

    assert requests == ["transaction on"]
    assert updated == await tasks.get("a")


# --- many at once ---------------------------------------------------------------------------------


async def test_of_many_that_are_added_each_has_a_result_of_its_own(tasks: Repository[Task]) -> None:
    there = await tasks.add(task("there"))

    results = await tasks.add_many([task("a"), task("there"), task("No Name"), task("b")])

    assert [type(result) for result in results] == [
        Task,
        AlreadyExistsError,
        InvalidResourceError,
        Task,
    ]
    assert [result for result in results if isinstance(result, Task)] == [
        await tasks.get("a"),
        await tasks.get("b"),
    ]
    assert await tasks.get("there") == there


async def test_of_many_that_are_read_each_has_a_result_of_its_own(tasks: Repository[Task]) -> None:
    added = await tasks.add_many(task(f"t{number}") for number in range(500))

    results = await tasks.get_many([*(f"t{number}" for number in range(500)), "absent", "t0"])

    assert results[:500] == added
    assert isinstance(results[500], NotFoundError)
    assert results[501] == added[0]
    assert await tasks.get_many([]) == []


async def test_of_many_that_are_updated_each_has_a_result_of_its_own(
    tasks: Repository[Task],
) -> None:
    await tasks.add_many(task(f"t{number}") for number in range(100))
    mine = list(await tasks.list())
    for each in mine:
        each.status.phase = "Done"
    faster = await tasks.patch("t7", {"status": {"phase": "Faster"}})

    results = await tasks.update_many(mine)

    conflicts = [result for result in results if isinstance(result, ConflictError)]
    assert [conflict.current for conflict in conflicts] == [faster]
    assert (
        len(
            [
                result
                for result in results
                if isinstance(result, Task) and result.status.phase == "Done"
            ]
        )
        == 99
    )


async def test_an_error_that_is_not_kvorums_is_no_result(
    tasks: Repository[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a mistake of the program: it ends the other calls, and is not to be overlooked."""

    async def get(name: str, *, namespace: str | None) -> Task:
        if name == "b":
            raise ZeroDivisionError
        await anyio.sleep_forever()
        raise AssertionError(namespace)

    monkeypatch.setattr(tasks, "get", get)
    with pytest.raises(ExceptionGroup) as caught:
        await tasks.get_many(["a", "b"])
    assert caught.group_contains(ZeroDivisionError)


async def test_many_in_a_namespace_are_found_there(client: kvorum.Client) -> None:
    tasks = client.repository(TeamTask)
    await tasks.add_many([team_task("x", "a"), team_task("y", "a")])

    (found,) = await tasks.get_many(["a"], namespace="y")

    assert isinstance(found, TeamTask)
    assert found.metadata.namespace == "y"


# --- update of what came from elsewhere -----------------------------------------------------------


async def test_a_resource_that_came_from_elsewhere_is_updated_by_its_version(
    tasks: Repository[Task],
) -> None:
    """From an HTTP request, say: it knows its version and not the bytes that it stands for."""
    added = await tasks.add(task(owner="ann", labels={"x": "y"}))
    sent = msgspec.json.decode(msgspec.json.encode(added), type=Task)
    assert sent == added
    sent.spec.owner = "bob"
    updated = await tasks.update(sent)

    assert updated == await tasks.get("a")
    assert updated.spec.owner == "bob"
    assert updated.metadata.uid == added.metadata.uid
    assert updated.metadata.generation == 2


async def test_a_stale_resource_from_elsewhere_conflicts(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    current = await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))

    with pytest.raises(ConflictError) as caught:
        await tasks.update(task(resource_version=version_of(added)))

    assert caught.value.current == current
    with pytest.raises(NotFoundError):
        await tasks.update(task("missing", resource_version=version_of(added)))


async def test_fields_that_the_sender_of_a_resource_does_not_know_survive(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    revision = await store.set("tasks/a", by_hand("a", spec={"owner": "ann", "colour": "blue"}))
    await tasks.update(task(owner="bob", resource_version=revision))

    entry = await store.get("tasks/a")
    assert entry is not None
    assert msgspec.json.decode(entry.value)["spec"] == {"owner": "bob", "colour": "blue"}


# --- update_status --------------------------------------------------------------------------------


async def test_update_status_stores_the_status_alone(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task(owner="ann"))
    added.status.phase = "Done"
    added.spec.owner = "bob"
    added.metadata.labels["x"] = "y"
    requests.clear()
    updated = await tasks.update_status(added)

    assert requests == ["transaction on"]
    assert updated == await tasks.get("a")
    assert updated.status.phase == "Done"
    assert updated.spec.owner == "ann"
    assert updated.metadata.labels == {}
    assert updated.metadata.generation == 1


async def test_a_stale_update_of_the_status_conflicts(tasks: Repository[Task]) -> None:
    stale = await tasks.add(task())
    current = await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    stale.status.phase = "Done"

    with pytest.raises(ConflictError) as caught:
        await tasks.update_status(stale)

    assert caught.value.current == current


async def test_an_update_of_the_status_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    added = await tasks.add(task())
    added.spec.owner = "bob"
    revision = await revision_of(store)

    assert version_of(await tasks.update_status(added)) == version_of(added)
    assert await revision_of(store) == revision


# --- mutate ---------------------------------------------------------------------------------------


def in_place(current: Task) -> None:
    current.spec.owner = "ann"


def another(current: Task) -> Task:
    changed = copy.deepcopy(current)
    changed.spec.owner = "ann"
    return changed


async def in_place_later(current: Task) -> None:
    await anyio.lowlevel.checkpoint()
    current.spec.owner = "ann"


async def another_later(current: Task) -> Task:
    await anyio.lowlevel.checkpoint()
    return another(current)


class Changer:
    """An object that can be called, as `functools.partial` makes them."""

    async def __call__(self, current: Task) -> None:
        current.spec.owner = "ann"


@pytest.mark.parametrize("change", [in_place, another, in_place_later, another_later, Changer()])
async def test_a_change_may_be_made_in_place_or_returned_at_once_or_later(
    tasks: Repository[Task], change: Callable[[Task], Any]
) -> None:
    added = await tasks.add(task())
    changed = await tasks.mutate("a", change)

    assert changed == await tasks.get("a")
    assert changed.spec.owner == "ann"
    assert version_of(changed) > version_of(added)


async def test_two_mutations_at_once_both_succeed_and_the_second_sees_the_first(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task())
    reading, committed = anyio.Event(), anyio.Event()
    seen: list[dict[str, str]] = []

    async def second(current: Task) -> None:
        seen.append(dict(current.metadata.annotations))
        reading.set()
        await committed.wait()
        current.metadata.annotations["second"] = "x"

    held = asyncio.create_task(tasks.mutate("a", second))
    await reading.wait()
    await tasks.mutate("a", lambda current: current.metadata.annotations.update(first="x"))
    committed.set()
    result = await held

    assert seen == [{}, {"first": "x"}]
    assert result.metadata.annotations == {"first": "x", "second": "x"}
    assert result == await tasks.get("a")


async def test_no_mutation_of_many_at_once_is_lost(tasks: Repository[Task]) -> None:
    await tasks.add(task())

    def increment(current: Task) -> None:
        current.status.copies_done += 1

    await asyncio.gather(*(tasks.mutate("a", increment) for _ in range(30)))

    assert (await tasks.get("a")).status.copies_done == 30


async def test_what_a_change_raises_comes_out_once_and_nothing_is_written(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task())
    error = ValueError("no")
    calls = 0

    def refuse(current: Task) -> None:
        nonlocal calls
        calls += 1
        current.spec.owner = "ann"
        raise error

    requests.clear()
    with pytest.raises(ValueError, match="no") as caught:
        await tasks.mutate("a", refuse)

    assert caught.value is error
    assert calls == 1
    assert requests == ["read"]
    assert await tasks.get("a") == added


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
async def test_a_conflict_that_a_change_raises_itself_is_not_retried(
    tasks: Repository[Task], later: bool
) -> None:
    """It is about something else than this write, and calling again would not mend it."""
    await tasks.add(task())
    error = ConflictError("something else", expected=1)
    calls = 0

    def refuse(_: Task) -> None:
        nonlocal calls
        calls += 1
        raise error

    async def refuse_later(current: Task) -> None:
        refuse(current)

    with pytest.raises(ConflictError) as caught:
        await tasks.mutate("a", refuse_later if later else refuse)

    assert caught.value is error
    assert calls == 1


async def test_a_change_of_what_does_not_exist_is_never_called(tasks: Repository[Task]) -> None:
    calls: list[Task] = []

    with pytest.raises(NotFoundError):
        await tasks.mutate("a", calls.append)

    assert calls == []


async def test_a_resource_that_goes_while_it_is_changed_stays_gone(tasks: Repository[Task]) -> None:
    await tasks.add(task())

    async def delete_it(current: Task) -> None:
        await tasks.delete("a")
        current.spec.owner = "ann"

    with pytest.raises(NotFoundError):
        await tasks.mutate("a", delete_it)

    assert not await tasks.exists("a")


async def test_a_mutation_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task())
    requests.clear()

    assert await tasks.mutate("a", lambda _: None) == added
    assert requests == ["read"]


async def test_a_change_may_not_make_another_resource_of_it(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    other = await tasks.add(task("b"))

    def rename(current: Task) -> None:
        current.metadata.name = "b"

    with pytest.raises(InvalidResourceError):
        await tasks.mutate("a", rename)
    with pytest.raises(InvalidResourceError):
        await tasks.mutate("a", lambda _: cast("Task", LabWorker.new("a", lab_track="x")))

    assert list(await tasks.list()) == [added, other]


# --- patch ----------------------------------------------------------------------------------------


async def test_a_patch_sets_removes_and_leaves_the_rest(
    tasks: Repository[Task], requests: list[str]
) -> None:
    await tasks.add(task(owner="ann", labels={"x": "1", "y": "2"}, annotations={"n": "m"}))
    requests.clear()
    patch = {
        "metadata": {"labels": {"x": None, "z": "3"}},
        "spec": {"wantedCopies": 5},
        "status": {"phase": "Done"},
    }
    patched = await tasks.patch("a", patch)

    assert requests == ["read", "transaction on"]
    assert patched == await tasks.get("a")
    assert patched.metadata.labels == {"y": "2", "z": "3"}
    assert patched.metadata.annotations == {"n": "m"}
    assert patched.spec == TaskSpec(owner="ann", wanted_copies=5)
    assert patched.status.phase == "Done"
    assert patched.metadata.generation == 2


async def test_null_sets_a_field_back_to_its_default(tasks: Repository[Task]) -> None:
    await tasks.add(task(owner="ann"))

    assert (await tasks.patch("a", {"spec": {"owner": None}})).spec.owner == ""


@pytest.mark.parametrize(
    "patch",
    [
        {"metadata": {"uid": "x"}},
        {"metadata": {"name": "b"}},
        {"metadata": {"resourceVersion": "7"}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"metadata": {"generation": None}},
        {"metadata": None},
        {"metadata": 7},
        {"kind": "Other"},
        {"apiVersion": None},
        {"spec": {"wanted_copies": 5}},
        {"spec": {"owner": 5}},
        {"spec": []},
        {"colour": "blue"},
        {"spec": {"owner": {1, 2}}},
        {"metadata": {"labels": {"x": "not a label value"}}},
    ],
)
async def test_a_patch_of_what_the_store_owns_or_nobody_knows_is_refused(
    tasks: Repository[Task], patch: dict[str, Any]
) -> None:
    added = await tasks.add(task())

    with pytest.raises(InvalidResourceError):
        await tasks.patch("a", patch)

    assert await tasks.get("a") == added


async def test_no_patch_of_many_at_once_is_lost(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    await asyncio.gather(
        *(tasks.patch("a", {"metadata": {"labels": {f"l{n}": "x"}}}) for n in range(20))
    )

    assert len((await tasks.get("a")).metadata.labels) == 20


async def test_a_patch_that_changes_nothing_writes_nothing(
    tasks: Repository[Task], requests: list[str]
) -> None:
    added = await tasks.add(task(owner="ann"))
    requests.clear()

    assert (
        await tasks.patch("a", {"spec": {"owner": "ann"}, "metadata": {"labels": {"x": None}}})
        == added
    )
    assert requests == ["read"]
    with pytest.raises(NotFoundError):
        await tasks.patch("missing", {})


# --- delete ---------------------------------------------------------------------------------------


async def test_delete_returns_the_last_state_at_the_version_of_the_deletion(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    added = await tasks.add(task(owner="ann"))
    deleted = await tasks.delete("a")

    assert version_of(deleted) == await revision_of(store)
    assert version_of(deleted) > version_of(added)
    deleted.metadata.resource_version = version_of(added)
    assert deleted == added
    with pytest.raises(NotFoundError):
        await tasks.delete("a")


@pytest.mark.parametrize("precondition", ["uid", "resource_version"])
async def test_a_deletion_whose_precondition_does_not_hold_is_a_conflict(
    tasks: Repository[Task], requests: list[str], precondition: str
) -> None:
    first = await tasks.add(task())
    await tasks.delete("a")
    second = await tasks.add(task())
    old: Any = first.metadata.uid if precondition == "uid" else version_of(first)
    requests.clear()

    with pytest.raises(ConflictError) as caught:
        await tasks.delete("a", **{precondition: old})

    assert caught.value.expected == old
    assert caught.value.current == second
    assert requests == ["read"]
    assert await tasks.get("a") == second


@pytest.mark.parametrize("precondition", ["uid", "resource_version"])
async def test_a_mutation_or_patch_whose_precondition_does_not_hold_is_a_conflict(
    tasks: Repository[Task], precondition: str
) -> None:
    first = await tasks.add(task("a"))
    await tasks.delete("a")
    second = await tasks.add(task("a"))
    called: list[Task] = []

    def value_of(resource: Task) -> Any:
        return resource.metadata.uid if precondition == "uid" else version_of(resource)

    writes: list[Callable[..., Awaitable[Task]]] = [
        lambda **given: tasks.mutate("a", called.append, **given),
        lambda **given: tasks.patch("a", {"spec": {"owner": "ann"}}, **given),
    ]

    for write in writes:
        with pytest.raises(ConflictError) as caught:
            await write(**{precondition: value_of(first)})
        assert caught.value.expected == value_of(first)
        assert caught.value.current == second
        assert called == []
    assert await tasks.get("a") == second

    patched = await tasks.patch("a", {"spec": {"owner": "ann"}}, **{precondition: value_of(second)})
    assert patched.spec.owner == "ann"
    assert (await tasks.mutate("a", lambda _: None, **{precondition: value_of(patched)})) == patched


async def test_a_mutation_of_a_version_is_not_tried_on_the_next_one(
    tasks: Repository[Task],
) -> None:
    added = await tasks.add(task("a"))
    tries = 0

    async def interfere(current: Task) -> None:
        nonlocal tries
        tries += 1
        await tasks.patch("a", {"spec": {"owner": "bob"}})
        current.spec.owner = "ann"

    with pytest.raises(ConflictError):
        await tasks.mutate("a", interfere, resource_version=version_of(added))

    assert tries == 1
    assert (await tasks.get("a")).spec.owner == "bob"


async def test_a_deletion_whose_preconditions_hold_removes(tasks: Repository[Task]) -> None:
    added = await tasks.add(task())
    await tasks.delete("a", uid=added.metadata.uid, resource_version=version_of(added))

    assert not await tasks.exists("a")


async def test_of_many_who_delete_one_resource_one_succeeds(tasks: Repository[Task]) -> None:
    await tasks.add(task())
    results = await asyncio.gather(*(tasks.delete("a") for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(result, Task) for result in results) == 1
    assert sum(isinstance(result, NotFoundError) for result in results) == 9


async def test_a_deletion_is_not_disturbed_by_those_who_change_the_resource(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task())
    changed = 0

    def label(current: Task, **labels: str) -> None:
        current.metadata.labels.update(labels)

    async def change() -> None:
        nonlocal changed
        try:
            for number in range(1_000):
                await tasks.mutate("a", partial(label, x=str(number)))
                changed += 1
        except NotFoundError:
            return

    changing = asyncio.create_task(change())
    with anyio.fail_after(DEADLINE):
        await tasks.delete("a")
        await changing

    assert not await tasks.exists("a")
    assert changed < 1_000


# --- finalizers -----------------------------------------------------------------------------------


async def test_a_resource_with_finalizers_is_marked_and_stays(tasks: Repository[Task]) -> None:
    added = await tasks.add(task(finalizers=["x.dev/one", "x.dev/two"]))
    marked = await tasks.delete("a")

    assert marked == await tasks.get("a")
    assert marked.metadata.deletion_timestamp is not None
    assert marked.metadata.finalizers == added.metadata.finalizers
    assert version_of(marked) > version_of(added)
    assert marked.metadata.generation == 1


async def test_a_second_deletion_of_a_marked_resource_changes_nothing(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    await tasks.add(task(finalizers=["x"]))
    marked = await tasks.delete("a")
    revision = await revision_of(store)

    assert await tasks.delete("a") == marked
    assert await revision_of(store) == revision


async def by_update(tasks: Repository[Task]) -> Task:
    current = await tasks.get("a")
    current.metadata.finalizers.clear()
    return await tasks.update(current)


async def by_mutate(tasks: Repository[Task]) -> Task:
    return await tasks.mutate("a", lambda current: current.metadata.finalizers.clear())


async def by_patch(tasks: Repository[Task]) -> Task:
    return await tasks.patch("a", {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("take_off", [by_update, by_mutate, by_patch])
async def test_a_marked_resource_goes_with_its_last_finalizer(
    tasks: Repository[Task], take_off: Callable[[Repository[Task]], Awaitable[Task]]
) -> None:
    await tasks.add(task(finalizers=["x"]))
    async with tasks.watch() as watch:
        marked = await tasks.delete("a")
        last = await take_off(tasks)
        with anyio.fail_after(DEADLINE):
            events = [await anext(watch), await anext(watch)]

    assert not await tasks.exists("a")
    assert version_of(last) > version_of(marked)
    assert events[0] == kvorum.Modified(marked, await _previous_of(events[0]))
    assert events[1] == kvorum.Deleted(last)


async def _previous_of(event: kvorum.WatchEvent[Task]) -> Task:
    assert isinstance(event, kvorum.Modified)
    return event.previous


async def test_a_marked_resource_stays_while_it_has_another_finalizer(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task(finalizers=["x", "y"]))
    marked = await tasks.delete("a")
    left = await tasks.mutate("a", lambda current: current.metadata.finalizers.remove("x"))

    assert left.metadata.finalizers == ["y"]
    assert left.metadata.deletion_timestamp == marked.metadata.deletion_timestamp
    assert await tasks.get("a") == left


async def test_a_marked_resource_can_still_be_changed(tasks: Repository[Task]) -> None:
    await tasks.add(task(finalizers=["x"]))
    marked = await tasks.delete("a")
    marked.status.phase = "CleaningUp"
    marked.metadata.deletion_timestamp = None  # the mark itself cannot be taken off
    updated = await tasks.update(marked)

    assert updated.status.phase == "CleaningUp"
    assert updated.metadata.deletion_timestamp is not None


async def test_a_marked_resource_takes_no_new_finalizers(tasks: Repository[Task]) -> None:
    await tasks.add(task(finalizers=["x"]))
    marked = await tasks.delete("a")

    with pytest.raises(InvalidResourceError, match="finalizers"):
        await tasks.mutate("a", lambda current: current.metadata.finalizers.append("y"))
    with pytest.raises(InvalidResourceError, match="finalizers"):
        await tasks.mutate("a", lambda current: current.metadata.finalizers.__setitem__(0, "y"))

    assert await tasks.get("a") == marked


async def test_finalizers_that_are_taken_off_before_a_deletion_do_not_hold_it_up(
    tasks: Repository[Task],
) -> None:
    await tasks.add(task(finalizers=["x"]))
    await by_update(tasks)
    assert await tasks.exists("a")
    await tasks.delete("a")

    assert not await tasks.exists("a")


async def test_the_name_of_a_marked_resource_is_taken_until_it_is_gone(
    tasks: Repository[Task],
) -> None:
    first = await tasks.add(task(finalizers=["x"]))
    await tasks.delete("a")
    with pytest.raises(AlreadyExistsError):
        await tasks.add(task())
    await by_mutate(tasks)

    assert (await tasks.add(task())).metadata.uid != first.metadata.uid


# --- list and count -------------------------------------------------------------------------------


async def test_a_list_is_a_sequence_in_the_order_of_names_at_one_revision(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    added = [await tasks.add(task(name)) for name in ("c", "a", "b")]
    revision = await revision_of(store)
    requests.clear()
    listed = await tasks.list()

    assert requests == ["read"]
    assert list(listed) == sorted(added, key=lambda each: each.metadata.name)
    assert len(listed) == 3
    assert listed[0] in listed
    assert listed.resource_version == revision


async def test_an_empty_list_has_a_version_to_watch_from(tasks: Repository[Task]) -> None:
    listed = await tasks.list()

    assert list(listed) == []
    assert await tasks.count() == 0
    assert listed.resource_version > 0


@pytest.mark.parametrize(("number", "pages"), [(9, 1), (10, 1), (11, 2), (35, 4)])
async def test_a_list_takes_a_request_for_each_page(
    small_pages: Repository[Task],
    store: kvorum.StorageBackend,
    requests: list[str],
    number: int,
    pages: int,
) -> None:
    names = [f"t{n:03}" for n in range(number)]
    await store.commit([Operation.create(f"tasks/{name}", by_hand(name)) for name in names])
    requests.clear()
    listed = await small_pages.list()

    assert requests == ["read"] * pages
    assert [each.metadata.name for each in listed] == names


async def test_a_list_of_many_pages_is_of_one_revision_while_others_write(
    small_pages: Repository[Task], store: kvorum.StorageBackend
) -> None:
    """The first and the last are always written together, so in no state do they differ."""
    names = [f"t{n:03}" for n in range(45)]
    await store.commit(
        [Operation.create(f"tasks/{name}", by_hand(name, spec={"owner": "0"})) for name in names]
    )
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            both = (names[0], names[-1])
            await store.commit(
                [Operation.put(f"tasks/{n}", by_hand(n, spec={"owner": str(number)})) for n in both]
            )
            await store.set("tasks/t000-between", by_hand("t000-between"))
            await store.delete("tasks/t000-between")

    writing = asyncio.create_task(write())
    owners = set()
    for _ in range(30):
        listed = await small_pages.list()
        assert listed[0].spec.owner == listed[-1].spec.owner
        assert max(version_of(each) for each in listed) <= listed.resource_version
        assert [
            each.metadata.name for each in listed if each.metadata.name != "t000-between"
        ] == names
        assert list(await small_pages.list(at=listed.resource_version)) == list(listed)
        owners.add(listed[0].spec.owner)
    stop = True
    await writing

    assert len(owners) > 1  # the writer did write in between


async def test_a_list_at_a_version_is_the_state_then(tasks: Repository[Task]) -> None:
    first = await tasks.add(task("a"))
    second = await tasks.add(task("b"))
    third = await tasks.delete("a")

    assert list(await tasks.list(at=version_of(first))) == [first]
    assert list(await tasks.list(at=version_of(second))) == [first, second]
    assert list(await tasks.list(at=version_of(third))) == [second]
    with pytest.raises(FutureRevisionError):
        await tasks.list(at=version_of(third) + 1_000_000)


async def test_selectors_narrow_a_list_and_a_count(client: kvorum.Client) -> None:
    workers = LabWorkerRepository(client)
    for name, track, phase in (
        ("w1", "nets", LabWorkerPhase.READY),
        ("w2", "nets", LabWorkerPhase.PENDING),
        ("w3", "security", LabWorkerPhase.READY),
    ):
        worker = LabWorker.new(name, lab_track=track)
        worker.status.phase = phase
        await workers.add(worker)

    async def names(**selectors: Any) -> list[str]:
        found = [worker.metadata.name for worker in await workers.list(**selectors)]
        assert await workers.count(**selectors) == len(found)
        return found

    assert await names(labels="lab-track=nets") == ["w1", "w2"]
    assert await names(labels={"lab-track": "nets"}) == ["w1", "w2"]
    assert await names(labels="lab-track!=nets") == ["w3"]
    assert await names(fields="status.phase=Ready") == ["w1", "w3"]
    assert await names(labels="lab-track=nets", fields="status.phase=Ready") == ["w1"]
    assert await names(labels="other") == []
    assert await names() == ["w1", "w2", "w3"]
    with pytest.raises(InvalidSelectorError):
        await workers.list(labels="a=b=c")
    with pytest.raises(InvalidSelectorError):
        await workers.count(fields="spec.nonsense=1")


async def test_a_count_without_selectors_reads_no_values(
    tasks: Repository[Task], store: kvorum.StorageBackend, requests: list[str]
) -> None:
    await tasks.add(task("a"))
    await store.set("tasks/b", b"not even JSON")
    requests.clear()

    assert await tasks.count() == 2
    assert requests == ["read"]


async def test_a_kind_whose_name_begins_like_anothers_is_apart_from_it(
    client: kvorum.Client,
) -> None:
    tasks, olds = client.repository(Task), client.repository(OldTask)
    mine = await tasks.add(task("a"))
    old = await olds.add(
        OldTask(metadata=Metadata(name="a"), spec=TaskSpec(owner="old"), status=TaskStatus())
    )
    async with tasks.watch(since=version_of(mine)) as watch:
        assert list(await tasks.list()) == [mine]
        assert list(await olds.list()) == [old]
        assert (await tasks.count(), await olds.count()) == (1, 1)
        await tasks.delete("a")
        assert list(await olds.list()) == [old]
        await olds.delete("a")
        again = await tasks.add(task("a"))

        with anyio.fail_after(DEADLINE):
            shown = [await anext(watch), await anext(watch)]
        assert [type(event) for event in shown] == [kvorum.Deleted, kvorum.Added]
        assert shown[1].resource_version == version_of(again)


# --- namespaces -----------------------------------------------------------------------------------


async def test_one_name_may_stand_in_each_namespace(client: kvorum.Client) -> None:
    tasks = client.repository(TeamTask)
    ann = await tasks.add(team_task("team-a", "x", owner="ann"))
    bob = await tasks.add(team_task("team-ab", "x", owner="bob"))

    assert await tasks.get("x", namespace="team-a") == ann
    assert await tasks.get("x", namespace="team-ab") == bob
    assert await tasks.get("x", None, namespace="team-c") is None
    assert list(await tasks.list()) == [ann, bob]
    assert list(await tasks.list(namespace="team-a")) == [ann]
    assert await tasks.count(namespace="team-ab") == 1
    assert await tasks.count() == 2


async def test_every_verb_works_in_a_namespace(
    client: kvorum.Client, store: kvorum.StorageBackend
) -> None:
    tasks = client.repository(TeamTask)
    current = await tasks.add(team_task("team-a", "x"))
    other = await tasks.add(team_task("team-b", "x"))
    assert await store.exists("team-tasks/team-a/x")
    assert await tasks.exists("x", namespace="team-a")

    current.spec.owner = "ann"
    current = await tasks.update(current)
    current.status.phase = "Done"
    current = await tasks.update_status(current)
    current = await tasks.mutate("x", lambda c: c.metadata.labels.update(a="b"), namespace="team-a")
    current = await tasks.patch("x", {"spec": {"wantedCopies": 3}}, namespace="team-a")
    assert current == await tasks.get("x", namespace="team-a")
    assert current.spec == TaskSpec(owner="ann", wanted_copies=3)
    deleted = await tasks.delete("x", namespace="team-a")

    assert deleted.metadata.namespace == "team-a"
    assert list(await tasks.list()) == [other]


async def test_a_namespace_is_needed_where_there_are_some_and_refused_where_there_are_none(
    client: kvorum.Client, tasks: Repository[Task], requests: list[str]
) -> None:
    team_tasks = client.repository(TeamTask)
    requests.clear()
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: team_tasks.add(team_task(None, "x")),
        lambda: team_tasks.get("x"),
        lambda: team_tasks.get("x", namespace=""),
        lambda: team_tasks.get("x", namespace="a/b"),
        lambda: team_tasks.get("x", namespace="A"),
        lambda: team_tasks.delete("x"),
        lambda: team_tasks.list(namespace="a/"),
        lambda: team_tasks.list(namespace=""),
        lambda: tasks.add(task("x", namespace="a")),
        lambda: tasks.get("x", namespace="a"),
        lambda: tasks.list(namespace="a"),
        lambda: tasks.count(namespace="a"),
    ]

    for verb in verbs:
        with pytest.raises(InvalidResourceError):
            await verb()
    assert requests == []


# --- what others have written ---------------------------------------------------------------------


async def test_a_value_written_by_hand_is_read_updated_and_deleted(
    tasks: Repository[Task], store: kvorum.StorageBackend
) -> None:
    revision = await store.set("tasks/a", by_hand("a"))
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
    value = by_hand(
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
    await store.set("tasks/a", by_hand("a", spec={"owner": "ann"}))
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
    await store.set("tasks/a", by_hand("a"), lease=lease)
    await tasks.mutate("a", lambda current: current.metadata.labels.update(x="y"))
    await store.revoke_lease(lease)

    assert not await tasks.exists("a")


CORRUPT = {
    "no JSON": b"\xff\xfe",
    "empty": b"",
    "no object": b"[]",
    "no metadata": b'{"apiVersion": "test.kvorum.dev/v1", "kind": "Task", "spec": {}}',
    "another kind": by_hand("bad", kind="LabWorker"),
    "another api version": by_hand("bad", apiVersion="test.kvorum.dev/v2"),
    "another name": by_hand("good"),
    "a wrong type": by_hand("bad", spec={"wantedCopies": "many"}),
    "a newer form": by_hand("bad", metadata={"name": "bad", "formVersion": 99}),
    "too deep": by_hand("bad", spec=None).replace(b"null", b"[" * 100_000 + b"]" * 100_000),
    "cut off": by_hand("bad")[:-3],
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
    """`CorruptResourceError.key` is "the key, as etcd knows it".

    Somebody has to go there and mend it.
    """
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


# --- requests -------------------------------------------------------------------------------------


async def test_every_verb_sends_as_few_requests_as_it_can(
    tasks: Repository[Task], requests: list[str]
) -> None:
    async def sent(action: Awaitable[Any]) -> tuple[Any, list[str]]:
        requests.clear()
        return await action, list(requests)

    current, made = await sent(tasks.add(task()))
    assert made == ["transaction on"]
    current.spec.owner = "ann"
    current, made = await sent(tasks.update(current))
    assert made == ["transaction on"]
    current, made = await sent(tasks.update(current))
    assert made == ["read"]
    current, made = await sent(tasks.get("a"))
    assert made == ["read"]
    _, made = await sent(tasks.exists("a"))
    assert made == ["read"]
    _, made = await sent(tasks.list())
    assert made == ["read"]
    _, made = await sent(tasks.mutate("a", lambda c: c.metadata.labels.update(x="y")))
    assert made == ["read", "transaction on"]
    _, made = await sent(tasks.delete("a"))
    assert made == ["read", "transaction on"]
    _, made = await sent(tasks.add(task("b"), ttl=600))
    assert made == ["grant", "transaction on"]
    _, made = await sent(tasks.delete("b"))
    assert made == ["read", "transaction on", "look at", "revoke"]


async def test_a_write_that_is_cancelled_leaves_a_repository_that_works(
    tasks: Repository[Task],
) -> None:
    """At any point: before the request is made, while it is under way, when its answer is there."""
    await tasks.add(task())
    for patience in range(40):
        writing = asyncio.create_task(
            tasks.mutate("a", lambda c: c.spec.__setattr__("owner", c.spec.owner + "x"))
        )
        for _ in range(patience):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled() or writing.exception() is None

    # A write that was cancelled on its way may still arrive, so what there was a moment ago proves
    # nothing.
    after = await tasks.mutate("a", lambda c: c.spec.__setattr__("owner", c.spec.owner + "!"))
    assert after == await tasks.get("a")
    assert after.spec.owner.strip("x") == "!"
