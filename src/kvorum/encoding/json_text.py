"""Values as JSON text: told apart by their first byte, and taken apart by one level."""

from typing import Final

import msgspec
from msgspec import Raw

objects: Final[msgspec.json.Decoder[dict[str, Raw]]] = msgspec.json.Decoder(dict[str, Raw])
arrays: Final[msgspec.json.Decoder[list[Raw]]] = msgspec.json.Decoder(list[Raw])
encoder: Final[msgspec.json.Encoder] = msgspec.json.Encoder(order="sorted")


def is_object(value: Raw) -> bool:
    """Return whether it is an object."""
    return bytes(value).lstrip()[:1] == b"{"


def is_array(value: Raw) -> bool:
    """Return whether it is an array."""
    return bytes(value).lstrip()[:1] == b"["
