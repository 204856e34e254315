"""Values as JSON text: told apart by their first byte, and taken apart by one level."""

import msgspec
from msgspec import Raw

objects = msgspec.json.Decoder(dict[str, Raw])
arrays = msgspec.json.Decoder(list[Raw])
encoder = msgspec.json.Encoder(order="sorted")


def is_object(value: Raw) -> bool:
    """Return whether it is an object."""
    return bytes(value).lstrip()[:1] == b"{"


def is_array(value: Raw) -> bool:
    """Return whether it is an array."""
    return bytes(value).lstrip()[:1] == b"["
