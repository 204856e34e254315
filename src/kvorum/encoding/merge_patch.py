"""JSON Merge Patch (RFC 7396) on JSON text, so that untouched fields keep their exact spelling."""

import math
from collections.abc import Mapping

import msgspec
from msgspec import Raw

from kvorum.encoding.json_text import encoder, is_object, objects


def merge_patch(target: bytes, patch: Mapping[str, object]) -> bytes:
    """Return `target`, a JSON object, with `patch` applied.

    None removes a field, a mapping is merged recursively, any other value replaces the field.

    Raises:
        TypeError, ValueError: the patch contains a value that JSON cannot represent, as NaN.
    """
    return bytes(_merged(Raw(target), patch))


def _merged(target: Raw | None, patch: object) -> Raw:
    if not isinstance(patch, Mapping):
        _check_numbers(msgspec.to_builtins(patch))
        return Raw(encoder.encode(patch))
    fields = objects.decode(target) if target is not None and is_object(target) else {}
    for name, value in patch.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = _merged(fields.get(name), value)
    return Raw(encoder.encode(fields))


def _check_numbers(value: object) -> None:
    """Reject NaN and infinity, which msgspec would encode as null: and null removes a field."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON cannot represent the number {value}")
    for child in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _check_numbers(child)
