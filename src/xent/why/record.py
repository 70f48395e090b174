"""What the experiment returns: plain dataclasses of numbers and names, which `to_dict` turns into the JSON of why.json.

Losses are in nats per row where they are cross-entropies; squared errors (Brier scores) and accuracies have no unit.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

Loss = Literal["cross-entropy", "squared error"]
ModelName = Literal["softmax regression", "one hidden layer"]
Start = Literal["random", "confidently wrong"]

LOSSES: tuple[Loss, ...] = ("cross-entropy", "squared error")
MODELS: tuple[ModelName, ...] = ("softmax regression", "one hidden layer")
STARTS: tuple[Start, ...] = ("random", "confidently wrong")

SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """What can be chosen about the experiment; everything else follows from the data."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 30
    batch_size: int = 32
    hidden_units: int = 32
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Where the search for a learning rate begins; it goes on outwards while the best one is at an end."""

    def quick(self) -> Settings:
        """A smaller version for a first look: two seeds, a third of the epochs, half of the learning rates."""
        epochs = max(1, self.epochs // 3)
        return dataclasses.replace(self, seeds=self.seeds[:2], epochs=epochs, learning_rates=self.learning_rates[::2])


@dataclass(frozen=True)
class DataSummary:
    name: str
    source: str
    label: str
    rows: int
    rows_in_source: int
    features: int
    classes: tuple[str, ...]
    rows_train: int
    rows_validation: int
    rows_test: int
    majority_accuracy: float
    """Test accuracy of always naming the most frequent class of the training rows."""
    label_entropy_nats: float
    """Entropy of the classes' shares among the training rows: the cross-entropy of a model that knows nothing else."""


@dataclass(frozen=True)
class LearningRateTrial:
    """One learning rate tried for one loss; the score is the validation accuracy, averaged over the training."""

    start: Start
    model: ModelName
    loss: Loss
    learning_rate: float
    score: float
    chosen: bool


@dataclass(frozen=True)
class Curve:
    """Figures on the test rows in the course of a training."""

    step: tuple[int, ...]
    accuracy: tuple[float, ...]
    cross_entropy_nats: tuple[float, ...]
    squared_error: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One training: one start, model, loss and seed, at the learning rate chosen for them."""

    start: Start
    model: ModelName
    loss: Loss
    seed: int
    learning_rate: float
    curve: Curve
    steps_to_reach: tuple[int | None, ...]
    """For each of the record's accuracy levels the first step at which the test accuracy was there; None if never."""


@dataclass(frozen=True)
class Spread:
    """Median and range over the seeds. Infinite stands for a level that was not reached."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One measure of both losses, side by side."""

    start: Start
    model: ModelName
    measure: str
    unit: str
    lower_is_better: bool
    cross_entropy: Spread
    squared_error: Spread
    winner: Loss | Literal["tie"]
    """By the medians; a tie if they are equal or neither loss got there."""
    clear: bool
    """Whether the ranges over the seeds do not touch."""


@dataclass(frozen=True)
class GradientSample:
    """One training row: how much probability its label had, and how large each loss's gradient (by the logits) was."""

    start: Start
    model: ModelName
    probability_of_label: float
    cross_entropy_gradient: float
    squared_error_gradient: float


@dataclass(frozen=True)
class InformationSample:
    """One test row: the predictions p and q of the two models, compared; in nats."""

    entropy: float
    cross_entropy: float
    kl_divergence: float
    kl_divergence_reversed: float


@dataclass(frozen=True)
class Information:
    """p: predictions of the softmax regression; q: those of the model with a hidden layer."""

    samples: tuple[InformationSample, ...]
    largest_residual_nats: float
    """max |H(p, q) - H(p) - KL(p || q)| over all test rows: rounding, if the definitions are right."""
    mean_kl_divergence_nats: float
    mean_kl_divergence_reversed_nats: float
    label_entropy_nats: float
    """Entropy of one-hot labels: 0, so that cross-entropy, KL divergence and -log q[label] are one number."""
    label_cross_entropy_nats: float
    label_kl_divergence_nats: float
    label_mean_surprisal_nats: float


@dataclass(frozen=True)
class LikelihoodPoint:
    """The likelihood of the first rows: as a float64 product, and by its logarithm."""

    rows: int
    product: float
    log10: float


@dataclass(frozen=True)
class LikelihoodOf:
    """The likelihood of all rows under one model."""

    model: str
    log_likelihood_nats: float
    likelihood: str
    float64_product: float
    rows_until_underflow: int | None
    points: tuple[LikelihoodPoint, ...]


@dataclass(frozen=True)
class LikelihoodInTraining:
    step: int
    log_likelihood_nats: float
    mean_cross_entropy_nats: float


@dataclass(frozen=True)
class LikelihoodPart:
    rows: int
    before: LikelihoodOf
    after: LikelihoodOf
    training: tuple[LikelihoodInTraining, ...]


@dataclass(frozen=True)
class Record:
    """The whole experiment."""

    data: DataSummary
    settings: Settings
    versions: dict[str, str]
    seconds: float
    levels: tuple[float, ...]
    """Test accuracies whose first crossing is timed. They are set by the validation rows: shares of the way from the
    majority class to the best model."""
    learning_rates: tuple[LearningRateTrial, ...]
    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...]
    gradients: tuple[GradientSample, ...]
    information: Information
    likelihood: LikelihoodPart

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it; numbers that JSON lacks (infinity, NaN) become null."""
        plain = _finite(dataclasses.asdict(self))
        return {"record": "xent why", "schema": SCHEMA, **plain}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
