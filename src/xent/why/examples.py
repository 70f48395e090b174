"""Rows of the data for the report: test rows to look at, and training rows of two columns to train on in the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xent import information as theory
from xent.why.data import Dataset, Splits
from xent.why.gradient_descent import Parameters, logits_of
from xent.why.losses import gradient_lengths, losses_of_rows
from xent.why.record import LOSSES, Example, Examples, Loss, Plane, PlaneColumn, Prediction

Array = NDArray[np.float64]
Kind = Literal["worst", "disputed", "best"]

OF_EACH_KIND = 6
MOST_COLUMNS = 12
MOST_CLASSES = 10
LARGEST_SIDE = 32
LONGEST_VALUE = 40
"""Characters of a text value that are kept."""
PLANE_ROWS = 240
PLANE_CLASSES = 3
PLANE_COLUMNS = 6


def examples(start: Parameters, raced: Mapping[Loss, Parameters], dataset: Dataset, splits: Splits) -> Examples:
    """Return the worst, the most disputed and the best test rows of the two networks that started from `start`."""
    networks = [logits_of(parameters, splits.test.features) for parameters in (start, *(raced[x] for x in LOSSES))]
    labels = splits.test.labels
    columns = _telling_columns(dataset)
    shown = [dataset.columns[i] for i in columns]
    pixels = _pixels(dataset)
    rows = []
    for kind, row in _chosen(networks[1:], labels):
        probabilities = theory.softmax(np.stack([logits[row] for logits in networks]))
        classes = _classes(probabilities[1:].max(axis=0), int(labels[row]))
        at_start, by_ce, by_se = (_prediction(logits[row], int(labels[row]), classes) for logits in networks)
        place = int(splits.test_rows[row])
        number = place if dataset.row_numbers is None else int(dataset.row_numbers[place])
        values = () if pixels is not None else tuple(_value(dataset, place, i) for i in columns)
        picture = None if pixels is None else tuple(int(v) for v in pixels[place].ravel())
        rows.append(Example(kind, number + 1, int(labels[row]), classes, at_start, by_ce, by_se, values, picture))
    image = None if pixels is None else (pixels.shape[1], pixels.shape[2])
    return Examples(() if image else tuple(shown), len(dataset.columns), image, tuple(rows))


def _chosen(networks: list[Array], labels: NDArray[np.int64]) -> list[tuple[Kind, int]]:
    """Return which rows to show, each once, the worst first."""
    nats = sum(np.nan_to_num(losses_of_rows("cross-entropy", z, labels), nan=math.inf) for z in networks)
    first, second = (theory.softmax(z) for z in networks)
    apart = np.nan_to_num(np.abs(first - second).sum(axis=1))
    orders: dict[Kind, NDArray[np.int64]] = {
        "worst": np.argsort(-np.asarray(nats), kind="stable"),
        "disputed": np.argsort(-apart, kind="stable"),
        "best": np.argsort(np.asarray(nats), kind="stable"),
    }
    chosen: dict[int, Kind] = {}
    for kind, order in orders.items():
        chosen |= dict.fromkeys([int(row) for row in order if int(row) not in chosen][:OF_EACH_KIND], kind)
    return [(kind, row) for row, kind in chosen.items()]


def _classes(highest: Array, label: int) -> tuple[int, ...]:
    """Return the label and the most probable classes, in ascending order."""
    order = [int(j) for j in np.argsort(-np.nan_to_num(highest), kind="stable") if j != label]
    return tuple(sorted([label, *order[: MOST_CLASSES - 1]]))


def _prediction(logits: Array, label: int, classes: tuple[int, ...]) -> Prediction:
    z, labels = logits[None], np.array([label])
    losses = (float(losses_of_rows(loss, z, labels)[0]) for loss in LOSSES)
    lengths = (float(length[0]) for length in gradient_lengths(z, labels))
    q = theory.softmax(z)[0]
    return Prediction(tuple(_digits(q[j]) for j in classes), *map(_digits, (*losses, *lengths)))


def _value(dataset: Dataset, row: int, column: int) -> float | str:
    """Return a value of the table: a number, or a text cut to a length that can be shown."""
    numeric = dataset.numbers.shape[1]
    if column < numeric:
        return _digits(dataset.numbers[row, column])
    text = str(dataset.categories[row, column - numeric])
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _pixels(dataset: Dataset) -> NDArray[np.int64] | None:
    """Return all rows as pictures from 0 to 255, averaged down to sides of 32 at most; None if they are none."""
    if dataset.image is None:
        return None
    low, high = dataset.numbers.min(), dataset.numbers.max()
    pictures = (dataset.numbers - low) * (255 / ((high - low) or 1.0))
    pictures = pictures.reshape(-1, *dataset.image)
    for axis, side in ((1, dataset.image[0]), (2, dataset.image[1])):
        if side > LARGEST_SIDE:
            edges = np.linspace(0, side, LARGEST_SIDE + 1).astype(int)
            parts = [pictures.take(range(a, b), axis=axis).mean(axis=axis) for a, b in pairwise(edges)]
            pictures = np.stack(parts, axis=axis)
    whole: NDArray[np.int64] = pictures.round().astype(np.int64)
    return whole


def _telling_columns(dataset: Dataset) -> list[int]:
    """Return the columns whose classes differ most, in the order of the table."""
    texts = range(dataset.categories.shape[1])
    by_column = list(separation(dataset.numbers, dataset.labels))
    by_column += [_separation_of_text(dataset.categories[:, i], dataset.labels) for i in texts]
    order = np.argsort(-np.array(by_column), kind="stable")[:MOST_COLUMNS]
    return sorted(int(i) for i in order)


def _separation_of_text(values: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the separation of the category that separates most."""
    indicators = (values[:, None] == np.unique(values)[None, :]).astype(np.float64)
    return float(separation(indicators, labels).max())


def separation(columns: Array, labels: NDArray[np.int64]) -> Array:
    """Return the variance between classes as a share of the whole variance, for each column; 0 of a constant one."""
    with np.errstate(all="ignore"):
        whole = columns.var(axis=0)
        between = np.zeros_like(whole)
        for label in np.unique(labels):
            inside = columns[labels == label]
            between += len(inside) / len(columns) * (inside.mean(axis=0) - columns.mean(axis=0)) ** 2
        share: Array = np.where(whole > 0, between / whole, 0.0)
    return np.nan_to_num(share)


def plane(dataset: Dataset, splits: Splits) -> Plane | None:
    """Return training rows in the columns that separate their classes most; None without two numeric columns."""
    numeric = dataset.numbers.shape[1]
    if numeric < 2:
        return None
    counts = np.bincount(splits.train.labels)
    classes = sorted(int(c) for c in np.argsort(-counts, kind="stable")[:PLANE_CLASSES] if counts[c])
    inside = np.flatnonzero(np.isin(splits.train.labels, classes))
    inside = inside[np.linspace(0, len(inside) - 1, min(PLANE_ROWS, len(inside))).round().astype(int)]
    features, labels = splits.train.features[inside, :numeric], splits.train.labels[inside]
    order = [int(i) for i in np.argsort(-separation(features, labels), kind="stable")[:PLANE_COLUMNS]]
    columns = [(dataset.columns[i], features[:, i]) for i in order]
    if dataset.image is not None:
        pixels = dataset.numbers[splits.train_rows[inside]]
        columns = [*_components(pixels), *columns[: PLANE_COLUMNS - 2]]
    named = tuple(PlaneColumn(name, tuple(_digits(v, 4) for v in values)) for name, values in columns)
    return Plane(tuple(classes), tuple(classes.index(int(label)) for label in labels), named)


def _components(pixels: Array) -> list[tuple[str, Array]]:
    """Return the first two principal components: single pixels say little about a picture."""
    centred = pixels - pixels.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    scores = left[:, :2] * sizes[:2]
    return [(f"principal component {i + 1}", scores[:, i] / (scores[:, i].std() or 1.0)) for i in range(2)]


def _digits(value: float, digits: int = 6) -> float:
    """Round to what a report shows."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else float(value)
