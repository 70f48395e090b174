"""A record on the terminal, as Rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from xent.benchmark.peers import OURS, REUSED
from xent.benchmark.tables import number


def tables(record: Mapping[str, Any]) -> Iterator[Table]:
    """One table for each case: the contestants, their times, and how they compare with ours and with a copy."""
    for case in record["cases"]:
        size = " x ".join(str(length) for length in case["size"])
        title = f"{case['shape']}: {size} {case['dtype']}, {record['threads']} threads, {case['rounds']} rounds, ms"
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("contestant", no_wrap=True)
        for head in ("forward + backward", "forward"):
            table.add_column(head, justify="right")
        for head in (f"over {OURS}", "over a copy"):
            table.add_column(head, justify="right", no_wrap=True)
        for contestant in case["contestants"]:
            if not contestant["not_available"]:
                style = "bold" if contestant["role"] == "ours" else None
                table.add_row(contestant["name"], *_cells(case, contestant), style=style)
        absent = [f"{c['name']}: {c['not_available']}" for c in case["contestants"] if c["not_available"]]
        table.caption, table.caption_justify = escape("\n".join(absent)) or None, "left"
        yield table


def missed(record: Mapping[str, Any]) -> list[str]:
    """The bars that this record does not reach, a sentence each."""
    return [
        f"{case['shape']} {case['dtype']}, {bar['measure'].replace('_', ' + ')} against {bar['against']}: "
        f"{number(bar['median'])}, required {bar['kind']} {bar['bound']:g}"
        for case in record["cases"]
        for bar in case["bars"]
        if not bar["met"]
    ]


def disturbed(record: Mapping[str, Any], most: float = 0.05) -> list[str]:
    """The cases during which other processes used more than this share of the processor, a sentence each."""
    return [
        f"{case['shape']} {case['dtype']}: other processes used {case['share_of_others']:.0%} of the processor"
        for case in record["cases"]
        if (case["share_of_others"] or 0) > most
    ]


def _cells(case: Mapping[str, Any], contestant: Mapping[str, Any]) -> list[str]:
    seconds = contestant["seconds"]
    if contestant["role"] == "limit":
        return [_milliseconds(seconds["copy"]), "", "", ""]
    times = [_milliseconds(seconds.get(measure)) for measure in ("forward_backward", "forward")]
    measure = "forward_backward" if "forward_backward" in seconds else "forward"
    return [*times, *[_over(case, measure, contestant["name"], base) for base in (OURS, REUSED)]]


def _milliseconds(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else number(1e3 * spread["median"])


def _over(case: Mapping[str, Any], measure: str, numerator: str, denominator: str) -> str:
    for ratio in case["ratios"]:
        if (ratio["measure"], ratio["numerator"], ratio["denominator"]) == (measure, numerator, denominator):
            quartiles = f" [dim]({number(ratio['low'])}–{number(ratio['high'])})[/]" if denominator == OURS else ""
            return number(ratio["median"]) + quartiles
    return ""
