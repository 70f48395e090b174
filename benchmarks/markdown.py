"""Markdown tables, their cells, and the markers in a document between which a table is replaced:

<!-- table: NAME -->
...
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from xent.errors import DataError

_MARKED = re.compile(r"(<!-- table: (?P<name>[^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fill(text: str, names: Collection[str], make: Callable[[str], str]) -> str:
    """The text with every marked table made anew; DataError if a marker has another name, or is not closed."""
    opened = re.findall(r"<!-- table: ([^>]*?) -->", text)
    closed = [match["name"] for match in _MARKED.finditer(text)]
    for name in opened:
        if name not in names:
            raise DataError(f"<!-- table: {name} --> names no table. Take one of {', '.join(names)}.")
        if name not in closed:
            raise DataError(f"<!-- table: {name} --> is not closed. Put <!-- end --> on a line after it.")
    return _MARKED.sub(lambda match: f"{match[1]}{make(match['name'])}\n{match[4]}", text)


def table(head: list[str], rows: Iterable[Iterable[str | None]], left: int) -> str:
    """A Markdown table; the first columns are aligned to the left, the rest to the right."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    lines = [head, rule, *[[cell or "" for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def without_repetition(rows: list[list[str]], columns: int) -> list[list[str]]:
    """The rows with the first columns empty where they repeat those of the row above."""
    shown, above = [], [""] * columns
    for row in rows:
        same = row[:columns] == above
        shown.append([*([""] * columns if same else row[:columns]), *row[columns:]])
        above = row[:columns]
    return shown


def megabytes(count: int | None) -> str:
    """Bytes as megabytes with one decimal."""
    return "" if count is None else f"{count / 1e6:.1f}"
