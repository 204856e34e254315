"""Declarations and checks for the fields of the lab's resources.

A rule is a value that returns problems, so that one pass finds all of them. Messages name a field
by its JSON path.
"""

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")


def written(default: T) -> T:
    """Declare a field whose default is stored, in a struct that omits defaults.

    A stored worker must not change when a later release has another default. (msgspec omits plain
    defaults, but not those from a factory.)
    """
    return msgspec.field(default_factory=lambda: default)


class Format:
    """The format of a text.

    Args:
        pattern: a regular expression for the whole text.
        meaning: the end of the sentence "… is not".
    """

    def __init__(self, pattern: str, meaning: str) -> None:
        self._pattern = re.compile(pattern)
        self._meaning = meaning

    def problems_of(self, path: str, value: str | None) -> list[str]:
        """Check the text at `path`; None has no problem."""
        if value is None or self._pattern.fullmatch(value):
            return []
        return [f"{path} {value!r} is not {self._meaning}"]


class Span(msgspec.Struct, frozen=True):
    """The numbers from `low` to `high`, both included.

    Attributes:
        low: the smallest.
        high: the largest; None if there is none.
        unit: what is counted, such as `GB`.
    """

    low: int
    high: int | None
    unit: str

    def problems_of(self, path: str, value: int | None) -> list[str]:
        """Check the number at `path`; None has no problem."""
        if value is None or (self.low <= value and (self.high is None or value <= self.high)):
            return []
        allowed = f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
        return [f"{path} is {value}; it must be {allowed} {self.unit}"]


NAME = Format(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    "a name (up to 253 lower-case letters, digits, '-' and '.', as Kubernetes has them)",
)
"""The name of another resource, or of a template."""

FAILURES = Span(0, None, "failures")
"""How often something failed."""
