"""Which classes are taken for which, in the report of `xent score`: a chart, and the commonest mistakes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import altair as alt

from xent.names import shown_name
from xent.report.numbers import percent, rounded
from xent.report.theme import CROSS_ENTROPY, INK, SQUARED_ERROR, Layers, finished, layered, rows, tooltips

MOST_DRAWN = 30
"""Classes; more would be smaller than a fingertip."""
MOST_WRITTEN = 12
MOST_MISTAKES = 10


def confusion_chart(record: Mapping[str, Any]) -> Layers | None:
    """Return the matrix as shares of each label's rows; None without a matrix, and for too many classes."""
    matrix = record.get("confusion") or []
    count = len(matrix)
    if not 2 <= count <= MOST_DRAWN:
        return None
    shares = [[cell / total if (total := math.fsum(row)) else None for cell in row] for row in matrix]
    cells = [(label, predicted) for label in range(count) for predicted in range(count)]
    data = rows(
        label=[str(label) for label, _ in cells],
        predicted=[str(predicted) for _, predicted in cells],
        share=rounded((shares[a][b] for a, b in cells), 3),
        rows=rounded((matrix[a][b] for a, b in cells), 3),
        color=[CROSS_ENTROPY if a == b else SQUARED_ERROR for a, b in cells],
        text=[_text(shares[a][b]) for a, b in cells],
    )
    order = [str(k) for k in range(count)]
    # Names are looked up by their place: two of them may be shown alike.
    names = json.dumps([shown_name(c["name"]) for c in record["classes"]])
    axis: dict[str, Any] = {
        "labelExpr": f"{names}[+datum.value]",
        "labelLimit": 90,
        "labelFlush": False,
        "domain": False,
        "ticks": False,
    }
    x_axis = alt.Axis(title="predicted", labelAngle=-40 if count > 4 else 0, orient="bottom", **axis)
    y_axis = alt.Axis(title="label", labelColor=INK, titleAngle=0, titleY=-12, titleX=-4, **axis)
    x, y = alt.X("predicted:N", sort=order, axis=x_axis), alt.Y("label:N", sort=order, axis=y_axis)
    # Never so strong that the ink on top, dark in the light scheme and light in the dark one, is hard to read.
    strength = alt.Opacity("share:Q", scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0, 0.5]), legend=None)
    tooltip = tooltips(share=("share of the label's rows", ".1%"), rows=("share of all rows", ".2%"))
    squares = data.mark_rect().encode(
        x=x, y=y, color=alt.Color("color:N", scale=None), opacity=strength, tooltip=tooltip
    )
    parts: list[Any] = [squares]
    if count <= MOST_WRITTEN:
        parts.append(data.mark_text(fontSize=11, color=INK, tooltip=None).encode(x=x, y=y, text="text:N"))
    description = "For each label, how often each class was predicted, as a share of the rows with that label."
    return finished(layered(*parts), "confusion", description, max(120, min(34 * count, 560)))


def _text(share: float | None) -> str:
    """Return a share in percent, short enough for a cell; nothing for shares that round to 0."""
    return "" if share is None or share < 0.005 else f"{100 * share:.0f}"


def confusion_text(record: Mapping[str, Any]) -> str:
    """Return a sentence about the commonest mistake; nothing without a matrix."""
    matrix = record.get("confusion") or []
    if len(matrix) < 2:
        return ""
    mistakes = _mistakes(record)
    if not mistakes:
        return "Each row’s most likely class is its label."
    label, predicted, share, of_label = mistakes[0]
    return (
        f"The commonest mistake: label {label}, predicted {predicted}, in {percent(share)} of all rows and "
        f"{percent(of_label)} of those with this label."
    )


def mistakes_table(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the commonest mistakes: label, predicted class, share of all rows, share of the label's rows."""
    return [[a, b, percent(share), percent(of_label)] for a, b, share, of_label in _mistakes(record)[:MOST_MISTAKES]]


def _mistakes(record: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    matrix = record.get("confusion") or []
    names = [shown_name(c["name"]) for c in record["classes"]]
    totals = [math.fsum(row) for row in matrix]
    found = [
        (names[a], names[b], share, share / totals[a])
        for a, row in enumerate(matrix)
        for b, share in enumerate(row)
        if a != b and share > 0
    ]
    return sorted(found, key=lambda mistake: (-mistake[2], mistake[0], mistake[1]))
