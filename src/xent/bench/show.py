"""A record on the terminal, as Rich tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from xent.bench.peers import OURS, REUSED


def tables(record: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each case: the implementations, their times, and their ratios to ours and to a copy."""
    for case in record["cases"]:
        size = " x ".join(str(length) for length in case["size"])
        title = f"{case['shape']}: {size} {case['dtype']}, {record['threads']} threads, {case['rounds']} rounds, ms"
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("implementation", no_wrap=True)
        for head in ("forward + backward", "forward"):
            table.add_column(head, justify="right")
        for head in (f"over {OURS}", "over a copy"):
            table.add_column(head, justify="right", no_wrap=True)
        for entry in case["contestants"]:
            if not entry["not_available"]:
                style = "bold" if entry["role"] == "ours" else None
                table.add_row(entry["name"], *_cells(case, entry), style=style)
        absent = [f"{c['name']}: {c['not_available']}" for c in case["contestants"] if c["not_available"]]
        table.caption, table.caption_justify = "\n".join(absent) or None, "left"
        yield table


def disturbed(record: Mapping[str, Any], most: float = 0.05) -> list[str]:
    """A sentence for each case during which other processes used more than this share of the processor."""
    return [
        f"{case['shape']} {case['dtype']}: other processes used {case['share_of_others']:.0%} of the processor"
        for case in record["cases"]
        if (case["share_of_others"] or 0) > most
    ]


def ratio_of(case: Mapping[str, Any], measure: str, numerator: str, denominator: str) -> Mapping[str, Any] | None:
    """The ratio of two implementations in a case, if it was measured."""
    names = (measure, numerator, denominator)
    return next((r for r in case["ratios"] if (r["measure"], r["numerator"], r["denominator"]) == names), None)


def number(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> number(0.012345), number(1.5), number(250.4), number(12345.6)
    ('0.0123', '1.50', '250', '12346')
    """
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _cells(case: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str | Text]:
    seconds = entry["seconds"]
    if entry["role"] == "limit":
        return [_milliseconds(seconds["copy"]), "", "", ""]
    times = [_milliseconds(seconds.get(measure)) for measure in ("forward_backward", "forward")]
    measure = "forward_backward" if "forward_backward" in seconds else "forward"
    return [*times, *[_over(case, measure, entry["name"], base) for base in (OURS, REUSED)]]


def _milliseconds(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else number(1e3 * spread["median"])


def _over(case: Mapping[str, Any], measure: str, numerator: str, denominator: str) -> str | Text:
    ratio = ratio_of(case, measure, numerator, denominator)
    if ratio is None:
        return ""
    quartiles = f" ({number(ratio['low'])}–{number(ratio['high'])})" if denominator == OURS else ""
    return Text.assemble(number(ratio["median"]), (quartiles, "dim"))
