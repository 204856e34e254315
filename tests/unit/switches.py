"""The kind that the tests of the codec encode, and its stored form."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
from hypothesis import strategies as st

from kvorum.encoding.stored import Draft, codec_for
from kvorum.resources.model import Kind, Metadata, Resource, Stored
from kvorum.storage.values import Entry


class Port(msgspec.Struct, rename="camel"):
    name: str
    vlan_id: int = 1


class SwitchSpec(msgspec.Struct, rename="camel"):
    rack_name: str = ""
    units: int = 1
    weight: float = 1.0
    height: float | None = None
    ports: list[Port] = []
    quotas: dict[str, float] = {}
    anything: Any = None


class SwitchStatus(msgspec.Struct, rename="camel"):
    phase: str = "pending"
    load: float | None = None


class Switch(Resource[SwitchSpec, SwitchStatus]):
    kind: ClassVar[Kind] = Kind("Switch", plural="switches", api_version="example.org/v1")

    def validate(self) -> list[str]:
        problems = []
        if self.spec.units < 1:
            problems.append("spec.units must be 1 or more")
        if self.spec.rack_name == "on fire":
            problems.append("spec.rackName must not be on fire")
        return problems


CODEC = codec_for(Switch)
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DELETED = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
NAN = math.nan
INFINITY = math.inf

METADATA = (
    '"annotations":{"note":"n"},"creationTimestamp":"2026-01-02T03:04:05Z","finalizers":["f"],"formVersion":1,'
    '"generation":3,"labels":{"track":"t"},"name":"a","uid":"u","writeToken":"t0"'
)
SPEC = '"anything":null,"height":null,"ports":[],"quotas":{},"rackName":"r1","units":2,"weight":1.0'
STATUS = '"load":null,"phase":"ready"'


def stored(metadata: str = METADATA, spec: str = SPEC, status: str = STATUS) -> Stored:
    """What a read finds; the arguments are the contents of the three objects."""
    text = (
        '{"apiVersion":"example.org/v1","kind":"Switch","metadata":{%s},"spec":{%s},"status":{%s}}'
    )
    read = CODEC.decode(
        Entry("switches/a", (text % (metadata, spec, status)).encode(), 42, 7, 3)
    ).metadata.stored
    assert read is not None
    return read


def new(**spec: Any) -> Switch:
    """A switch that is not stored yet."""
    return Switch(metadata=Metadata(name="a"), spec=SwitchSpec(**spec), status=SwitchStatus())


def document(draft: Draft[Switch]) -> dict[str, Any]:
    """The bytes of a draft as plain data."""
    loaded: dict[str, Any] = json.loads(draft.stored.value)
    return loaded


def update(change: Callable[[Switch], object], base: Stored | None = None) -> Draft[Switch]:
    """Read, change, update."""
    base = stored() if base is None else base
    resource = CODEC.restore(base)
    change(resource)
    return CODEC.draft_update(resource, base)


specs = st.builds(
    SwitchSpec,
    rack_name=st.text(max_size=4),
    units=st.integers(1),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    height=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ports=st.lists(st.builds(Port, name=st.text(max_size=2), vlan_id=st.integers()), max_size=3),
    quotas=st.dictionaries(
        st.text(max_size=2), st.floats(allow_nan=False, allow_infinity=False), max_size=3
    ),
)
