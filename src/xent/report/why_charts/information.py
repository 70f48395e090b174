"""Part 2: information content, a distribution to drag, and a comparison of two models' predictions."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np

from xent.information import cross_entropy, entropy, information_content, kl_divergence
from xent.report.numbers import rounded
from xent.report.theme import (
    CROSS_ENTROPY,
    DIVERGENCE,
    INK,
    MUTED,
    PAPER,
    RULE,
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
    tooltips,
    x_axis,
    y_axis,
)

STEPS = 45
"""Steps of the grid over the triangle, chosen so that Q and the uniform distribution are on it."""
Q = (0.6, 0.2, 0.2)
"""The fixed prediction."""
START = (9, 31, 5)
"""The initial position of the draggable distribution, in steps."""
EVENT = "25"
"""The initial value of the event's control, a percentage."""
CLASSES = ("A", "B", "C")
SMALLEST_DRAWN = 1e-9
"""Smaller divergences, which are rounding errors, are drawn at the edge of the chart."""
MOST_BITS = 5.0


def charts(record: dict[str, Any]) -> dict[str, Layers]:
    """Return the curve, the triangle with the charts that it moves, and the scatter plots."""
    return {
        "surprisal": _surprisal(),
        "simplex": _simplex(),
        "distributions": _distributions(),
        "bits": _bits(),
        "identity": _identity(record),
        "asymmetry": _asymmetry(record),
    }


def simplex_grid() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return all distributions over three classes in steps of 1/45, each next to the one before."""
    points = []
    for third in range(STEPS + 1):
        walk = range(STEPS - third + 1)
        points += [(STEPS - third - b, b, third) for b in (walk if third % 2 == 0 else reversed(walk))]
    return np.array(points) / STEPS


def simplex_start() -> int:
    """Return the initial grid position of the page's control."""
    return int(np.abs(simplex_grid() * STEPS - START).sum(axis=1).argmin())


def _surprisal() -> Layers:
    share = np.arange(1, 101) / 100
    bits = information_content(share, base=2)
    x = x_axis("p:Q", "probability of the event", [0, 1], format="%", values=[0, 0.25, 0.5, 0.75, 1])
    y = y_axis("bits:Q", None, [0, 7], tickCount=7)
    fine = np.geomspace(2**-7, 1, 120)
    line = rows(p=rounded(fine), bits=rounded(information_content(fine, base=2))).mark_line(color=INK, strokeWidth=2.5)
    event = nearest("event", "i", EVENT, "surprisal", element="event")
    grid = rows(i=[str(i) for i in range(1, 101)], p=rounded(share), bits=rounded(bits))
    here = grid.transform_filter(event).transform_calculate(
        text="'an event of ' + format(datum.p, '.0%') + ': ' + format(datum.bits, '.2f') + ' bits'"
    )
    sides = [
        label(
            here.transform_filter(condition).encode(x=x, y=y, text="text:N"),
            align=align,
            dx=dx,
            dy=-12,
            fontWeight=600,
            color=INK,
        )
        for align, dx, condition in (("left", 8, "datum.p < 0.5"), ("right", 8, "datum.p >= 0.5"))
    ]
    layers = layered(
        line.encode(x=x, y=y),
        here.mark_rule(color=MUTED, strokeDash=[2, 3]).encode(x=x, y=y, y2=alt.datum(0)),
        here.mark_rule(color=MUTED, strokeDash=[2, 3]).encode(x=x, y=y, x2=alt.datum(0)),
        here.mark_point(color=INK, filled=True, size=90, opacity=1).encode(x=x, y=y),
        *sides,
        grid.mark_point(opacity=0).encode(x=x, y=y).add_params(event).properties(name="surprisal"),
    )
    description = (
        "Information content in bits against the probability of an event: none for a certain one, 1 bit for one half, "
        "2 for one quarter, and growing without limit as the probability approaches zero."
    )
    return finished(layers, "surprisal_layers", description)


def _positions(grid: Any) -> dict[str, list[float | None]]:
    """Return positions in the triangle: A at the lower left, B at the lower right, C at the top."""
    return {"x": rounded(grid[:, 1] + grid[:, 2] / 2), "y": rounded(grid[:, 2] * math.sqrt(3) / 2)}


def _simplex() -> Layers:
    grid = simplex_grid()
    x = alt.X("x:Q", scale=alt.Scale(domain=[-0.06, 1.06]), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[-0.09, 0.97]), axis=None)
    dragged = nearest("dragged", "i", str(simplex_start()), "simplex", element="p-position", drag=True)
    divergence = kl_divergence(grid, np.array(Q), base=2)
    points = rows(i=[str(i) for i in range(len(grid))], **_positions(grid), kl=rounded(divergence, 3))
    size = alt.Size("kl:Q", scale=alt.Scale(range=[1, 26]), legend=None)
    dots = points.mark_circle(color=DIVERGENCE, opacity=0.55).encode(x=x, y=y, size=size)
    corners = rows(**_positions(np.eye(3)), name=CLASSES, dy=[16, 16, -14])
    names = [
        corners.transform_filter(f"datum.dy == {dy}")
        .mark_text(dy=dy, fontSize=14, fontWeight=600)
        .encode(x=x, y=y, text="name:N")
        for dy in (16, -14)
    ]
    mark_q = rows(**_positions(np.array([Q])), name=["q"])
    picked = points.transform_filter(dragged)
    grip = points.mark_point(opacity=0, size=1).encode(x=x, y=y).add_params(dragged).properties(name="simplex")
    layers = layered(
        dots,
        *names,
        mark_q.mark_point(shape="diamond", size=130, filled=True, color=CROSS_ENTROPY, opacity=1).encode(x=x, y=y),
        label(mark_q.encode(x=x, y=y, text="name:N"), dx=14, fontSize=15, fontWeight=600, color=CROSS_ENTROPY),
        picked.mark_point(size=420, filled=True, color=PAPER, opacity=0.85).encode(x=x, y=y),
        picked.mark_point(size=320, filled=True, color=INK, opacity=1).encode(x=x, y=y),
        picked.transform_calculate(name="'p'")
        .mark_text(color=PAPER, fontSize=13, fontWeight=700, baseline="middle")
        .encode(x=x, y=y, text="name:N"),
        grip,
    )
    description = (
        "A triangle of all distributions over three classes A, B and C; each corner is certainty of one class. The "
        f"prediction q is fixed at {', '.join(f'{v:.0%}' for v in Q)}. The distribution p can be dragged, or moved "
        "with the control below. Dots grow with the KL divergence of p from q, which is zero at q only."
    )
    return finished(layers, "simplex_layers", description, 330)


def _at_the_grip(**values: Any) -> alt.Chart:
    grid = simplex_grid()
    chart = rows(i=[str(i) for i in range(len(grid))], **values)
    return chart.add_params(control("position", "p-position", str(simplex_start()))).transform_filter(
        "datum.i == position"
    )


def _distributions() -> Layers:
    grid = simplex_grid()
    chart = _at_the_grip(**{name: rounded(grid[:, k]) for k, name in enumerate(CLASSES)})
    moving = chart.transform_fold(list(CLASSES), ["name", "share"]).transform_calculate(of="'p'")
    fixed = rows(name=CLASSES, share=Q, of=["q"] * 3)
    x = x_axis("share:Q", "probability", [0, 1], format="%", tickCount=4)
    y = alt.Y("name:N", sort=None, axis=alt.Axis(title=None, labelFontSize=14, labelFontWeight=600))
    offset = alt.YOffset("of:N", sort=["p", "q"])
    parts: list[Any] = []
    for part, color in ((moving, INK), (fixed, CROSS_ENTROPY)):
        encoded = part.encode(x=x, y=y, yOffset=offset)
        parts.append(encoded.mark_bar(color=color, height=13))
        text = encoded.transform_calculate(text="datum.of + '  ' + format(datum.share, '.1%')").encode(text="text:N")
        parts += beside_bars(text, color, "datum.share < 0.6")
    description = (
        "Bars: the probabilities that p, which you drag, and q, which is fixed, give to the classes A, B and C."
    )
    return finished(layered(*parts), "distributions", description, 160)


BIT_ROWS = ("H(p, q)", "H(p) + KL(p ‖ q)", "KL(q ‖ p)")


def _bits() -> Layers:
    grid, q = simplex_grid(), np.array(Q)
    measures = {
        "cross": cross_entropy(grid, q, base=2),
        "entropy": entropy(grid, base=2),
        "kl": kl_divergence(grid, q, base=2),
        "reverse": kl_divergence(q, grid, base=2),
    }
    chart = _at_the_grip(**{name: rounded(values) for name, values in measures.items()})
    names = [BIT_ROWS[0], BIT_ROWS[1], BIT_ROWS[1], BIT_ROWS[2]]
    x = x_axis("from:Q", "bits", [0, MOST_BITS], tickCount=5, format=".0f")
    y = alt.Y("name:N", sort=list(BIT_ROWS), axis=alt.Axis(title=None, labelFontSize=13))
    looks = (
        ("cross", "0", CROSS_ENTROPY, 1.0),
        ("entropy", "0", MUTED, 1.0),
        ("kl", "datum.entropy", DIVERGENCE, 1.0),
        ("reverse", "0", DIVERGENCE, 0.5),
    )
    parts: list[Any] = []
    for (key, begin, color, opacity), name in zip(looks, names, strict=True):
        measured = chart.transform_calculate(
            **{
                "from": begin,
                "to": f"min({MOST_BITS}, {begin} + (isValid(datum.{key}) ? datum.{key} : {MOST_BITS}))",
                "name": f"'{name}'",
                "written": f"isValid(datum.{key}) ? format(datum.{key}, '.3f') : '∞'",
            }
        )
        bar = measured.mark_bar(color=color, opacity=opacity, height=22).encode(x=x, x2="to:Q", y=y)
        parts.append(bar)
        if key in ("cross", "reverse"):
            end = measured.encode(x=alt.X("to:Q"), y=y, text="written:N")
            parts += beside_bars(end, color, f"datum.to < {0.75 * MOST_BITS}")
        elif key == "kl":
            text = measured.transform_calculate(
                written="format(datum.entropy, '.3f') + ' + ' + format(datum.kl, '.3f')"
            )
            encoded = text.encode(x=alt.X("to:Q"), y=y, text="written:N")
            parts.append(label(encoded, align="left", dx=6, color=color, fontWeight=600))
    description = (
        "Bars in bits: the cross-entropy H(p, q); the entropy H(p) and the divergence KL(p ‖ q), which end at the same "
        "place; and the divergence the other way round, KL(q ‖ p), which does not."
    )
    return finished(layered(*parts), "bits", description, 150)


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
