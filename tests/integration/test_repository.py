"""What a repository promises about adding and reading resources, on both stores."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from tests.kinds import (
    Task,
    TaskSpec,
    TaskStatus,
    task,
    version_of,
)

import kvorum
from kvorum import (
    AlreadyExistsError,
    ConfigurationError,
    InvalidResourceError,
    NotFoundError,
    Repository,
    Resource,
    ResourceTooLargeError,
)
from kvorum.lab import LabWorker

DEADLINE = 10.0


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


async def test_one_of_many_concurrent_adds_of_a_name_succeeds(tasks: Repository[Task]) -> None:
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
    assert await tasks.get("a", default="none") == "none"
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
    """A limit above ours meets etcd's (1.5 MiB), and then gRPC's (2 MiB)."""
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
    """It says that the request is too large, but not what the limit is."""
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
        with pytest.raises(InvalidResourceError, match="must be of class Task, not LabWorker"):
            await write(worker)

    assert requests == []


def test_a_class_that_is_no_resource_or_declares_no_kind_has_no_repository(kvorum_url: str) -> None:
    class Undeclared(Resource[TaskSpec, TaskStatus]):
        pass

    client = kvorum.connect(kvorum_url)

    with pytest.raises(ConfigurationError, match="not a subclass"):
        client.repository(int)  # type: ignore[type-var]  # what mypy refuses must be refused at run time, too
    with pytest.raises(ConfigurationError, match="declares no kind"):
        client.repository(Undeclared)


# --- add with a ttl -------------------------------------------------------------------------------


async def test_a_resource_with_a_ttl_expires_once_with_its_last_state_and_not_too_early(
    tasks: Repository[Task],
) -> None:
    """Updates neither extend its TTL nor take it off its lease."""
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

    assert requests == ["grant", "transaction", "revoke"]


async def test_an_add_with_a_ttl_that_is_too_large_leaves_no_lease_behind(
    tasks: Repository[Task], requests: list[str]
) -> None:
    """Otherwise each attempt leaves a lease on the server until its TTL is over."""
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


# --- requests -------------------------------------------------------------------------------------


async def test_every_verb_sends_as_few_requests_as_it_can(
    tasks: Repository[Task], requests: list[str]
) -> None:
    async def sent(action: Awaitable[Any]) -> tuple[Any, list[str]]:
        requests.clear()
        return await action, list(requests)

    current, made = await sent(tasks.add(task()))
    assert made == ["transaction"]
    current.spec.owner = "ann"
    current, made = await sent(tasks.update(current))
    assert made == ["transaction"]
    current, made = await sent(tasks.update(current))
    assert made == ["read"]
    current, made = await sent(tasks.get("a"))
    assert made == ["read"]
    _, made = await sent(tasks.exists("a"))
    assert made == ["read"]
    _, made = await sent(tasks.list())
    assert made == ["read"]
    _, made = await sent(tasks.mutate("a", lambda c: c.metadata.labels.update(x="y")))
    assert made == ["read", "transaction"]
    _, made = await sent(tasks.delete("a"))
    assert made == ["read", "transaction"]
    _, made = await sent(tasks.add(task("b"), ttl=600))
    assert made == ["grant", "transaction"]
    _, made = await sent(tasks.delete("b"))
    assert made == ["read", "transaction", "inspect", "revoke"]


async def test_a_write_that_is_cancelled_leaves_a_repository_that_works(
    tasks: Repository[Task],
) -> None:
    """At any point: before the request is sent, while it is in flight, or after its answer."""
    await tasks.add(task())
    for steps in range(40):
        writing = asyncio.create_task(
            tasks.mutate("a", lambda c: c.spec.__setattr__("owner", c.spec.owner + "x"))
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled() or writing.exception() is None

    # A write that was cancelled in flight may still arrive, so an earlier read proves nothing.
    after = await tasks.mutate("a", lambda c: c.spec.__setattr__("owner", c.spec.owner + "!"))
    assert after == await tasks.get("a")
    assert after.spec.owner.strip("x") == "!"
