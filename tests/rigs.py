"""One kind in two versions of a program, and the stored document that both of them write.

`OldRig` is what last year's program knows of a rig, `NewRig` what this year's does. The newer type
has more fields at every level and has dropped one (`legacy`), which it does not know, as the older
type does not know the new ones.
"""

import copy
import json
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias, TypeVar

import msgspec

import kvorum
from kvorum import (
    Kind,
    Metadata,
    Repository,
    Resource,
)

RIG = Kind("Rig", plural="rigs", api_version="test.kvorum.dev/v1")

Json: TypeAlias = Any


class OldDisk(msgspec.Struct, rename="camel"):
    """Its name identifies it in a list."""

    name: str
    size: int = 0


class OldLine(msgspec.Struct, rename="camel"):
    """Nothing identifies it in a list."""

    text: str = ""
    width: int = 0


class OldPort(msgspec.Struct, rename="camel"):
    number: int = 0
    lines: list[OldLine] = []


class OldBox(msgspec.Struct, rename="camel"):
    height: int = 0


class OldSpec(msgspec.Struct, rename="camel"):
    counter: int = 0
    legacy: str | msgspec.UnsetType = msgspec.UNSET
    box: OldBox = msgspec.field(default_factory=OldBox)
    disks: list[OldDisk] = []
    lines: list[OldLine] = []
    ports: dict[str, OldPort] = {}


class OldStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    ticks: int = 0
    disks: list[OldDisk] = []


class OldRig(Resource[OldSpec, OldStatus]):
    kind: ClassVar[Kind] = RIG


class NewDisk(OldDisk, rename="camel"):
    top_speed: float = 0.0


class NewLine(OldLine, rename="camel"):
    color: str = ""


class NewPort(msgspec.Struct, rename="camel"):
    number: int = 0
    lines: list[NewLine] = []
    protocol: str = ""


class NewBox(OldBox, rename="camel"):
    vents: list[int] = []


class NewSpec(msgspec.Struct, rename="camel"):
    counter: int = 0
    priority: int = 0
    box: NewBox = msgspec.field(default_factory=NewBox)
    disks: list[NewDisk] = []
    lines: list[NewLine] = []
    ports: dict[str, NewPort] = {}
    tags: dict[str, str] = {}


class NewStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    ticks: int = 0
    disks: list[NewDisk] = []
    message: str | None = None


class NewRig(Resource[NewSpec, NewStatus]):
    kind: ClassVar[Kind] = RIG


Rig = TypeVar("Rig", OldRig, NewRig)
Older: TypeAlias = Repository[OldRig]
Newer: TypeAlias = Repository[NewRig]


def new_rig(name: str = "a", **metadata: Any) -> NewRig:
    """A rig that uses everything that only the newer type has."""
    return NewRig(
        metadata=Metadata(name=name, **metadata),
        spec=NewSpec(
            counter=1,
            priority=7,
            box=NewBox(height=2, vents=[1, 2]),
            disks=[NewDisk("root", 10, 1.5), NewDisk("data", 20, 2.5)],
            lines=[
                NewLine("first", 1, "red"),
                NewLine("second", 2, "blue"),
                NewLine("third", 3, "green"),
            ],
            ports={
                "http": NewPort(80, [NewLine("in", 1, "pink")], "tcp"),
                "dns": NewPort(53, [], "udp"),
            },
            tags={"rack": "4"},
        ),
        status=NewStatus(phase="Ready", disks=[NewDisk("root", 10, 1.25)], message="all is well"),
    )


async def document(backend: kvorum.StorageBackend, name: str = "a") -> Json:
    """The stored document, without the token that changes with each write."""
    entry = await backend.get(f"rigs/{name}")
    assert entry is not None
    value = json.loads(entry.value)
    del value["metadata"]["writeToken"]
    return value


async def write_by_hand(
    backend: kvorum.StorageBackend, change: Callable[[Json], None], name: str = "a"
) -> None:
    """Change the stored document as another program would, in Kvorum's form."""
    entry = await backend.get(f"rigs/{name}")
    assert entry is not None
    value = json.loads(entry.value)
    change(value)
    await backend.compare_and_swap(
        entry.key, msgspec.json.encode(value, order="sorted"), expected=entry.mod_revision
    )


def changed(value: Json, changes: dict[str, Json]) -> Json:
    """Return a copy with the fields at these paths set."""
    value = copy.deepcopy(value)
    for path, new in changes.items():
        *way, last = path.split(".")
        target = value
        for name in way:
            target = target[name]
        target[last] = new
    return value
