"""How the fields of the lab's resources are declared and checked.

A rule is a value; to check is to ask it for problems, so that one pass finds all of them. A field
is named by its path in the JSON: that is where whoever wrote it will look.
"""

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")


def written(default: T) -> T:
    """Declare a field whose default is written out, in a struct that omits defaults.

    A stored worker must not change when a later release chooses another default. (msgspec omits
    plain defaults, not those that a function makes.)
    """
    return msgspec.field(default_factory=lambda: default)


class Format:
    """What a text must look like.

    Args:
        pattern: a regular expression for the whole text.
        meaning: what such a text is, to end the sentence "… is not".
    """

    def __init__(self, pattern: str, meaning: str) -> None:
        self._pattern = re.compile(pattern)
        self._meaning = meaning

    def problems_of(self, path: str, value: str | None) -> list[str]:
        """Check the text at `path`; None is no text, and no problem."""
        if value is None or self._pattern.fullmatch(value):
            return []
        return [f"{path} {value!r} is not {self._meaning}"]


class Span(msgspec.Struct, frozen=True):
    """The numbers from `low` to `high`, both included.

    Attributes:
        low: the smallest.
        high: the largest; None if there is none.
        unit: what is counted, as `GB`.
    """

    low: int
    high: int | None
    unit: str

    def problems_of(self, path: str, value: int | None) -> list[str]:
        """Check the number at `path`; None is no number, and no problem."""
        if value is None or (self.low <= value and (self.high is None or value <= self.high)):
            return []
        allowed = f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
        return [f"{path} is {value}; it must be {allowed} {self.unit}"]


NAME = Format(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    "a name (up to 253 lower-case letters, digits, '-' and '.', as Kubernetes has them)",
)
"""What another resource, or a template, is called."""

FAILURES = Span(0, None, "failures")
"""How often something failed."""
