"""Arguments of a wrong type or out of range are rejected with the reason, before anything is sent.

The conformance suite tests what a storage backend rejects; this module tests everything else.
"""

import re
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.kinds import Task, TaskSpec, TaskStatus, task

import kvorum
from kvorum import (
    ConfigurationError,
    EtcdSettings,
    InvalidResourceError,
    Kind,
    KvorumError,
    MemoryStorageBackend,
    Repository,
)
from kvorum.arguments import MAX_INT, short_repr

NO_REVISIONS: list[Any] = [True, 5.0, float("nan"), float("inf"), "5", b"5", 2**63, -1, [5]]


@pytest.fixture
async def tasks() -> AsyncIterator[Repository[Task]]:
    async with kvorum.connect("memory://") as client:
        repository = client.repository(Task)
        await repository.add(task())
        yield repository


# --- repositories ---------------------------------------------------------------------------------


@pytest.mark.parametrize("since", NO_REVISIONS)
@pytest.mark.anyio
async def test_a_watch_says_what_since_must_be(tasks: Repository[Task], since: Any) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        tasks.watch(since=since)

    assert (
        str(caught.value)
        == f"tasks/: since must be a revision: an int from 0 to {MAX_INT}, not {short_repr(since)}"
    )


@pytest.mark.parametrize("given", [*NO_REVISIONS, 0])
@pytest.mark.anyio
async def test_a_list_says_what_at_and_limit_must_be(tasks: Repository[Task], given: Any) -> None:
    for name in ("at", "limit"):
        reads: list[Callable[..., Any]] = [tasks.list, tasks.scan]
        for read in reads:
            with pytest.raises(
                InvalidResourceError, match=f"{name} must be .*an int from 1 to {MAX_INT}"
            ):
                await read(**{name: given})


@pytest.mark.parametrize("version", NO_REVISIONS)
@pytest.mark.anyio
async def test_a_precondition_that_no_resource_can_have_is_no_conflict(
    tasks: Repository[Task], version: Any
) -> None:
    """After a `ConflictError` callers read again and retry, in this case for ever."""
    for call in (
        lambda: tasks.delete("a", resource_version=version),
        lambda: tasks.delete("a", resource_version=version, corrupt=True),
        lambda: tasks.mutate("a", lambda _: None, resource_version=version),
        lambda: tasks.patch("a", {}, resource_version=version),
    ):
        with pytest.raises(InvalidResourceError, match="resource_version must be a revision"):
            await call()
    assert await tasks.exists("a")


@pytest.mark.anyio
async def test_a_uid_is_text(tasks: Repository[Task]) -> None:
    uid: Any = 5
    with pytest.raises(InvalidResourceError, match="uid must be text, not 5"):
        await tasks.delete("a", uid=uid)


@pytest.mark.parametrize("version", ["2", 2.0, True, 2**63])
@pytest.mark.anyio
async def test_an_update_of_what_came_with_a_version_of_another_type_says_so(
    tasks: Repository[Task], version: Any
) -> None:
    """In the JSON of Kubernetes it is text."""
    changed = task(resource_version=version)

    with pytest.raises(InvalidResourceError, match="resource_version must be a revision"):
        await tasks.update(changed)


@pytest.mark.parametrize("name", [None, 5, b"a", ["a"], task()])
@pytest.mark.anyio
async def test_a_name_or_namespace_is_text(tasks: Repository[Task], name: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: tasks.get(name),
        lambda: tasks.exists(name),
        lambda: tasks.delete(name),
        lambda: tasks.mutate(name, lambda _: None),
        lambda: tasks.patch(name, {}),
        lambda: tasks.add(task(name)),
    ]
    for call in calls:
        with pytest.raises(InvalidResourceError, match="name must be text, not") as caught:
            await call()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("metadata", [{"name": "a"}, "a", None])
@pytest.mark.anyio
async def test_metadata_is_a_metadata(tasks: Repository[Task], metadata: Any) -> None:
    with pytest.raises(InvalidResourceError, match="metadata must be a Metadata"):
        await tasks.add(Task(metadata=metadata, spec=TaskSpec(), status=TaskStatus()))


@pytest.mark.parametrize("ttl", ["60", timedelta(seconds=60), True])
@pytest.mark.anyio
async def test_a_ttl_is_a_number_of_seconds(tasks: Repository[Task], ttl: Any) -> None:
    with pytest.raises(InvalidResourceError, match="ttl must be a number of seconds, not"):
        await tasks.add(task("b"), ttl=ttl)
    assert not await tasks.exists("b")


@pytest.mark.parametrize("revision", [*NO_REVISIONS, 0, None])
@pytest.mark.anyio
async def test_a_checkpoint_and_a_compaction_take_revisions_only(revision: Any) -> None:
    backend = MemoryStorageBackend()
    async with kvorum.connect(backend) as client:
        with pytest.raises(InvalidResourceError, match="revision must be an int from 1 to"):
            await client.checkpoint("billing").save(revision)
        with pytest.raises(InvalidResourceError, match="revision must be an int from 1 to"):
            await backend.compact(revision)


# --- settings and deadlines -----------------------------------------------------------------------


NO_TIMES: list[tuple[Any, str]] = [
    (0, "must be greater than 0, not 0"),
    (-1, "must be greater than 0, not -1"),
    (float("nan"), "must be greater than 0, not nan"),
    (1e12, "must be at most 1,000,000,000 seconds, not 1000000000000.0"),
    (float("inf"), "must be at most 1,000,000,000 seconds, not inf"),
    (10**5000, "must be at most 1,000,000,000 seconds, not an int of 16,610 bits"),
    ("5", "must be a number of seconds, not '5'"),
    (True, "must be a number of seconds, not True"),
    (timedelta(seconds=5), "must be a number of seconds, not datetime.timedelta(seconds=5)"),
]


@pytest.mark.parametrize(
    ("seconds", "complaint"), NO_TIMES, ids=[complaint for _, complaint in NO_TIMES]
)
def test_a_time_is_a_number_of_seconds_within_thirty_years(seconds: Any, complaint: str) -> None:
    for name in ("timeout", "discover_interval"):
        with pytest.raises(ConfigurationError, match=re.escape(f"{name} {complaint}")):
            EtcdSettings(**{name: seconds})
    rule = "a number of seconds, more than 0 away and at most 1,000,000,000"
    complaint = f"a deadline must be {rule}, not {short_repr(seconds)}"
    with pytest.raises(ConfigurationError, match=re.escape(complaint)), kvorum.deadline(seconds):
        pass


@pytest.mark.parametrize(
    ("count", "complaint"),
    [
        (0, "greater than 0, not 0"),
        (-1, "greater than 0, not -1"),
        (1.5, "an int, not 1.5"),
        (1e3, "an int, not 1000.0"),
        ("10", "an int, not '10'"),
        (True, "an int, not True"),
        (None, "an int, not None"),
        (2**63, f"at most {MAX_INT}, not {2**63}"),
    ],
)
def test_a_size_is_a_whole_number(count: Any, complaint: str) -> None:
    for make in (EtcdSettings, MemoryStorageBackend):
        for name in ("page_size", "max_value_size"):
            with pytest.raises(ConfigurationError, match=re.escape(f"{name} must be {complaint}")):
                make(**{name: count})
    with pytest.raises(ConfigurationError, match=f"history must be {complaint}"):
        MemoryStorageBackend(history=count)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"endpoints": "localhost:2379"},
            "endpoints must be a tuple of host:port, such as ('localhost:2379',)",
        ),
        ({"endpoints": None}, "endpoints must be a tuple"),
        ({"endpoints": (5,)}, "endpoint 5 is not host:port"),
        ({"prefix": 5}, "prefix must be text, not 5"),
        ({"tls": "yes"}, "tls must be True or False, not 'yes'"),
        ({"pipeline": None}, "pipeline must be True or False, not None"),
        ({"user": 5}, "user must be text, not int"),
        ({"cacert": b"-----BEGIN"}, "cacert must be a path, not b'-----BEGIN'"),
    ],
)
def test_a_setting_of_a_wrong_type_is_named_once(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EtcdSettings(**given)

    assert complaint in str(caught.value)
    assert ";" not in str(caught.value)


def test_a_password_of_a_wrong_type_is_not_shown() -> None:
    secret: Any = b"a secret"
    with pytest.raises(ConfigurationError) as caught:
        EtcdSettings(user="root", password=secret)

    assert "password must be text, not bytes" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", [5, b"etcd://localhost", ["etcd://localhost"], 2379.0])
def test_connect_says_what_it_takes(target: Any) -> None:
    with pytest.raises(
        ConfigurationError, match="connect takes a URL, an EtcdSettings or a storage backend, not"
    ):
        kvorum.connect(target)


@pytest.mark.parametrize("given", [{"name": 5}, {"plural": 5}, {"api_version": 5}])
def test_a_kind_is_declared_with_texts(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Kind(**({"name": "Box", "plural": "tasks", "api_version": "test.kvorum.dev/v1"} | given))


@pytest.mark.parametrize("change", [None, {"spec": {}}, "a", 5])
@pytest.mark.anyio
async def test_a_change_is_a_function(tasks: Repository[Task], change: Any) -> None:
    with pytest.raises(InvalidResourceError, match="change must be a function") as caught:
        await tasks.mutate("a", change)

    assert caught.value.subject == "tasks/a"


@pytest.mark.anyio
async def test_a_change_returns_a_resource_of_the_class_or_none(tasks: Repository[Task]) -> None:
    """The message names the argument, not a private function that the result was given to."""
    await tasks.add(task("b"))
    change: Any = lambda _: 5  # noqa: E731 - of a type that `mutate` does not allow

    with pytest.raises(InvalidResourceError) as caught:
        await tasks.mutate("b", change)

    rule = "change must return a resource of class Task, or None, not int"
    assert str(caught.value) == f"tasks/b: {rule}"


@pytest.mark.parametrize("patch", [None, [1], "spec", 5])
@pytest.mark.anyio
async def test_a_patch_is_a_mapping(tasks: Repository[Task], patch: Any) -> None:
    """Even if the resource does not exist: it is checked before anything is sent."""
    with pytest.raises(InvalidResourceError, match="merge_patch must be a mapping, such as a dict"):
        await tasks.patch("missing", patch)


@pytest.mark.parametrize("given", [task(), [Task], {}, None])
@pytest.mark.anyio
async def test_a_repository_is_made_of_a_class_not_of_an_instance(given: Any) -> None:
    async with kvorum.connect("memory://") as client:
        with pytest.raises(ConfigurationError, match="is not a subclass of"):
            client.repository(given)


def test_connect_names_every_scheme_that_it_takes() -> None:
    with pytest.raises(ConfigurationError) as caught:
        kvorum.connect("http://localhost:2379")

    for scheme in ("etcd://", "etcds://", "embedded://", "memory://"):
        assert scheme in str(caught.value)


@pytest.mark.parametrize("given", [None, 5, "abc", b"abc", task(), Task])
@pytest.mark.anyio
async def test_calls_about_many_take_many(tasks: Repository[Task], given: Any) -> None:
    """A single value is rejected; so is text, of which the letters would be taken."""
    for call in (tasks.get_many, tasks.add_many, tasks.update_many):
        with pytest.raises(InvalidResourceError, match="must be several, as in a list"):
            await call(given)


# --- what a message shows -------------------------------------------------------------------------


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_a_value_is_shown_in_a_few_words_whatever_it_is() -> None:
    for value in (
        10**5000,
        -(10**5000),
        "x" * 10**6,
        b"x" * 10**6,
        [0] * 10**6,
        Unspeakable(),
        task(),
        sys,
    ):
        assert 0 < len(short_repr(value)) < 100


def test_all_of_these_are_errors_of_kvorum_and_of_values() -> None:
    """So that a web framework can map `ValueError` to a bad request."""
    for error in (InvalidResourceError, ConfigurationError):
        assert issubclass(error, KvorumError)
        assert issubclass(error, ValueError)
