"""The kernels of a shard of the classes (xent/backends/shard.py has the equations), on NumPy arrays.

The loops are those of along_classes.py, with each row a tile of its own, since a gradient needs a number of each row
that comes from all shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.backends.cpu import along_classes
from xent.backends.cpu.blocks import count_above, load
from xent.backends.cpu.compilation import device
from xent.backends.cpu.formats import as_kernel_array, bits, encode, flat
from xent.backends.cpu.primitives import log
from xent.backends.cpu.statistics_gradient import statistics_gradient
from xent.backends.cpu.streaming import staging_for, streams_done
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.threads import get_num_threads, over_rows
from xent.backends.cpu.tile import (
    BLOCK,
    NO_LABELS,
    PARALLEL_SIZE,
    Gradient,
    Inputs,
    computing_dtype,
    flattened,
    from_lse,
    terms_of,
    tile_for,
)
from xent.backends.protocol import Statistics
from xent.backends.shard import IGNORED, Local, LocalStatistics, Shard, share_elsewhere
from xent.objective import Objective

Array = NDArray[Any]


@dataclass(frozen=True)
class CpuShards:
    """The kernels of this file as a `xent.backends.shard.ShardBackend`."""

    threads: Callable[[], int] = get_num_threads

    def compute_dtype(self, dtype: Any) -> np.dtype[Any]:
        """The dtype of losses and arithmetic."""
        return computing_dtype(np.dtype(dtype))

    def forward(self, logits: Array, target: Array, objective: Objective, shard: Shard) -> Local:
        """Return log-sum-exp, loss and mass of the shard."""
        rows = len(logits)
        local = Local(np.full(rows, -np.inf), np.zeros(rows), np.zeros(rows))
        self._run(_forward, logits, target, objective, shard.total, tuple(local))
        return local

    def backward(
        self,
        logits: Array,
        target: Array,
        lse: Array,
        pull: Array,
        row_scale: Array,
        objective: Objective,
        shard: Shard,
        *,
        out: Array | None = None,
    ) -> Array:
        """Return row_scale * (pull * exp(z - lse) - t) * dz/dx."""
        out = memory.empty(logits.shape, logits.dtype) if out is None else out
        results = (as_kernel_array(lse), pull * row_scale, row_scale, bits(out.reshape(-1)))
        self._run(_backward, logits, target, objective, shard.total, results)
        return out

    def statistics(self, logits: Array, labels: Array, objective: Objective, shard: Shard) -> LocalStatistics:
        """Return the shard's part of the statistics of each row; an ignored label is in no shard."""
        rows = len(logits)
        low = [np.full(rows, -np.inf) for _ in range(4)]
        local = LocalStatistics(low[0], np.zeros(rows), low[1], np.zeros(rows, np.int64), low[2], low[3])
        self._run(_statistics, logits, labels, objective, shard.total, tuple(local))
        return local

    def count_above(self, logits: Array, x: Array) -> Array:
        """Return how many logits of each row are above x."""
        count = np.zeros(len(logits), np.int64)
        self._run(_above, logits, NO_LABELS, Objective(), logits.shape[1], (x, count))
        return count

    def statistics_gradient(
        self,
        logits: Array,
        labels: Array,
        statistics: Statistics,
        upstream: tuple[Array, Array, Array],
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> Array:
        """Return the gradient of the statistics of all shards by the logits of this one."""
        rows = np.ascontiguousarray(logits)
        out = memory.empty(rows.shape, rows.dtype) if out is None else out
        upstream = share_elsewhere(labels, rows.shape[1], upstream)
        here = replace(objective, ignore_index=IGNORED)
        statistics_gradient(rows, labels, statistics, upstream, here, out=out, threads=self.threads)
        return out

    def _run(
        self, kernel: Any, logits: Array, target: Array, objective: Objective, classes: int, results: tuple[Any, ...]
    ) -> None:
        if not logits.size:
            return
        stored, stride = flat(logits)
        dtype = computing_dtype(logits.dtype)
        soft = target.dtype.kind == "f"
        labels, soft_target = (NO_LABELS, target.reshape(-1)) if soft else (target, np.empty(0, dtype))
        weight, options = flattened(objective, dtype, classes)
        arguments = (stored, stride, logits.shape[1], labels, soft_target, weight, options, *results)
        over_rows(kernel, arguments, len(logits), self.threads() if logits.size >= PARALLEL_SIZE else 1)


@device
def _set_label(inputs: Any, terms: Any, labels: Any, g: int, tile: Any) -> None:
    """Set label (-1 if it belongs to another shard) and its share of t."""
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
    # The loops see rows without labels; ignored rows are skipped here.
    inputs = Inputs(logits, stride, classes, 1, NO_LABELS, IGNORED, soft, weight)
    terms = terms_of(options, inputs, False)
    tile = tile_for(inputs, terms, True, None, False)
    for g in range(first, last):
        if len(labels) and labels[g] == IGNORED:
            lse[g] = 0.0
            continue
        _set_label(inputs, terms, labels, g, tile)
        along_classes.normalise_at_maximum(inputs, terms, g, 0, tile)
        reference, share = np.float64(tile.reference[0]), tile.share[0]
        mass[g] = tile.mass[0] + share
        if reference == -np.inf and tile.total[0] != tile.total[0]:
            # All classes are masked, or the others are NaN.
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
    inputs = Inputs(logits, stride, classes, 1, NO_LABELS, IGNORED, soft, weight)
    terms = terms_of(options, inputs, False)
    tile = tile_for(inputs, terms, True, None, False)
    gradient = Gradient(out, staging_for(logits, out, BLOCK), 1.0)
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
        along_classes.gradients(inputs, terms, g, 1, tile, False, gradient)
    streams_done()


@row_kernel
def _statistics(
    logits: Any, stride: int, classes: int, labels: Any, soft: Any, weight: Any, options: Any,
    lse: Any, entropy: Any, best: Any, best_at: Any, label_x: Any, label_z: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Log-sum-exp, entropy, best logit, and the label's."""
    inputs = Inputs(logits, stride, classes, 1, NO_LABELS, IGNORED, soft, weight)
    terms = terms_of(options, inputs, False)
    tile = tile_for(inputs, terms, True, None, False)
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
    inputs = Inputs(logits, stride, classes, 1, labels, IGNORED, soft, weight)
    tile = tile_for(inputs, terms_of(options, inputs, False), True, None, False)
    for g in range(first, last):
        count[g] = row_above(inputs, g, tile, x[g])
