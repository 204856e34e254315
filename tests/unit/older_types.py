"""Structs of an older program, which lack fields that a newer one has stored."""

from typing import Any, TypeAlias

import msgspec

Json: TypeAlias = Any


class Plain(msgspec.Struct):
    size: int = 0
    note: str | None = None


class Named(msgspec.Struct):
    name: str
    size: int = 0


class Typed(msgspec.Struct):
    type: str
    id: int = 0  # `type` goes before `id`


class Numbered(msgspec.Struct):
    id: int
    inner: Plain = msgspec.field(default_factory=Plain)


class Disk(msgspec.Struct, tag="disk"):
    size: int = 0


class Net(msgspec.Struct, tag="net"):
    inner: Plain | None = None


class Local(msgspec.Struct, tag="local"):
    id: int  # the identity: the tag is called `type`, but is none


class Remote(msgspec.Struct, tag="remote"):
    id: int
    inner: Plain = msgspec.field(default_factory=Plain)


class Node(msgspec.Struct):
    size: int = 0
    left: "Node | None" = None
    children: list["Node"] = []
