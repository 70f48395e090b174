"""The comparison of `xent why` as tables and as counts: which loss was better, where, and how clearly."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from xent.report.numbers import NOT_REACHED, count, listed, percent, plural, significant

SHORT = {"cross-entropy": "CE", "squared error": "SE"}
Comparison = dict[str, Any]


def tables(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one table for each start and model, with one row per measure."""
    keys = dict.fromkeys((c["start"], c["model"]) for c in record["comparisons"])
    return [
        {
            "title": f"{_capital(start)} start, {model}",
            "rows": [_row(c) for c in record["comparisons"] if (c["start"], c["model"]) == (start, model)],
        }
        for start, model in keys
    ]


def _row(c: Comparison) -> dict[str, Any]:
    spreads = (("cross-entropy", c["cross_entropy"]), ("squared error", c["squared_error"]))
    neither = c["unit"] == "steps" and all(spread["median"] is None for _, spread in spreads)
    return {
        "measure": c["measure"],
        "unit": c["unit"],
        "cells": [
            {
                "loss": loss.replace(" ", "-"),
                "median": number(spread["median"], c["unit"]),
                "range": _range(spread, c["unit"]),
                "wins": c["winner"] == loss,
            }
            for loss, spread in spreads
        ],
        "verdict": "neither" if neither else c["winner"],
        "note": "" if neither or c["winner"] == "tie" else "clearly" if c["clear"] else "ranges overlap",
    }


def number(value: float | None, unit: str) -> str:
    """Return a figure of the comparison as text, according to its unit."""
    if unit == "steps":
        return count(value)
    if value is None:
        return "diverged"
    return percent(value) if unit == "share of rows" else significant(value)


def _range(spread: dict[str, float | None], unit: str) -> str:
    low, high = number(spread["low"], unit), number(spread["high"], unit)
    if low == high:
        return ""
    if high == NOT_REACHED:
        high = "never"
    return f"{low.removesuffix('%') if high.endswith('%') else low}–{high}"


def score(record: dict[str, Any]) -> dict[str, int]:
    """Return how many comparisons each loss won, how many of these clearly, and how many were ties."""
    comparisons = record["comparisons"]
    counts = {"all": len(comparisons), "ties": sum(c["winner"] == "tie" for c in comparisons)}
    for loss, short in SHORT.items():
        counts[short] = sum(c["winner"] == loss for c in comparisons)
        counts[short + " clearly"] = sum(c["winner"] == loss and c["clear"] for c in comparisons)
    return counts


def verdict(record: dict[str, Any]) -> Markup:
    """Return the counts of all comparisons as a sentence."""
    won = score(record)
    ties = plural(won["ties"], "was a tie", "were ties")
    sentence = Markup(
        "Of {all} comparisons (two starts, two models, each measure) cross-entropy was better in "
        "<strong>{ce}</strong>, squared error in <strong>{se}</strong>, and {ties}."
    ).format(all=won["all"], ce=won["CE"], se=won["SE"], ties=ties)
    if several_seeds(record):
        sentence += Markup(
            " Of the comparisons whose ranges over the seeds do not touch (“clearly” in the tables), cross-entropy was "
            "better in {ce} and squared error in {se}."
        ).format(ce=won["CE clearly"], se=won["SE clearly"])
    return sentence


def wins_of_squared_error(record: dict[str, Any]) -> list[str]:
    """Return where squared error was better: a phrase for each start and model."""
    phrases = []
    for start, model in dict.fromkeys((c["start"], c["model"]) for c in record["comparisons"]):
        won = [
            _named(c, several_seeds(record))
            for c in record["comparisons"]
            if (c["start"], c["model"], c["winner"]) == (start, model, "squared error")
        ]
        if won:
            phrases.append(f"{_capital(model)}, {start} start: {listed(won)}")
    return phrases


def _named(c: Comparison, with_clear: bool) -> str:
    return str(c["measure"]).replace(" test", "") + (" (clearly)" if c["clear"] and with_clear else "")


def rates(record: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the chosen learning rates of cross-entropy and squared error, for each start and model."""
    chosen = {(t["start"], t["model"], t["loss"]): t["learning_rate"] for t in record["learning_rates"] if t["chosen"]}
    return [
        (f"{model}, {start} start", [f"{chosen[start, model, loss]:g}" for loss in SHORT])
        for start, model in dict.fromkeys((start, model) for start, model, _ in chosen)
        if all((start, model, loss) in chosen for loss in SHORT)
    ]


def several_seeds(record: dict[str, Any]) -> bool:
    """Return whether there are ranges over seeds."""
    return len(record["settings"]["seeds"]) > 1


def headline(record: dict[str, Any], start: str, model: str, *, both: bool = False) -> Comparison | None:
    """Return the comparison of steps to the highest accuracy level that a loss, or both, reached, by its median."""
    enough = all if both else any
    reached = [
        c
        for c in record["comparisons"]
        if (c["start"], c["model"], c["unit"]) == (start, model, "steps")
        and enough(c[loss]["median"] is not None for loss in ("cross_entropy", "squared_error"))
    ]
    return reached[-1] if reached else None


def seeds_there(record: dict[str, Any], comparison: Comparison, loss: str) -> int:
    """Return with how many seeds a loss reached the level of a comparison of steps."""
    start, model = comparison["start"], comparison["model"]
    timed = [c for c in record["comparisons"] if (c["start"], c["model"], c["unit"]) == (start, model, "steps")]
    place = timed.index(comparison)
    runs = [r for r in record["runs"] if (r["start"], r["model"], r["loss"]) == (start, model, loss)]
    return sum(r["steps_to_reach"][place] is not None for r in runs)


def level_of(comparison: Comparison) -> str:
    """Return the level of a comparison: 95.7% of 'steps to 95.7% test accuracy'."""
    return next(word for word in str(comparison["measure"]).split() if word.endswith("%"))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
