"""The page of `xent compare`: which of two sets of predictions is better, by how much, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt

from xent.names import shown_name, shown_path
from xent.report.numbers import count, percent, rounded, significant
from xent.report.theme import CROSS_ENTROPY, MUTED, Layers, finished, layered, rows, tooltips, x_axis

MOST_SEGMENTS, MOST_ROWS = 20, 50
INTERVAL = tooltips(nats=("a minus b, nats", ".4g"), low=("from", ".4g"), high=("to", ".4g"))


def charts(record: Mapping[str, Any]) -> dict[str, Layers]:
    """Return the chart of the difference, overall and in the segments that drive it, with 95% intervals."""
    lines = [("all rows", record["difference"])]
    lines += [(f"{s['column']}: {s['value']}", s["difference"]) for s in record["segments"][:MOST_SEGMENTS]]
    lines = [(shown_name(name, 40), d) for name, d in lines if _is_finite(d["nats"])]
    if not lines:
        return {}
    data = rows(
        place=[f"{k:02d} {name}" for k, (name, _) in enumerate(lines)],
        nats=rounded((d["nats"] for _, d in lines), 6),
        low=rounded((_number(d["low"]) for _, d in lines), 6),
        high=rounded((_number(d["high"]) for _, d in lines), 6),
    )
    y = alt.Y("place:N", axis=alt.Axis(title=None, labelExpr="substring(datum.label, 3)", labelLimit=130, grid=False))
    zero = rows(nats=[0]).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x="nats:Q")
    x = x_axis("nats:Q", "nats per row; left of 0, a is better", tickCount=5)
    ends = data.mark_rule(color=CROSS_ENTROPY, strokeWidth=2).encode(x="low:Q", x2="high:Q", y=y)
    means = data.mark_point(filled=True, color=CROSS_ENTROPY, size=70).encode(x=x, y=y, tooltip=INTERVAL)
    description = (
        "The mean difference between the losses of a and b with its interval, of all rows and of each segment."
    )
    return {"difference": finished(layered(zero, ends, means), "difference", description, 40 + 26 * len(lines))}


def texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts and tables."""
    sources = [_source(source) for source in record.get("sources", [])]
    names = [source["name"] for source in sources[:2]] or ["a", "b"]
    return {
        "names": names,
        "answer": _answer(record),
        "figures": _figures(record),
        "segments": [
            [
                shown_name(s["column"]), shown_name(s["value"]), count(s["rows"]), _nats(s["difference"]["nats"]),
                _interval(s["difference"]), percent(s["share"]),
            ]
            for s in record["segments"][:MOST_SEGMENTS]
        ],
        "drivers": [
            [shown_name(row["id"]), *(_nats(row[name]) for name in ("loss_a", "loss_b", "difference"))]
            for row in record["drivers"][:MOST_ROWS]
        ],
        "notes": list(record["notes"]),
        "sources": list(zip(("a", "b", "labels"), sources, strict=False)),
    }  # fmt: skip


def _answer(record: Mapping[str, Any]) -> str:
    difference = record["difference"]
    of_rows = f"on {count(record['rows'])} rows of both"
    if record["infinite_a"] or record["infinite_b"]:
        return f"Of {count(record['rows'])} rows of both: {record['verdict']}"
    verdict = {"a": "a is better", "b": "b is better"}.get(record["winner"])
    if verdict is None:
        return f"Which is better is not known: {of_rows}, the 95% interval of the difference includes 0."
    size = significant(abs(float(difference["nats"])))
    return f"{verdict} by {size} nats per row, {of_rows} (95% interval of a minus b: {_interval(difference)})."


def _figures(record: Mapping[str, Any]) -> list[list[str]]:
    """Return quantity, a, b and unit."""
    lines = [
        ["cross-entropy", *_both(record, "cross_entropy", _nats), "nats per row"],
        ["accuracy", *_both(record, "accuracy", percent), "of rows"],
        ["rows where it is better", *_both(record, "better", count), "rows"],
        ["impossible rows", *_both(record, "impossible", count), "rows"],
        ["rows left out as invalid", *_both(record, "invalid", count), "rows"],
        ["rows on this side only", *_both(record, "only_in", count), "rows, not compared"],
    ]
    p = record["p_value"]
    lines.append(["p-value of no difference", "" if p is None else significant(p), "", "paired t-test"])
    return lines


def _both(record: Mapping[str, Any], name: str, shown: Any) -> list[str]:
    return [shown(record[f"{name}_{side}"]) for side in ("a", "b")]


def _nats(value: float | str | None) -> str:
    number = _number(value)
    return "" if number is None else significant(number)


def _interval(estimate: Mapping[str, Any]) -> str:
    return "" if estimate["low"] is None else f"{_nats(estimate['low'])} to {_nats(estimate['high'])}"


def _number(value: float | str | None) -> float | None:
    """A number of a record, in which infinities are text."""
    return None if value is None else float(value)


def _is_finite(value: float | str | None) -> bool:
    number = _number(value)
    return number is not None and math.isfinite(number)


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    return {**source, "name": shown_path(source["name"])}
