"""The measures of the comparison: for both losses the median and range over the seeds, and which loss is better."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

from xent.why.gradient_descent import Evaluation
from xent.why.record import LOSSES, MODELS, STARTS, Comparison, Loss, ModelName, Run, Spread, Start


def steps_to_reach(evaluations: Sequence[Evaluation], levels: Sequence[float]) -> tuple[int | None, ...]:
    """Return the first step that reaches each level of test accuracy; None if none does."""
    return tuple(next((e.step for e in evaluations if e.accuracy >= level), None) for level in levels)


def comparisons(runs: Sequence[Run], levels: Sequence[float]) -> Iterator[Comparison]:
    """Compare the losses by each measure, for each start and model."""
    for start, model in product(STARTS, MODELS):
        for i, level in enumerate(levels):
            measured = {loss: [_steps(run, i) for run in _of(runs, start, model, loss)] for loss in LOSSES}
            yield _comparison(start, model, f"steps to {level:.1%} test accuracy", "steps", True, measured)
        for measure, unit, lower_is_better in (
            ("final test accuracy", "share of rows", False),
            ("final test cross-entropy", "nats per row", True),
            ("final test squared error", "per row", True),
        ):
            measured = {loss: [_final(run, measure) for run in _of(runs, start, model, loss)] for loss in LOSSES}
            yield _comparison(start, model, measure, unit, lower_is_better, measured)


def _of(runs: Sequence[Run], start: Start, model: ModelName, loss: Loss) -> list[Run]:
    return [run for run in runs if (run.start, run.model, run.loss) == (start, model, loss)]


def _steps(run: Run, level: int) -> float:
    steps = run.steps_to_reach[level]
    return math.inf if steps is None else float(steps)


def _final(run: Run, measure: str) -> float:
    curve = {
        "final test accuracy": run.curve.accuracy,
        "final test cross-entropy": run.curve.cross_entropy_nats,
        "final test squared error": run.curve.squared_error,
    }
    return curve[measure][-1]


def _comparison(
    start: Start, model: ModelName, measure: str, unit: str, lower_is_better: bool, values: dict[Loss, list[float]]
) -> Comparison:
    spreads = {loss: Spread(statistics.median(v), min(v), max(v)) for loss, v in values.items()}
    a, b = spreads["cross-entropy"], spreads["squared error"]
    ranked = sorted(LOSSES, key=lambda loss: _rank(spreads[loss].median, lower_is_better))
    is_tie = _rank(a.median, lower_is_better) == _rank(b.median, lower_is_better)
    disjoint = a.high < b.low or b.high < a.low
    winner: Loss | Literal["tie"] = "tie" if is_tie else ranked[0]
    return Comparison(start, model, measure, unit, lower_is_better, a, b, winner, disjoint and not is_tie)


def _rank(value: float, lower_is_better: bool) -> float:
    """Return a number that is lower for better values; NaN, from a training that diverged, is worst."""
    if math.isnan(value):
        return math.inf
    return value if lower_is_better else -value
