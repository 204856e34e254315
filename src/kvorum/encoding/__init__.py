"""From resource to bytes and back."""

from kvorum.encoding.stored import Draft, codec_for

__all__ = [
    "Draft",
    "codec_for",
]
