"""Label and field selectors: from text or a mapping to a predicate."""

from kvorum.selectors.fields import FieldSelector, FieldSelectorLike
from kvorum.selectors.labels import LabelSelector, LabelSelectorLike
from kvorum.selectors.selector import Selector

__all__ = [
    "FieldSelector",
    "FieldSelectorLike",
    "LabelSelector",
    "LabelSelectorLike",
    "Selector",
]
