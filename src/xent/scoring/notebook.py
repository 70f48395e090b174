"""What a notebook shows for a `Score` and a `Comparison`: small tables from their records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xent.markup import number, paragraph, share, table

MOST_SEGMENTS = 8
MOST_ROWS = 5
SHARES = ("explained", "accuracy")
SHOWN = {
    "cross_entropy_nats": "cross-entropy",
    "cross_entropy_bits": "",
    "bits_per_byte": "of text",
    "bits_per_character": "",
    "cross_entropy_possible_nats": "without impossible rows",
    "perplexity": "perplexity",
    "base_rate_nats": "base rate",
    "explained": "explained",
    "brier": "Brier score",
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "temperature": "best temperature",
    "temperature_gain_nats": "it would gain",
}
"""By its name in `Score.to_dict`: how a figure is called."""


def score_html(record: Mapping[str, Any]) -> str:
    """Return the tables of a score, from `Score.to_record`."""
    figures = record["figures"]
    rows = []
    for name, title in SHOWN.items():
        if name in figures:
            value = figures[name]["value"]
            shown = share(value) if name in SHARES else number(value)
            rows.append([title, shown, figures[name]["unit"]])
    low, high = (number(figures.get(f"cross_entropy_{end}_nats", {}).get("value")) for end in ("low", "high"))
    if low and rows:
        rows.insert(1, ["", f"{low} to {high}", "95% interval"])
    count, classes = int(float(figures["rows"]["value"])), record["form"]["classes"]
    of = f", {len(classes):,} classes" if classes else ""
    parts = [table(f"Score of {count:,} rows{of}", ["", "value", "unit"], rows)]
    for column, segments in record["segments"].items():
        parts.append(
            table(
                "The worst segments",
                [column, "rows", "nats per row", "share of loss"],
                [
                    [s["value"], f"{s['rows']:,}", number(s["cross_entropy"]["nats"]), share(s["share_of_loss"])]
                    for s in segments[:MOST_SEGMENTS]
                ],
            )
        )
    parts.append(
        table(
            "The most surprising rows",
            ["row", "label", "predicted", "bits"],
            [
                [_or(row["id"], f"{row['row']:,}"), _or(row["label"]), _or(row["predicted"]), number(row["bits"])]
                for row in record["surprising"][:MOST_ROWS]
            ],
            texts=3,
        )
    )
    return "".join([*parts, *map(paragraph, record["warnings"])])


def comparison_html(record: Mapping[str, Any]) -> str:
    """Return the tables of a comparison, from `Comparison.to_record`."""
    d = record["difference"]
    rows = [["a minus b", number(d["nats"]), "nats per row; below 0, a is better"]]
    if d["low"] is not None:
        rows.append(["", f"{number(d['low'])} to {number(d['high'])}", "95% interval"])
    rows += [
        ["p-value", number(record["p_value"]), "of no difference, paired t-test"],
        ["cross-entropy of a, b", _both(record, "cross_entropy", number), "nats per row"],
        ["accuracy of a, b", _both(record, "accuracy", share), "of rows"],
        ["better in a, b", f"{record['better_a']:,}, {record['better_b']:,}", "rows"],
        ["impossible in a, b", f"{record['impossible_a']:,}, {record['impossible_b']:,}", "rows"],
    ]
    caption = f"{record['rows']:,} paired rows: {record['verdict']}"
    parts = [table(caption, ["", "value", "unit"], [row for row in rows if row[1]])]
    if record["segments"]:
        segments = [
            [s["column"], s["value"], f"{s['rows']:,}", number(s["difference"]["nats"]), share(s["share"])]
            for s in record["segments"][:MOST_SEGMENTS]
        ]
        head = ["column", "value", "rows", "nats per row", "share"]
        parts.append(table("Segments that drive it", head, segments, texts=2))
    drivers = [
        [row["id"], *(number(row[name]) for name in ("loss_a", "loss_b", "difference"))]
        for row in record["drivers"][:MOST_ROWS]
    ]
    parts.append(table("Rows that drive it", ["id", "loss of a", "loss of b", "difference"], drivers))
    return "".join(parts)


def _or(value: object, otherwise: str = "") -> object:
    return otherwise if value is None else value


def _both(record: Mapping[str, Any], name: str, shown: Any) -> str:
    pair = [shown(record[f"{name}_{side}"]) for side in ("a", "b")]
    return ", ".join(pair) if any(pair) else ""
