"""A batch of rows becomes a `ScoreState`: checks, kernels, and the rows that are kept whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xent.arrays import sum_tolerance
from xent.backends.cpu.cross_entropy import forward
from xent.errors import ArgumentError, DTypeError, LabelError, ShapeError, message
from xent.objective import Objective
from xent.scoring import kernels
from xent.scoring.kept import Kept, keys_of_ids, keys_of_rows, largest_losses, smallest_keys
from xent.scoring.state import MOST_INVALID, Form, ScoreState
from xent.scoring.sums import Array, zeros

CALL = "ScoreState.from_batch"
LIKELIEST = 5
"""Classes whose probabilities are kept with a surprising row."""
SAMPLE_NUMBERS = 500_000
"""Probabilities that the sample may hold: with many classes it has fewer rows."""
NONE, NO_INDEX, NO_MATRIX = np.empty(0), np.empty(0, np.int64), np.empty((0, 0))


@dataclass
class Rows:
    """What each row of a batch scored. Arrays are empty where there is nothing to know."""

    loss: Array
    status: Array
    label: Array
    weight: Array
    entropy: Array = field(default_factory=lambda: NONE)
    p: Array = field(default_factory=lambda: NO_MATRIX)
    target: Array = field(default_factory=lambda: NO_MATRIX)
    brier: Array = field(default_factory=lambda: NONE)
    confidence: Array = field(default_factory=lambda: NONE)
    predicted: Array = field(default_factory=lambda: NO_INDEX)
    correct: Array = field(default_factory=lambda: NONE)


def state_of(
    labels: Any,
    proba: Any = None,
    *,
    logits: Any = None,
    log_prob: Any = None,
    entropy: Any = None,
    weight: Any = None,
    ids: Any = None,
    by: Mapping[str, Any] | None = None,
    classes: tuple[str, ...] | None = None,
    clip: float | None = None,
    tolerance: float | None = None,
    first_row: int = 0,
    worst: int = 50,
    sample: int = 5_000,
) -> ScoreState:
    """See `ScoreState.from_batch`."""
    rows = row_scores(labels, proba, logits, log_prob, entropy, weight, tolerance)
    count = len(rows.loss)
    if clip is not None and rows.target.shape[1]:
        found = "found it with soft labels, whose loss has a term for each class"
        raise ArgumentError(message(CALL, "clip", found, "Leave it out, or raise the probabilities yourself"))
    ids = None if ids is None else _sized("ids", np.asarray(ids), count)
    by = {name: _sized(f"by[{name!r}]", np.asarray(of), count) for name, of in (by or {}).items()}
    number = rows.p.shape[1]
    form = Form(
        classes=_names(classes, number),
        soft=rows.target.shape[1] > 0,
        clip=_checked_clip(clip),
        weighted=weight is not None,
        by=tuple(by),
        identified=ids is not None,
        entropy=entropy is not None,
        worst=worst,
        sample=min(sample, SAMPLE_NUMBERS // max(number, 1)),
    )
    state = ScoreState.empty(form)
    if count:
        _add(state, rows)
        state.segments.update({name: _segment(rows, of, form.clip_loss) for name, of in by.items()})  # type: ignore[attr-defined]
        return _with_kept(state, rows, ids, first_row)
    return state


def row_scores(
    labels: Any,
    proba: Any,
    logits: Any = None,
    log_prob: Any = None,
    entropy: Any = None,
    weight: Any = None,
    tolerance: float | None = None,
) -> Rows:
    """Score each row of a batch."""
    given = [name for name, of in (("proba", proba), ("logits", logits), ("log_prob", log_prob)) if of is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given) or 'none of them'}"
        raise ArgumentError(message(CALL, "proba, logits, log_prob", found, "Pass exactly one of the three"))
    if log_prob is not None:
        rows = _narrow(log_prob, entropy)
    else:
        if entropy is not None:
            found = "found it without log_prob"
            raise ArgumentError(message(CALL, "entropy", found, "It belongs to log_prob"))
        rows = _wide(labels, given[0], proba if logits is None else logits, tolerance)
    if weight is not None:
        rows.weight = _sized("weight", _numbers("weight", weight), len(rows.loss)).astype(np.float64)
        rows.status[~(np.isfinite(rows.weight) & (rows.weight >= 0))] = kernels.WRONG_WEIGHT
    return rows


def _narrow(log_prob: Any, entropy: Any) -> Rows:
    """Rows of which only the log-probability of the label is known."""
    loss = 0.0 - _numbers("log_prob", log_prob).astype(np.float64)
    if loss.ndim != 1:
        found = f"found shape {loss.shape}, expected (rows,)"
        raise ShapeError(message(CALL, "log_prob", found, "Pass the log-probability of each row's label"))
    # A log-probability that rounding left just above 0 is one of 0.
    status = np.where(loss >= -1e-6, kernels.VALID, kernels.NOT_A_PROBABILITY).astype(np.int8)
    rows = Rows(np.maximum(loss, 0.0), status, NO_INDEX, NONE)
    if entropy is not None:
        rows.entropy = _sized("entropy", _numbers("entropy", entropy), len(loss)).astype(np.float64)
        status[~(np.isfinite(rows.entropy) & (rows.entropy >= 0))] = kernels.NOT_A_PROBABILITY
    return rows


def _wide(labels: Any, kind: str, given: Any, tolerance: float | None) -> Rows:
    """Rows with a probability or logit for each class."""
    p, tolerance = _matrix(kind, given, tolerance)
    count, classes = p.shape
    label = np.asarray(labels)
    soft = label.ndim == 2
    if label.shape not in ((count,), (count, classes)):
        found = f"found shape {label.shape} for {kind} of shape {p.shape}"
        raise ShapeError(message(CALL, "labels", found, f"Pass ({count},) class indices or ({count}, {classes})"))
    if not soft:
        label = _checked_labels(label, classes)
    soft_target = label.astype(np.float64) if soft else NO_MATRIX
    log_p = NO_MATRIX
    if kind == "logits":
        p, log_p = _softmax(p, label if not soft else None)
        tolerance = max(tolerance, 1e-6)
    results: dict[str, Any] = {"brier": np.empty(count), "confidence": np.empty(count)}
    results["predicted"] = np.empty(count, np.int64)
    loss, status = np.empty(count), np.empty(count, np.int8)
    if soft:
        entropy, correct = np.empty(count), np.empty(count)
        target = np.ascontiguousarray(soft_target)
        kernels.soft_rows(p, target, log_p, tolerance, loss, *results.values(), entropy, correct, status)
        return Rows(loss, status, NO_INDEX, NONE, entropy, p, target, **results, correct=correct)
    kernels.hard_rows(p, label, log_p if log_p.ndim == 1 else NONE, tolerance, loss, *results.values(), status)
    correct = (results["predicted"] == label).astype(np.float64)
    return Rows(loss, status, label, NONE, NONE, p, NO_MATRIX, **results, correct=correct)


def _softmax(logits: Array, label: Array | None) -> tuple[Array, Array]:
    """Probabilities, and the label's log-probability or, for soft labels, those of all classes.

    The loss is taken from the logits: a probability of 1e-400 is 0, and its logarithm is not infinite.
    """
    logits = logits.astype(np.float64, copy=False)
    anything = np.zeros(len(logits), np.int64) if label is None else label
    loss, lse = forward(logits, anything, Objective(ignore_index=-1, reduction="none"))
    with np.errstate(invalid="ignore", over="ignore"):
        log_p = logits - lse[:, np.newaxis]
        return np.exp(log_p), np.ascontiguousarray(log_p) if label is None else 0.0 - loss


def _matrix(kind: str, given: Any, tolerance: float | None) -> tuple[Array, float]:
    """Predictions as contiguous float32 or float64 (rows, classes), and how far from 1 their sums may be."""
    p = _numbers(kind, given)
    if tolerance is None:
        tolerance = sum_tolerance(float(np.finfo(p.dtype).eps) if p.dtype.kind == "f" else 0.0)
    if p.dtype != np.float32:
        p = p.astype(np.float64, copy=False)
    if p.ndim == 1:
        second = p.astype(np.float64, copy=False)
        p = np.stack([1.0 - second, second] if kind == "proba" else [np.zeros_like(second), second], axis=1)
    if p.ndim != 2 or p.shape[1] == 0:
        found = f"found shape {p.shape}, expected (rows, classes) or (rows,)"
        raise ShapeError(message(CALL, kind, found, "Pass one row for each prediction"))
    return np.ascontiguousarray(p), tolerance


def _checked_labels(label: Array, classes: int) -> Array:
    if label.dtype.kind not in "iub":
        found = f"found dtype {label.dtype}, expected integers"
        raise DTypeError(message(CALL, "labels", found, "Pass class indices, or names to xent.score with classes="))
    label = label.astype(np.int64, copy=False)
    outside = (label < 0) | (label >= classes)
    if outside.any():
        row = int(outside.argmax())
        found = f"class index {label[row]} at row {row} is outside [0, {classes})"
        raise LabelError(message(CALL, "labels", found, f"Labels of {classes} classes end at {classes - 1}"))
    return np.ascontiguousarray(label)


def _add(state: ScoreState, rows: Rows) -> None:
    """Add the rows to the sums of a new state."""
    form = state.form
    w, status = rows.weight, rows.status
    totals, classes = state.totals.reshape(-1), state.classes.reshape(-1)
    kernels.add_rows(rows.loss, rows.brier, rows.correct, rows.entropy, w, NO_INDEX, status, form.clip_loss, totals)
    clips = 0.0 - np.log(kernels.CLIPS)
    losses, clipped = state.losses.reshape(-1), state.clipped.reshape(-1)
    kernels.add_losses(rows.loss, w, status, form.clip_loss, clips, losses, clipped)
    if not form.classes:
        return
    kernels.add_confidence(rows.confidence, rows.correct, w, status, state.confidence.reshape(-1))
    if form.soft:
        kernels.add_soft_classes(rows.p, rows.target, rows.predicted, w, status, classes)
    else:
        kernels.add_classes(rows.label, rows.predicted, rows.loss, w, status, form.clip_loss, classes)
    if form.one_vs_rest:
        kernels.add_one_vs_rest(rows.p, rows.label, rows.target, w, status, state.one_vs_rest.reshape(-1))


def _segment(rows: Rows, of: Array, clip_loss: float) -> dict[str, Array]:
    """The totals of each value of a segment column."""
    import polars as pl

    texts = pl.Series([None if v is None else str(v) for v in of.tolist()], dtype=pl.String).fill_null("(missing)")
    names = texts.unique().sort()
    group = texts.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    sums = zeros(len(names), kernels.FIELDS)
    kernels.add_rows(
        rows.loss, rows.brier, rows.correct, rows.entropy, rows.weight, group, rows.status, clip_loss, sums.reshape(-1)
    )
    return dict(zip(names.to_list(), sums, strict=True))


def _with_kept(state: ScoreState, rows: Rows, ids: Array | None, first_row: int) -> ScoreState:
    """The state with the rows that it keeps whole."""
    keys = keys_of_rows(first_row, len(rows.loss)) if ids is None else keys_of_ids(ids)
    valid = np.flatnonzero(rows.status == kernels.VALID)
    wrong = np.flatnonzero(rows.status != kernels.VALID)
    everything = len(valid) == len(rows.loss)
    loss, key = (rows.loss, keys) if everything else (rows.loss[valid], keys[valid])
    worst = valid[largest_losses(loss, key, state.form.worst)]
    sample = valid[smallest_keys(key, state.form.sample)]
    bad = wrong[smallest_keys(keys[wrong], MOST_INVALID)]
    total = rows.p[bad].sum(axis=1, dtype=np.float64) if rows.p.shape[1] else np.full(len(bad), np.nan)

    def named(places: Array) -> dict[str, Array]:
        names = np.full(len(places), None, object)
        if ids is not None:
            names[:] = [str(i) for i in ids[places].tolist()]
        return {"key": keys[places], "row": places + first_row, "id": names}

    return replace(
        state,
        surprising=Kept({**named(worst), **_details(rows, worst)}),
        sample=Kept({**named(sample), **_whole(rows, sample)}),
        invalid=Kept({**named(bad), "reason": rows.status[bad], "total": total}),
        invalid_rows=len(wrong),
    )


def _common(rows: Rows, places: Array) -> dict[str, Array]:
    weight = rows.weight[places] if len(rows.weight) else np.ones(len(places))
    label = rows.label[places] if len(rows.label) else np.full(len(places), -1)
    return {"loss": rows.loss[places], "weight": weight, "label": label}


def _details(rows: Rows, places: Array) -> dict[str, Array]:
    """A surprising row: its likeliest classes with their probabilities, and that of its label."""
    found = _common(rows, places)
    if rows.p.shape[1]:
        p = rows.p[places].astype(np.float64)
        few = min(LIKELIEST, p.shape[1])
        order = (
            np.argpartition(-p, few - 1, axis=1)[:, :few] if few < p.shape[1] else np.tile(np.arange(few), (len(p), 1))
        )
        order = np.take_along_axis(
            order, np.argsort(-np.take_along_axis(p, order, axis=1), axis=1, kind="stable"), axis=1
        )
        found |= {"predicted": rows.predicted[places], "likeliest": order}
        found["probabilities"] = np.take_along_axis(p, order, axis=1)
    return found


def _whole(rows: Rows, places: Array) -> dict[str, Array]:
    """A sampled row: all of it."""
    found = _common(rows, places)
    if rows.p.shape[1]:
        found |= {"p": rows.p[places].astype(np.float64), "brier": rows.brier[places]}
        if rows.target.shape[1]:
            found["target"] = rows.target[places]
    return found


def _names(classes: tuple[str, ...] | None, number: int) -> tuple[str, ...]:
    names = tuple(map(str, range(number))) if classes is None else tuple(map(str, classes))
    if number and (len(names) != number or len(set(names)) != number):
        found = f"found {len(names)} names, {len(set(names))} of them different, for {number} classes"
        raise ArgumentError(message(CALL, "classes", found, "Name each class once, in the order of the columns"))
    return names if number else ()


def _checked_clip(clip: float | None) -> float | None:
    if clip is not None and not 0 < clip < 1:
        found = f"found {clip}, expected a probability between 0 and 1"
        raise ArgumentError(message(CALL, "clip", found, "Leave it out to score probabilities as they are"))
    return None if clip is None or math.isnan(clip) else float(clip)


def _numbers(argument: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        found = f"found dtype {array.dtype}, expected numbers"
        raise DTypeError(message(CALL, argument, found, "Convert it to numbers first"))
    return array


def _sized(argument: str, array: Array, count: int) -> Array:
    if array.shape != (count,):
        found = f"found shape {array.shape}, expected ({count},)"
        raise ShapeError(message(CALL, argument, found, "Pass one value for each row"))
    return array
