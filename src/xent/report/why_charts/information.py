"""Part 3: a comparison of two models' predictions, row by row."""

from __future__ import annotations

from typing import Any

import altair as alt

from xent.report.numbers import rounded
from xent.report.theme import (
    DIVERGENCE,
    RULE,
    Layers,
    finished,
    layered,
    power,
    rows,
    ticks,
    tooltips,
)

SMALLEST_DRAWN = 1e-9
"""Smaller divergences, which are rounding errors, are drawn at the edge of the chart."""


def charts(record: dict[str, Any]) -> dict[str, Layers]:
    """Return the scatter plots of the identity and of the asymmetry."""
    return {"identity": _identity(record), "asymmetry": _asymmetry(record)}


def divergences(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the samples whose figures are all finite."""
    return [s for s in record["information"]["samples"] if all(value is not None for value in s.values())]


def _scatter(record: dict[str, Any], name: str, xs: list[float], ys: list[float], titles: tuple[str, str]) -> Layers:
    ends = [SMALLEST_DRAWN, max([1.0, *xs, *ys]) * 1.5]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    labels = {10.0**e: power(e) for e in range(-9, 2, 2) if 10.0**e <= ends[1]}
    x = alt.X("x:Q", scale=scale, axis=ticks(labels, title=titles[0]))
    y = alt.Y("y:Q", scale=scale, axis=ticks(labels, title=titles[1]))
    diagonal = rows(x=ends, y=ends).mark_line(color=RULE, strokeDash=[4, 4], strokeWidth=1.5).encode(x=x, y=y)
    drawn = [rounded((max(v, SMALLEST_DRAWN) for v in values), 4) for values in (xs, ys)]
    points = rows(x=drawn[0], y=drawn[1]).mark_circle(color=DIVERGENCE, size=34, opacity=0.55)
    tooltip = tooltips(x=(titles[0], ".4g"), y=(titles[1], ".4g"))
    description = f"Test rows as points on two logarithmic axes: {titles[1]} against {titles[0]}; the line is equality."
    return finished(layered(diagonal, points.encode(x=x, y=y, tooltip=tooltip)), name, description)


def _identity(record: dict[str, Any]) -> Layers:
    samples = divergences(record)
    sums = [s["entropy"] + s["kl_divergence"] for s in samples]
    return _scatter(
        record, "identity", sums, [s["cross_entropy"] for s in samples], ("H(p) + KL(p ‖ q), nats", "H(p, q), nats")
    )


def _asymmetry(record: dict[str, Any]) -> Layers:
    samples = divergences(record)
    forward, reverse = ([s[key] for s in samples] for key in ("kl_divergence", "kl_divergence_reversed"))
    return _scatter(record, "asymmetry", forward, reverse, ("KL(p ‖ q), nats", "KL(q ‖ p), nats"))
