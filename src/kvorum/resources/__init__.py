"""Resources: metadata, kinds, names and keys."""

from kvorum.resources.keys import kind_prefix, prefix_end, resource_key, split_key, stray_key
from kvorum.resources.model import (
    AnyResource,
    Condition,
    Kind,
    Metadata,
    Resource,
    Stored,
    set_condition,
)
from kvorum.resources.names import (
    MAX_LABEL,
    is_label_value,
    is_subdomain,
    problems_of_label,
    problems_of_label_value,
    problems_of_qualified_name,
    problems_of_subdomain,
)

__all__ = [
    "MAX_LABEL",
    "AnyResource",
    "Condition",
    "Kind",
    "Metadata",
    "Resource",
    "Stored",
    "is_label_value",
    "is_subdomain",
    "kind_prefix",
    "prefix_end",
    "problems_of_label",
    "problems_of_label_value",
    "problems_of_qualified_name",
    "problems_of_subdomain",
    "resource_key",
    "set_condition",
    "split_key",
    "stray_key",
]
