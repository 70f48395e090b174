"""What a notebook shows for the `Record` of the experiment: each measure of both losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xent.markup import number, table
from xent.names import shown_name


def record_html(record: Mapping[str, Any]) -> str:
    """Return the table of comparisons, from `Record.to_dict`."""
    data, seeds = record["data"], len(record["settings"]["seeds"])
    rows = []
    for c in record["comparisons"]:
        winner = c["winner"] if c["clear"] or c["winner"] == "tie" else f"{c['winner']} *"
        spreads = [_spread(c[loss]) for loss in ("cross_entropy", "squared_error")]
        rows.append([f"{c['start']} start", c["model"], f"{c['measure']} ({c['unit']})", winner, *spreads])
    head = ["start", "model", "measure", "better", "cross-entropy", "squared error"]
    caption = f"{shown_name(data['name'])}, {data['rows']:,} rows"
    note = f"<p>Median (range) of {seeds:,} seeds. * the ranges over the seeds touch.</p>"
    return table(caption, head, rows, texts=4) + note


def _spread(spread: Mapping[str, Any]) -> str:
    """A level that was not reached is infinite, which a record has as None."""
    median, low, high = (
        "never" if spread[name] is None else number(spread[name]) for name in ("median", "low", "high")
    )
    return median if low == high else f"{median} ({low}–{high})"
