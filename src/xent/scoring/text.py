"""A score as flat floats, as a record for JSON, and in sentences that warn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xent.scoring import kernels
from xent.scoring.state import ONE_VS_REST_CLASSES

if TYPE_CHECKING:
    from xent.scoring.score import Score

SCHEMA = 1
FEW_ROWS = 30
UNITS = {
    "cross_entropy_nats": "nats per row",
    "cross_entropy_low_nats": "nats per row, end of the 95% interval",
    "cross_entropy_high_nats": "nats per row, end of the 95% interval",
    "cross_entropy_standard_error_nats": "nats per row",
    "cross_entropy_bits": "bits per row",
    "cross_entropy_possible_nats": "nats per row, without impossible rows",
    "perplexity": "equally likely classes",
    "likelihood_per_row": "probability, geometric mean",
    "log_likelihood_nats": "nats, all rows",
    "base_rate_nats": "nats per row",
    "base_rate_bits": "bits per row",
    "uniform_nats": "nats per row",
    "uniform_bits": "bits per row",
    "entropy_nats": "nats per row",
    "explained": "share of the base rate's entropy (D^2)",
    "brier": "squared probability, summed over classes, 0 to 2",
    "accuracy": "share of rows",
    "calibration_error": "difference of probabilities (ECE)",
    "temperature": "none; 1 changes nothing",
    "temperature_gain_nats": "nats per row, cross-fitted",
    "temperature_gain_low_nats": "nats per row, end of the 95% interval",
    "temperature_gain_high_nats": "nats per row, end of the 95% interval",
    "miscalibration_nats": "nats per row, mean over classes against the rest",
    "discrimination_nats": "nats per row, mean over classes against the rest",
    "uncertainty_nats": "nats per row, mean over classes against the rest",
    "loss_of_top_1_percent": "share of the finite loss that the worst 1% of rows carry",
    "rows": "rows",
    "weight": "sum of weights",
    "impossible_rows": "rows whose label had probability 0",
    "clipped_rows": "rows whose label had a probability below the clip",
    "invalid_rows": "rows left out",
    "clip": "smallest probability of a label",
}
"""The unit of each figure of `Score.to_dict`."""


def flat(score: Score) -> dict[str, float]:
    """Flat floats; what the data cannot tell is left out."""
    ce, t = score.cross_entropy, score.temperature
    rest = [c.against_rest for c in score.classes if c.against_rest is not None]
    found: dict[str, float] = {
        "cross_entropy_nats": ce.nats,
        "cross_entropy_low_nats": ce.low,
        "cross_entropy_high_nats": ce.high,
        "cross_entropy_standard_error_nats": ce.standard_error,
        "cross_entropy_bits": ce.bits,
        "cross_entropy_possible_nats": score.cross_entropy_possible if score.impossible_rows else math.nan,
        "perplexity": score.perplexity,
        "likelihood_per_row": score.likelihood_per_row,
        "log_likelihood_nats": score.log_likelihood.nats,
        "base_rate_nats": score.base_rate.nats,
        "base_rate_bits": score.base_rate.bits,
        "uniform_nats": score.uniform.nats,
        "uniform_bits": score.uniform.bits,
        "entropy_nats": score.entropy.nats,
        "explained": score.explained,
        "brier": score.brier,
        "accuracy": score.accuracy,
        "calibration_error": score.calibration_error,
        "temperature": t.temperature if t else math.nan,
        "temperature_gain_nats": t.gain if t else math.nan,
        "temperature_gain_low_nats": t.gain_low if t else math.nan,
        "temperature_gain_high_nats": t.gain_high if t else math.nan,
        "loss_of_top_1_percent": dict(score.concentration).get(0.01, math.nan),
        "rows": score.rows,
        "weight": score.weight,
        "impossible_rows": score.impossible_rows,
        "clipped_rows": score.clipped_rows,
        "invalid_rows": score.invalid_rows,
        "clip": math.nan if score.form.clip is None else score.form.clip,
    }
    if rest:
        for name in ("miscalibration", "discrimination", "uncertainty"):
            found[f"{name}_nats"] = math.fsum(getattr(d, name) for d in rest) / len(rest)
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def record(score: Score) -> dict[str, Any]:
    """Everything that the score says, as plain JSON."""
    parts = {
        field.name: plain(getattr(score, field.name))
        for field in dataclasses.fields(score)
        if field.name in ("reliability", "classes", "segments", "temperature", "concentration", "clip_sensitivity")
    }
    figures = flat(score)
    return {
        "record": "xent score",
        "schema": SCHEMA,
        "form": plain(score.form),
        "figures": {name: {"value": plain(value), "unit": UNITS[name]} for name, value in figures.items()},
        "likelihood": str(score.likelihood),
        **parts,
        "surprising": [{**plain(row), "bits": plain(row.bits)} for row in score.surprising],
        "losses": plain(score.losses),
        "invalid": [
            {"row": int(row), "id": name, "reason": kernels.REASONS[int(reason)]}
            for row, name, reason in _columns(score.invalid, "row", "id", "reason")
        ],
        "sample": [
            {"label": int(label), "loss": plain(float(loss)), "brier": float(brier)}
            for label, loss, brier in _columns(score.sample, "label", "loss", "brier")
        ],
        "warnings": list(score.warnings),
    }


def warnings(score: Score) -> tuple[str, ...]:
    """What a reader should know before trusting the figures."""
    found = list(score.notes)
    if score.impossible_rows and score.form.clip is None:
        found.append(
            f"{_rows(score.impossible_rows)} had a label that the prediction called impossible (probability 0): the "
            f"mean is infinite. Without them it is {score.cross_entropy_possible:.4g} nats."
        )
    if score.form.clip is not None:
        found.append(
            f"Probabilities of labels below {score.form.clip:g} were scored as {score.form.clip:g}: "
            f"{_rows(score.clipped_rows)}, {score.impossible_rows:,} of them impossible."
        )
    if score.invalid_rows:
        found.append(f"{_rows(score.invalid_rows)} had no valid prediction, label or weight and were left out.")
    absent = [c.name for c in score.classes if c.weight == 0]
    if absent:
        names = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
        found.append(f"{len(absent)} of {len(score.classes)} classes have no rows: {names}.")
    if 0 < score.rows < FEW_ROWS:
        found.append(f"Only {_rows(score.rows)}: the interval leans on their losses being nearly normal.")
    if len(score.classes) > ONE_VS_REST_CLASSES:
        found.append(f"More than {ONE_VS_REST_CLASSES} classes: reliability is that of the predicted class only.")
    t = score.temperature
    if t and t.gain_low > 0:
        far = "too confident" if t.temperature > 1 else "not confident enough"
        found.append(f"The predictions are {far}: a temperature of {t.temperature:.3g} would win {t.gain:.3g} nats.")
    return tuple(found)


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _columns(kept: Any, *names: str) -> Any:
    if not len(kept) or any(name not in kept.columns for name in names):
        return ()
    return zip(*(kept[name].tolist() for name in names), strict=True)


def plain(value: Any) -> Any:
    """As JSON holds it: NaN as null, infinities as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
