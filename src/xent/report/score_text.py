"""The texts, figures and tables of the report of `xent score`; the record is that of `Score.to_record`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from xent.names import shown_name, shown_path
from xent.report.numbers import count, magnitude, percent, plural, scientific, significant
from xent.report.score_confusion import confusion_text, mistakes_table

MOST_CLASSES = 200
MOST_SEGMENTS = 200
PER_AMOUNT = ("bits_per_byte", "bits_per_character")
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
        "segments": [(shown_name(name), _segments(record, rows)) for name, rows in record["segments"].items()],
        "surprising": _surprising(record),
        "identified": record["form"]["identified"],
        "confusion": confusion_text(record),
        "more_than_two": len(record["classes"]) > 2,
        "second_class": shown_name(record["classes"][1]["name"]) if len(record["classes"]) == 2 else "",
        "mistakes": mistakes_table(record),
        "calibration": _calibration(record),
        "segment_head": _segment_head(record),
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
    for name in PER_AMOUNT:
        value, ends = figure(record, name), [shown(figure(record, f"{name}_{end}")) for end in ("low", "high")]
        if value is not None:
            of = f" (95% interval {ends[0]} to {ends[1]})" if ends[0] else ""
            sentences.append(f"In {name.replace('_', ' ')}, that is {shown(value)}{of}.")
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
    if form.get("multilabel"):
        labels = "any number to a row: rows are pairs of a row and a label"
    clusters = figure(record, "clusters")
    return [
        ("Rows", count(rows) + (f", weight {shown(figure(record, 'weight'))}" if form["weighted"] else "")),
        ("Classes", count(len(form["classes"])) if form["classes"] else "not known: only the labels’ probabilities"),
        ("Labels", labels),
        *([("Clusters", f"{count(clusters)}: intervals are theirs")] if clusters is not None else []),
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


def _segment_head(record: Mapping[str, Any]) -> list[str]:
    units = [unit.replace("_", " ") for unit in PER_AMOUNT if f"{unit}" in record["figures"]]
    return ["Rows", "Nats per row", "95% interval", *(unit.capitalize() for unit in units), "Share of loss", "Accuracy"]


def _segments(record: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> list[list[str]]:
    units = [unit for unit in PER_AMOUNT if unit in record["figures"]]
    body = []
    for s in rows[:MOST_SEGMENTS]:
        e = s["cross_entropy"]
        interval = f"{shown(e['low'])} to {shown(e['high'])}" if e["low"] is not None else ""
        of_text = [shown(s[unit]) for unit in units]
        numbers = [
            count(s["rows"]),
            shown(e["nats"]),
            interval,
            *of_text,
            share(s["share_of_loss"]),
            share(s["accuracy"]),
        ]
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


def _calibration(record: Mapping[str, Any]) -> str:
    """Return the calibration errors in a sentence; nothing without one for the classes."""
    expected, classwise, adaptive = (
        figure(record, name) for name in ("calibration_error", "classwise_error", "adaptive_error")
    )
    if expected is None or classwise is None or adaptive is None:
        return ""
    return (
        f"On average the predicted class’s probability is off by {percent(expected)} (expected calibration error). "
        f"Over all classes it is {percent(classwise)} in bins of equal width and {percent(adaptive)} in bins of equal "
        "weight."
    )


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
    parts = [_with_interval(record, name) for name in ("uncertainty", "discrimination", "miscalibration")]
    miscalibration = figure(record, "miscalibration_nats")
    if miscalibration is None or not math.isfinite(miscalibration):
        return ""  # infinite with an impossible event
    return (
        f"Each class against the rest, averaged, with 95% intervals: the base rate’s uncertainty of {parts[0]} nats, "
        f"minus {parts[1]} of discrimination, plus {parts[2]} of miscalibration, which a non-decreasing recalibration "
        "of the probabilities (isotonic regression) would gain. It is computed from histograms, in which probabilities "
        "nearer to 0 or 1 than one in a million count with their mean: the worst rows weigh less than in the score."
    )


def _with_interval(record: Mapping[str, Any], name: str) -> str:
    low, high = (shown(figure(record, f"{name}_{end}_nats"), 3) for end in ("low", "high"))
    return shown(figure(record, f"{name}_nats"), 3) + (f" ({low} to {high})" if low else "")


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
