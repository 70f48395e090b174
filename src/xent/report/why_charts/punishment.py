"""Part 1: the value of each loss for a wrong answer, and the length of its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import altair as alt
import numpy as np

from xent.report.numbers import rounded
from xent.report.theme import (
    COLOR_OF,
    CROSS_ENTROPY,
    DASH_OF,
    INK,
    MUTED,
    RULE,
    SHAPE_OF,
    SQUARED_ERROR,
    Layers,
    beside_bars,
    control,
    finished,
    label,
    layered,
    nearest,
    power,
    rows,
    ticks,
    x_axis,
    y_axis,
)
from xent.why.losses import gradient_lengths, losses_of_rows
from xent.why.record import LOSSES

GRID = 161
"""Positions of the control of the true class's probability."""
START = 0.01
"""The initial probability of the control, which the text beside it has as well: a value of the grid."""
WRONG_LOGITS = (-4.0, 4.0, -1.0)
"""The initial logits of the sliders: confidently wrong."""


def charts(record: dict[str, Any]) -> dict[str, Layers]:
    """Return the curves over the probability of the true class, and the two charts under the sliders."""
    lowest, classes = lowest_exponent(record), len(record["data"]["classes"])
    return {
        "loss-curve": _loss_curve(lowest),
        "squared-curve": _squared_curve(lowest),
        "gradient-curve": _gradient_curve(record, lowest, classes),
        "softmax-bars": _softmax_bars(),
        "gradient-bars": _gradient_bars(),
    }


def lowest_exponent(record: dict[str, Any]) -> int:
    """Return the start of the axis of probabilities, a power of ten that includes 19 of 20 rows."""
    ordered = sorted(sample["probability_of_label"] for sample in record["gradients"])
    low = ordered[len(ordered) // 20] if ordered else 1e-4
    return max(-9, min(-3, math.floor(math.log10(max(low, 1e-300)))))


def probabilities(lowest: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the grid, evenly spaced in the log-odds so that both ends are resolved, up to START, which is on it."""
    log_odds = np.linspace(lowest * math.log(10), math.log(0.999 / 0.001), GRID)
    grid = 1 / (1 + np.exp(-log_odds))
    grid[np.abs(np.log(grid / START)).argmin()] = START
    return grid


def grid_start(lowest: int) -> int:
    """Return the initial grid position of the page's control."""
    return int(np.flatnonzero(probabilities(lowest) == START)[0])


def two_losses(truth: Any, others: int = 1) -> dict[str, Any]:
    """Return both losses and the lengths of their gradients by the logits; the other classes share the rest evenly."""
    truth = np.asarray(truth)
    rest = np.repeat(((1 - truth) / others)[:, None], others, axis=1)
    logits = np.log(np.hstack([truth[:, None], rest]))
    label_first = np.zeros(len(truth), dtype=int)
    lengths = gradient_lengths(logits, label_first)
    return {
        loss: (losses_of_rows(loss, logits, label_first), length) for loss, length in zip(LOSSES, lengths, strict=True)
    }


def _axis_of_probability(lowest: int) -> alt.X:
    every = 1 if lowest > -5 else 2 if lowest % 2 == 0 else 3
    labels = {10.0**e: "100%" if e == 0 else power(e) for e in range(lowest, 1, every)}
    return alt.X(
        "p:Q",
        scale=alt.Scale(type="log", domain=[10.0**lowest, 1], nice=False),
        axis=ticks(labels, title="probability of the true class"),
    )


def _loss_curve(lowest: int) -> Layers:
    values, _ = two_losses(probabilities(lowest))["cross-entropy"]
    y = y_axis("y:Q", None, [0, 1.12 * -lowest * math.log(10)], tickCount=5)
    description = (
        "Cross-entropy, in nats, against the probability that a prediction of two classes gave to the true class, on a "
        "logarithmic axis. It grows without limit as the probability falls, by 2.3 nats for each factor of ten."
    )
    written = {"cross-entropy": "format(datum.y, '.3r') + ' nats'"}
    return _curves("loss_curve", lowest, {"cross-entropy": values}, y, written, [], [], description)


def _squared_curve(lowest: int) -> Layers:
    values, _ = two_losses(probabilities(lowest))["squared error"]
    y = y_axis("y:Q", None, [0, 2.24], values=[0, 0.5, 1, 1.5, 2])
    description = (
        "Squared error, which has no unit, against the probability that a prediction of two classes gave to the true "
        "class, on a logarithmic axis. It is at most 2, and hardly changes below a probability of one in a hundred."
    )
    written = {"squared error": "format(datum.y, '.3r')"}
    return _curves("squared_curve", lowest, {"squared error": values}, y, written, [], [], description)


def _gradient_curve(record: dict[str, Any], lowest: int, classes: int) -> Layers:
    truth = probabilities(lowest)
    concentrated, even = two_losses(truth), two_losses(truth, max(1, classes - 1))
    lines = {name: length for name, (_, length) in concentrated.items()}
    y = y_axis("y:Q", None, [0, 1.75], values=[0, 0.5, 1, 1.5])
    bands = [
        rows(p=rounded(truth), y=rounded(lines[name]), even=rounded(even[name][1]))
        .mark_area(color=COLOR_OF[name], opacity=0.13)
        .encode(x=_axis_of_probability(lowest), y=y, y2="even:Q")
        for name in LOSSES
        if classes > 2
    ]
    return _curves(
        "gradient_curve",
        lowest,
        lines,
        y,
        dict.fromkeys(LOSSES, "format(datum.y, '.3r')"),
        bands,
        _training_rows(record, lowest, y),
        "Length of each loss's gradient against the probability of the true class, with training rows as points. "
        "The gradient of cross-entropy is longest where the answer is most wrong. That of squared error falls to "
        "zero there.",
    ).add_params(control("rows_at", "rows-at", "both"))


def _training_rows(record: dict[str, Any], lowest: int, y: alt.Y) -> list[alt.Chart]:
    samples = record["gradients"]
    measured = {"cross-entropy": "cross_entropy_gradient", "squared error": "squared_error_gradient"}
    return [
        rows(
            p=rounded((max(s["probability_of_label"], 10.0**lowest) for s in samples), 3),
            y=rounded((s[measured[name]] for s in samples), 3),
            start=[s["start"] for s in samples],
        )
        .transform_filter("rows_at == 'both' || rows_at == datum.start")
        .mark_point(color=COLOR_OF[name], shape=SHAPE_OF[name], filled=True, size=22, opacity=0.45, clip=True)
        .encode(x=_axis_of_probability(lowest), y=y)
        for name in LOSSES
    ]


def _curves(
    view: str,
    lowest: int,
    lines: dict[str, Any],
    y: alt.Y,
    written: dict[str, str],
    under: list[alt.Chart],
    over: list[alt.Chart],
    description: str,
) -> Layers:
    """Return both losses as curves, with a marker and its value at the position of the control."""
    truth = probabilities(lowest)
    x = _axis_of_probability(lowest)
    positions = [str(i) for i in range(len(truth))]
    place = nearest("place", "i", str(grid_start(lowest)), view, element="truth")
    grid = rows(i=positions, p=rounded(truth, 3), y=[0.0] * len(truth))
    pointer = grid.mark_point(opacity=0).encode(x=x, y=y).add_params(place).properties(name=view)
    here = grid.transform_filter(place)
    parts: list[Any] = [*under, here.mark_rule(color=MUTED, strokeDash=[2, 3]).encode(x=x)]
    probability = "'q = ' + (datum.p < 0.001 ? format(datum.p, '.1e') : format(datum.p, '.1~%'))"
    markers: list[Any] = _sided(
        here.transform_calculate(text=probability), lowest, x, alt.value(0), INK, baseline="top"
    )
    for name, values in lines.items():
        curve = rows(i=positions, p=rounded(truth, 3), y=rounded(values))
        line = curve.mark_line(color=COLOR_OF[name], strokeWidth=2.5, strokeDash=DASH_OF[name], clip=True)
        parts.append(line.encode(x=x, y=y))
        there = curve.transform_filter(place).transform_calculate(text=written[name])
        dot = there.mark_point(color=COLOR_OF[name], shape=SHAPE_OF[name], filled=True, size=90, opacity=1)
        markers.append(dot.encode(x=x, y=y))
        below = f"datum.y > {BELOW}" if name == "squared error" else "false"
        markers += _sided(there.transform_filter(f"!({below})"), lowest, x, y, COLOR_OF[name], dy=-11)
        if name == "squared error":
            markers += _sided(there.transform_filter(below), lowest, x, y, COLOR_OF[name], dy=13)
    return finished(layered(*parts, *over, *markers, pointer), view + "_layers", description)


BELOW = 0.2
"""The value of the squared error is written below its curve, or above where there is no room below."""


def _sided(chart: alt.Chart, lowest: int, x: alt.X, y: Any, color: str, **mark: Any) -> list[alt.Chart]:
    """Return text beside a marker, on its right as long as there is room."""
    turn = 10 ** (0.22 * lowest)
    return [
        part
        for align, condition in (("left", f"datum.p < {turn}"), ("right", f"datum.p >= {turn}"))
        for part in label(
            chart.transform_filter(condition).encode(x=x, y=y, text="text:N"),
            align=align,
            dx=9 if align == "left" else -9,
            color=color,
            fontWeight=600,
            **mark,
        )
    ]


def _under_sliders(chart: alt.Chart) -> alt.Chart:
    """Add q1 to q3, the softmax of the sliders' logits, and both losses of it; the true class is class 1."""
    logits = [f"toNumber(logit_{k})" for k in (1, 2, 3)]
    chart = chart.add_params(*(control(f"logit_{k}", f"logit-{k}", str(z)) for k, z in enumerate(WRONG_LOGITS, 1)))
    chart = chart.transform_calculate(top=f"max({', '.join(logits)})")
    chart = chart.transform_calculate(total=" + ".join(f"exp({z} - datum.top)" for z in logits))
    chart = chart.transform_calculate(
        q1=f"exp({logits[0]} - datum.top) / datum.total",
        q2=f"exp({logits[1]} - datum.top) / datum.total",
        q3=f"exp({logits[2]} - datum.top) / datum.total",
        cross_entropy=f"log(datum.total) + datum.top - {logits[0]}",
    )
    chart = chart.transform_calculate(
        squared_error="pow(datum.q1 - 1, 2) + pow(datum.q2, 2) + pow(datum.q3, 2)",
        mean="datum.q1 * (datum.q1 - 1) + pow(datum.q2, 2) + pow(datum.q3, 2)",
    )
    chart = chart.transform_calculate(
        ce1="datum.q1 - 1",
        ce2="datum.q2",
        ce3="datum.q3",
        se1="2 * datum.q1 * (datum.q1 - 1 - datum.mean)",
        se2="2 * datum.q2 * (datum.q2 - datum.mean)",
        se3="2 * datum.q3 * (datum.q3 - datum.mean)",
    )
    return chart.transform_calculate(
        ce_length="sqrt(pow(datum.ce1, 2) + pow(datum.ce2, 2) + pow(datum.ce3, 2))",
        se_length="sqrt(pow(datum.se1, 2) + pow(datum.se2, 2) + pow(datum.se3, 2))",
    )


def _picked(key: str, fields: Iterable[str]) -> str:
    """Return an expression of the field that `key` names, which Vega recomputes on changes (unlike datum[key])."""
    text = "NaN"
    for field in fields:
        text = f"datum.{key} == '{field}' ? datum.{field} : {text}"
    return text


CLASSES = ("class 1 (true)", "class 2", "class 3")


def _softmax_bars() -> Layers:
    chart = _under_sliders(rows(key=["q1", "q2", "q3"], name=CLASSES))
    chart = chart.transform_calculate(q=_picked("key", ("q1", "q2", "q3")))
    chart = chart.transform_calculate(text="format(datum.q, '.4f')")
    y = alt.Y("name:N", sort=None, axis=alt.Axis(title=None, labelPadding=8))
    x = x_axis("q:Q", "probability q", [0, 1], tickCount=3, format=".1f")
    bars = chart.mark_bar(color=INK, height=14, opacity=0.8).encode(x=x, y=y)
    text = beside_bars(chart.encode(x=x, y=y, text="text:N"), INK, "datum.q < 0.55")
    description = "Bars: the softmax probabilities of three classes, as the three sliders set their logits."
    return finished(layered(bars, *text), "softmax_bars", description, 150)


def _gradient_bars() -> Layers:
    names = [name for name in CLASSES for _ in LOSSES]
    keys = [f"{short}{k}" for k in (1, 2, 3) for short in ("ce", "se")]
    chart = _under_sliders(rows(key=keys, name=names, loss=LOSSES * 3)).transform_calculate(v=_picked("key", keys))
    chart = chart.transform_calculate(text="format(datum.v, '+.3f')")
    y = alt.Y("name:N", sort=None, axis=alt.Axis(title=None, labelPadding=8))
    offset = alt.YOffset("loss:N", sort=list(LOSSES))
    x = x_axis("v:Q", "gradient by the class’s logit", [-1.75, 1.75], values=[-1, -0.5, 0, 0.5, 1], format="~g")
    parts: list[Any] = [rows(zero=[0]).mark_rule(color=RULE).encode(x="zero:Q")]
    for name, color in ((LOSSES[0], CROSS_ENTROPY), (LOSSES[1], SQUARED_ERROR)):
        of_loss = chart.transform_filter(f"datum.loss == '{name}'")
        parts.append(of_loss.mark_bar(color=color, height=12).encode(x=x, y=y, yOffset=offset))
        for align, condition in (("left", "datum.v >= 0"), ("right", "datum.v < 0")):
            text = of_loss.transform_filter(condition).encode(x=x, y=y, yOffset=offset, text="text:N")
            dx = 5 if align == "left" else -5
            parts.append(label(text, align=align, dx=dx, color=color, fontWeight=600))
    description = (
        "Bars: the gradient of both losses by each of the three logits. Where the sliders make a confidently wrong "
        "prediction the bars of squared error vanish."
    )
    return finished(layered(*parts), "gradient_bars", description, 190)
