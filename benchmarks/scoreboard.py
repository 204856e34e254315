"""The results: a table for each operation, in Markdown, ready for the documentation."""

from collections.abc import Mapping, Sequence

from benchmarks.contenders import NAMES
from benchmarks.race import Result

BASELINE = "aetcd"  # the reference for all others


class Scoreboard:
    """The results of all races of a run.

    Attributes:
        header: the common conditions: the server, the machine, the size of the values.
    """

    def __init__(self) -> None:
        self.header: str = ""
        self._tables: dict[str, dict[str, Mapping[str, Result]]] = {}

    def __bool__(self) -> bool:
        return bool(self._tables)

    def add(self, operation: str, column: str, results: Mapping[str, Result]) -> None:
        self._tables.setdefault(operation, {})[column] = results

    def lines(self) -> list[str]:
        """Return all tables in alphabetical order; columns are ordered by their leading number.

        A dash marks what a contender does not support.
        """
        lines = [
            self.header,
            "each cell: calls per second, ratio to aetcd, and p50 / p99 of single calls",
        ]
        for operation, columns in sorted(self._tables.items()):
            ordered = dict(sorted(columns.items(), key=lambda each: _place(each[0])))
            lines += ["", *_table(operation, ordered)]
        return lines


def _place(column: str) -> tuple[int, str]:
    digits = column.split(maxsplit=1)[0].replace(",", "")
    return (int(digits) if digits.isdigit() else 0, column)


def _table(operation: str, columns: Mapping[str, Mapping[str, Result]]) -> list[str]:
    names = list(
        dict.fromkeys([*NAMES, *(name for results in columns.values() for name in results)])
    )
    rows = [[operation, *columns]]
    rows += [[name, *(_cell(name, results) for results in columns.values())] for name in names]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    head, *body = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return [head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body]


def _cell(name: str, results: Mapping[str, Result]) -> str:
    result = results.get(name)
    if result is None:
        return "-"
    parts: Sequence[str] = [f"{result.rate:,.0f}/s"]
    if BASELINE in results:
        parts = [*parts, f"{result.ratio_to(results[BASELINE]):.2f}x"]
    if result.has_latencies:
        parts = [*parts, f"{result.latency(50) * 1e3:.2f} / {result.latency(99) * 1e3:.2f} ms"]
    return ", ".join(parts)
