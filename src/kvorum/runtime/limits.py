"""The base of all structs of limits and waits, which are options for tests and for applications."""

from collections.abc import Callable
from functools import cache
from typing import Any, get_args, get_origin

import msgspec

from kvorum.arguments import check_options, short_repr


class Limits(msgspec.Struct, frozen=True):
    """Limits and waits. A value of another type, or below 0, is a `ConfigurationError`."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_options(
            [
                _problem_of(f"{name}.{field}", type_, getattr(self, field))
                for field, type_ in _types_of(type(self))
            ]
        )


@cache
def _types_of(limits: type[Limits]) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.type) for field in msgspec.structs.fields(limits))


def _problem_of(name: str, type_: Any, value: object) -> str | None:
    if type_ is int:
        is_right, what = type(value) is int and value >= 0, "an int of 0 or more"
    elif type_ is float:
        is_right, what = _is_number(value), "a number of 0 or more"
    elif get_origin(type_) is tuple:
        size = len(get_args(type_))
        is_right = isinstance(value, tuple) and len(value) == size and all(map(_is_number, value))
        what = f"a tuple of {size} numbers of 0 or more"
    elif get_origin(type_) is Callable:
        is_right, what = callable(value), "a function"
    else:
        is_right, what = isinstance(value, type_), f"of type {type_.__name__}"
    return None if is_right else f"{name} must be {what}, not {short_repr(value)}"


def _is_number(value: object) -> bool:
    # NaN is refused, too.
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
