"""Why rows cannot be scored, in the words of who wrote the file: which value, which column, and what it looks like.

The first rows are named with what is wrong in them. Percentages, logits, log-probabilities and negative log-likelihoods
given as probabilities are recognised, and the message says by which option they are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xent.errors import message, option
from xent.names import quoted, shown_name
from xent.scoring import loops
from xent.scoring.batch import Rows
from xent.scoring.sums import Array

CALL = "score"
NAMED = 3
"""Rows that a message describes."""
MOST_OF = 0.9
"""The part of the rows that has to look like another kind of number, to be called one."""


def explain(rows: Rows, arguments: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the message for a batch with invalid rows; `arguments` are those of `ScoreState.from_batch`."""
    wrong = np.flatnonzero(rows.status > loops.VALID)
    first, ids = arguments.get("first_row", 0), arguments.get("ids")
    named = []
    labels = len(columns) if arguments.get("multilabel") else 1  # each row is there once for each label
    for row in wrong[:NAMED].tolist():
        name = "" if ids is None or ids[row] is None else f" (id {shown_name(ids[row])})"
        own = columns if labels == 1 else columns[(row + first) % labels :]
        named.append(f"row {(row + first) // labels}{name}: {_reason(rows, arguments, own, row)}")
    count = f"{len(wrong):,} row{'s' if len(wrong) > 1 else ''} cannot be scored" if len(wrong) > NAMED else ""
    problem = "; ".join(([count] if count else []) + named)
    return message(CALL, _argument(arguments), problem, _remedy(rows, arguments, wrong))


def explain_selected(invalid: Mapping[str, Array], count: int) -> str:
    """Return the message for the invalid rows that a state kept, of which the probabilities are not at hand."""
    listed = zip(*(invalid[name].tolist() for name in ("row", "id", "reason", "total")), strict=True)
    named = []
    for row, name, reason, total in sorted(listed, key=lambda columns: columns[0])[:NAMED]:
        what = f"a sum of {shown_sum(total)}" if reason == loops.WRONG_SUM else loops.REASONS[reason]
        named.append(f"row {row}" + ("" if name is None else f" (id {shown_name(name)})") + f": {what}")
    problem = f"{count:,} row{'s' if count != 1 else ''} cannot be scored: {'; '.join(named)}"
    return message(CALL, "data", problem, f"Correct them; {_skip()}")


def shown_sum(total: float) -> str:
    """Return a sum with as many digits as it takes to see that it is not 1."""
    for digits in (6, 9, 12, 17):
        if (text := f"{total:.{digits}g}") != "1":
            return text
    return repr(total)


def _argument(arguments: Mapping[str, Any]) -> str:
    return next((kind for kind in ("proba", "logits", "log_prob") if arguments.get(kind) is not None), "data")


def _skip() -> str:
    return f"{option('invalid', 'skip')} leaves such rows out, counts and names them"


def _reason(rows: Rows, arguments: Mapping[str, Any], columns: Sequence[str], row: int) -> str:
    """Return what is wrong with a row: its first bad value and that column, or the sum."""
    status = int(rows.status[row])
    if status == loops.WRONG_WEIGHT:
        return f"the weight {float(rows.weight[row]):g} is not a number of 0 or more"
    if status == loops.NOT_A_PROBABILITY:
        kind = _argument(arguments)
        values = np.atleast_1d(np.asarray(arguments[kind], np.float64)[row])
        bad = ~(values <= 0) if kind == "log_prob" else ~((values >= 0) & (values <= 1 if len(values) == 1 else True))
        place = int(bad.argmax())
        value = float(values[place])
        if not bad.any():
            return f"the entropy {float(rows.entropy[row]):g} is not 0 or more" if len(rows.entropy) else "no number"
        where = f"column {quoted(columns[place])}" if place < len(columns) else f"class {place}"
        if np.isnan(value):
            return f"{where} has no number, so it is not a probability"
        return f"{where} has {value:.6g}, not a {'log-' if kind == 'log_prob' else ''}probability"
    if status == loops.WRONG_SUM:
        total = float(rows.p[row].sum(dtype=np.float64))
        shown = ", ".join(f"{value:.6g}" for value in rows.p[row, :5].tolist())
        more = ", ..." if rows.p.shape[1] > 5 else ""
        return f"a sum of {shown_sum(total)} ({shown}{more})"
    if status == loops.WRONG_LABEL:
        return f"a label that is not a distribution (its sum is {shown_sum(float(rows.target[row].sum()))})"
    return loops.REASONS[status]


def _remedy(rows: Rows, arguments: Mapping[str, Any], wrong: Array) -> str:
    statuses = set(rows.status[wrong].tolist())
    kind = _argument(arguments)
    if kind == "proba" and statuses & {loops.NOT_A_PROBABILITY, loops.WRONG_SUM}:
        if guess := looks_like(np.asarray(arguments[kind], np.float64)):
            return guess
        if loops.WRONG_SUM in statuses:
            return (
                f"Correct them; {option('renormalise', True)} divides each row by its sum, {option('tolerance')} "
                f"allows sums off by that much, {_skip()}"
            )
    if kind == "log_prob" and loops.NOT_A_PROBABILITY in statuses:
        values = np.asarray(arguments[kind], np.float64)
        with np.errstate(invalid="ignore"):
            above = values[values > 0]
        if len(above) >= MOST_OF * np.isfinite(values).sum() and len(above):
            if (above <= 1).all():
                return "They look like probabilities of the labels: store their natural logarithms"
            return "They look like negative log-likelihoods: store them with the other sign"
    return f"Correct them; {_skip()}"


def looks_like(p: Array) -> str | None:
    """Return what numbers that are no probabilities look like, and the option to use; None if like nothing else."""
    p = p[np.isfinite(p).all(axis=1)] if p.ndim == 2 else p[np.isfinite(p)]
    if not len(p):
        return None
    logits = option("logits")
    if p.ndim == 1 or p.shape[1] == 1:
        if p.min() >= 0 and p.max() <= 100 and (p > 1).mean() > 0.5:
            return "They look like percentages: divide them by 100"
        return f"They look like logits: pass them by {logits}" if (p < 0).mean() > 0.01 else None
    with np.errstate(over="ignore"):
        sums, of_exp, of_negated = p.sum(axis=1), np.exp(p).sum(axis=1), np.exp(-p).sum(axis=1)
    if p.min() >= 0 and _mostly(np.abs(sums / 100 - 1) < 0.02):
        return f"They look like percentages: {option('renormalise', True)} divides each row by its sum"
    if p.max() <= 1e-6 and _mostly(np.abs(of_exp - 1) < 0.02):
        return f"They look like log-probabilities: pass them by {logits}, which exponentiates and normalises them"
    if p.min() >= -1e-6 and _mostly(np.abs(of_negated - 1) < 0.02):
        return f"They look like negative log-likelihoods: change the sign, and pass them by {logits}"
    if _mostly(np.abs(sums - 1) > 0.05) and ((p < 0).any(axis=1).mean() > 0.5 or p.max() > 2):
        return f"They look like logits: pass them by {logits}"
    return None


def _mostly(found: Array) -> bool:
    return float(found.mean()) >= MOST_OF
