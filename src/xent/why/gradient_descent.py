"""Mini-batch gradient descent with the gradients of `xent.numpy`, for two models and two losses.

    softmax regression    logits = x @ W.T + b
    one hidden layer      logits = relu(x @ V.T + c) @ W.T + b

A loss gives its value and its gradient by the logits; the rest of the chain rule is the same for both losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xent.numpy
from xent.why.data import Split
from xent.why.record import Loss, ModelName

Array = NDArray[np.float64]
Parameters = list[Array]
"""Weight and bias of each layer, in turn."""

VALUE_AND_GRAD: dict[Loss, Callable[..., tuple[Any, Any]]] = {
    "cross-entropy": xent.numpy.cross_entropy_value_and_grad,
    "squared error": xent.numpy.squared_error_value_and_grad,
}


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model after some steps of its training."""

    step: int
    validation_accuracy: float
    accuracy: float
    cross_entropy: float
    squared_error: float
    train_cross_entropy: float


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


def step(parameters: Parameters, batch: Split, loss: Loss, learning_rate: float) -> None:
    """Make one step of gradient descent, in place."""
    logits, hidden = _forward(parameters, batch.features)
    _, dlogits = VALUE_AND_GRAD[loss](logits, batch.labels)
    weight = parameters[-2]
    gradients = [dlogits.T @ hidden, dlogits.sum(axis=0)]
    if len(parameters) == 4:
        dhidden = (dlogits @ weight) * (hidden > 0)
        gradients = [dhidden.T @ batch.features, dhidden.sum(axis=0), *gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter -= learning_rate * gradient


def train(
    start: Parameters,
    train_rows: Split,
    evaluate: Callable[[int, Parameters], Evaluation] | None,
    *,
    loss: Loss,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Trained:
    """Train a copy of `start`; the seed determines the order of the rows only.

    `evaluate` is called about 250 times, and after each of the first 16 steps.
    """
    parameters = [parameter.copy() for parameter in start]
    generator = np.random.default_rng([seed, 1])
    rows = len(train_rows.labels)
    total = epochs * -(-rows // batch_size)
    evaluations = [evaluate(0, parameters)] if evaluate else []
    done = 0
    # A learning rate that is far too high overflows, and gets the low score that it should.
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(epochs):
            order = generator.permutation(rows)
            for first in range(0, rows, batch_size):
                chosen = order[first : first + batch_size]
                step(parameters, Split(train_rows.features[chosen], train_rows.labels[chosen]), loss, learning_rate)
                done += 1
                if evaluate and (done <= 16 or done % max(1, total // 250) == 0 or done == total):
                    evaluations.append(evaluate(done, parameters))
    return Trained(parameters, evaluations)


def gradient_lengths(logits: Array, labels: Any) -> list[Array]:
    """Return the Euclidean length of each loss's gradient by the logits, for each row."""
    gradients = (function(logits, labels, reduction="none")[1] for function in VALUE_AND_GRAD.values())
    return [np.linalg.norm(gradient, axis=1) for gradient in gradients]


def spread_out(values: Array, most: int) -> list[int]:
    """Return the indices of at most `most` rows, evenly spaced from the lowest to the highest value."""
    order = np.argsort(values, kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))
    return [int(order[i]) for i in chosen]


def _forward(parameters: Parameters, features: Array) -> tuple[Array, Array]:
    """Return the logits and the input of the output layer."""
    *hidden_layer, weight, bias = parameters
    hidden = features
    if hidden_layer:
        hidden = np.maximum(features @ hidden_layer[0].T + hidden_layer[1], 0.0)
    return hidden @ weight.T + bias, hidden
