"""The charts of `xent score`: Vega-Lite specifications, made by Altair from the record of a score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt

from xent.names import shown_name
from xent.report.numbers import rounded, significant
from xent.report.score_confusion import confusion_chart
from xent.report.score_text import LN2, clip_matters, figure, number
from xent.report.theme import (
    CROSS_ENTROPY,
    FAINT,
    INK,
    MUTED,
    PAPER,
    RULE,
    Layers,
    finished,
    label,
    layered,
    power,
    rows,
    ticks,
    tooltips,
    x_axis,
    y_axis,
)

MOST_POINTS = 1500


def charts(record: Mapping[str, Any]) -> dict[str, Layers]:
    """Return all charts for which the record has numbers, by their names in the template."""
    by_name = {"scale": _scale(record)}
    if record["losses"]:  # not if all losses are infinite
        by_name["surprisal-histogram"] = _losses(record)
    if record["concentration"]:
        by_name["concentration"] = _concentration(record)
    if record["reliability"]:
        by_name |= {"reliability": _reliability(record), "confidence": _confidence(record)}
    if record.get("reliability_class_1"):
        by_name["reliability-class-1"] = _reliability(record, class_1=True)
    confusion = confusion_chart(record)
    if confusion is not None:
        by_name["confusion"] = confusion
    miscalibration = figure(record, "miscalibration_nats")
    if miscalibration is not None and math.isfinite(miscalibration):
        by_name["decomposition"] = _decomposition(record)
    if any(number(s["loss"]) not in (None, math.inf) for s in record["sample"]):
        by_name["log-loss-brier"] = _rows(record)
    if clip_matters(record):
        by_name["clip"] = _clip(record)
    return by_name


def _scale(record: Mapping[str, Any]) -> Layers:
    """Return the cross-entropy among reference values, in nats."""
    places = [("certainty", 0.0, MUTED), ("base rate", figure(record, "base_rate_nats"), MUTED)]
    places.append(("uniform prediction", figure(record, "uniform_nats"), MUTED))
    mean = figure(record, "cross_entropy_nats")
    possible = figure(record, "cross_entropy_possible_nats")
    if mean is not None and math.isfinite(mean):
        places.append(("cross-entropy", mean, CROSS_ENTROPY))
    elif possible is not None:
        places.append(("without impossible rows", possible, CROSS_ENTROPY))
    known = sorted([p for p in places if p[1] is not None], key=lambda p: p[1] or 0.0)
    top = max([p[1] or 0.0 for p in known]) or 1.0
    x = x_axis("nats:Q", "nats per row", [0, 1.02 * top], tickCount=6)
    base = rows(
        nats=rounded((p[1] for p in known), 5),
        text=[
            f"{name}: {significant(value or 0.0)} nats, {significant((value or 0.0) / LN2)} bits"
            for name, value, _ in known
        ],
        color=[color for *_, color in known],
        level=list(range(len(known))),
        side=["left" if (value or 0.0) < 0.55 * top else "right" for _, value, _ in known],
    )
    y = alt.Y("level:Q", axis=None, scale=alt.Scale(domain=[-0.6, len(known) - 0.4]))
    color = alt.Color("color:N", scale=None)
    points = base.mark_circle(size=110, opacity=1).encode(x=x, y=y, color=color)
    drops = base.mark_rule(strokeDash=[2, 3]).encode(x=x, y=y, y2=alt.datum(-0.6), color=color)
    texts: list[Any] = []
    for side, dx in (("left", 11), ("right", -11)):
        placed = base.transform_filter(f"datum.side == '{side}'").encode(x=x, y=y, text="text:N")
        texts.append(label(placed, align=side, dx=dx, color=INK, baseline="middle"))
    description = (
        "Cross-entropy of the predictions between certainty, the base rate and a uniform prediction, in nats per row."
    )
    return finished(layered(drops, points, texts), "scale", description, 60 + 34 * len(known))


def _losses(record: Mapping[str, Any]) -> Layers:
    """Return the distribution of the loss on a logarithmic axis, with the share of the loss in each bin."""
    inside = _half_octaves(record)
    weight = math.fsum(b[2] for b in inside) or 1.0
    loss = math.fsum(b[3] for b in inside) or 1.0
    data = rows(
        low=rounded((b[0] / LN2 for b in inside), 4),
        high=rounded((b[1] / LN2 for b in inside), 4),
        rows=rounded((b[2] / weight for b in inside), 4),
        loss=rounded((b[3] / loss for b in inside), 4),
    )
    x = alt.X(
        "low:Q", scale=alt.Scale(type="log"), axis=alt.Axis(title="loss of a row in bits", format="~g", tickCount=8)
    )
    y = y_axis("rows:Q", "share", format="%", tickCount=4)
    shares = {"rows": ("share of rows", ".2%"), "loss": ("share of the loss", ".2%")}
    tooltip = tooltips(low=("from, bits", ".3g"), high=("to, bits", ".3g"), **shares)
    bars = data.mark_rect(color=RULE).encode(x=x, x2="high:Q", y=y, y2=alt.datum(0), tooltip=tooltip)
    middle = data.transform_calculate(middle="sqrt(datum.low * datum.high)")
    line = middle.mark_line(color=CROSS_ENTROPY, strokeWidth=2.5).encode(x=x.copy(), y="loss:Q")
    line.encoding.x.shorthand = "middle:Q"
    description = "Share of the rows by their loss in bits, and their share of the total loss."
    return finished(layered(bars, line), "surprisal-histogram", description)


def _half_octaves(record: Mapping[str, Any]) -> list[tuple[float, float, float, float]]:
    """Return (from, to, weight, loss) with two bins per octave, from the record's eight bins per octave."""
    bins: dict[int, list[float]] = {}
    for low, high, weight, loss in (tuple(map(number, b)) for b in record["losses"]):
        middle = math.sqrt(max(low or 0.0, 2.0**-24) * min(high or 0.0, 2.0**10))
        place = math.floor(2 * math.log2(middle / LN2))
        part = bins.setdefault(place, [0.0, 0.0])
        part[0] += weight or 0.0
        part[1] += loss or 0.0
    if not bins:
        return []
    every = range(min(bins), max(bins) + 1)
    return [(2 ** (k / 2) * LN2, 2 ** ((k + 1) / 2) * LN2, *bins.get(k, (0.0, 0.0))) for k in every]


def _concentration(record: Mapping[str, Any]) -> Layers:
    points = [(0.0, 0.0), *((a, number(b) or 0.0) for a, b in record["concentration"]), (1.0, 1.0)]
    data = rows(rows=[a for a, _ in points], loss=rounded((b for _, b in points), 4))
    x = x_axis("rows:Q", "worst rows, share", format="%", tickCount=5)
    y = y_axis("loss:Q", "share of the loss", format="%", tickCount=5)
    even = rows(rows=[0, 1], loss=[0, 1]).mark_line(color=MUTED, strokeDash=[2, 3]).encode(x=x, y=y)
    tooltip = tooltips(rows=("worst rows", ".1%"), loss=("of the loss", ".1%"))
    line = data.mark_line(color=CROSS_ENTROPY, strokeWidth=2.5, point=alt.OverlayMarkDef(color=CROSS_ENTROPY, size=50))
    description = "The share of the loss that the worst rows carry, against their share of the rows."
    return finished(layered(even, line.encode(x=x, y=y, tooltip=tooltip)), "concentration", description)


def _reliability(record: Mapping[str, Any], class_1: bool = False) -> Layers:
    """Return the reliability of the predicted class, or of class 1 of two."""
    bins = record["reliability_class_1" if class_1 else "reliability"]
    name = shown_name(record["classes"][1]["name"]) if class_1 else ""
    total = math.fsum(b["weight"] for b in bins) or 1.0
    data = rows(
        claimed=rounded((b["claimed"] for b in bins), 4),
        correct=rounded((b["correct"] for b in bins), 4),
        low=rounded((b["correct_low"] for b in bins), 4),
        high=rounded((b["correct_high"] for b in bins), 4),
        rows=rounded((b["weight"] / total for b in bins), 4),
    )
    claimed = f"probability of class {name}" if class_1 else "probability of the predicted class"
    x = x_axis("claimed:Q", claimed, [0, 1], format="%", tickCount=5)
    y = y_axis("correct:Q", f"share of class {name}" if class_1 else "share correct", [0, 1], format="%", tickCount=5)
    diagonal = rows(claimed=[0, 1], correct=[0, 1]).mark_line(color=MUTED, strokeDash=[2, 3]).encode(x=x, y=y)
    tooltip = tooltips(claimed=("predicted", ".1%"), correct=("correct", ".1%"), rows=("share of rows", ".2%"))
    low = alt.Y("low:Q", scale=alt.Scale(domain=[0, 1]))
    band = data.mark_area(color=CROSS_ENTROPY, opacity=0.18).encode(x=x, y=low, y2="high:Q")
    line = data.mark_line(color=CROSS_ENTROPY, strokeWidth=2.5).encode(x=x, y=y)
    points = data.mark_circle(color=CROSS_ENTROPY, size=55, opacity=1).encode(x=x, y=y, tooltip=tooltip)
    what = f"rows of class {name} against its probability" if class_1 else "correct rows against their probability"
    description = f"The share of {what}, with its 95% band."
    layers = layered(diagonal, band, line, points)
    return finished(layers, "reliability-class-1" if class_1 else "reliability", description, 300)


def _confidence(record: Mapping[str, Any]) -> Layers:
    bins = record["reliability"]
    total = math.fsum(b["weight"] for b in bins) or 1.0
    data = rows(
        low=[b["low"] for b in bins],
        high=[b["high"] for b in bins],
        rows=rounded((b["weight"] / total for b in bins), 4),
    )
    x = x_axis("low:Q", None, [0, 1], format="%", tickCount=5)
    y = y_axis("rows:Q", "share of rows", format="%", tickCount=3)
    bars = data.mark_rect(color=RULE, stroke=FAINT).encode(x=x, x2="high:Q", y=y, y2=alt.datum(0))
    return finished(layered(bars), "confidence", "How often the predicted class had each probability.", 90)


def _decomposition(record: Mapping[str, Any]) -> Layers:
    u, d, m = (figure(record, f"{name}_nats") or 0.0 for name in ("uncertainty", "discrimination", "miscalibration"))
    parts = [
        ("uncertainty", 0.0, u, MUTED),
        ("− discrimination", u - d, u, CROSS_ENTROPY),
        ("+ miscalibration", u - d, u - d + m, "var(--squared-error)"),
        ("= loss", 0.0, u - d + m, INK),
    ]
    spans = _ends_of_parts(record, parts)
    data = rows(
        part=[name for name, *_ in parts],
        after=rounded((max(p[2], spans.get(p[0], (0.0, 0.0))[1]) for p in parts), 5),
        low=rounded((p[1] for p in parts), 5),
        high=rounded((p[2] for p in parts), 5),
        color=[p[3] for p in parts],
        text=[significant(p[2] - p[1]) for p in parts],
    )
    y = alt.Y("part:N", sort=[name for name, *_ in parts], axis=alt.Axis(title=None, labelColor=INK, labelFontSize=13))
    x = x_axis("low:Q", "nats per row", [0, 1.15 * max(u, u - d + m)], tickCount=5)
    bars = data.mark_bar(size=20).encode(x=x, x2="high:Q", y=y, color=alt.Color("color:N", scale=None))
    texts = label(data.encode(x="after:Q", y=y, text="text:N"), align="left", dx=6, color=INK)
    ends = rows(
        part=list(spans),
        near=rounded((span[0] for span in spans.values()), 5),
        far=rounded((span[1] for span in spans.values()), 5),
    )
    lines = [
        ends.mark_rule(color=color, strokeWidth=width).encode(x="near:Q", x2="far:Q", y=y)
        for color, width in ((PAPER, 5.0), (INK, 1.5))
        if spans
    ]
    description = "Uncertainty, discrimination and miscalibration, with their 95% intervals."
    return finished(layered(bars, *lines, texts), "decomposition", description, 150)


def _ends_of_parts(
    record: Mapping[str, Any], parts: list[tuple[str, float, float, str]]
) -> dict[str, tuple[float, float]]:
    """Return where the interval of each part is drawn: about the end of its bar that moves with it."""
    spans = {}
    names = ("uncertainty", "discrimination", "miscalibration")
    for (part, low, high, _), name in zip(parts, names, strict=False):
        near, far = (figure(record, f"{name}_{end}_nats") for end in ("low", "high"))
        if near is not None and far is not None:
            # Discrimination is subtracted: its bar begins at what is left.
            spans[part] = (high - far, high - near) if name == "discrimination" else (low + near, low + far)
    return spans


def _rows(record: Mapping[str, Any]) -> Layers:
    """Return the logarithmic loss of each sampled row against its Brier score."""
    finite = [s for s in record["sample"] if number(s["loss"]) not in (None, math.inf)][:MOST_POINTS]
    data = rows(
        brier=rounded((s["brier"] for s in finite), 4),
        loss=rounded((max(number(s["loss"]) or 0.0, 2.0**-24) / LN2 for s in finite), 4),
    )
    x = x_axis("brier:Q", "Brier score of the row, at most 2", [0, 2], tickCount=5)
    y = y_axis("loss:Q", "bits", tickCount=5)
    points = data.mark_circle(color=CROSS_ENTROPY, opacity=0.35, size=22).encode(x=x, y=y)
    description = "Sampled rows: the logarithmic loss, which has no limit, against the Brier score, which is at most 2."
    return finished(layered(points), "log-loss-brier", description)


def _clip(record: Mapping[str, Any]) -> Layers:
    means = sorted((math.log10(eps), number(value)) for eps, value in record["clip_sensitivity"])
    data = rows(eps=rounded((a for a, _ in means), 5), nats=rounded((b for _, b in means), 5))
    names = {
        -3.0: "0.001",
        math.log10(2.0**-23): "float32",
        math.log10(2.0**-52): "float64",
        -6.0: power(-6),
        -12.0: power(-12),
    }
    x = alt.X("eps:Q", axis=ticks(names, title="smallest probability that a label would be scored with"))
    y = alt.Y("nats:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title="mean, nats per row", tickCount=4))
    tooltip = tooltips(eps=("log10 of the clip", ".2f"), nats=("nats", ".5g"))
    line = data.mark_line(color=CROSS_ENTROPY, strokeWidth=2.5).encode(x=x, y=y)
    points = data.mark_circle(color=CROSS_ENTROPY, size=60, opacity=1).encode(x=x, y=y, tooltip=tooltip)
    return finished(
        layered(line, points),
        "clip",
        "The mean cross-entropy against the clip, the smallest probability of a label.",
        220,
    )
