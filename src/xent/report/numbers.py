"""Formatting of numbers in the reports: one function per kind of quantity. None stands for a missing number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

MINUS = "\N{MINUS SIGN}"
NOT_REACHED = "not reached"


def percent(share: float | None, digits: int = 1) -> str:
    """0.957 as 95.7%."""
    return "none" if share is None else f"{share:.{digits}%}"


def count(number: float | None) -> str:
    """A count with thousands separators; the median of an even number of counts may end in .5."""
    return NOT_REACHED if number is None else f"{number:,g}" if number < 1e6 else f"{number:,.0f}"


def significant(number: float | None, digits: int = 3) -> str:
    """Three significant digits; very large and very small numbers as 1.2e-9."""
    if number is None or not math.isfinite(number):
        return "infinite"
    if number == 0 or 1e-4 <= abs(number) < 1e6:
        places = digits - 1 - (math.floor(math.log10(abs(number))) if number else 0)
        return f"{number:,.{max(places, 0)}f}".replace("-", MINUS)
    return f"{number:.{digits - 1}e}".replace("-", MINUS)


def scientific(number: float | str | None, digits: int = 3) -> Markup:
    """A number with a power of ten; as text it may exceed the range of a float, such as 1.04e-1817."""
    if number is None:
        return Markup("infinite")
    text = number if isinstance(number, str) else f"{number:.{digits - 1}e}"
    parts = re.fullmatch(r"([\d.]+)e([+-]?\d+)", text)
    if not parts:
        return escape(text)
    exponent = str(int(parts[2])).replace("-", MINUS)
    mantissa = f"{float(parts[1]):.{digits - 1}f}"
    return Markup("{}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10<sup>{}</sup>").format(mantissa, exponent)


def magnitude(number: float | None) -> Markup | str:
    """Plain digits, or a power of ten for numbers that would be hard to read."""
    if number is not None and math.isfinite(number) and number != 0 and not 1e-3 <= abs(number) < 1e6:
        return scientific(number)
    return significant(number)


def listed(items: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = list(items)
    return f"{', '.join(most)} and {last}" if most else last


def plural(number: int, noun: str, plural_noun: str | None = None) -> str:
    """1 seed, 5 seeds."""
    return f"{count(number)} {noun if number == 1 else plural_noun or noun + 's'}"


def rounded(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Round the data of a chart, to save bytes; infinite numbers and NaN become null."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{digits}g}") for v in values]


def median(values: Sequence[float | None], worst: float = math.inf) -> float | None:
    """The median, with None (a level not reached) counted as the worst; None if that is the median."""
    ordered = sorted(worst if v is None else v for v in values)
    if not ordered:
        return None
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return middle if math.isfinite(middle) else None
