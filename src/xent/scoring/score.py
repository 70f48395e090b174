"""`Score`: what a state says about the predictions, each figure with its unit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xent.likelihood import Likelihood
from xent.names import shown_name
from xent.scoring.calibration import ReliabilityBin, Temperature
from xent.scoring.decomposition import PARTS, Decomposition
from xent.scoring.form import Form
from xent.scoring.intervals import Estimate, Information
from xent.scoring.loops import FEW_CLASSES, REASONS
from xent.scoring.selection import WEIGHT_OF_ZERO, SelectedRows

__all__ = ["ClassScore", "Estimate", "Information", "Score", "SegmentScore", "SurprisingRow"]

SCHEMA = 1
FEW_ROWS = 30


@dataclass(frozen=True)
class ClassScore:
    """The rows of one class. Losses in nats; `share` and `predicted_share` are shares of the weight of all rows."""

    name: str
    weight: float
    share: float
    predicted_share: float
    mean_probability: float
    loss: float
    share_of_loss: float
    recall: float
    against_rest: Decomposition | None


@dataclass(frozen=True)
class SegmentScore:
    """The rows with one value of a segment column."""

    value: str
    rows: int
    weight: float
    cross_entropy: Estimate
    share_of_loss: float
    impossible_rows: int
    brier: float
    accuracy: float
    bits_per_byte: float = math.nan
    bits_per_character: float = math.nan


@dataclass(frozen=True)
class SurprisingRow:
    """One of the rows with the largest loss. `row` counts from 0; `likeliest` are classes with their probabilities."""

    row: int
    id: str | None
    label: str | None
    predicted: str | None
    loss: float
    weight: float
    likeliest: tuple[tuple[str, float], ...]

    @property
    def bits(self) -> float:
        """The row's loss in bits."""
        return self.loss / math.log(2)


@dataclass(frozen=True)
class Score:
    """How good some predictions are. Losses are in nats per row; NaN marks what the data do not determine.

    `cross_entropy` is +inf with impossible rows; `cross_entropy_possible` is the mean over the others.
    """

    form: Form
    rows: int
    weight: float
    invalid_rows: int
    impossible_rows: int
    clipped_rows: int
    rows_without_weight: int
    """Rows of weight 0, which are in no figure."""
    clusters: int | None
    """Clusters of valid rows, if any were named: intervals are of the clusters then."""
    cross_entropy: Estimate
    per_byte: Estimate
    """Loss per byte of text in nats (`.bits`: bits per byte); NaN without `bytes`."""
    per_character: Estimate
    cross_entropy_possible: float
    base_rate: Information
    """Entropy of the labels' frequencies: the loss of always predicting them."""
    uniform: Information
    """log C: the loss of the uniform distribution."""
    entropy: Information
    """Mean entropy of soft labels, or of the predictions if it was passed; otherwise NaN."""
    brier: float
    accuracy: float
    calibration_error: float
    classwise_error: float
    """Calibration error of each class against the rest in bins of equal width, mean over the classes."""
    adaptive_error: float
    """The same in bins of equal weight."""
    decomposition: Mapping[str, Estimate]
    """Miscalibration, discrimination and uncertainty, mean over the classes against the rest."""
    temperature: Temperature | None
    reliability: tuple[ReliabilityBin, ...]
    reliability_class_1: tuple[ReliabilityBin, ...]
    """With two classes, the bins of the probability of class 1; `correct` is the share of its rows."""
    confusion: tuple[tuple[float, ...], ...]
    """Share of the rows, by weight, with each label (first) and predicted class (second); for up to 100 classes."""
    classes: tuple[ClassScore, ...]
    segments: dict[str, tuple[SegmentScore, ...]]
    surprising: tuple[SurprisingRow, ...]
    concentration: tuple[tuple[float, float], ...]
    """(share of the rows, share of the loss in the worst rows of that share), of finite losses."""
    clip_sensitivity: tuple[tuple[float, float], ...]
    """(eps, mean loss if probabilities below eps were raised to it)."""
    losses: tuple[tuple[float, float, float, float], ...]
    """(from, to, weight, loss) of each bin of finite losses that has rows."""
    sample: SelectedRows = dataclasses.field(repr=False)
    invalid: SelectedRows = dataclasses.field(repr=False)
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many rows are in no figure, by the reason: those of weight 0, and invalid ones."""
    notes: tuple[str, ...] = ()
    """Remarks on the data from the time when they were read."""

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy), over all rows: a number of equally likely classes."""
        return _exp(self.cross_entropy.nats)

    @property
    def likelihood_per_row(self) -> float:
        """exp(-cross-entropy): the geometric mean of the probabilities of the labels."""
        return _exp(0.0 - self.cross_entropy.nats)

    @property
    def log_likelihood(self) -> Information:
        """Log-likelihood of all rows, weighted: minus weight times cross-entropy."""
        return Information(0.0 - self.weight * self.cross_entropy.nats if self.rows else 0.0)

    @property
    def likelihood(self) -> Likelihood:
        """Likelihood of all rows, as mantissa and exponent."""
        return Likelihood.from_log(self.log_likelihood.nats)

    @property
    def explained(self) -> float:
        """D^2: the share of the base rate's entropy that the predictions explain; 0 is the base rate, 1 certainty."""
        base = self.base_rate.nats
        return 1.0 - self.cross_entropy.nats / base if base > 0 else math.nan

    @property
    def normalised_entropy(self) -> float:
        """Cross-entropy divided by the base rate's entropy (He et al. 2014): 1 - D^2; below 1 is better than that."""
        base = self.base_rate.nats
        return self.cross_entropy.nats / base if base > 0 else math.nan

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before trusting the figures."""
        return (*self.notes, *_warnings(self))

    def to_dict(self) -> dict[str, float]:
        """Flat floats, named with their units, for MLflow, W&B and the like; without NaN."""
        figures = {name: float(value(self)) for name, (_, value) in FIGURES.items()}
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def to_record(self) -> dict[str, Any]:
        """Everything as plain JSON: infinite numbers as "inf", NaN as null."""
        parts = ["temperature", "reliability", "reliability_class_1", "confusion", "decomposition", "classes"]
        parts += ["segments", "concentration", "clip_sensitivity"]
        return {
            "record": "xent score",
            "schema": SCHEMA,
            "form": plain(self.form),
            "figures": {name: {"value": plain(value), "unit": UNITS[name]} for name, value in self.to_dict().items()},
            "likelihood": str(self.likelihood),
            "left_out": dict(self.left_out),
            **{name: plain(getattr(self, name)) for name in parts},
            "surprising": [{**plain(row), "bits": plain(row.bits)} for row in self.surprising],
            "losses": plain(self.losses),
            "invalid": [
                {"row": row, "id": name, "reason": REASONS[reason]}
                for row, name, reason in _columns(self.invalid, "row", "id", "reason")
            ],
            "sample": [
                {"label": label, "loss": plain(loss), "brier": brier}
                for label, loss, brier in _columns(self.sample, "label", "loss", "brier")
            ],
            "warnings": list(self.warnings),
        }

    def _repr_html_(self) -> str:
        """A few small tables, which notebooks show."""
        from xent.scoring.notebook import score_html

        return score_html(self.to_record())


def _of_decomposition(part: str, value: str) -> Callable[[Score], float]:
    return lambda score: getattr(score.decomposition[part], value)


def _bits(nats: float) -> float:
    return Information(nats).bits


def _of_temperature(part: str) -> Callable[[Score], float]:
    return lambda score: math.nan if score.temperature is None else getattr(score.temperature, part)


_END = "nats per row, end of the 95% interval"
_AGAINST_REST = "nats per row, mean over classes against the rest"
FIGURES: dict[str, tuple[str, Callable[[Score], float]]] = {
    "cross_entropy_nats": ("nats per row", lambda s: s.cross_entropy.nats),
    "cross_entropy_low_nats": (_END, lambda s: s.cross_entropy.low),
    "cross_entropy_high_nats": (_END, lambda s: s.cross_entropy.high),
    "cross_entropy_standard_error_nats": ("nats per row", lambda s: s.cross_entropy.standard_error),
    "cross_entropy_bits": ("bits per row", lambda s: s.cross_entropy.bits),
    "cross_entropy_possible_nats": (
        "nats per row, without impossible rows",
        lambda s: s.cross_entropy_possible if s.impossible_rows else math.nan,
    ),
    "bits_per_byte": ("bits per byte, all rows together", lambda s: s.per_byte.bits),
    "bits_per_byte_low": ("bits per byte, end of the 95% interval", lambda s: _bits(s.per_byte.low)),
    "bits_per_byte_high": ("bits per byte, end of the 95% interval", lambda s: _bits(s.per_byte.high)),
    "bits_per_character": ("bits per character, all rows together", lambda s: s.per_character.bits),
    "bits_per_character_low": ("bits per character, end of the 95% interval", lambda s: _bits(s.per_character.low)),
    "bits_per_character_high": ("bits per character, end of the 95% interval", lambda s: _bits(s.per_character.high)),
    "perplexity": ("equally likely classes", lambda s: s.perplexity),
    "likelihood_per_row": ("probability, geometric mean", lambda s: s.likelihood_per_row),
    "log_likelihood_nats": ("nats, all rows", lambda s: s.log_likelihood.nats),
    "base_rate_nats": ("nats per row", lambda s: s.base_rate.nats),
    "base_rate_bits": ("bits per row", lambda s: s.base_rate.bits),
    "uniform_nats": ("nats per row", lambda s: s.uniform.nats),
    "uniform_bits": ("bits per row", lambda s: s.uniform.bits),
    "entropy_nats": ("nats per row", lambda s: s.entropy.nats),
    "explained": ("share of the base rate's entropy (D^2)", lambda s: s.explained),
    "normalised_entropy": ("cross-entropy over the base rate's entropy", lambda s: s.normalised_entropy),
    "brier": ("squared probability, summed over classes, 0 to 2", lambda s: s.brier),
    "accuracy": ("share of rows", lambda s: s.accuracy),
    "calibration_error": ("difference of probabilities (ECE)", lambda s: s.calibration_error),
    "classwise_error": ("difference of probabilities, mean over the classes", lambda s: s.classwise_error),
    "adaptive_error": ("difference of probabilities, mean over the classes", lambda s: s.adaptive_error),
    "temperature": ("none; 1 changes nothing", _of_temperature("temperature")),
    "temperature_gain_nats": ("nats per row, cross-fitted", _of_temperature("gain")),
    "temperature_gain_low_nats": (_END, _of_temperature("gain_low")),
    "temperature_gain_high_nats": (_END, _of_temperature("gain_high")),
    "loss_of_top_1_percent": (
        "share of the finite loss that the worst 1% of rows carry",
        lambda s: dict(s.concentration).get(0.01, math.nan),
    ),
    "rows": ("rows", lambda s: s.rows),
    "clusters": ("clusters of rows", lambda s: math.nan if s.clusters is None else s.clusters),
    "weight": ("sum of weights", lambda s: s.weight),
    "impossible_rows": ("rows whose label had probability 0", lambda s: s.impossible_rows),
    "clipped_rows": ("rows whose label had a probability below the clip", lambda s: s.clipped_rows),
    "invalid_rows": ("rows left out", lambda s: s.invalid_rows),
    "clip": ("smallest probability of a label", lambda s: math.nan if s.form.clip is None else s.form.clip),
    **{
        f"{part}_{name}nats": (unit, _of_decomposition(part, value))
        for part in PARTS
        for name, unit, value in (("", _AGAINST_REST, "nats"), ("low_", _END, "low"), ("high_", _END, "high"))
    },
}
"""The figures of `Score.to_dict`: name, unit and value."""
UNITS = {name: unit for name, (unit, _) in FIGURES.items()}


def _warnings(score: Score) -> list[str]:
    texts = []
    if score.impossible_rows and score.form.clip is None:
        texts.append(
            f"{_rows(score.impossible_rows)} had a label that the prediction called impossible (probability 0): the "
            f"mean is infinite. Without them it is {score.cross_entropy_possible:.4g} nats."
        )
    if score.form.clip is not None:
        texts.append(
            f"Probabilities of labels below {score.form.clip:g} were scored as {score.form.clip:g}: "
            f"{_rows(score.clipped_rows)}, {score.impossible_rows:,} of them impossible."
        )
    if score.invalid_rows:
        counted = ", ".join(
            f"{count:,} {reason}" for reason, count in score.left_out.items() if reason != WEIGHT_OF_ZERO
        )
        texts.append(
            f"{_rows(score.invalid_rows)} could not be scored and were left out" + (f": {counted}." if counted else ".")
        )
    if score.rows_without_weight:
        texts.append(f"{_rows(score.rows_without_weight)} had a weight of 0 and are in no figure.")
    if score.form.multilabel:
        texts.append("Rows are pairs of a row and a label; the labels are segments, and the pairs of a row a cluster.")
    if score.form.renormalised:
        texts.append("Probabilities were divided by their sum (renormalise).")
    absent = [c.name for c in score.classes if c.weight == 0]
    if absent:
        names = ", ".join(map(shown_name, absent[:5])) + (" ..." if len(absent) > 5 else "")
        texts.append(f"{len(absent)} of {len(score.classes)} classes have no rows: {names}.")
    if 0 < score.rows < FEW_ROWS:
        texts.append(f"Only {_rows(score.rows)}: the interval assumes that their losses are nearly normal.")
    if len(score.classes) > FEW_CLASSES:
        texts.append(f"More than {FEW_CLASSES} classes: reliability is that of the predicted class only.")
    t = score.temperature
    if t and t.gain_low > 0:
        too = "too confident" if t.temperature > 1 else "not confident enough"
        texts.append(f"The predictions are {too}: a temperature of {t.temperature:.3g} would gain {t.gain:.3g} nats.")
    return texts


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _columns(selected: SelectedRows, *names: str) -> Any:
    if not len(selected) or any(name not in selected.columns for name in names):
        return ()
    return zip(*(selected[name].tolist() for name in names), strict=True)


def plain(value: Any) -> Any:
    """Convert to what JSON can hold: NaN becomes null, infinities become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
