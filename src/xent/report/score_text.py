"""What the report of `xent score` says in words, figures and tables; the record is that of `Score.to_record`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from xent.report.numbers import count, magnitude, percent, plural, scientific, significant

MOST_CLASSES = 200
MOST_SEGMENTS = 200
LONGEST = 60
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
"""The search in the table of the most surprising rows."""


def number(value: Any) -> float | None:
    """A number of the record, in which infinities are text; None where there is none."""
    if value is None:
        return None
    return float(value)


def figure(record: Mapping[str, Any], name: str) -> float | None:
    """A figure by its name in `Score.to_dict`."""
    found = record["figures"].get(name)
    return None if found is None else number(found["value"])


def shown(value: Any, digits: int = 4) -> str:
    """A number as text; empty where there is none."""
    value = number(value)
    return "" if value is None else ("\N{MINUS SIGN}infinite" if value == -math.inf else significant(value, digits))


def share(value: Any) -> str:
    """A share as a percentage; empty where there is none or where it is infinite."""
    value = number(value)
    return "" if value is None or not math.isfinite(value) else percent(value)


def texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template needs beside the charts."""
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
        "segments": [(name, _segments(rows)) for name, rows in record["segments"].items()],
        "surprising": _surprising(record),
        "identified": record["form"]["identified"],
        "temperature": _temperature(record),
        "decomposition": _decomposition(record),
        "concentration": _concentration(record),
        "clip": _clip(record),
        "invalid": record["invalid"],
        "source": record.get("source"),
    }


def answer(record: Mapping[str, Any]) -> list[Markup | str]:
    """The score in a few sentences."""
    nats, bits = figure(record, "cross_entropy_nats"), figure(record, "cross_entropy_bits")
    rows = plural(int(figure(record, "rows") or 0), "row")
    if nats is None:
        return [f"None of the {rows} has a weight: there is nothing to average."]
    if math.isinf(nats):
        impossible = plural(int(figure(record, "impossible_rows") or 0), "row")
        rest = shown(figure(record, "cross_entropy_possible_nats"))
        return [
            f"The mean cross-entropy is infinite: {impossible} of {rows} had a label that was called impossible.",
            f"Without them it is {rest} nats per row.",
        ]
    low, high = shown(figure(record, "cross_entropy_low_nats")), shown(figure(record, "cross_entropy_high_nats"))
    interval = f" (95% interval {low} to {high})" if low else ""
    mean = Markup('<strong class="cross-entropy">{} nats</strong>').format(shown(nats))
    found: list[Markup | str] = [
        Markup("A label cost {} on average{}, which is {} bits, over {}.").format(mean, interval, shown(bits), rows)
    ]
    base, explained = figure(record, "base_rate_nats"), figure(record, "explained")
    if base and explained is not None:
        better = f"explain {percent(explained)} of that" if explained >= 0 else "are worse than that"
        found.append(f"Always predicting the classes’ frequencies would cost {shown(base)}; the predictions {better}.")
    perplexity = shown(figure(record, "perplexity"), 3)
    found.append(f"They were as uncertain as a choice among {perplexity} equally likely classes.")
    return found


def _tiles(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [
        ("cross_entropy_nats", "nats per row", "cross-entropy"),
        ("perplexity", "perplexity", "equally likely classes, of all rows together"),
        ("explained", "explained", "share of the base rate’s entropy (D²)"),
        ("accuracy", "accuracy", "share of rows whose likeliest class is the label"),
    ]
    found = []
    for name, unit, label in names:
        value = figure(record, name)
        if value is not None:
            text = percent(value) if name in ("explained", "accuracy") and math.isfinite(value) else magnitude(value)
            text = "\N{MINUS SIGN}infinite" if value == -math.inf else text
            found.append({"figure": text, "unit": unit, "label": label})
    text = "0" if figure(record, "likelihood_per_row") == 0 else scientific(record["likelihood"])
    return [*found, {"figure": text, "unit": "likelihood", "label": "probability of all labels together"}]


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
            shortened(c["name"]),
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
    found = []
    for s in rows[:MOST_SEGMENTS]:
        e = s["cross_entropy"]
        interval = f"{shown(e['low'])} to {shown(e['high'])}" if e["low"] is not None else ""
        numbers = [count(s["rows"]), shown(e["nats"]), interval, share(s["share_of_loss"]), share(s["accuracy"])]
        found.append([shortened(s["value"]), *numbers])
    return found


def _surprising(record: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for row in record["surprising"]:
        likeliest = ", ".join(f"{shortened(name)} {shown(p, 3)}" for name, p in row["likeliest"])
        name = shortened(row["id"]) if row["id"] is not None else count(row["row"])
        label, predicted = (shortened(row[key]) if row[key] is not None else "" for key in ("label", "predicted"))
        found.append([name, label, predicted, shown(row["bits"]), likeliest])
    return found


def _temperature(record: Mapping[str, Any]) -> str:
    t = record["temperature"]
    if t is None:
        return ""
    far = "too confident" if t["temperature"] > 1 else "not confident enough"
    gain = f"{shown(t['gain'], 3)} nats per row (95% interval {shown(t['gain_low'], 3)} to {shown(t['gain_high'], 3)})"
    verdict = (
        f"The predictions are {far}: a temperature of {shown(t['temperature'], 3)} would win {gain}."
        if t["gain_low"] > 0
        else f"No temperature clearly helps: the best, {shown(t['temperature'], 3)}, would win {gain}."
    )
    return f"{verdict} It was judged on rows that did not choose it, {count(t['rows'])} sampled rows in five parts."


def _decomposition(record: Mapping[str, Any]) -> str:
    parts = [shown(figure(record, f"{name}_nats"), 3) for name in ("uncertainty", "discrimination", "miscalibration")]
    lost = figure(record, "miscalibration_nats")
    if lost is None or not math.isfinite(lost):
        return ""  # an impossible event makes it infinite, and nothing is left to divide
    return (
        f"Each class against the rest, averaged: the base rate’s uncertainty of {parts[0]} nats, less {parts[1]} that "
        f"the predictions discriminate, plus {parts[2]} lost to miscalibration, which a non-decreasing correction of "
        "the probabilities (isotonic regression) would win back. It is made from histograms, in which probabilities "
        "nearer to 0 or 1 than one in a million count with their mean: the worst rows weigh less than in the score."
    )


def _concentration(record: Mapping[str, Any]) -> str:
    carried = dict(record["concentration"])
    if not carried:
        return "There is no loss to divide."
    finite = " of the finite loss" if figure(record, "impossible_rows") else " of the loss"
    return f"The worst 1% of the rows carry {percent(carried[0.01])}{finite}, the worst 10% {percent(carried[0.1])}."


def _clip(record: Mapping[str, Any]) -> str:
    eps = record["form"]["clip"]
    if eps is not None:
        return f"Probabilities of labels below {eps:g} were scored as {eps:g}, because it was asked for."
    if not record["clip_sensitivity"]:
        return ""
    low, high = clip_range(record)
    if not clip_matters(record):
        return "Raising the smallest probabilities to a floor hardly changes the mean: no row hangs on it."
    return (
        f"Raising the smallest probabilities to a floor would make the mean anything from {shown(low)} to "
        f"{shown(high)} nats. Tools that clip silently choose one of these."
    )


def clip_range(record: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and largest mean that a floor of the probabilities would make."""
    means = [number(v) or 0.0 for _, v in record["clip_sensitivity"]]
    return min(means), max(means)


def clip_matters(record: Mapping[str, Any]) -> bool:
    """Whether a floor of the probabilities would change what is shown of the mean."""
    if not record["clip_sensitivity"]:
        return False
    low, high = clip_range(record)
    return high - low > 1e-4 * high


def _name(record: Mapping[str, Any]) -> str:
    source = record.get("source")
    return shortened(source["name"]) if source else "predictions"


def _title(name: str) -> str:
    words = name.removesuffix("_nats").removesuffix("_bits").replace("_", " ")
    return words[0].upper() + words[1:]


def shortened(name: object) -> str:
    """A name that comes from the data, at a length that a table can take."""
    text = str(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
