"""How a text file with separators is written: found out from its first lines, or said by the caller.

    separator       comma, semicolon, tab, bar or, between numbers only, blank: the one that divides the lines alike
    header          the first line, unless all of its fields are numbers and one is not whole
    row names       R's write.table gives the header one field less than the rows
    decimal comma   between other separators, where a field is '0,5' and none is '0.5'

Only how the file is written is found out here. What a column holds is not guessed from lines: columns of numbers are
those that the caller names as probabilities or weights, and everything else is text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xent.errors import ArgumentError, message
from xent.names import quoted

CALL = "score"
PEEKED_LINES = 50
SEPARATORS = (",", ";", "\t", "|")
SPELLED = {"\\t": "\t", "tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "bar": "|"}
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
WITH_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
ROW_NAMES = "row.names"


@dataclass(frozen=True)
class Dialect:
    """How a file is written."""

    separator: str = ","
    header: bool = True
    decimal_comma: bool = False
    names: tuple[str, ...] | None = None
    """The columns, where the header does not say them: there is one more, or there is none."""
    repeated: frozenset[str] = frozenset()
    """Names that several columns have."""


def checked_separator(separator: str | None) -> str | None:
    """Return a separator as one character; ArgumentError if it cannot be one."""
    if separator is None:
        return None
    found = SPELLED.get(separator, separator) if isinstance(separator, str) else ""
    if len(found) != 1 or not found.isascii() or found in '"\r\n':
        problem = f"found {quoted(separator)}, expected one character"
        raise ArgumentError(message(CALL, "separator", problem, "Pass ';' or tab, say; omit it to have it found out"))
    return found


def find_dialect(lines: Sequence[str], separator: str | None = None, header: bool | None = None) -> Dialect:
    """Return how a file with these first lines is written."""
    lines = [line for line in lines if line.strip()]
    if not lines:
        return Dialect(separator or ",", header is not False)
    lines = [lines[0].removeprefix("\ufeff"), *lines[1:]]
    if separator is None:
        separator = _separator(lines)
    rows = _fields(lines, separator)
    first, others = rows[0], rows[1:]
    numbers = [NUMBER.fullmatch(field) is not None for field in first]
    if header is None:
        header = not (all(numbers) and any(not field.strip().lstrip("+-").isdigit() for field in first))
    decimal_comma = separator != "," and _has_decimal_commas([rows[0], *others] if not header else others)
    if not header:
        names = tuple(f"column_{k + 1}" for k in range(max(len(row) for row in rows)))
        return Dialect(separator, False, decimal_comma, names)
    repeated = frozenset(name for name in first if first.count(name) > 1)
    named_rows = bool(others) and all(len(row) == len(first) + 1 and row[-1] != "" for row in others)
    names_and_rows = (ROW_NAMES, *first) if named_rows and len(set(first)) == len(first) else None
    return Dialect(separator, True, decimal_comma, names_and_rows, repeated)


def _separator(lines: Sequence[str]) -> str:
    """Return the separator that divides most lines as it divides the first, and among those into most fields."""
    candidates = []
    for separator in SEPARATORS:
        rows = _fields(lines, separator)
        width = len(rows[0])
        alike = sum(len(row) in (width, width + 1) for row in rows)
        if width > 1:
            candidates.append((alike / len(rows), width, separator))
    if candidates:
        best = max(share for share, _, _ in candidates)
        return max((c for c in candidates if c[0] == best), key=lambda c: c[1])[2]
    # One field of text and one of numbers, 'a b' and '1 0.5', is one column as likely as two.
    rows = [line.split(" ") for line in lines]
    if len(rows[0]) > 1 and all(len(row) == len(rows[0]) and all(map(NUMBER.fullmatch, row)) for row in rows):
        return " "
    return ","


def _fields(lines: Sequence[str], separator: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:  # a field of 128 kB
        return [line.split(separator) for line in lines]


def _has_decimal_commas(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a field is a number with a comma and none a number with a point."""
    fields = [field for row in rows for field in row]
    with_point = any("." in field and NUMBER.fullmatch(field) for field in fields)
    return not with_point and any(map(WITH_COMMA.fullmatch, fields))
