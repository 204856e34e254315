"""The encoding of resources as bytes."""

from kvorum.encoding.stored import Codec, Draft, codec_for

__all__ = [
    "Codec",
    "Draft",
    "codec_for",
]
