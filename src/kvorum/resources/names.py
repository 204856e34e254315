"""What may be a name: the rules of Kubernetes, checked before anything is sent.

Every function returns the problems that it found, as sentences, and an empty list if there are
none; so a caller can collect all of them before it raises.

Source: Kubernetes, "Object Names and IDs" and "Labels and Selectors" (syntax and character set).
"""

import re
from functools import lru_cache

from kvorum.arguments import shown

MAX_SUBDOMAIN = 253
MAX_LABEL = 63

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_RULE = f"letters, digits, '-', '_' and '.', starting and ending with a letter or digit, at most {MAX_LABEL} characters"
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def problems_of_subdomain(value: object, what: str = "name") -> list[str]:
    """Check a DNS-1123 subdomain.

    Lower case letters, digits, `-` and `.`, at most 253 characters.
    """
    if not isinstance(value, str):
        return [f"{what} must be text, not {shown(value)}"]
    if is_subdomain(value):
        return []
    if len(value) > MAX_SUBDOMAIN:
        return [f"{what} has {len(value)} characters, at most {MAX_SUBDOMAIN} are allowed"]
    rule = "lower case letters, digits, '-' and '.', each part starting and ending with a letter or digit"
    return [f"{what} {value!r} is not a DNS-1123 subdomain: {rule}"]


@lru_cache(maxsize=4096)  # the names of resources that are in use are asked about with each call
def is_subdomain(value: str) -> bool:
    """Tell whether this is a DNS-1123 subdomain."""
    return len(value) <= MAX_SUBDOMAIN and _SUBDOMAIN.fullmatch(value) is not None


def problems_of_label(value: object, what: str = "namespace") -> list[str]:
    """Check a DNS-1123 label: lower case letters, digits and `-`, at most 63 characters."""
    if not isinstance(value, str):
        return [f"{what} must be text, not {shown(value)}"]
    if len(value) > MAX_LABEL:
        return [f"{what} has {len(value)} characters, at most {MAX_LABEL} are allowed"]
    if not _LABEL.fullmatch(value):
        rule = "lower case letters, digits and '-', starting and ending with a letter or digit"
        return [f"{what} {value!r} is not a DNS-1123 label: {rule}"]
    return []


def problems_of_qualified_name(value: object, what: str) -> list[str]:
    """Check `name` or `prefix/name`, as the keys of labels and annotations and the names of finalizers are."""
    if not isinstance(value, str):
        return [f"{what} must be text, not {shown(value)}"]
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
    """Tell whether this can be the value of a label."""
    return not value or (len(value) <= MAX_LABEL and _is_qualified(value))


@lru_cache(
    maxsize=4096
)  # each write asks about all labels of a resource, and most are the same as ever
def _is_qualified(value: str) -> bool:
    return _QUALIFIED.fullmatch(value) is not None
