"""A label selector and a field selector together: which resources a list or watch covers."""

from typing import Generic, TypeVar

from kvorum.resources import AnyResource
from kvorum.selectors.fields import FieldSelector, FieldSelectorLike
from kvorum.selectors.labels import LabelSelector, LabelSelectorLike

R = TypeVar("R", bound=AnyResource)


class Selector(Generic[R]):
    """A predicate on the resources of one class.

    Raises:
        InvalidSelectorError: a selector cannot be parsed, or names a field that the class lacks.
    """

    def __init__(
        self, resource_type: type[R], labels: LabelSelectorLike, fields: FieldSelectorLike
    ) -> None:
        self.labels: LabelSelector = LabelSelector.of(labels)
        self.fields: FieldSelector = FieldSelector.of(fields, resource_type)
        self.is_everything: bool = self.labels.is_everything and self.fields.is_everything

    def matches(self, resource: R) -> bool:
        """Return whether both selectors match."""
        if self.is_everything:
            return True
        return self.labels.matches(resource.metadata.labels) and self.fields.matches(resource)
