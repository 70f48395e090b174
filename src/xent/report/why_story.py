"""What moves on the page of `xent why`: its scripts, and the data that they draw.

The scripts are hand-written files in scripts/. Each makes one object of the name `xent`; the page holds all of them in
one element, in this order. start.js, the last, starts what the page has.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from xent.names import shown_name
from xent.report.why_charts import punishment
from xent.report.why_charts.race import trainings
from xent.report.why_thread import followed

SCRIPTS = (
    "compute",
    "format",
    "plot",
    "race",
    "sliders",
    "datasets",
    "surface",
    "curves",
    "inspect",
    "lab",
    "rows",
    "units",
    "handles",
    "areas",
    "demands",
    "fit",
    "game",
    "start",
)
LONGEST_NAME = 40
"""Characters of a class's or a column's name."""


@cache
def script() -> str:
    """Return all scripts of the page as one."""
    folder = Path(__file__).parent / "scripts"
    texts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";\nconst xent = {};\n', *texts])


def story(record: dict[str, Any]) -> dict[str, Any]:
    """Return the data of the scripts."""
    lowest = punishment.lowest_exponent(record)
    return {
        "race": race(record),
        "truth": [float(p) for p in punishment.probabilities(lowest)],
        "rows": rows(record),
        "plane": plane(record),
    }


def rows(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the rows to guess, with the names of their classes; None in a record without rows."""
    examples = record.get("examples")
    if not examples or not examples["rows"]:
        return None
    used = {label for row in examples["rows"] for label in row["classes"]}
    names = record["data"]["classes"]
    return {
        "classes": {label: shown_name(names[label], LONGEST_NAME) for label in sorted(used)},
        "columns": [shown_name(name, LONGEST_NAME) for name in examples["columns"]],
        "image": examples["image"],
        "followed": examples["rows"].index(followed(record)),
        "rows": [{**row, "values": [_shown(value) for value in row["values"]]} for row in examples["rows"]],
    }


def plane(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the training rows for the page's own networks; None in a record without rows."""
    found = record.get("plane")
    if not found:
        return None
    names = record["data"]["classes"]
    return {
        "classes": [shown_name(names[label], LONGEST_NAME) for label in found["classes"]],
        "labels": found["labels"],
        "columns": [{**c, "name": shown_name(c["name"], LONGEST_NAME)} for c in found["columns"]],
    }


def _shown(value: Any) -> Any:
    return shown_name(value, LONGEST_NAME) if isinstance(value, str) else value


def race(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the curves of the network from the confidently wrong start, or None if the record has none."""
    models = list(dict.fromkeys(run["model"] for run in record["runs"])) or [""]
    chosen = [
        {key: entry[key] for key in ("loss", "seed", "step", "accuracy")}
        for entry in trainings(record)
        if entry["start"] == "confidently wrong" and entry["model"] == models[-1]
    ]
    medians = [curve for curve in chosen if curve["seed"] == "median"]
    if len(medians) != 2 or any(None in curve["accuracy"] for curve in medians):
        return None
    ends = " and ".join(f"{curve['loss']} ends at {curve['accuracy'][-1]:.1%}" for curve in medians)
    return {
        "medians": medians,
        "seeds": [curve for curve in chosen if curve["seed"] != "median" and None not in curve["accuracy"]],
        "measure": "test accuracy",
        "description": (
            f"Test accuracy of one network on {shown_name(record['data']['name'])} against steps of gradient descent, "
            f"from a start that is confidently wrong, trained with either loss: {ends}. The tables have the numbers."
        ),
    }
