"""A label selector and a field selector together: which resources a list or watch covers."""

from typing import Generic, TypeVar

from kvorum.resources import AnyResource
from kvorum.selectors.fields import FieldSelector, FieldSelectorLike
from kvorum.selectors.labels import LabelSelector, LabelSelectorLike

R = TypeVar("R", bound=AnyResource)


class Selector(Generic[R]):
    """The selectors of a list or watch, parsed for one class. A resource must match both.

    Raises:
        InvalidSelectorError: a selector cannot be parsed, or names a field that the class lacks.
    """

    def __init__(
        self, resource_type: type[R], labels: LabelSelectorLike, fields: FieldSelectorLike
    ) -> None:
        self.labels: LabelSelector = LabelSelector.of(labels)
        self.fields: FieldSelector = FieldSelector.of(fields, resource_type)
        self.is_everything: bool = self.labels.is_everything and self.fields.is_everything
