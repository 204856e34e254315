"""The labels in the stored bytes of a resource, without the rest.

All that a filter needs, for a part of the cost.
"""

from collections.abc import Mapping

import msgspec


class _Metadata(msgspec.Struct, gc=False):
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class _Labelled(msgspec.Struct, gc=False):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_decoder = msgspec.json.Decoder(_Labelled)


def labels_of(value: bytes) -> Mapping[str, str] | None:
    """Return the labels of a resource.

    None if they cannot be read, since the value is no resource at all.
    """
    try:
        return _decoder.decode(value).metadata.labels
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
