"""The kinds of resources that tests of several modules use. A test's own oddities stay with it."""

from typing import Any, ClassVar

import msgspec

from kvorum import Kind, Metadata, Resource


class TaskSpec(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    owner: str = ""
    wanted_copies: int = 1


class TaskStatus(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    phase: str = ""
    copies_done: int = 0


class Task(Resource[TaskSpec, TaskStatus]):
    """A kind without namespaces, with camelCase names in its bytes."""

    kind: ClassVar[Kind] = Kind("Task", plural="tasks", api_version="test.kvorum.dev/v1")


class TeamTask(Resource[TaskSpec, TaskStatus]):
    """The same, namespaced."""

    kind: ClassVar[Kind] = Kind(
        "TeamTask", plural="team-tasks", api_version="test.kvorum.dev/v1", namespaced=True
    )


def task(name: str = "a", *, owner: str = "", **metadata: Any) -> Task:
    """A task that is not stored yet."""
    return Task(
        metadata=Metadata(name=name, **metadata), spec=TaskSpec(owner=owner), status=TaskStatus()
    )


def team_task(namespace: str | None, name: str, *, owner: str = "") -> TeamTask:
    """A namespaced task that is not stored yet."""
    metadata = Metadata(name=name, namespace=namespace)
    return TeamTask(metadata=metadata, spec=TaskSpec(owner=owner), status=TaskStatus())


def task_by_hand(name: str, **parts: Any) -> bytes:
    """The bytes of a task as an operator might put them with etcdctl; `parts` replace or add."""
    value = {
        "apiVersion": "test.kvorum.dev/v1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {},
    } | parts
    return msgspec.json.encode(value)


def version_of(resource: Resource[Any, Any]) -> int:
    return resource.metadata.resource_version


class BoxSpec(msgspec.Struct, kw_only=True, omit_defaults=True):
    size: int = 0


class BoxStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    pass


class Box(Resource[BoxSpec, BoxStatus]):
    """The smallest kind that lists and watches can select by a field."""

    kind: ClassVar[Kind] = Kind("Box", plural="boxes", api_version="test.kvorum.dev/v1")


class Crate(Resource[BoxSpec, BoxStatus]):
    """The same, namespaced."""

    kind: ClassVar[Kind] = Kind(
        "Crate", plural="crates", api_version="test.kvorum.dev/v1", namespaced=True
    )


def box(name: str = "a", *, size: int = 0, **labels: str) -> Box:
    """A box that is not stored yet."""
    return Box(
        metadata=Metadata(name=name, labels=labels), spec=BoxSpec(size=size), status=BoxStatus()
    )


def crate(namespace: str, name: str) -> Crate:
    """A crate that is not stored yet."""
    return Crate(
        metadata=Metadata(name=name, namespace=namespace), spec=BoxSpec(), status=BoxStatus()
    )


def box_by_hand(name: str, **labels: str) -> bytes:
    """The bytes of a box as an operator might put them with etcdctl."""
    value = {
        "apiVersion": "test.kvorum.dev/v1",
        "kind": "Box",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {},
    }
    return msgspec.json.encode(value)


class CounterSpec(msgspec.Struct, omit_defaults=True):
    number: int = 0


class CounterStatus(msgspec.Struct, omit_defaults=True):
    pass


class Counter(Resource[CounterSpec, CounterStatus]):
    """A number, for tests that ask whether an increment was lost or applied twice."""

    kind: ClassVar[Kind] = Kind("Counter", plural="counters", api_version="test.kvorum.dev/v1")
