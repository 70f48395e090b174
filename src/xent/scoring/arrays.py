"""Arrays in memory or memory-mapped, in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import numpy as np
import polars as pl

from xent.backends.cpu.threads import get_num_threads
from xent.errors import ArgumentError, DataError, ShapeError, message
from xent.scoring import kernels
from xent.scoring.batch import NO_INDEX, NONE, row_scores, state_of
from xent.scoring.columns import class_indices
from xent.scoring.kept import keys_of_ids
from xent.scoring.state import ScoreState
from xent.scoring.sums import Array, merged, zeros

CALL = "score"
PIECE_NUMBERS = 2**20

Piece = tuple[int, Array | None, Callable[[], ScoreState]]


def array_pieces(
    data: Mapping[str, Any], classes: tuple[str, ...] | None, given: Mapping[str, Any], by: Any
) -> Iterator[Piece]:
    """Pieces of (rows, id keys, job) of arrays of predictions, labels, weights, ids and segments."""
    if len(data) != 1:
        text = f"found {' and '.join(data) or 'none of them'}"
        raise ArgumentError(message(CALL, "proba, logits, log_prob", text, "Name exactly one array of predictions"))
    ((kind, values),) = data.items()
    predictions = _array(values)
    rows = predictions.shape[0] if predictions.ndim else 0
    if not rows:
        raise DataError(message(CALL, "data", "there are no rows", "Pass at least one"))
    if kind != "log_prob" and given["label"] is None:
        raise ArgumentError(message(CALL, "label", "there are no labels", "Pass an array of class indices or names"))
    columns = {name: _column(name, given.get(name), rows) for name in ("label", "weight", "id", "entropy")}
    if by is not None and not isinstance(by, Mapping) and len(by):
        text = f"found a {type(by).__name__}"
        raise ArgumentError(message(CALL, "by", text, "With arrays, pass a mapping from a name to an array"))
    segments: dict[str, Any] = {name: _column(f"by[{name!r}]", of, rows) for name, of in dict(by or {}).items()}
    options = {name: given[name] for name in ("clip", "tolerance", "worst")}
    number = 2 if predictions.ndim == 1 else predictions.shape[1]
    names = classes or tuple(map(str, range(number)))
    size = max(1024, PIECE_NUMBERS // number)
    for first in range(0, rows, size):
        last = min(first + size, rows)
        part = {name: None if column is None else column[first:last] for name, column in columns.items()}

        def job(part: Mapping[str, Any] = part, first: int = first, last: int = last) -> ScoreState:
            labels = None if kind == "log_prob" else part["label"]
            if labels is not None and labels.ndim == 1:
                labels = class_indices(pl.Series(labels), names, first)
            predicted: dict[str, Any] = {kind: predictions[first:last]}
            return state_of(
                labels,
                **predicted,
                entropy=part["entropy"],
                weight=part["weight"],
                ids=part["id"],
                by={name: of[first:last] for name, of in segments.items()},
                classes=None if kind == "log_prob" else names,
                first_row=first,
                **options,
            )

        yield last - first, None if part["id"] is None else keys_of_ids(part["id"]), job


def _array(values: Any) -> Array:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def _column(name: str, values: Any, rows: int) -> Array | None:
    if values is None:
        return None
    column = _array(values)
    if column.shape[:1] != (rows,):
        text = f"found shape {column.shape} for {rows} rows"
        raise ShapeError(message(CALL, name, text, "Pass one value for each row"))
    return column


def mean_totals(proba: Array, labels: Array, weight: Array | None) -> Array | None:
    """kernels.TOTALS of the rows alone, without histograms and kept rows; None if a row cannot be scored."""
    size = max(1024, PIECE_NUMBERS // (proba.shape[1] if proba.ndim == 2 else 2))

    def totals(first: int) -> Array | None:
        part = slice(first, first + size)
        rows = row_scores(labels[part], proba[part], weight=None if weight is None else weight[part])
        if (rows.status != kernels.VALID).any():
            return None
        found = zeros(kernels.FIELDS)
        kernels.add_rows(rows.loss, NONE, NONE, NONE, rows.weight, NO_INDEX, rows.status, math.inf, found.reshape(-1))
        return found

    with ThreadPoolExecutor(get_num_threads(), thread_name_prefix="xent-score") as pool:
        parts = list(pool.map(totals, range(0, len(proba), size)))
    return None if any(part is None for part in parts) else reduce(merged, (p for p in parts if p is not None))
