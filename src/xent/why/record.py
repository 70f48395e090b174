"""The result of the experiment: dataclasses of numbers and names, which `to_dict` converts to the JSON of why.json.

Cross-entropies are in nats per row; squared errors (Brier scores) and accuracies have no unit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from xent.errors import ArgumentError, message

Loss = Literal["cross-entropy", "squared error"]
ModelName = Literal["softmax regression", "one hidden layer"]
Start = Literal["random", "confidently wrong"]

LOSSES: tuple[Loss, ...] = ("cross-entropy", "squared error")
MODELS: tuple[ModelName, ...] = ("softmax regression", "one hidden layer")
STARTS: tuple[Start, ...] = ("random", "confidently wrong")

SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """The settings of the experiment; everything else follows from the data."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 30
    batch_size: int = 32
    hidden_units: int = 32
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """The first grid of the search for a learning rate, which is extended while the best one is at an end."""

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "batch_size": self.batch_size, "hidden_units": self.hidden_units}
        for name, count in counts.items():
            if not (isinstance(count, Integral) and count >= 1):
                raise _refused(name, count, "a whole number of 1 or more")
        if not (_is_list(self.seeds) and all(isinstance(seed, Integral) and seed >= 0 for seed in self.seeds)):
            raise _refused("seeds", self.seeds, "whole numbers of 0 or more")
        rates = self.learning_rates
        if not (_is_list(rates) and all(isinstance(rate, Real) and 0 < rate < math.inf for rate in rates)):
            raise _refused("learning_rates", rates, "finite numbers above 0")

    def quick(self) -> Settings:
        """Return a smaller version: two seeds, a third of the epochs, half of the learning rates."""
        epochs = max(1, self.epochs // 3)
        return dataclasses.replace(self, seeds=self.seeds[:2], epochs=epochs, learning_rates=self.learning_rates[::2])


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and len(values) > 0


def _refused(name: str, value: Any, expected: str) -> ArgumentError:
    return ArgumentError(message("Settings", name, f"found {value!r}, expected {expected}", "See xent.why.Settings"))


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
    """Entropy of the class frequencies of the training rows: the cross-entropy of always predicting them."""


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
    """Measures on the test rows during a training."""

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
    """For each of the record's levels, the first step whose test accuracy reaches it; None if none does."""


@dataclass(frozen=True)
class Spread:
    """Median and range over the seeds; infinite for a level that was not reached."""

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
    """By the medians; a tie if they are equal or neither loss reached the level."""
    clear: bool
    """Whether the ranges over the seeds are disjoint."""


@dataclass(frozen=True)
class GradientSample:
    """One training row: the probability of its label, and the length of each loss's gradient by the logits."""

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
    """max |H(p, q) - H(p) - KL(p || q)| over all test rows: a rounding error."""
    mean_kl_divergence_nats: float
    mean_kl_divergence_reversed_nats: float
    label_entropy_nats: float
    """Entropy of one-hot labels: 0, so that cross-entropy, KL divergence and -log q[label] are equal."""
    label_cross_entropy_nats: float
    label_kl_divergence_nats: float
    label_mean_surprisal_nats: float


@dataclass(frozen=True)
class LikelihoodPoint:
    """The likelihood of the first rows: as a float64 product, and as a logarithm."""

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
class Prediction:
    """What a network says of one row."""

    probabilities: tuple[float, ...]
    """Of the example's classes, in their order."""
    cross_entropy_nats: float
    squared_error: float
    cross_entropy_gradient: float
    squared_error_gradient: float
    """Lengths of both gradients by the logits; no unit."""


@dataclass(frozen=True)
class Example:
    """One test row, as three networks with one hidden layer see it: the start, and what each loss made of it."""

    kind: Literal["worst", "disputed", "best"]
    """By the sum of both cross-entropies (highest, lowest), or by the distance between both predictions."""
    row: int
    """From 1, in the order of the source."""
    label: int
    classes: tuple[int, ...]
    """The label and the classes that either network holds most probable, at most 10, in ascending order."""
    start: Prediction
    by_cross_entropy: Prediction
    by_squared_error: Prediction
    values: tuple[float | str, ...]
    """In the order of the examples' columns."""
    pixels: tuple[int, ...] | None
    """From 0 to 255, the lowest and highest value of the data set, row by row."""


@dataclass(frozen=True)
class Examples:
    """Rows of the test set to look at, of the trainings from the confidently wrong start with the first seed."""

    columns: tuple[str, ...]
    """Those whose classes differ most, at most 12."""
    columns_in_source: int
    image: tuple[int, int] | None
    """Rows and columns of the pictures; larger ones are averaged down to 32 at most."""
    rows: tuple[Example, ...]


@dataclass(frozen=True)
class PlaneColumn:
    name: str
    values: tuple[float, ...]
    """Standardised."""


@dataclass(frozen=True)
class Plane:
    """Training rows of at most three classes, to be trained on in the page with any two of these columns."""

    classes: tuple[int, ...]
    labels: tuple[int, ...]
    """Places in `classes`."""
    columns: tuple[PlaneColumn, ...]


@dataclass(frozen=True)
class Record:
    """The whole experiment."""

    data: DataSummary
    settings: Settings
    versions: dict[str, str]
    seconds: float
    levels: tuple[float, ...]
    """Test accuracies whose first crossing is timed: fractions of the way from the majority class to the best model, by
    validation accuracy."""
    learning_rates: tuple[LearningRateTrial, ...]
    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...]
    gradients: tuple[GradientSample, ...]
    information: Information
    likelihood: LikelihoodPart
    examples: Examples | None = None
    plane: Plane | None = None
    """Rows of the data; None in a record to be shared, and in those of version 0.2."""

    def without_rows(self) -> Record:
        """Return the record without any row of the data: what `xent why --share` writes."""
        return dataclasses.replace(self, examples=None, plane=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON; numbers that JSON lacks (infinity, NaN) become null."""
        return {"record": "xent why", "schema": SCHEMA, **finite(dataclasses.asdict(self))}

    def _repr_html_(self) -> str:
        """The table of comparisons, which notebooks show."""
        from xent.why.notebook import record_html

        return record_html(self.to_dict())


def finite(value: Any) -> Any:
    """Replace infinite numbers and NaN by None, and tuples by lists, in nested dictionaries and sequences."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
