"""Some of the classes of each row, while the others lie elsewhere: what a shard has to tell, and its gradient.

With the shard's own log-sum-exp, and t as in xent/objective.py (its `classes` are all classes):

    lse_k  = log(sum(exp(z)))                          over the classes of the shard; -inf if all are masked
    loss_k = sum(t * (lse_k - z)),  mass_k = sum(t)    over them
    dx     = row_scale * ((mass + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx       mass and lse of all shards

A label is given relative to the first class of the shard: outside [0, classes) it lies on another one, and the row
counts all the same. Only a row whose label is `ignored` is left out: its results are 0. The loops are those of
along_classes.py, with each row a tile of its own, since one number per row has to be known before a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu import along_classes
from xent.backends.cpu.blocks import count_above, load
from xent.backends.cpu.compilation import device
from xent.backends.cpu.cross_entropy import FLOAT64, NO_LABELS, NOTHING, PARALLEL_SIZE
from xent.backends.cpu.formats import bits, encode, flat
from xent.backends.cpu.primitives import log
from xent.backends.cpu.streaming import staging_for, streams_done
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.threads import get_num_threads, over_rows
from xent.backends.cpu.tile import BLOCK, Inputs, Terms, from_lse, tile_for
from xent.objective import Objective

Array = NDArray[Any]

IGNORED = -(2**63)
"""The label of a row that counts for nothing."""


@dataclass(frozen=True)
class Shard:
    """Which classes are here: `classes` of them from `first`, of `total`."""

    first: int
    classes: int
    total: int

    def labels(self, labels: Array, ignore_index: int) -> Array:
        """Labels relative to the first class; IGNORED where they are to be ignored."""
        return np.where(labels == ignore_index, IGNORED, labels - self.first)


class Local(NamedTuple):
    """What a shard (or all of them) tells about each row, float64 arrays (tensors on other devices)."""

    lse: Any
    loss: Any
    mass: Any


class LocalStatistics(NamedTuple):
    """The same for statistics: `best` and `label_x` are logits as they are, `label_z` is bent; -inf elsewhere."""

    lse: Any
    entropy: Any
    best: Any
    best_at: Any
    label_x: Any
    label_z: Any


def forward(logits: Array, target: Array, objective: Objective, shard: Shard, *, threads: int | None = None) -> Local:
    """Return log-sum-exp, loss and mass of the shard, of logits (rows, classes) and relative labels or soft targets."""
    rows = len(logits)
    found = Local(np.full(rows, -np.inf), np.zeros(rows), np.zeros(rows))
    _run(_forward, logits, target, objective, shard, tuple(found), threads)
    return found


def backward(
    logits: Array,
    target: Array,
    lse: Array,
    mass: Array,
    row_scale: Array,
    objective: Objective,
    shard: Shard,
    *,
    out: Array,
    threads: int | None = None,
) -> None:
    """Write the gradient of sum(row_scale * loss), from `lse` and `mass` of all shards; all float64.

    `out` is shaped and typed like the logits, and may be the logits.
    """
    pull = mass + 2 * objective.z_loss * lse if objective.z_loss else mass
    _run(
        _backward, logits, target, objective, shard, (lse, pull * row_scale, row_scale, bits(out.reshape(-1))), threads
    )


def statistics(
    logits: Array, labels: Array, objective: Objective, shard: Shard, *, threads: int | None = None
) -> LocalStatistics:
    """Return what the shard knows of relative labels; an ignored one is nowhere."""
    rows = len(logits)
    low = [np.full(rows, -np.inf) for _ in range(4)]
    found = LocalStatistics(low[0], np.zeros(rows), low[1], np.zeros(rows, np.int64), low[2], low[3])
    _run(_statistics, logits, labels, objective, shard, tuple(found), threads)
    return found


def above(logits: Array, x: Array, *, threads: int | None = None) -> Array:
    """Return how many logits of each row are above x, which is float64."""
    count = np.zeros(len(logits), np.int64)
    _run(_above, logits, NO_LABELS, Objective(), Shard(0, logits.shape[1], logits.shape[1]), (x, count), threads)
    return count


def _run(
    function: Any, logits: Array, target: Array, objective: Objective, shard: Shard, results: Any, threads: int | None
) -> None:
    rows, classes = logits.shape
    if not classes or not rows:
        return
    stored, stride = flat(logits)
    nothing = NOTHING[FLOAT64 if logits.dtype == FLOAT64 else np.dtype(np.float32)]
    soft = target.dtype.kind == "f"
    labels, soft_target = (NO_LABELS, target.reshape(-1)) if soft else (target, nothing)
    weight = nothing if objective.weight is None else objective.weight
    # With one class smoothing changes nothing; leaving it out keeps the gradient exactly 0.
    smoothing = objective.label_smoothing if shard.total > 1 else 0.0
    options = np.array((objective.logit_scale, objective.softcap or 0.0, 1 - smoothing, smoothing / shard.total))
    arguments = (stored, stride, classes, labels, soft_target, weight, options, *results)
    over_rows(function, arguments, rows, (threads or get_num_threads()) if logits.size >= PARALLEL_SIZE else 1)


@device
def _terms(options: Any, soft: Any) -> Any:
    """`soft` is set in any case: the mass of a row is that of the classes which are here."""
    return Terms(
        len(soft) > 0 or options[3] > 0.0, True, options[2], options[3], 0.0, options[0], options[1], 0.0, IGNORED
    )


@device
def _set_label(inputs: Any, terms: Any, labels: Any, g: int, tile: Any) -> None:
    """Set label (-1 if it is elsewhere) and its share of t."""
    tile.label[0], tile.share[0] = -1, 0.0
    if len(labels) and 0 <= labels[g] < inputs.classes:
        tile.label[0] = labels[g]
        tile.share[0] = terms.on * inputs.weight[labels[g]] if len(inputs.weight) else terms.on


@device
def has_nan(inputs: Any, g: int, tile: Any) -> bool:
    """Whether there is a NaN among the logits of row g."""
    for start in range(0, inputs.classes, BLOCK):
        stop = min(start + BLOCK, inputs.classes)
        (logits,) = along_classes.logits_of(inputs, g, start, stop)
        highest = load(logits, tile.z[: stop - start])
        if highest != highest:
            return True
    return False


@device
def row_above(inputs: Any, g: int, tile: Any, x: float) -> int:
    """How many logits of row g are above x."""
    count = 0
    for start in range(0, inputs.classes, BLOCK):
        stop = min(start + BLOCK, inputs.classes)
        (logits,) = along_classes.logits_of(inputs, g, start, stop)
        z = tile.z[: stop - start]
        load(logits, z)
        count += count_above(z, z.dtype.type(x))
    return count


@row_kernel
def _forward(
    logits: Any, stride: int, classes: int, labels: Any, soft: Any, weight: Any, options: Any,
    lse: Any, loss: Any, mass: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Log-sum-exp, loss and mass."""
    # To the loops every row is without labels: those that are skipped are skipped here.
    inputs = Inputs(logits, stride, classes, 1, NO_LABELS, soft, weight)
    terms = _terms(options, soft)
    tile = tile_for(inputs, terms, True, False)
    for g in range(first, last):
        if len(labels) and labels[g] == IGNORED:
            lse[g] = 0.0
            continue
        _set_label(inputs, terms, labels, g, tile)
        along_classes.normalise_at_maximum(inputs, terms, g, 0, tile)
        reference, share = np.float64(tile.reference[0]), tile.share[0]
        mass[g] = tile.mass[0] + share
        if reference == -np.inf and tile.total[0] != tile.total[0]:
            # All masked, or a NaN among masked classes.
            lse[g] = -np.inf
            loss[g] = np.inf if mass[g] != 0.0 else 0.0
            if has_nan(inputs, g, tile):
                lse[g] = loss[g] = np.nan
            continue
        log_total = log(tile.total[0])
        lse[g] = reference + log_total
        of_label = share * (log_total + (reference - np.float64(tile.label_z[0]))) if share != 0.0 else 0.0
        loss[g] = tile.terms[0] + tile.mass[0] * log_total + of_label


@row_kernel
def _backward(
    logits: Any, stride: int, classes: int, labels: Any, soft: Any, weight: Any, options: Any,
    lse: Any, pull: Any, row_scale: Any, out: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Gradient from log-sum-exp and mass of all shards."""
    inputs = Inputs(logits, stride, classes, 1, NO_LABELS, soft, weight)
    terms = _terms(options, soft)
    tile = tile_for(inputs, terms, True, False)
    staging = staging_for(logits, out, BLOCK)
    # The derivative of the softcap has the logit scale in it.
    scale = 1.0 if terms.softcap != 0.0 else terms.scale
    for g in range(first, last):
        if len(labels) and labels[g] == IGNORED:
            nothing = encode(tile.z.dtype.type(0), out)
            for i in range(g * classes, (g + 1) * classes):
                out[i] = nothing
            continue
        _set_label(inputs, terms, labels, g, tile)
        from_lse(lse[g : g + 1], 1, tile)
        tile.target_factor[0] = row_scale[g] * scale
        tile.factor[0] = pull[g] * scale / tile.total[0]
        along_classes.gradients(inputs, terms, g, 1, tile, False, out, staging)
    streams_done()


@row_kernel
def _statistics(
    logits: Any, stride: int, classes: int, labels: Any, soft: Any, weight: Any, options: Any,
    lse: Any, entropy: Any, best: Any, best_at: Any, label_x: Any, label_z: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Log-sum-exp, entropy, best logit, and the label's."""
    inputs = Inputs(logits, stride, classes, 1, NO_LABELS, soft, weight)
    terms = _terms(options, soft)
    tile = tile_for(inputs, terms, True, False)
    for g in range(first, last):
        _set_label(inputs, terms, labels, g, tile)
        along_classes.order_and_slope(inputs, terms, g, 1, tile)
        at = g * stride
        best_at[g] = tile.best_at[0]
        load(logits[at + best_at[g] : at + best_at[g] + 1], tile.partial[:1])
        best[g] = tile.partial[0]
        if tile.label[0] >= 0:
            load(logits[at + tile.label[0] : at + tile.label[0] + 1], tile.partial[:1])
            label_x[g], label_z[g] = tile.partial[0], tile.label_z[0]
        if best[g] == -np.inf:
            continue  # all masked: log-sum-exp -inf, entropy 0
        log_total = log(tile.total[0])
        lse[g] = np.float64(tile.reference[0]) + log_total
        entropy[g] = log_total - tile.slope[0] / tile.total[0]


@row_kernel
def _above(
    logits: Any, stride: int, classes: int, labels: Any, soft: Any, weight: Any, options: Any,
    x: Any, count: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Count the logits above x."""
    inputs = Inputs(logits, stride, classes, 1, labels, soft, weight)
    tile = tile_for(inputs, _terms(options, soft), True, False)
    for g in range(first, last):
        count[g] = row_above(inputs, g, tile, x[g])
