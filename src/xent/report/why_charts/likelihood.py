"""Part 3: the product that underflows, the sum that does not, and the likelihood during training."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from xent.report.numbers import rounded
from xent.report.theme import (
    CROSS_ENTROPY,
    FAINT,
    INK,
    MUTED,
    Layers,
    finished,
    label,
    layered,
    power,
    rows,
    ticks,
    tooltips,
)

SMALLEST = math.log10(5e-324)
"""The base-10 logarithm of the smallest positive float64."""
COLUMNS = ("before", "after")


def charts(record: dict[str, Any]) -> dict[str, Layers]:
    """Return the running product over the rows, and likelihood and loss over the training."""
    return {"product": _product(record), "ascent": _ascent(record)}


def _product(record: dict[str, Any]) -> Layers:
    part = record["likelihood"]
    x = alt.X(
        "rows:Q",
        scale=alt.Scale(domain=[0, part["rows"]], nice=False),
        axis=alt.Axis(title="rows multiplied so far", tickCount=5, format=",d"),
    )
    lowest = min((p["log10"] for key in COLUMNS for p in part[key]["points"] if p["log10"] is not None), default=-1)
    y = alt.Y(
        "log10:Q",
        scale=alt.Scale(domain=[1.08 * lowest, 0], nice=False),
        axis=ticks({e: power(e) for e in _exponents(lowest)}, title=None),
    )
    layers: list[Any] = []
    if lowest < SMALLEST:
        layers += _underflow(lowest, y)
    for key, dash in zip(COLUMNS, ([1, 0], [7, 4]), strict=True):
        points = part[key]["points"]
        sums = rows(rows=[0, *(p["rows"] for p in points)], log10=rounded([0.0, *(p["log10"] for p in points)], 5))
        positive = [p for p in points if p["product"]]
        logs = rounded((math.log10(p["product"]) for p in positive), 5)
        products = rows(rows=[p["rows"] for p in positive], log10=logs)
        layers.append(sums.mark_line(color=CROSS_ENTROPY, strokeWidth=2.5, strokeDash=dash).encode(x=x, y=y))
        layers.append(products.mark_circle(color=INK, size=22, opacity=0.9).encode(x=x, y=y))
        layers += _name(part[key]["model"], points, x, y, part["rows"])
        until = part[key]["rows_until_underflow"]
        if until is not None:
            end = rows(rows=[until], log10=[SMALLEST], text=[f"the product is 0 from row {until:,}"])
            layers.append(end.mark_point(shape="cross", size=90, filled=True, color=INK, angle=45).encode(x=x, y=y))
            encoded = end.encode(x=x, y=y, text="text:N")
            layers.append(label(encoded, align="left", dx=12, dy=-10, color=INK, fontWeight=600))
    description = (
        "The likelihood of the first rows, as a power of ten, against the number of rows. As a product of float64 "
        "numbers, drawn as dots, it ends at ten to the minus 324. As a sum of logarithms, drawn as lines, it goes on."
    )
    return finished(layered(*layers), "product", description, 300)


def _exponents(lowest: float) -> list[int]:
    """Return about five exponents from 0 to the lowest."""
    rough = max(1.0, -lowest / 5)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    return list(range(0, math.floor(lowest) - 1, -int(step)))


def _underflow(lowest: float, y: alt.Y) -> list[Any]:
    """Return the region that a float64 cannot represent."""
    region = rows(log10=[SMALLEST], end=[1.08 * lowest], text=["below 5e−324: float64 has only 0"])
    text = region.mark_text(align="left", baseline="bottom", dx=6, dy=-6, color=MUTED)
    return [
        region.mark_rect(color=FAINT, opacity=0.7).encode(y=y, y2="end:Q"),
        region.mark_rule(color=MUTED, strokeDash=[2, 3]).encode(y=y),
        text.encode(x=alt.value(0), y="end:Q", text="text:N"),
    ]


def _name(model: str, points: list[dict[str, Any]], x: alt.X, y: alt.Y, total: int) -> list[Any]:
    """Return the name of a line, beside its later part."""
    place = min(points, key=lambda p: abs(p["rows"] - 0.8 * total), default=None)
    if place is None or place["log10"] is None:
        return []
    text = rows(rows=[place["rows"]], log10=rounded([place["log10"]], 5), text=[model])
    encoded = text.encode(x=x, y=y, text="text:N")
    return [label(encoded, align="right", dx=-4, dy=15, color=CROSS_ENTROPY, fontWeight=600)]


def _ascent(record: dict[str, Any]) -> Layers:
    training = record["likelihood"]["training"]
    # On the logarithmic axis step 0 is drawn at one half.
    step = [max(point["step"], 0.5) for point in training]
    x = step_axis(max(step, default=1))
    likelihood = rows(
        step=step,
        value=rounded((p["log_likelihood_nats"] for p in training), 6),
        loss=rounded((p["mean_cross_entropy_nats"] for p in training), 5),
    ).transform_filter("isValid(datum.value)")
    values = {"value": ("log-likelihood, nats", ",.1f"), "loss": ("mean cross-entropy, nats per row", ".4f")}
    tooltip = tooltips(step=("step", ",d"), **values)
    top = 1.05 * max((p["mean_cross_entropy_nats"] or 0 for p in training), default=0) or 1
    left = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[-record["likelihood"]["rows"] * top, 0], nice=False),
        axis=alt.Axis(title="nats", titleColor=INK, format=",d", tickCount=5),
    )
    right = alt.Y(
        "loss:Q",
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(
            title="nats per row",
            titleColor=CROSS_ENTROPY,
            titleAlign="right",
            titleX=4,
            orient="right",
            tickCount=5,
            grid=False,
            format=".2~f",
        ),
    )
    rising = likelihood.mark_line(color=INK, strokeWidth=2.5)
    falling = likelihood.mark_line(color=CROSS_ENTROPY, strokeWidth=2.5)
    targets = likelihood.mark_point(size=120, opacity=0, filled=True)
    layers = layered(
        layered(rising.encode(x=x, y=left), targets.encode(x=x, y=left, tooltip=tooltip)),
        layered(falling.encode(x=x, y=right), targets.encode(x=x, y=right, tooltip=tooltip)),
    ).resolve_scale(y="independent")
    description = (
        "Two curves over the steps of training that mirror each other: the log-likelihood of all rows rises as the "
        "mean cross-entropy per row falls."
    )
    return finished(layers, "ascent", description, 300)


def step_axis(last: float) -> alt.X:
    """Return a logarithmic axis of steps, on which step 0 is drawn at one half."""
    decades = [10**e for e in range(math.ceil(math.log10(max(last, 1))) + 1) if 10**e <= last]
    return alt.X(
        "step:Q",
        scale=alt.Scale(type="log", domain=[0.5, max(last, 2)], nice=False),
        axis=ticks({0.5: "0", **{float(d): f"{d:,}" for d in decades}}, title="steps of gradient descent"),
    )
