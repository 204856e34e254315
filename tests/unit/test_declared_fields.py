"""A class that declares more than is stored is refused.

A field must not vanish with the first write.
"""

from typing import Any, ClassVar

import msgspec
import pytest

import kvorum
from kvorum import ConfigurationError, InvalidResourceError, Kind, Metadata, Resource

KIND = Kind("Box", plural="boxes", api_version="test.kvorum.dev/v1")


class Part(msgspec.Struct):
    size: int = 0


class Owned(Metadata):
    owner: str = ""


class Renamed(Metadata):
    """It adds no field, but a read would not return this class."""


class Box(Resource[Part, Part]):
    kind: ClassVar[Kind] = KIND


class WithData(Resource[Part, Part]):
    kind: ClassVar[Kind] = KIND
    data: dict[str, str] = msgspec.field(default_factory=dict)


class WithRequiredData(Resource[Part, Part]):
    kind: ClassVar[Kind] = KIND
    data: dict[str, str]
    binary: bytes


class WithOwner(Resource[Part, Part]):
    kind: ClassVar[Kind] = KIND
    metadata: Owned


class WithRenamed(Resource[Part, Part]):
    kind: ClassVar[Kind] = KIND
    metadata: Renamed


class WithoutMetadata(Resource[Part, Part]):
    kind: ClassVar[Kind] = KIND
    metadata: Metadata | None = None  # type: ignore[assignment]  # that is what is refused


class Derived(Box):
    colour: str = ""


class Behaved(Box):
    """A derived class without new fields."""

    @property
    def is_large(self) -> bool:
        return self.spec.size > 10


@pytest.mark.parametrize(
    ("resource_type", "complaint"),
    [
        (
            WithData,
            "WithData cannot be stored: it has fields besides metadata, spec and status: data",
        ),
        (
            WithRequiredData,
            "WithRequiredData cannot be stored: .* status: binary, data; put them into the spec",
        ),
        (WithOwner, "WithOwner cannot be stored: its metadata is a Owned, not a Metadata"),
        (WithRenamed, "its metadata is a Renamed, not a Metadata"),
        (WithoutMetadata, "its metadata is a .*None, not a Metadata"),
        (Derived, "it has fields besides metadata, spec and status: colour"),
    ],
)
def test_a_class_with_fields_that_are_not_stored_is_refused_when_its_repository_is_made(
    resource_type: type[Resource[Any, Any]], complaint: str
) -> None:
    client = kvorum.connect("memory://")

    with pytest.raises(ConfigurationError, match=complaint):
        client.repository(resource_type)


@pytest.mark.anyio
async def test_a_resource_with_fields_of_a_derived_class_is_refused_before_it_is_written() -> None:
    async with kvorum.connect("memory://") as client:
        boxes = client.repository(Box)
        coloured = Derived(metadata=Metadata(name="a"), spec=Part(), status=Part(), colour="red")
        owned = Box(metadata=Owned(name="a", owner="ada"), spec=Part(), status=Part())

        with pytest.raises(
            InvalidResourceError, match="a Derived has fields that are not stored: colour"
        ):
            await boxes.add(coloured)
        with pytest.raises(
            InvalidResourceError, match="a Owned has fields that are not stored: owner"
        ):
            await boxes.add(owned)
        assert await boxes.count() == 0


@pytest.mark.anyio
async def test_a_derived_class_without_fields_of_its_own_is_stored_like_its_base() -> None:
    async with kvorum.connect("memory://") as client:
        boxes = client.repository(Box)
        added = await boxes.add(
            Behaved(metadata=Metadata(name="a"), spec=Part(size=11), status=Part())
        )
        read = await client.repository(Behaved).get("a")

        assert added.spec.size == 11
        assert read.is_large
