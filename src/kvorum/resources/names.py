"""The rules of Kubernetes for names, checked before anything is sent.

Every function returns the problems it found, as sentences, or an empty list; so a caller can
collect all problems before it raises.

Source: Kubernetes, "Object Names and IDs" and "Labels and Selectors" (syntax and character set).
"""

import re
from functools import lru_cache

from kvorum.arguments import short_repr

MAX_SUBDOMAIN = 253
MAX_LABEL = 63

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_RULE = (
    "letters, digits, '-', '_' and '.', starting and ending with a letter or digit, "
    f"at most {MAX_LABEL} characters"
)
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def problems_of_subdomain(value: object, what: str = "name") -> list[str]:
    """Check a DNS-1123 subdomain.

    Lower case letters, digits, `-` and `.`, at most 253 characters.
    """
    if not isinstance(value, str):
        return [f"{what} must be text, not {short_repr(value)}"]
    if is_subdomain(value):
        return []
    if len(value) > MAX_SUBDOMAIN:
        return [f"{what} has {len(value)} characters, at most {MAX_SUBDOMAIN} are allowed"]
    rule = "lower case letters, digits, '-' and '.'"
    ends = "each part starting and ending with a letter or digit"
    return [f"{what} {value!r} is not a DNS-1123 subdomain: {rule}, {ends}"]


@lru_cache(maxsize=4096)  # every call checks a name, and most names recur
def is_subdomain(value: str) -> bool:
    """Return whether a text is a DNS-1123 subdomain."""
    return len(value) <= MAX_SUBDOMAIN and _SUBDOMAIN.fullmatch(value) is not None


def problems_of_label(value: object, what: str = "namespace") -> list[str]:
    """Check a DNS-1123 label: lower case letters, digits and `-`, at most 63 characters."""
    if not isinstance(value, str):
        return [f"{what} must be text, not {short_repr(value)}"]
    if len(value) > MAX_LABEL:
        return [f"{what} has {len(value)} characters, at most {MAX_LABEL} are allowed"]
    if not _LABEL.fullmatch(value):
        rule = "lower case letters, digits and '-', starting and ending with a letter or digit"
        return [f"{what} {value!r} is not a DNS-1123 label: {rule}"]
    return []


def problems_of_qualified_name(value: object, what: str) -> list[str]:
    """Check `name` or `prefix/name`: the keys of labels and annotations, and finalizers."""
    if not isinstance(value, str):
        return [f"{what} must be text, not {short_repr(value)}"]
    if value and is_label_value(value):  # most have no prefix
        return []
    prefix, slash, name = value.rpartition("/")
    problems = problems_of_subdomain(prefix, f"the prefix of {what}") if slash else []
    if not name or not is_label_value(name):
        problems.append(
            f"{what} {value!r} is not a qualified name: {_RULE} after an optional prefix and '/'"
        )
    return problems


def problems_of_label_value(value: str, what: str) -> list[str]:
    """Check the value of a label: empty, or like a qualified name without a prefix."""
    return [] if is_label_value(value) else [f"{what} {value!r} is not a label value: {_RULE}"]


def is_label_value(value: str) -> bool:
    """Return whether this can be the value of a label."""
    return not value or (len(value) <= MAX_LABEL and _is_qualified(value))


@lru_cache(maxsize=4096)  # each write checks all labels of a resource, and most values recur
def _is_qualified(value: str) -> bool:
    return _QUALIFIED.fullmatch(value) is not None
