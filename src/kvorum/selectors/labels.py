"""Label selectors: which resources a list or watch covers, by their labels.

The grammar is Kubernetes': requirements separated by commas, all of which must hold.

    lab-track=comp-sci-101, phase in (ready, busy), zone!=b, gpu, !drain, cores>8

Source: k8s.io/apimachinery, `labels.Parse`. Two differences: `in` and `=` with one value are the
same requirement here (so are `notin` and `!=`), and a list may contain empty values anywhere, as in
`(a,,)`.
"""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple, NoReturn, Self, TypeAlias

from kvorum.errors import InvalidSelectorError
from kvorum.resources import MAX_LABEL, problems_of_label_value, problems_of_qualified_name

LabelSelectorLike: TypeAlias = "str | Mapping[str, str | Collection[str]] | LabelSelector | None"
"""Text, a mapping (`{"a": "b", "c": ["d", "e"]}`), a selector, or None for everything."""

_INT64 = range(-(2**63), 2**63)


class LabelOperator(StrEnum):
    """How a requirement relates a label to its values."""

    IN = "in"  # has the key, with one of the values
    NOT_IN = "notin"  # has none of the values, or lacks the key
    EXISTS = "exists"
    ABSENT = "absent"
    ABOVE = ">"  # has the key, with a greater integer
    BELOW = "<"


class LabelRequirement(NamedTuple):
    """One requirement of a label selector.

    Selectors create and check them; an index can read them to answer a selector.

    Attributes:
        key: the key of the label.
        operator: how the label relates to the values.
        values: sorted and unique; at least one for IN and NOT_IN, one integer for ABOVE and BELOW,
            otherwise empty.
    """

    key: str
    operator: LabelOperator
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = ",".join(self.values)
        match self.operator:
            case LabelOperator.EXISTS:
                return self.key
            case LabelOperator.ABSENT:
                return f"!{self.key}"
            case LabelOperator.IN | LabelOperator.NOT_IN if len(self.values) > 1:
                return f"{self.key} {self.operator} ({values})"
            case LabelOperator.IN:
                return f"{self.key}={values}"
            case LabelOperator.NOT_IN:
                return f"{self.key}!={values}"
            case LabelOperator.ABOVE | LabelOperator.BELOW:
                return f"{self.key}{self.operator}{values}"


class LabelSelector:
    """A predicate on labels: a resource is selected if its labels meet all the requirements.

    Immutable. Two selectors are equal if their requirements are, in any order and spelling. `str()`
    gives the canonical text, which parses to an equal selector. Combine selectors with `&`.

    Attributes:
        requirements: sorted and unique.
    """

    __slots__ = ("_tests", "requirements")

    requirements: Final[tuple[LabelRequirement, ...]]

    def __init__(self, requirements: Iterable[LabelRequirement] = ()) -> None:
        self.requirements = tuple(sorted(set(requirements)))
        self._tests = tuple(_compiled(requirement) for requirement in self.requirements)

    @classmethod
    def of(cls, value: LabelSelectorLike) -> "LabelSelector":
        """Make a selector of text, a mapping, a selector (returned unchanged), or None.

        A mapping requires equality, or one of several values where the value is a collection. None
        as a *value* is rejected: it could mean "no such label" or "any", and usually is a variable
        that was never set.

        Raises:
            InvalidSelectorError: it is none of these, or breaks the grammar. For a mapping the
                error's selector is the `repr` of the item, its position 0.
        """
        match value:
            case None:
                return cls()
            case LabelSelector():
                return value
            case str():
                return cls.parse(value)
            case Mapping():
                return cls(_mapped(key, accepted) for key, accepted in value.items())
            case _:
                raise InvalidSelectorError(
                    repr(value), 0, "expected text, a mapping or a LabelSelector"
                )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a selector; the empty text selects everything.

        Raises:
            InvalidSelectorError: the text breaks the grammar, or a key or value is not valid for a
                label.
        """
        return cls(_Parser(text).requirements())

    @classmethod
    def one_of(cls, key: str, *values: str) -> Self:
        """Select resources that have the label with one of the values: `key in (values)`."""
        return cls([_checked(key, LabelOperator.IN, values)])

    @classmethod
    def none_of(cls, key: str, *values: str) -> Self:
        """Select resources with none of the values, or without the label: `key notin (values)`."""
        return cls([_checked(key, LabelOperator.NOT_IN, values)])

    @classmethod
    def exists(cls, key: str) -> Self:
        """Select resources that have the label, with any value: `key`."""
        return cls([_checked(key, LabelOperator.EXISTS)])

    @classmethod
    def absent(cls, key: str) -> Self:
        """Select resources without the label: `!key`."""
        return cls([_checked(key, LabelOperator.ABSENT)])

    @classmethod
    def above(cls, key: str, bound: int) -> Self:
        """Select resources whose label is an integer above `bound` (0 or more): `key>bound`."""
        return cls([_checked(key, LabelOperator.ABOVE, (str(bound),))])

    @classmethod
    def below(cls, key: str, bound: int) -> Self:
        """Select resources whose label is an integer below `bound` (0 or more): `key<bound`."""
        return cls([_checked(key, LabelOperator.BELOW, (str(bound),))])

    @property
    def is_everything(self) -> bool:
        """Whether it has no requirement, and so selects everything."""
        return not self.requirements

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether these labels meet all the requirements."""
        value_of = labels.get
        # Not all(): it takes twice the time, and one list may ask 20,000 times.
        for key, values, wanted in self._tests:  # noqa: SIM110
            if (value_of(key) in values) is not wanted:
                return False
        return True

    def __and__(self, other: "LabelSelector") -> "LabelSelector":
        return LabelSelector(self.requirements + other.requirements)

    def __eq__(self, other: object) -> bool:
        return (
            self.requirements == other.requirements
            if isinstance(other, LabelSelector)
            else NotImplemented
        )

    def __hash__(self) -> int:
        return hash(self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))

    def __repr__(self) -> str:
        return f"<LabelSelector {str(self)!r}>"


# --- matching -------------------------------------------------------------------------------------

_Test: TypeAlias = tuple[str, Container[object], bool]


class _Integers:
    """The texts of all integers in a range, as a container."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def __contains__(self, text: object) -> bool:
        number = _integer(text) if isinstance(text, str) else None
        return number is not None and number in self._numbers


def _compiled(requirement: LabelRequirement) -> _Test:
    """Reduce a requirement to (key, container, wanted): is the value, or None, in the container?"""
    key, operator, values = requirement
    match operator:
        case LabelOperator.IN | LabelOperator.NOT_IN:
            return key, frozenset(values), operator is LabelOperator.IN
        case LabelOperator.EXISTS | LabelOperator.ABSENT:
            return key, frozenset({None}), operator is LabelOperator.ABSENT
        case LabelOperator.ABOVE:
            return key, _Integers(range(int(values[0]) + 1, _INT64.stop)), True
        case LabelOperator.BELOW:
            return key, _Integers(range(_INT64.start, int(values[0]))), True


def _integer(text: str) -> int | None:
    """Parse a decimal integer of 64 bits like Go's ParseInt.

    `int` alone would also accept `1_000` and digits of other scripts.
    """
    digits = text[1:] if text.startswith(("+", "-")) else text
    if len(text) > MAX_LABEL or not (digits.isascii() and digits.isdigit()):
        return None
    number = int(text)
    return number if number in _INT64 else None


# --- checking -------------------------------------------------------------------------------------


def _problem_of_key(key: object) -> str:
    if not isinstance(key, str):
        return f"expected a label key, found {key!r}"
    return "; ".join(problems_of_qualified_name(key, "the key"))


def _problem_of_value(value: object, operator: LabelOperator) -> str:
    if not isinstance(value, str):
        return f"expected a label value, found {value!r}"
    problems = problems_of_label_value(value, "the value")
    if (
        not problems
        and operator in {LabelOperator.ABOVE, LabelOperator.BELOW}
        and _integer(value) is None
    ):
        return (
            f"expected an integer of 64 bits, found {value!r}" if value else "expected an integer"
        )
    return "; ".join(problems)


def _normalized(key: str, operator: LabelOperator, values: Iterable[str]) -> LabelRequirement:
    if operator in {LabelOperator.ABOVE, LabelOperator.BELOW}:
        values = (str(int(value)) for value in values)
    text_of = str.__str__  # members of string enums become plain text
    return LabelRequirement(
        text_of(key), operator, tuple(sorted({text_of(value) for value in values}))
    )


def _checked(
    key: str, operator: LabelOperator, values: Collection[str] = (), *, item: object = None
) -> LabelRequirement:
    """Make a requirement of Python values; `_Parser` checks those of a text."""
    problems = [_problem_of_key(key), *(_problem_of_value(value, operator) for value in values)]
    if operator in {LabelOperator.IN, LabelOperator.NOT_IN} and not values:
        problems.append("expected at least one value")
    for problem in filter(None, problems):
        raise InvalidSelectorError(repr(item or (key, *values)), 0, problem)
    return _normalized(key, operator, values)


def _mapped(key: str, accepted: object) -> LabelRequirement:
    item = {key: accepted}
    if isinstance(accepted, str):
        return _checked(key, LabelOperator.IN, (accepted,), item=item)
    if isinstance(accepted, Collection) and not isinstance(accepted, Mapping):
        return _checked(key, LabelOperator.IN, accepted, item=item)
    raise InvalidSelectorError(repr(item), 0, "expected a label value or a collection of them")


# --- parsing --------------------------------------------------------------------------------------

_SPACE = " \t\r\n"
_SYMBOLS = ("==", "!=", "=", "!", "<", ">", "(", ")", ",")  # the longest first
_DELIMITERS = frozenset(_SPACE).union(*_SYMBOLS)

_OPERATORS = {
    "=": LabelOperator.IN,
    "==": LabelOperator.IN,
    "!=": LabelOperator.NOT_IN,
    "in": LabelOperator.IN,
    "notin": LabelOperator.NOT_IN,
    ">": LabelOperator.ABOVE,
    "<": LabelOperator.BELOW,
}


class _Token(NamedTuple):
    """A symbol, a word, or (as the empty text) the end.

    `in` and `notin` are words, since labels may have these names.
    """

    text: str
    position: int
    is_word: bool = False


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        if text[position] in _SPACE:
            position += 1
            continue
        symbol = next((symbol for symbol in _SYMBOLS if text.startswith(symbol, position)), "")
        end = position + len(symbol) if symbol else _end_of_word(text, position)
        yield _Token(text[position:end], position, is_word=not symbol)
        position = end
    yield _Token("", len(text))


def _end_of_word(text: str, start: int) -> int:
    return next(
        (position for position in range(start, len(text)) if text[position] in _DELIMITERS),
        len(text),
    )


class _Parser:
    """A recursive descent parser with one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = next(self._tokens)

    def requirements(self) -> Iterator[LabelRequirement]:
        if self._is_at(""):
            return
        yield self._requirement()
        while not self._is_at(""):
            self._take(",", expected="',' or the end")
            yield self._requirement()

    def _requirement(self) -> LabelRequirement:
        if self._is_at("!"):
            self._advance()
            return LabelRequirement(self._key("a label key"), LabelOperator.ABSENT)
        key = self._key("a label key or '!'")
        if self._is_at(",", ""):
            return LabelRequirement(key, LabelOperator.EXISTS)
        word = self._next.text
        operator = _OPERATORS.get(word)
        if operator is None:
            self._fail("'=', '==', '!=', 'in', 'notin', '<', '>', ',' or the end")
        self._advance()
        values = (
            self._values(operator)
            if word in {"in", "notin"}
            else [self._value(operator, "a label value")]
        )
        return _normalized(key, operator, values)

    def _key(self, expected: str) -> str:
        if not self._next.is_word:
            self._fail(expected)
        self._refuse(_problem_of_key(self._next.text))
        return self._advance().text

    def _values(self, operator: LabelOperator) -> Iterator[str]:
        self._take("(", expected="'('")
        yield self._value(operator, "a label value, ',' or ')'")
        while not self._is_at(")"):
            self._take(",", expected="',' or ')'")
            yield self._value(operator, "a label value, ',' or ')'")
        self._advance()

    def _value(self, operator: LabelOperator, expected: str) -> str:
        if self._next.is_word:
            self._refuse(_problem_of_value(self._next.text, operator))
            return self._advance().text
        if not self._is_at(",", ")", ""):  # one of these ends a value, so this value is empty
            self._fail(expected)
        self._refuse(_problem_of_value("", operator))
        return ""

    def _is_at(self, *symbols: str) -> bool:
        return self._next.text in symbols

    def _advance(self) -> _Token:
        token = self._next
        self._next = next(self._tokens, token)
        return token

    def _take(self, symbol: str, *, expected: str) -> None:
        if not self._is_at(symbol):
            self._fail(expected)
        self._advance()

    def _fail(self, expected: str) -> NoReturn:
        found = repr(self._next.text) if self._next.text else "the end"
        raise InvalidSelectorError(
            self._text, self._next.position, f"expected {expected}, found {found}"
        )

    def _refuse(self, problem: str) -> None:
        if problem:
            raise InvalidSelectorError(self._text, self._next.position, problem)
