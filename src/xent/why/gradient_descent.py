"""Mini-batch gradient descent with the gradients of losses.py, for two models and two losses.

    softmax regression    logits = x @ W.T + b
    one hidden layer      logits = relu(x @ V.T + c) @ W.T + b

A loss gives its gradient by the logits; the rest of the chain rule is the same for both losses. Trainings of one model
are done together, in products over a leading axis: one of them alone is a thousand steps with matrices so small that
calling NumPy takes longer than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xent.why.data import Split
from xent.why.losses import gradients_of_means
from xent.why.record import Loss, ModelName

Array = NDArray[np.float64]
Parameters = list[Array]
"""Weight and bias of each layer, in turn."""


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model after some steps of its training; NaN where it was not measured."""

    step: int
    validation_accuracy: float
    accuracy: float = math.nan
    cross_entropy: float = math.nan
    squared_error: float = math.nan
    train_cross_entropy: float = math.nan


@dataclass(frozen=True)
class Descent:
    """One of the trainings that are done together: where it starts, and what it follows."""

    start: Parameters
    loss: Loss
    learning_rate: float
    seed: int
    """Determines the order of the rows only."""


@dataclass(frozen=True)
class Trained:
    parameters: Parameters
    evaluations: list[Evaluation]


def initial_parameters(model: ModelName, features: int, classes: int, hidden_units: int, seed: int) -> Parameters:
    """Return a random start: He initialisation for the hidden layer, small weights for the output, biases 0."""
    generator = np.random.default_rng(seed)
    widths = [features, hidden_units, classes] if model == "one hidden layer" else [features, classes]
    parameters = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        is_output = i == len(widths) - 2
        deviation = 0.1 / np.sqrt(fan_in) if is_output else np.sqrt(2 / fan_in)
        parameters += [generator.normal(0.0, deviation, (fan_out, fan_in)), np.zeros(fan_out)]
    return parameters


def logits_of(parameters: Parameters, features: Array) -> Array:
    """Return the model's logits for rows of features."""
    return _forward(parameters, features)[0]


def train(
    descents: Sequence[Descent],
    rows: Split,
    evaluate: Callable[[int, int, Parameters], Evaluation] | None,
    *,
    epochs: int,
    batch_size: int,
) -> list[Trained]:
    """Train copies of the starts, which are of one model, each as if it were alone.

    `evaluate(step, training, parameters)` is called for each of them after the steps of `evaluation_steps`.
    """
    parameters = [np.stack(layer) for layer in zip(*(descent.start for descent in descents), strict=True)]
    losses = [descent.loss for descent in descents]
    rates = np.array([descent.learning_rate for descent in descents])
    orders = _Orders([descent.seed for descent in descents], len(rows.labels))
    evaluations: list[list[Evaluation]] = [[] for _ in descents]
    steps = set(evaluation_steps(len(rows.labels), epochs, batch_size)) if evaluate else set()
    done = 0

    def measure() -> None:
        if evaluate and done in steps:
            for which, list_of_one in enumerate(evaluations):
                list_of_one.append(evaluate(done, which, [parameter[which] for parameter in parameters]))

    # A learning rate that is far too high overflows, and gets the low score that it should.
    with np.errstate(all="ignore"):
        measure()
        for _ in range(epochs):
            order = orders.next_epoch()
            for first in range(0, len(rows.labels), batch_size):
                chosen = order[:, first : first + batch_size]
                _step(parameters, Split(rows.features.take(chosen, axis=0), rows.labels[chosen]), losses, rates)
                done += 1
                measure()
    return [
        Trained([parameter[which].copy() for parameter in parameters], list_of_one)
        for which, list_of_one in enumerate(evaluations)
    ]


def evaluation_steps(rows: int, epochs: int, batch_size: int) -> list[int]:
    """Return the steps after which a training is evaluated: each of the first 16, and about 250 of all."""
    total = epochs * -(-rows // batch_size)
    return [done for done in range(total + 1) if done <= 16 or done % max(1, total // 250) == 0 or done == total]


class _Orders:
    """The order of the rows in each epoch, for each training; equal seeds share one."""

    def __init__(self, seeds: Sequence[int], rows: int) -> None:
        distinct = list(dict.fromkeys(seeds))
        self.rows = rows
        self.generators = [np.random.default_rng([seed, 1]) for seed in distinct]
        # One order for all of them has a leading axis of 1, so that their features are not copied for each.
        self.of_training = [0] if len(distinct) == 1 else [distinct.index(seed) for seed in seeds]

    def next_epoch(self) -> NDArray[np.int64]:
        """Return the orders, (trainings or 1, rows)."""
        return np.stack([generator.permutation(self.rows) for generator in self.generators])[self.of_training]


def _step(parameters: Parameters, batch: Split, losses: Sequence[Loss], learning_rates: Array) -> None:
    """Make one step of gradient descent for each training, in place; all arrays have the trainings as leading axis."""
    logits, hidden = _forward(parameters, batch.features)
    dlogits = gradients_of_means(losses, logits, batch.labels)
    weight = parameters[-2]
    gradients = [dlogits.mT @ hidden, dlogits.sum(axis=1)]
    if len(parameters) == 4:
        dhidden = (dlogits @ weight) * (hidden > 0)
        gradients = [dhidden.mT @ batch.features, dhidden.sum(axis=1), *gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter -= learning_rates.reshape(-1, *[1] * (parameter.ndim - 1)) * gradient


def spread_out(values: Array, most: int) -> list[int]:
    """Return the indices of at most `most` rows, evenly spaced from the lowest to the highest value."""
    order = np.argsort(values, kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))
    return [int(order[i]) for i in chosen]


def _forward(parameters: Parameters, features: Array) -> tuple[Array, Array]:
    """Return the logits and the input of the output layer; of one training, or of many with a leading axis."""
    *hidden_layer, weight, bias = parameters
    hidden = features
    if hidden_layer:
        hidden = np.maximum(features @ hidden_layer[0].mT + hidden_layer[1][..., None, :], 0.0)
    return hidden @ weight.mT + bias[..., None, :], hidden
