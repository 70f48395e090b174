"""`Score`: what a state says about the predictions, each figure with its unit."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import special

from xent.likelihood import Likelihood
from xent.scoring import kernels
from xent.scoring.calibration import (
    Decomposition,
    ReliabilityBin,
    Temperature,
    decomposition,
    expected_calibration_error,
    reliability,
    temperature,
)
from xent.scoring.kept import Kept
from xent.scoring.state import Form, ScoreState
from xent.scoring.sums import Array, exactly, values

__all__ = ["ClassScore", "Estimate", "Information", "Score", "SegmentScore", "SurprisingRow"]

TOP_SHARES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Information:
    """An amount of information."""

    nats: float

    @property
    def bits(self) -> float:
        """The same amount in bits."""
        return self.nats / math.log(2)


@dataclass(frozen=True)
class Estimate(Information):
    """A mean per row with its standard error and 95% interval, in nats."""

    standard_error: float
    low: float
    high: float


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
    """How good some predictions are. NaN stands for what the data cannot tell; losses are in nats per row.

    `cross_entropy` is +inf with impossible rows; `cross_entropy_possible` is the mean over the others.
    """

    form: Form
    rows: int
    weight: float
    invalid_rows: int
    impossible_rows: int
    clipped_rows: int
    cross_entropy: Estimate
    cross_entropy_possible: float
    base_rate: Information
    """Entropy of the labels' frequencies: the loss of always predicting them."""
    uniform: Information
    """log C: the loss of knowing nothing."""
    entropy: Information
    """Mean entropy of the labels if they are soft, of the predictions if it was given; else NaN."""
    brier: float
    accuracy: float
    calibration_error: float
    temperature: Temperature | None
    reliability: tuple[ReliabilityBin, ...]
    classes: tuple[ClassScore, ...]
    segments: dict[str, tuple[SegmentScore, ...]]
    surprising: tuple[SurprisingRow, ...]
    concentration: tuple[tuple[float, float], ...]
    """(share of the rows, share of the loss that the worst rows of that share carry), of finite losses."""
    clip_sensitivity: tuple[tuple[float, float], ...]
    """(eps, mean loss if probabilities below eps were raised to it)."""
    losses: tuple[tuple[float, float, float, float], ...]
    """(from, to, weight, loss) of each bin of finite losses that has rows."""
    sample: Kept = dataclasses.field(repr=False)
    invalid: Kept = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    """What was found out about the data on the way to the state."""

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy), of all rows together: a number of equally likely classes."""
        return _exp(self.cross_entropy.nats)

    @property
    def likelihood_per_row(self) -> float:
        """exp(-cross-entropy): the geometric mean of the probabilities of the labels."""
        return _exp(0.0 - self.cross_entropy.nats)

    @property
    def log_likelihood(self) -> Information:
        """Of all rows together, weighted: minus weight times cross-entropy."""
        return Information(0.0 - self.weight * self.cross_entropy.nats if self.rows else 0.0)

    @property
    def likelihood(self) -> Likelihood:
        """Of all rows together, as mantissa and exponent."""
        return Likelihood.from_log(self.log_likelihood.nats)

    @property
    def explained(self) -> float:
        """D^2: the share of the base rate's entropy that the predictions explain; 0 is the base rate, 1 certainty."""
        base = self.base_rate.nats
        return 1.0 - self.cross_entropy.nats / base if base > 0 else math.nan

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before trusting the figures."""
        from xent.scoring.text import warnings

        return warnings(self)

    def to_dict(self) -> dict[str, float]:
        """Flat floats, named with their units, for MLflow, W&B and the like."""
        from xent.scoring.text import flat

        return flat(self)

    def to_record(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: infinite numbers as "inf", what is not known as null."""
        from xent.scoring.text import record

        return record(self)


def score_of(state: ScoreState) -> Score:
    """Turn a state into what is reported."""
    total = values(state.totals)
    form, wide = state.form, bool(state.form.classes)
    weight = float(total[kernels.WEIGHT])
    frequencies = values(state.classes)[:, 0] / weight if wide and weight else np.full(len(form.classes), math.nan)
    base_rate = float(special.entr(frequencies).sum()) if wide else math.nan
    possible = weight - total[kernels.IMPOSSIBLE_WEIGHT]
    bins = reliability(state.confidence) if wide else ()
    return Score(
        form=form,
        rows=state.rows,
        weight=weight,
        invalid_rows=state.invalid_rows,
        impossible_rows=int(total[kernels.IMPOSSIBLE_ROWS]),
        clipped_rows=int(total[kernels.CLIPPED_ROWS]),
        cross_entropy=estimate(state.totals),
        cross_entropy_possible=_ratio(total[kernels.LOSS], possible),
        base_rate=Information(base_rate),
        uniform=Information(math.log(len(form.classes)) if wide else math.nan),
        entropy=Information(_ratio(total[kernels.ENTROPY], weight) if form.soft or form.entropy else math.nan),
        brier=_ratio(total[kernels.BRIER], weight) if wide else math.nan,
        accuracy=_ratio(total[kernels.CORRECT], weight) if wide else math.nan,
        calibration_error=expected_calibration_error(bins) if wide else math.nan,
        temperature=temperature(state.sample),
        reliability=bins,
        classes=_class_scores(state, weight),
        segments={name: _segment_scores(state, name) for name in form.by},
        surprising=_surprising(state),
        concentration=_concentration(values(state.losses)),
        clip_sensitivity=_clip_sensitivity(state, weight),
        losses=_loss_bins(values(state.losses)),
        sample=state.sample,
        invalid=state.invalid,
    )


def estimate(totals: Array) -> Estimate:
    """Weighted mean loss with the standard error of a mean of independent rows, and Student's interval."""
    weight, rows = exactly(totals[kernels.WEIGHT]), int(totals[kernels.ROWS, 0])
    if not weight:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    if values(totals)[kernels.IMPOSSIBLE_WEIGHT] > 0:
        return Estimate(math.inf, math.nan, math.nan, math.nan)
    mean = exactly(totals[kernels.LOSS]) / weight
    if rows < 2:
        return Estimate(float(mean), math.nan, math.nan, math.nan)
    # sum(w**2 (l - mean)**2), of sums with all their digits: in floats it cancels when the losses are nearly equal.
    spread = (
        exactly(totals[kernels.WEIGHTED_LOSS_SQUARED])
        - 2 * mean * exactly(totals[kernels.WEIGHTED_LOSS])
        + mean * mean * exactly(totals[kernels.WEIGHT_SQUARED])
    )
    error = math.sqrt(max(Fraction(0), spread) / weight**2 * Fraction(rows, rows - 1))
    reach = float(special.stdtrit(rows - 1, 0.975)) * error
    return Estimate(float(mean), error, float(mean) - reach, float(mean) + reach)


def _class_scores(state: ScoreState, weight: float) -> tuple[ClassScore, ...]:
    own, loss, impossible, correct, predicted = values(state.classes).T
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            own,
            own / weight,
            predicted / weight,
            np.where(impossible > 0, math.inf, loss / own),
            loss / loss.sum(),
            correct / own,
        ]
    rest: list[Decomposition | None] = [None] * len(own)
    probability = [math.nan] * len(own)
    if state.form.one_vs_rest and weight:
        rest = [decomposition(histogram) for histogram in state.one_vs_rest]
        probability = (values(state.one_vs_rest)[:, :, 1].sum(axis=1) / weight).tolist()
    found = zip(state.form.classes, *(column.tolist() for column in columns), probability, rest, strict=True)
    return tuple(
        ClassScore(name, w, share, predicted_share, mean_probability, mean, of_loss, recall, against)
        for name, w, share, predicted_share, mean, of_loss, recall, mean_probability, against in found
    )


def _segment_scores(state: ScoreState, name: str) -> tuple[SegmentScore, ...]:
    all_loss = float(values(state.totals)[kernels.LOSS])
    wide = bool(state.form.classes)
    found = []
    for value, sums in state.segments[name].items():
        total = values(sums)
        weight = float(total[kernels.WEIGHT])
        found.append(
            SegmentScore(
                value=value,
                rows=int(total[kernels.ROWS]),
                weight=weight,
                cross_entropy=estimate(sums),
                share_of_loss=_ratio(total[kernels.LOSS], all_loss),
                impossible_rows=int(total[kernels.IMPOSSIBLE_ROWS]),
                brier=_ratio(total[kernels.BRIER], weight) if wide else math.nan,
                accuracy=_ratio(total[kernels.CORRECT], weight) if wide else math.nan,
            )
        )
    # The worst first; segments whose rows were all invalid have no loss and come last.
    return tuple(sorted(found, key=lambda s: (math.isnan(s.cross_entropy.nats), -s.cross_entropy.nats, s.value)))


def _surprising(state: ScoreState) -> tuple[SurprisingRow, ...]:
    kept, names = state.surprising, state.form.classes
    found = []
    for i in range(len(kept)):
        label = int(kept["label"][i])
        likeliest: tuple[tuple[str, float], ...] = ()
        if names:
            pairs = zip(kept["likeliest"][i], kept["probabilities"][i], strict=True)
            likeliest = tuple((names[c], float(q)) for c, q in pairs)
        found.append(
            SurprisingRow(
                row=int(kept["row"][i]),
                id=kept["id"][i],
                label=names[label] if names and label >= 0 else None,
                predicted=names[int(kept["predicted"][i])] if names else None,
                loss=float(kept["loss"][i]),
                weight=float(kept["weight"][i]),
                likeliest=likeliest,
            )
        )
    return tuple(found)


def _concentration(histogram: Array) -> tuple[tuple[float, float], ...]:
    """How much of the loss the worst rows carry; within a bin all rows count with the bin's mean loss."""
    weight, loss = np.concatenate([[[0.0, 0.0]], np.cumsum(histogram[::-1], axis=0)]).T
    if not weight[-1] or not loss[-1]:
        return ()
    return tuple((share, float(np.interp(share * weight[-1], weight, loss) / loss[-1])) for share in TOP_SHARES)


def _clip_sensitivity(state: ScoreState, weight: float) -> tuple[tuple[float, float], ...]:
    """The mean loss for each clip: rows above it cost what it costs. Not for soft labels, or with a clip already."""
    if state.form.soft or state.form.clip is not None or not weight:
        return ()
    finite = float(values(state.totals)[kernels.LOSS])
    found = []
    for eps, (above, lost) in zip(kernels.CLIPS.tolist(), values(state.clipped), strict=True):
        found.append((eps, float(finite - lost - above * math.log(eps)) / weight))
    return tuple(found)


def _loss_bins(histogram: Array) -> tuple[tuple[float, float, float, float], ...]:
    return tuple(
        (*loss_edges(k), float(weight), float(loss)) for k, (weight, loss) in enumerate(histogram) if weight > 0
    )


def loss_edges(k: int) -> tuple[float, float]:
    """The losses between which bin k of the histogram of losses lies; its octaves are divided evenly."""

    def edge(step: int) -> float:
        octave, part = divmod(step, kernels.LOSS_STEPS)
        return math.ldexp(1 + part / kernels.LOSS_STEPS, octave + kernels.LOSS_LOWEST)

    return (0.0 if k == 0 else edge(k)), (math.inf if k == kernels.LOSS_BINS - 1 else edge(k + 1))


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _ratio(a: Any, b: Any) -> float:
    return float(a) / float(b) if b else math.nan
