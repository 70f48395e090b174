"""Part 4: the trainings, and the search for the learning rate of each loss."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import altair as alt

from xent.report.numbers import median, rounded
from xent.report.theme import (
    COLOR_OF,
    DASH_OF,
    MUTED,
    PAPER,
    SHAPE_OF,
    Layers,
    control,
    finished,
    inline,
    label,
    layered,
    nearest,
    rows,
)
from xent.report.why_charts.likelihood import step_axis

MEASURES = {
    "accuracy": "accuracy",
    "cross_entropy_nats": "cross-entropy (nats)",
    "squared_error": "squared error",
}
LOSSES = tuple(COLOR_OF)
MOST_SEEDS = 8
"""Seeds drawn as thin lines, to limit the size of the page; medians are over all seeds."""


def charts(record: dict[str, Any]) -> dict[str, Layers]:
    """Return the training curves, and the scores of the learning rates."""
    return {"race": _race(record), "rates": _rates(record)}


def trainings(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an entry for each training and for each median over the seeds: names, and columns over the steps."""
    entries = [
        {"start": r["start"], "model": r["model"], "loss": r["loss"], "seed": str(r["seed"]), **_steps(r["curve"])}
        for r in record["runs"]
        if r["seed"] in record["settings"]["seeds"][:MOST_SEEDS]
    ]
    keys = list(dict.fromkeys((r["start"], r["model"], r["loss"]) for r in record["runs"]))
    for start, model, loss in keys:
        curves = [r["curve"] for r in record["runs"] if (r["start"], r["model"], r["loss"]) == (start, model, loss)]
        middle: dict[str, Any] = {"step": curves[0]["step"]}
        for measure in MEASURES:
            worst = -math.inf if measure == "accuracy" else math.inf
            points = zip(*(curve[measure] for curve in curves), strict=False)
            middle[measure] = [median(values, worst) for values in points]
        entries.append({"start": start, "model": model, "loss": loss, "seed": "median", **_steps(middle)})
    return entries


def _steps(curve: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a curve; on the logarithmic axis step 0 is drawn at one half."""
    return {"step": [max(s, 0.5) for s in curve["step"]], **{m: rounded(curve[m]) for m in MEASURES}}


def _chosen(chart: alt.Chart) -> alt.Chart:
    """Keep only what the page's controls select."""
    return chart.transform_filter("datum.start == start && datum.model == model")


def _controls(record: dict[str, Any]) -> list[alt.Parameter]:
    """Return the page's menus, with their first entries selected."""
    first = record["runs"][0] if record["runs"] else {"start": "", "model": ""}
    return [
        control("start", "race-start", first["start"]),
        control("model", "race-model", first["model"]),
        control("measure", "race-measure", next(iter(MEASURES))),
    ]


def _race(record: dict[str, Any]) -> Layers:
    entries = trainings(record)
    last = max((max(t["step"], default=1) for t in entries), default=1)
    x = step_axis(last)
    written = "measure == 'accuracy' ? format(datum.value, '.0%') : format(datum.value, '~g')"
    scale = alt.Scale(domain=[0, {"expr": "tops[start + model + measure]"}], nice=True)
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=None, tickCount=5, labelExpr=written))
    curves = (
        _chosen(alt.Chart(inline(entries)).transform_flatten(["step", *MEASURES]))
        .transform_calculate(value="datum[measure]")
        .transform_filter("isValid(datum.value)")
    )
    parts: list[Any] = _levels(record, last, x, y)
    for loss in LOSSES:
        of_loss = curves.transform_filter(f"datum.loss == '{loss}'").encode(x=x, y=y)
        thin = of_loss.transform_filter("datum.seed != 'median'").encode(detail="seed:N")
        parts.append(thin.mark_line(color=COLOR_OF[loss], strokeWidth=1, opacity=0.4))
        thick = of_loss.transform_filter("datum.seed == 'median'")
        parts.append(thick.mark_line(color=COLOR_OF[loss], strokeWidth=3, strokeDash=DASH_OF[loss]))
    parts += _crossings(record, x, y)
    place = nearest("at", "step", _middle_step(entries), "race")
    middle = curves.transform_filter("datum.seed == 'median'")
    here = middle.transform_filter(place)
    parts.append(here.mark_rule(color=MUTED, strokeDash=[2, 3]).encode(x=x))
    pair = here.transform_joinaggregate(mean="mean(value)").transform_calculate(
        text="measure == 'accuracy' ? format(datum.value, '.1%') : format(datum.value, '.3f')",
        upper="datum.value > datum.mean || (datum.value == datum.mean && datum.loss == 'cross-entropy')"
        " || datum.value < 0.08 * tops[start + model + measure]",
    )
    for loss in LOSSES:
        there = pair.transform_filter(f"datum.loss == '{loss}'")
        dot = there.mark_point(shape=SHAPE_OF[loss], filled=True, size=70, color=COLOR_OF[loss], opacity=1)
        parts.append(dot.encode(x=x, y=y))
        parts += _readout(there, x, y, loss, last)
    parts.append(middle.mark_point(opacity=0).encode(x=x, y=y).add_params(place).properties(name="race"))
    description = (
        "Training curves on test rows: the chosen measure against steps of gradient descent on a logarithmic axis, for "
        "the chosen start and model. Thin lines are seeds, thick lines are medians; cross-entropy is solid, squared "
        "error dashed. The tables below have the same results as numbers."
    )
    layers = layered(*parts).add_params(alt.param(name="tops", value=_tops(entries)), *_controls(record))
    return finished(layers, "race_layers", description, 380)


def _middle_step(entries: list[dict[str, Any]]) -> float:
    """Return the initial step of the readout, in the middle of the axis."""
    step = entries[0]["step"] if entries else [1.0]
    return float(min(step, key=lambda s: abs(math.log(s / math.sqrt(0.5 * step[-1])))))


def _tops(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Return the upper end of the axis for each selection of the menus, for all losses and seeds."""
    tops: dict[str, float] = {}
    for training, measure in product(entries, MEASURES):
        key = training["start"] + training["model"] + measure
        highest = max((v for v in training[measure] if v is not None), default=0.0)
        tops[key] = 1.0 if measure == "accuracy" else max(tops.get(key, 1e-9), highest)
    return tops


def _readout(there: alt.Chart, x: alt.X, y: alt.Y, loss: str, last: float) -> list[Any]:
    """Return the value of the median beside its marker, where there is room."""
    middle = math.sqrt(0.5 * last)
    across = (("left", 8, f"datum.step < {middle}"), ("right", -8, f"datum.step >= {middle}"))
    along = ((-12, "datum.upper"), (14, "!datum.upper"))
    return [
        label(
            there.transform_filter(f"{condition} && {other}").encode(x=x, y=y, text="text:N"),
            align=align,
            dx=dx,
            dy=dy,
            color=COLOR_OF[loss],
            fontWeight=600,
        )
        for (align, dx, condition), (dy, other) in product(across, along)
    ]


def _levels(record: dict[str, Any], last: float, x: alt.X, y: alt.Y) -> list[Any]:
    """Return the accuracies whose first crossing is timed."""
    levels = rows(value=record["levels"]).transform_filter("measure == 'accuracy'")
    return [levels.mark_rule(color=MUTED, strokeDash=[1, 5], strokeWidth=1).encode(y=y)] if record["levels"] else []


def _crossings(record: dict[str, Any], x: alt.X, y: alt.Y) -> list[Any]:
    """Return where the median training first reached each level."""
    points = []
    keys = dict.fromkeys((r["start"], r["model"], r["loss"]) for r in record["runs"])
    for (start, model, loss), (i, level) in product(keys, enumerate(record["levels"])):
        runs = [r for r in record["runs"] if (r["start"], r["model"], r["loss"]) == (start, model, loss)]
        step = median([r["steps_to_reach"][i] for r in runs])
        if step is not None:
            points.append({"start": start, "model": model, "loss": loss, "step": max(step, 0.5), "value": level})
    parts = []
    for loss in LOSSES:
        of_loss = [point for point in points if point["loss"] == loss]
        if of_loss:
            chart = _chosen(alt.Chart(inline(of_loss))).transform_filter("measure == 'accuracy'")
            tooltip = [
                alt.Tooltip("loss:N", title="loss"),
                alt.Tooltip("value:Q", title="reached", format=".1%"),
                alt.Tooltip("step:Q", title="after steps", format=",~g"),
            ]
            mark = chart.mark_point(
                shape=SHAPE_OF[loss], size=80, fill=PAPER, stroke=COLOR_OF[loss], strokeWidth=2, opacity=1
            )
            parts.append(mark.encode(x=x, y=y, tooltip=tooltip))
    return parts


def _rates(record: dict[str, Any]) -> Layers:
    trials = [t for t in record["learning_rates"] if t["score"] is not None]
    rates = sorted({t["learning_rate"] for t in trials}) or [0.1, 1.0]
    x = alt.X(
        "learning_rate:Q",
        scale=alt.Scale(type="log", domain=[rates[0] / 1.4, rates[-1] * 1.4], nice=False),
        axis=alt.Axis(title="learning rate", values=rates, format="~g", labelOverlap="greedy"),
    )
    ends = [{"expr": f"scores[start + model][{i}]"} for i in (0, 1)]
    y = alt.Y(
        "score:Q",
        scale=alt.Scale(domain=ends, zero=False, nice=True),
        axis=alt.Axis(title=None, format="~%", tickCount=5),
    )
    parts: list[Any] = []
    for loss in LOSSES:
        tried = [
            {k: t[k] for k in ("start", "model", "learning_rate", "score", "chosen")}
            for t in trials
            if t["loss"] == loss
        ]
        chart = _chosen(alt.Chart(inline(tried))).encode(x=x, y=y)
        line = chart.mark_line(color=COLOR_OF[loss], strokeWidth=2, strokeDash=DASH_OF[loss])
        point = chart.mark_point(color=COLOR_OF[loss], shape=SHAPE_OF[loss], filled=True, size=45, opacity=1)
        best = chart.transform_filter("datum.chosen")
        ring = best.mark_point(
            shape="circle", size=260, stroke=COLOR_OF[loss], strokeWidth=2, fill="transparent", opacity=1
        )
        tooltip = [
            alt.Tooltip("learning_rate:Q", title="learning rate", format="~g"),
            alt.Tooltip("score:Q", title="score", format=".2%"),
            alt.Tooltip("chosen:N", title="chosen"),
        ]
        parts += [line, ring, point.encode(tooltip=tooltip)]
    description = (
        "Validation accuracy, averaged over the training, against the learning rate, for the chosen start and model. "
        "Each loss's best learning rate is ringed; it is the one used in the race."
    )
    layers = layered(*parts).add_params(alt.param(name="scores", value=_score_ends(record)), *_controls(record)[:2])
    return finished(layers, "rates", description, 260)


def _score_ends(record: dict[str, Any]) -> dict[str, list[float]]:
    """Return the lowest and the highest score for each selection of the menus, with some margin."""
    ends: dict[str, list[float]] = {}
    for start, model in dict.fromkeys((t["start"], t["model"]) for t in record["learning_rates"]):
        trials = [t["score"] for t in record["learning_rates"] if (t["start"], t["model"]) == (start, model)]
        scores = [score for score in trials if score is not None] or [0.0, 1.0]
        margin = 0.06 * (max(scores) - min(scores)) or 0.01
        ends[start + model] = [max(0.0, min(scores) - margin), min(1.0, max(scores) + margin)]
    return ends
