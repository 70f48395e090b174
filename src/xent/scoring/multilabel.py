"""Rows that have any number of labels, as rows of one label each: one for each pair of a row and a label.

    loss of a pair   -log q if the row has the label, -log(1 - q) if not: the binary cross-entropy

The mean over the pairs is the multi-label log loss. The label is a segment, named "label", and the pairs of a row are a
cluster unless a cluster is named, since they depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xent.errors import ArgumentError, LabelError, ShapeError, message
from xent.scoring.batch import as_array
from xent.scoring.sums import Array

SEGMENT = "label"
OPTIONAL = (
    "proba",
    "logits",
    "log_prob",
    "weight",
    "ids",
    "by",
    "cluster",
    "bytes",
    "characters",
    "reasons",
    "classes",
)


def pairs(call: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `ScoreState.from_batch` for the pairs of its rows and labels."""
    arguments = {**dict.fromkeys(OPTIONAL), **arguments}
    kind = "proba" if arguments["proba"] is not None else "logits"
    if arguments["log_prob"] is not None or arguments[kind] is None:
        problem = "found log_prob or no predictions"
        raise ArgumentError(message(call, "multilabel", problem, "Pass a probability or logit for each label"))
    predictions, labels = as_array(call, kind, arguments[kind]), as_array(call, "labels", arguments["labels"])
    if predictions.ndim != 2 or labels.shape != predictions.shape:
        problem = f"found shapes {labels.shape} and {predictions.shape} of labels and {kind}"
        raise ShapeError(message(call, "multilabel", problem, "Both need a column for each label"))
    if labels.dtype.kind not in "biuf" or not ((labels == 0) | (labels == 1)).all():
        row = int(((labels != 0) & (labels != 1)).any(axis=1).argmax()) if labels.dtype.kind in "biuf" else 0
        problem = f"row {arguments['first_row'] + row} has a value other than 0 and 1"
        raise LabelError(message(call, "labels", problem, "Pass indicators: 1 where a row has the label"))
    rows, number = predictions.shape
    names = arguments["classes"] if arguments["classes"] is not None else range(number)
    names = np.array(list(map(str, names)), object)
    ids, cluster = arguments["ids"], arguments["cluster"]
    if cluster is None:
        cluster = ids if ids is not None else np.arange(arguments["first_row"], arguments["first_row"] + rows)
    by = {name: _repeated(column, number) for name, column in (arguments["by"] or {}).items()}
    return {
        **arguments,
        **{name: _repeated(arguments[name], number) for name in ("weight", "bytes", "characters", "reasons")},
        kind: predictions.reshape(-1),
        "labels": labels.astype(np.int64).reshape(-1),
        "ids": None if ids is None else _named(as_array(call, "ids", ids), names),
        "by": {SEGMENT: np.tile(names, rows), **by},
        "cluster": _repeated(cluster, number),
        "classes": ("0", "1"),
        "first_row": arguments["first_row"] * number,
    }


def _repeated(column: Any, number: int) -> Any:
    return None if column is None else np.repeat(as_array("score", "multilabel", column), number, axis=0)


def _named(ids: Array, names: Array) -> Array:
    """Return the name of each pair."""
    found = np.empty(len(ids) * len(names), object)
    found[:] = [f"{name}/{label}" for name in ids.tolist() for label in names]
    return found
