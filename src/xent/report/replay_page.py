"""The report of `xent why --predictions`: both gradients on the rows of a table of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xent.names import shown_path
from xent.report.numbers import count, percent, rounded, significant
from xent.report.theme import COLOR_OF, Layers, finished, layered, rows, x_axis, y_axis

KEYS = {"cross-entropy": 1, "squared error": 2}


def charts(record: Mapping[str, Any]) -> dict[str, Layers]:
    """Return the chart of both gradients' lengths against the probability of the label."""
    points = record["points"]
    x = x_axis("q:Q", "probability of the label", [0, 1], format="%")
    y = y_axis("length:Q", "length of the gradient", tickCount=5)
    layers = []
    for loss, column in KEYS.items():
        data = rows(q=rounded(p[0] for p in points), length=rounded(p[column] for p in points))
        shape = "circle" if loss == "cross-entropy" else "triangle-up"
        mark = data.mark_point(shape=shape, filled=True, color=COLOR_OF[loss], size=26, opacity=0.6)
        layers.append(mark.encode(x=x, y=y))
    description = "The length of each loss's gradient against the probability of the label, one mark for each row."
    return {"gradients": finished(layered(*layers), "gradients", description, 340)}


def texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts, and the bands as a table."""
    worst = record["bands"][0]
    sampled = record["rows"] != record["rows_in_source"]
    of_source = f" of {count(record['rows_in_source'])}, sampled" if sampled else ""
    answer = f"No row of {count(record['rows'])}{of_source} gave its label less than 1%."
    if worst["rows"]:
        answer = (
            f"{count(worst['rows'])} of {count(record['rows'])} rows{of_source} gave their label less than 1%. There "
            f"the gradient of cross-entropy is {significant(worst['cross_entropy'])} long on average, and that of "
            f"squared error {significant(worst['squared_error'])}: "
            f"{percent(worst['share_of_cross_entropy'])} of all that cross-entropy would change, "
            f"{percent(worst['share_of_squared_error'])} of what squared error would."
        )
    name = shown_path(record.get("source", {}).get("name", "predictions"))
    return {"name": name, "answer": answer, "bands": bands(record)}


def bands(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the table as text."""
    return [
        [
            f"{percent(b['low'], 0)} to {percent(b['high'], 0)}",
            count(b["rows"]),
            *("" if b[key] is None else significant(b[key]) for key in ("cross_entropy", "squared_error")),
            *("" if b[f"share_of_{key}"] is None else percent(b[f"share_of_{key}"]) for key in SHARES),
        ]
        for b in record["bands"]
    ]


SHARES = ("cross_entropy", "squared_error")
