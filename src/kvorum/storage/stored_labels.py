"""The labels in the stored bytes of a resource: all that a filter needs, at a part of the cost."""

from collections.abc import Mapping

import msgspec


class _Metadata(msgspec.Struct, gc=False):
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class _Labelled(msgspec.Struct, gc=False):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_decoder = msgspec.json.Decoder(_Labelled)


def labels_of(value: bytes) -> Mapping[str, str] | None:
    """Return the labels of a resource; None if the value is not a resource, so has no labels."""
    try:
        return _decoder.decode(value).metadata.labels
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
