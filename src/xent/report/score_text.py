"""The texts, figures and tables of the report of `xent score`; the record is that of `Score.to_record`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from xent.names import shown_name, shown_path
from xent.report.numbers import count, magnitude, percent, plural, scientific, significant

MOST_CLASSES = 200
MOST_SEGMENTS = 200
LN2 = math.log(2)

SEARCH = """
const search = document.getElementById("search");
search?.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("#surprising-rows tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
"""
"""JavaScript of the search in the table of the most surprising rows."""


def number(value: Any) -> float | None:
    """Return a number of the record, in which infinities are text; None if there is none."""
    return None if value is None else float(value)


def figure(record: Mapping[str, Any], name: str) -> float | None:
    """Return a figure by its name in `Score.to_dict`; None if there is none."""
    entry = record["figures"].get(name)
    return None if entry is None else number(entry["value"])


def shown(value: Any, digits: int = 4) -> str:
    """Return a number as text; empty if there is none."""
    value = number(value)
    return "" if value is None else ("\N{MINUS SIGN}infinite" if value == -math.inf else significant(value, digits))


def share(value: Any) -> str:
    """Return a share as a percentage; empty if there is none or if it is infinite."""
    value = number(value)
    return "" if value is None or not math.isfinite(value) else percent(value)


def texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return all variables of the template besides the charts."""
    wide = bool(record["form"]["classes"])
    return {
        "name": _name(record),
        "answer": answer(record),
        "tiles": _tiles(record),
        "facts": _facts(record),
        "warnings": record["warnings"],
        "wide": wide,
        "figures": [(_title(name), shown(f["value"], 6), f["unit"]) for name, f in record["figures"].items()],
        "classes": _classes(record),
        "more_classes": max(0, len(record["classes"]) - MOST_CLASSES),
        "segments": [(shown_name(name), _segments(rows)) for name, rows in record["segments"].items()],
        "surprising": _surprising(record),
        "identified": record["form"]["identified"],
        "temperature": _temperature(record),
        "decomposition": _decomposition(record),
        "concentration": _concentration(record),
        "clip": _clip(record),
        "invalid": [{**row, "id": row["id"] and shown_name(row["id"])} for row in record["invalid"]],
        "source": _source(record),
    }


def answer(record: Mapping[str, Any]) -> list[Markup | str]:
    """Return the score in a few sentences."""
    nats, bits = figure(record, "cross_entropy_nats"), figure(record, "cross_entropy_bits")
    rows = plural(int(figure(record, "rows") or 0), "row")
    if nats is None:
        return [f"All weights are 0 ({rows}): there is no mean."]
    if math.isinf(nats):
        impossible = plural(int(figure(record, "impossible_rows") or 0), "row")
        rest = shown(figure(record, "cross_entropy_possible_nats"))
        return [
            f"The mean cross-entropy is infinite: {impossible} of {rows} had a label that was predicted as impossible.",
            f"Without them it is {rest} nats per row.",
        ]
    low, high = shown(figure(record, "cross_entropy_low_nats")), shown(figure(record, "cross_entropy_high_nats"))
    interval = f" (95% interval {low} to {high})" if low else ""
    mean = Markup('<strong class="cross-entropy">{} nats</strong>').format(shown(nats))
    mean_loss = Markup("The mean cross-entropy is {}{}, or {} bits, over {}.").format(mean, interval, shown(bits), rows)
    sentences: list[Markup | str] = [mean_loss]
    base, explained = figure(record, "base_rate_nats"), figure(record, "explained")
    if base and explained is not None:
        better = f"explain {percent(explained)} of that" if explained >= 0 else "are worse than that"
        sentences.append(f"Always predicting the class frequencies would cost {shown(base)}; the predictions {better}.")
    perplexity = shown(figure(record, "perplexity"), 3)
    sentences.append(f"They are as uncertain as a choice among {perplexity} equally likely classes.")
    return sentences


def _tiles(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [
        ("cross_entropy_nats", "nats per row", "cross-entropy"),
        ("perplexity", "perplexity", "equally likely classes, of all rows together"),
        ("explained", "explained", "share of the base rate’s entropy (D²)"),
        ("accuracy", "accuracy", "share of rows whose most likely class is the label"),
    ]
    tiles = []
    for name, unit, label in names:
        value = figure(record, name)
        if value is not None:
            text = percent(value) if name in ("explained", "accuracy") and math.isfinite(value) else magnitude(value)
            text = "\N{MINUS SIGN}infinite" if value == -math.inf else text
            tiles.append({"figure": text, "unit": unit, "label": label})
    text = "0" if figure(record, "likelihood_per_row") == 0 else scientific(record["likelihood"])
    return [*tiles, {"figure": text, "unit": "likelihood", "label": "probability of all labels together"}]


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    form = record["form"]
    rows = int(figure(record, "rows") or 0)
    clip = "none: an impossible label costs +∞" if form["clip"] is None else f"probabilities below {form['clip']:g}"
    labels = "soft" if form["soft"] else "one class for each row"
    return [
        ("Rows", count(rows) + (f", weight {shown(figure(record, 'weight'))}" if form["weighted"] else "")),
        ("Classes", count(len(form["classes"])) if form["classes"] else "not known: only the labels’ probabilities"),
        ("Labels", labels),
        ("Clipping", clip),
        ("Left out", plural(int(figure(record, "invalid_rows") or 0), "row")),
    ]


def _classes(record: Mapping[str, Any]) -> list[list[str]]:
    worst = sorted(record["classes"], key=lambda c: -(number(c["share_of_loss"]) or 0.0))
    return [
        [
            shown_name(c["name"]),
            share(c["share"]),
            share(c["predicted_share"]),
            shown(c["loss"]),
            share(c["recall"]),
            share(c["share_of_loss"]),
            "" if c["against_rest"] is None else shown(c["against_rest"]["miscalibration"], 3),
        ]
        for c in worst[:MOST_CLASSES]
    ]


def _segments(rows: list[Mapping[str, Any]]) -> list[list[str]]:
    body = []
    for s in rows[:MOST_SEGMENTS]:
        e = s["cross_entropy"]
        interval = f"{shown(e['low'])} to {shown(e['high'])}" if e["low"] is not None else ""
        numbers = [count(s["rows"]), shown(e["nats"]), interval, share(s["share_of_loss"]), share(s["accuracy"])]
        body.append([shown_name(s["value"]), *numbers])
    return body


def _surprising(record: Mapping[str, Any]) -> list[list[str]]:
    body = []
    for row in record["surprising"]:
        likeliest = ", ".join(f"{shown_name(name)} {shown(p, 3)}" for name, p in row["likeliest"])
        name = shown_name(row["id"]) if row["id"] is not None else count(row["row"])
        label, predicted = (shown_name(row[key]) if row[key] is not None else "" for key in ("label", "predicted"))
        body.append([name, label, predicted, shown(row["bits"]), likeliest])
    return body


def _temperature(record: Mapping[str, Any]) -> str:
    t = record["temperature"]
    if t is None:
        return ""
    too = "too confident" if t["temperature"] > 1 else "not confident enough"
    gain = f"{shown(t['gain'], 3)} nats per row (95% interval {shown(t['gain_low'], 3)} to {shown(t['gain_high'], 3)})"
    verdict = (
        f"The predictions are {too}: a temperature of {shown(t['temperature'], 3)} would gain {gain}."
        if t["gain_low"] > 0
        else f"No temperature clearly helps: the best, {shown(t['temperature'], 3)}, would gain {gain}."
    )
    return f"{verdict} The gain is cross-fitted on {count(t['rows'])} sampled rows in five parts."


def _decomposition(record: Mapping[str, Any]) -> str:
    parts = [shown(figure(record, f"{name}_nats"), 3) for name in ("uncertainty", "discrimination", "miscalibration")]
    miscalibration = figure(record, "miscalibration_nats")
    if miscalibration is None or not math.isfinite(miscalibration):
        return ""  # infinite with an impossible event
    return (
        f"Each class against the rest, averaged: the base rate’s uncertainty of {parts[0]} nats, minus {parts[1]} of "
        f"discrimination, plus {parts[2]} of miscalibration, which a non-decreasing recalibration of the probabilities "
        "(isotonic regression) would gain. It is computed from histograms, in which probabilities nearer to 0 or 1 "
        "than one in a million count with their mean: the worst rows weigh less than in the score."
    )


def _concentration(record: Mapping[str, Any]) -> str:
    carried = dict(record["concentration"])
    if not carried:
        return "There is no loss."
    finite = " of the finite loss" if figure(record, "impossible_rows") else " of the loss"
    return f"The worst 1% of the rows carry {percent(carried[0.01])}{finite}, the worst 10% {percent(carried[0.1])}."


def _clip(record: Mapping[str, Any]) -> str:
    eps = record["form"]["clip"]
    if eps is not None:
        return f"Probabilities of labels below {eps:g} were scored as {eps:g}, as requested."
    if not record["clip_sensitivity"]:
        return ""
    low, high = clip_range(record)
    if not clip_matters(record):
        return "Clipping the smallest probabilities hardly changes the mean."
    return (
        f"Depending on where the smallest probabilities are clipped, the mean would be anything from {shown(low)} to "
        f"{shown(high)} nats. Tools that clip silently choose one of these values."
    )


def clip_range(record: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and largest mean over the clips."""
    means = [number(v) or 0.0 for _, v in record["clip_sensitivity"]]
    return min(means), max(means)


def clip_matters(record: Mapping[str, Any]) -> bool:
    """Return whether clipping would visibly change the mean."""
    if not record["clip_sensitivity"]:
        return False
    low, high = clip_range(record)
    return high - low > 1e-4 * high


def _name(record: Mapping[str, Any]) -> str:
    source = record.get("source")
    return shown_path(source["name"]) if source else "predictions"


def _source(record: Mapping[str, Any]) -> dict[str, Any] | None:
    source = record.get("source")
    return None if source is None else {**source, "name": shown_path(source["name"])}


def _title(name: str) -> str:
    words = name.removesuffix("_nats").removesuffix("_bits").replace("_", " ")
    return words[0].upper() + words[1:]
